"""Prepares data: raw text to documents, and documents to token shards."""
