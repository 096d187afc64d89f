"""Losses over the model's outputs; the loop does not know which one it runs."""
