"""Turns records into conversations, preference pairs and prompts, and says why one is unusable."""
