"""Codes a file as the tokens that a model predicts, and brings it back to the byte."""
