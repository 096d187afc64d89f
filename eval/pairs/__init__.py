"""Writes pairs of texts as prompts: solved examples first, then the source."""
