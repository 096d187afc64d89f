"""Computes from the `model` section alone: parameters, operations, shapes. Needs no torch."""
