"""Tells before a run what it will do, need and cost, and whether it can work."""
