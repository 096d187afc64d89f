"""Starts, watches and restarts the processes that train on this machine."""
