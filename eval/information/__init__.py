"""Measures how many bits one text saves of another, and whether the right text saves more than a wrong one."""
