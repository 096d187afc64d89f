"""Finds the files of a source: local paths, globs, URLs, lists of files."""
