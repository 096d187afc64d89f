"""Renders `results.json`: the page, the Markdown summary, the gates."""
