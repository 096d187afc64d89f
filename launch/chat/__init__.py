"""Talks to a model: in a terminal, on a page, and through an OpenAI-compatible API."""
