"""Recipes and the ground shared by all packages: what a run is made of, validated."""
