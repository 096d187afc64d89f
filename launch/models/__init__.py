"""Uses a trained model: sample from it, export it, import one."""
