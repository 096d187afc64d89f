"""The recipe: its sections, their defaults and limits, and how a YAML file becomes one validated object."""
