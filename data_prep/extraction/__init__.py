"""Turns HTML and XML into the text that a reader would see."""
