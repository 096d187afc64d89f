"""Scores text by its likelihood: perplexity, bits per byte, compressors beside them."""
