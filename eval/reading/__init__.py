"""Asks a model: log-likelihoods of tokens and generated answers, on one rank or on all, each item once."""
