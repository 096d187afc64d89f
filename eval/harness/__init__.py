"""Runs benchmarks of lm-eval on models of a run."""
