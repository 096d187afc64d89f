"""Starts training or an evaluation on all nodes of a Ray cluster."""
