"""Watches training: loss spikes, heartbeats, slow ranks, silent corruption."""
