"""Compares runs on the same items."""
