"""Draws answers from the policy, values them, and makes training batches of them."""
