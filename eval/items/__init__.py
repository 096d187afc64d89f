"""Keeps what each score is made of, item by item, as Parquet."""
