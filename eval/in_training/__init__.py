"""Scores parts of the evaluation while a model trains."""
