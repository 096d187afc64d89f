"""Turns documents into token shards: vocabulary, encoding, packing into files."""
