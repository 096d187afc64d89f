"""Scores generated text: completions, BLEU and chrF."""
