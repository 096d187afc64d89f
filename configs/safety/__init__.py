"""Limits on input from others: bounded parsing, hidden secrets, safe terminals, no links, no code."""
