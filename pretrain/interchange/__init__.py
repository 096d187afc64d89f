"""Reads and writes models in the formats of others: Hugging Face directories, GGUF files."""
