"""Asks people which answer is better, and how good one is."""
