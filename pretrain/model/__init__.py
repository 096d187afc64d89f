"""The transformer: its layers and its kernels."""
