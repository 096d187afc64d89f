"""Scores texts by what they share with references: BLEU, chrF and ROUGE."""
