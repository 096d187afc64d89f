"""Checks that fast kernels compute what plain ones do, and records whether a run repeats bit for bit."""
