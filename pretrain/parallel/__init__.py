"""Divides batches, parameters and matrices between ranks."""
