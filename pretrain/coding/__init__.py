"""Codes a corpus while a model learns it, and decodes it by training again."""
