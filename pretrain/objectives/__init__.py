"""What training makes better: what is read, the loss, what is validated. The loop knows none of it."""
