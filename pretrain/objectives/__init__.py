"""Objectives: what is trained. Each is a loss over the model's outputs; the loop does not know which one it runs."""
