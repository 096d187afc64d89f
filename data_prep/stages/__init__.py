"""Runs the stages of data preparation in order, on the driver."""
