"""Finds text that an earlier document has already: whole documents, near-duplicates, lines, passages."""
