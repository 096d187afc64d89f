"""Predicts memory and time of training before it runs."""
