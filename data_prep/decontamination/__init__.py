"""Finds training documents that share text with evaluation sets."""
