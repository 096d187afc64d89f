"""The transformer: its layers, its kernels, and text generation."""
