"""Counts what became of every document, and shows it with examples."""
