"""Writes, finds, checks and loads checkpoints."""
