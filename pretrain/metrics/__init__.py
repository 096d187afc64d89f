"""Measures a run: training metrics, validation loss, start-up times."""
