"""Starts everything: the `replica` command, clusters, plans."""
