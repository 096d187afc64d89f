"""Turns documents into vectors: the mean of a model's states, at will in fewer dimensions."""
