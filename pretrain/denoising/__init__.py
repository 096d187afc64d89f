"""Fills in masked tokens: in any order, in blocks, around tokens that stay as they are."""
