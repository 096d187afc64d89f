"""Protects against untrusted input: bounded parsing, hidden secrets, safe terminal output, no links, no code."""
