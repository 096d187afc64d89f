"""Samples from a trained model, exports it, and imports one."""
