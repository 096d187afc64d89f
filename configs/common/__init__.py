"""Helpers that all packages share: files, locks, exit codes, progress bars, formatted numbers."""
