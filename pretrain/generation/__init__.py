"""Generates text: reads prompts, decodes many texts side by side, draws tokens by counted noise."""
