"""Scores a checkpoint and renders the report."""
