"""Decides which text stands in which batch at which step."""
