"""Splits a stage into units of work, runs them on workers, and records what was done."""
