"""Serves the page on which people judge answers, and reads what they said."""
