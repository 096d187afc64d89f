"""Recipes: what a run is made of, validated, with shared ground rules for files and progress."""
