"""Generates text for scores: completions, translations and checked answers."""
