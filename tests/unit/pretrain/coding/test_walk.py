"""Windows coded by a model: both sides compute the same, and only what is not known is coded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.schema.model import Model
from pretrain.batches.source import document_positions
from pretrain.coding.entropy import DamagedStream
from pretrain.coding.strands import Strand, Strands
from pretrain.coding.walk import BATCHES, CHECKSUMS, FIRST, Reading, Walk, Writing, rest, rest_rows
from pretrain.model.transformer import Transformer

VOCAB, EOD, CONTEXT = 11, 10, 8
LENGTHS = {"a": 100, "none": 0, "b": 41, "one": 1, "held-out": 20}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    config = Model(num_layers=2, hidden_size=16, num_heads=2, context_length=CONTEXT, dropout=0.0)
    model = Transformer(config, 16).eval()  # five rows of padding
    with torch.no_grad():
        for parameter in model.parameters():  # or nothing would depend on the context
            parameter.normal_(std=0.5)
    return model


def empty() -> Strands:
    strands, start = [], 0
    for name, length in LENGTHS.items():
        strands.append(Strand("validation" if name == "held-out" else "train", name, start, length, 0, 0))
        start += length
    return Strands(strands, VOCAB, EOD)


def full() -> Strands:
    strands = empty()
    strands.tokens[:] = np.random.default_rng(0).integers(0, VOCAB, len(strands.tokens))
    strands.tokens[[3, 4, 38, 66, 71]] = EOD
    return strands


# Rows of batches: neighbours in both orders, a window twice in a batch and again later, and another source.
BATCHES_OF_WINDOWS = [
    [("a", 3), ("a", 2), ("b", 0)],
    [("a", 4), ("a", 4), ("b", 4)],
    [("a", 2), ("a", 3), ("b", 0)],
    [("a", 0), ("a", 2), ("b", 1)],
]


def walked(strands: Strands, coder: Writing | Reading, model: Transformer, masks: bool = False) -> None:
    walk = Walk(strands, coder, masks)
    for batch in BATCHES_OF_WINDOWS:
        walk(model, np.array([strands.start_of(*row, CONTEXT) for row in batch]), CONTEXT)
    for starts, width in rest(strands, CONTEXT, 5):
        walk(model, starts, width)


@pytest.mark.parametrize("masks", [False, True])
def test_all_tokens_come_back(model: Transformer, masks: bool) -> None:
    strands, back = full(), empty()
    writing = Writing(VOCAB)
    walked(strands, writing, model, masks)
    assert strands.known.all()
    assert writing.symbols[FIRST] + writing.symbols[BATCHES] == len(strands.tokens), "each token once"
    reading = Reading(writing.stream(), VOCAB)
    walked(back, reading, model, masks)
    reading.finish()
    assert (back.tokens == strands.tokens).all() and back.known.all() and back.digest() == strands.digest()
    assert (back.counts == np.bincount(strands.tokens, minlength=VOCAB)).all()
    bits = sum(writing.bits.values())
    assert bits - 1 < 8 * len(writing.stream()) < 1.001 * bits + 64


@pytest.mark.parametrize("masks", [False, True])
def test_coded_in_as_many_bits_as_the_model_of_training_says(model: Transformer, masks: bool) -> None:
    strands, writing = full(), Writing(VOCAB)
    starts = np.array([strands.start_of("a", window, CONTEXT) for window in (0, 4, 8)])  # no two share a token
    Walk(strands, writing, masks)(model, starts, CONTEXT)
    rows = strands.tokens[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64)
    tokens, targets = torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])
    positions = document_positions(rows[:, :-1] == EOD) if masks else None
    with torch.no_grad():
        logits = model(tokens, positions=positions)[..., :VOCAB].double()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert writing.symbols == {FIRST: 3, BATCHES: 24}
    assert writing.bits[BATCHES] == pytest.approx(float(nats) / np.log(2), rel=1e-5)
    assert writing.bits[FIRST] == pytest.approx(3 * np.log2(VOCAB)), "nothing was met before"


def test_what_is_known_is_not_coded_again(model: Transformer) -> None:
    strands, writing = full(), Writing(VOCAB)
    walk, starts = Walk(strands, writing, False), np.array([8, 8, 24])
    walk(model, starts, CONTEXT)
    stream, symbols = writing.stream(), dict(writing.symbols)
    assert symbols == {FIRST: 2, BATCHES: 16}
    walk(model, starts, CONTEXT)
    assert (writing.stream(), dict(writing.symbols)) == (stream, symbols)
    walk(model, np.array([16]), CONTEXT)  # between the two: its first and its last token are known
    assert writing.symbols == {FIRST: 2, BATCHES: 16 + 7}


def test_a_model_that_computes_otherwise_is_noticed_soon(model: Transformer) -> None:
    strands, writing = full(), Writing(VOCAB)
    walk = Walk(strands, writing, False)
    for place in range(0, 80, 4):  # 20 batches
        walk(model, np.array([place]), 4)
    assert writing.symbols[CHECKSUMS] == 5  # 16 bits in base 11
    other = Transformer(model.config, 16).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embed.weight[0] += 1e-3
    walk = Walk(empty(), Reading(writing.stream(), VOCAB), False)
    with pytest.raises(DamagedStream, match="went wrong within the last 16 batches"):
        for place in range(0, 64, 4):
            walk(other, np.array([place]), 4)


def test_weights_that_are_broken_are_named(model: Transformer) -> None:
    broken = Transformer(model.config, 16).eval()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's weights or its arithmetic are broken"):
        Walk(full(), Writing(VOCAB), False)(broken, np.array([0]), CONTEXT)


def test_rows_after_training_fit_the_memory(model: Transformer) -> None:
    assert rest_rows(model, CONTEXT) == 64
    assert rest_rows(model, 2**18) == 4  # 2 * 2 layers * 16 numbers a column
    assert rest_rows(model, 2**30) == 1
