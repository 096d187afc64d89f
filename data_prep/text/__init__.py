"""Bytes to text and text to text: encodings, normal forms, character classes, n-grams."""
