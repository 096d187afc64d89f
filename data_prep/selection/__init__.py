"""Chooses among documents by their code lengths, which `replica score` writes."""
