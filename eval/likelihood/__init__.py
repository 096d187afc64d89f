"""Scores text by likelihood: perplexity and bits per byte, with compressors for comparison."""
