"""Trains a transformer on token shards: batches, model, engine, checkpoints."""
