"""Turns raw records into documents and takes each through the chain of rules."""
