"""Summarises documents by choosing sentences, and scores summaries beside such baselines."""
