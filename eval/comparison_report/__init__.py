"""Renders one page for any number of runs: scores side by side, curves, and what their recipes differ in."""
