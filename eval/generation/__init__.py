"""Scores text that the model writes: completions, BLEU and chrF."""
