"""Runs lm-eval's benchmarks on our models."""
