"""Tells what an answer is worth: by its reference, form and length, by a model, or by a function of the user."""
