"""Counts the rows of a recipe's embedding, before its data is prepared. Free of torch."""

from __future__ import annotations

from configs.schema.recipe import Recipe
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab


def embedding_rows(recipe: Recipe) -> int | None:
    """Returns the padded rows of the embedding; None for a `char` tokenizer, which depends on the data."""
    tokenizer = recipe.data.tokenizer
    if tokenizer.kind == "char":
        return None
    if tokenizer.kind == "file":
        assert tokenizer.path is not None
        return recipe.model.padded_vocab(Vocab.load(tokenizer.path).size)
    if tokenizer.kind in ("byte", "kmer"):
        return recipe.model.padded_vocab(train_vocab(tokenizer, []).size)
    return recipe.model.padded_vocab(tokenizer.vocab_size)
