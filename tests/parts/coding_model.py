"""A tiny model that codes texts of two letters in less than xz does, made up in a moment; and such texts."""

from __future__ import annotations

import random

import torch

from configs.schema.model import Model
from pretrain.model.transformer import Transformer
from tests.parts.chat_model import chat_vocab

LETTERS = "ab"
CONTEXT = 16  # so that it fills up, and is read again


def coding_model(seed: int = 1) -> Transformer:
    """Expects either letter at about one half, and a little more or less by what stands before it."""
    torch.manual_seed(seed)
    sizes = {"num_layers": 2, "hidden_size": 16, "num_heads": 2}
    config = Model(family="llama", **sizes, context_length=CONTEXT, tied_embeddings=False, init_std=0.05)
    model = Transformer(config, config.padded_vocab(chat_vocab().size)).eval()
    letters = [chat_vocab().encode(letter)[0] for letter in LETTERS]
    with torch.no_grad():
        model.embed.weight[:, 0] += 4.0
        assert model.lm_head is not None
        model.lm_head.weight[:, 0] -= 1.0
        model.lm_head.weight[letters, 0] += 3.0
    return model


def coding_text(length: int = 6000) -> str:
    """Letters in no order."""
    return "".join(random.Random(0).choices(LETTERS, k=length))
