"""Makes one training step with DeepSpeed; the one room that knows it."""
