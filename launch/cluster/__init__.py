"""Starts training on all nodes of a Ray cluster."""
