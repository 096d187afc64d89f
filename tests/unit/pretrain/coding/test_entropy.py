"""The entropy coder: what is coded comes back, in as many bits as the model says."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pretrain.coding import entropy
from pretrain.coding.entropy import DamagedStream, Encoder, SymbolDecoder, probabilities
from tests.parts.exact_coder import exact_decode, exact_encode


def drawn(steps: int, rows: int, size: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, R, V) in fp32, and symbols (N, R) drawn from them."""
    generator = np.random.default_rng(size)
    logits = (generator.normal(size=(steps, rows, size)) * spread).astype(np.float32)
    noise = generator.gumbel(size=logits.shape)
    return logits, (logits + noise).argmax(axis=-1)


def coded(symbols: np.ndarray, logits: np.ndarray, size: int) -> bytes:
    encoder = Encoder(size)
    for some, rows in zip(symbols, logits, strict=True):
        encoder.encode(some, rows)
    return encoder.stream()


def ideal_bits(symbols: np.ndarray, logits: np.ndarray) -> float:
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    nats = np.logaddexp.reduce(rows, axis=1) - rows[np.arange(len(rows)), symbols.ravel()]
    return float(nats.sum() / np.log(2))


@pytest.mark.parametrize(("steps", "rows", "size"), [(400, 8, 2), (200, 8, 261), (40, 4, 2048), (6, 2, 50_000)])
def test_symbols_come_back_in_as_many_bits_as_the_model_says(steps: int, rows: int, size: int) -> None:
    logits, symbols = drawn(steps, rows, size)
    stream = coded(symbols, logits, size)
    decoder = SymbolDecoder(stream, size)
    assert all((decoder.decode(rows) == some).all() for some, rows in zip(symbols, logits, strict=True))
    decoder.finish()
    ideal = ideal_bits(symbols, logits)
    # A word at the end, and what 2**-24 for each of the other symbols takes from the coded one.
    assert ideal - 1 < 8 * len(stream) <= ideal + 64 + symbols.size * 2 * size / 2**24 / np.log(2)


def test_as_long_as_exact_arithmetic_coding() -> None:
    logits, symbols = drawn(60, 1, 7)
    exact = exact_encode(symbols[:, 0], logits[:, 0])
    assert exact_decode(exact, logits[:, 0]) == symbols[:, 0].tolist()
    assert len(exact) - 1 <= 8 * len(coded(symbols, logits, 7)) <= len(exact) + 64


def test_a_symbol_that_the_model_excludes_can_be_coded_at_24_bits() -> None:
    logits = np.array([[0.0, -np.inf, -1e30, -80.0, 3e38]], dtype=np.float32)
    for symbol in range(5):
        stream = coded(np.full((10, 1), symbol), np.repeat(logits[None], 10, axis=0), 5)
        decoder = SymbolDecoder(stream, 5)
        assert [decoder.decode(logits).item() for _ in range(10)] == [symbol] * 10
        assert 8 * len(stream) <= (32 if symbol == 4 else 24 * 10 + 64)


def test_padding_of_the_embedding_gets_no_code() -> None:
    logits, symbols = drawn(50, 3, 5)
    padded = np.concatenate([logits, np.full((50, 3, 3), 40.0, np.float32)], axis=-1)
    padded[..., 6] = np.nan
    assert coded(symbols, padded, 5) == coded(symbols, logits, 5)


def test_a_row_means_the_same_alone_and_beside_others() -> None:
    logits, _ = drawn(1, 9, 263)
    alone = np.concatenate([probabilities(row[None], 261) for row in logits[0]])
    assert alone.tobytes() == probabilities(logits[0], 261).tobytes()
    strided = np.asfortranarray(logits[0])
    assert alone.tobytes() == probabilities(strided, 261).tobytes()
    assert alone.tobytes() == probabilities(logits[0].astype(np.float64), 261).tobytes()


def test_any_number_of_rows_at_a_time() -> None:
    logits, symbols = drawn(1, 12, 31)
    whole = coded(symbols, logits, 31)
    pieces = Encoder(31)
    for first, last in ((0, 0), (0, 5), (5, 6), (6, 12)):
        pieces.encode(symbols[0, first:last], logits[0, first:last])
    assert pieces.stream() == whole
    decoder = SymbolDecoder(whole, 31)
    assert decoder.decode(logits[0, :0]).shape == (0,)
    assert (decoder.decode(logits[0]) == symbols[0]).all()
    assert Encoder(31).stream() == b""
    SymbolDecoder(b"", 31).finish()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_named(value: float) -> None:
    logits = np.zeros((3, 4), dtype=np.float32)
    logits[1, 2] = value
    with pytest.raises(ValueError, match=f"row 1 of the logits holds {value}"):
        Encoder(4).encode(np.zeros(3, int), logits)
    with pytest.raises(ValueError, match="row 1"):
        SymbolDecoder(b"", 4).decode(logits)
    with pytest.raises(ValueError, match="row 0 of the logits holds -inf"):
        Encoder(4).encode(np.zeros(1, int), np.full((1, 4), -np.inf))


def test_other_mistakes_are_named() -> None:
    logits = np.zeros((1, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="symbol 4 cannot be coded: the vocabulary has the ids 0 to 3"):
        Encoder(4).encode(np.array([4]), logits)
    with pytest.raises(ValueError, match="symbol -1"):
        Encoder(4).encode(np.array([-1]), logits)
    with pytest.raises(ValueError, match="2 symbols cannot be coded by 1 rows"):
        Encoder(4).encode(np.array([0, 1]), logits)
    with pytest.raises(ValueError, match=r"shape \(1, 4\) cannot code the ids 0 to 4"):
        Encoder(5).encode(np.array([0]), logits)
    with pytest.raises(ValueError, match="not in float16"):
        Encoder(4).encode(np.array([0]), logits.astype(np.float16))
    with pytest.raises(ValueError, match="a vocabulary of 1 symbols"):
        Encoder(1)


def test_damage_that_can_be_seen() -> None:
    logits, symbols = drawn(50, 4, 31)
    stream = coded(symbols, logits, 31)
    with pytest.raises(DamagedStream, match="no whole number of 4-byte words"):
        SymbolDecoder(stream[:-1], 31)
    early = SymbolDecoder(stream, 31)
    early.decode(logits[0])
    with pytest.raises(DamagedStream, match="goes on behind its last symbol"):
        early.finish()
    # Words that no encoder writes for these rows.
    outside, rows = SymbolDecoder(b"\xff" * 8, 2), np.full((10, 2), [0.3, 0.1], np.float32)
    with pytest.raises(DamagedStream, match="damaged, or was coded by a model that computes otherwise"):
        for _ in range(10_000):
            outside.decode(rows)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ValueError, match="constriction, which is not installed"):
        entropy.Encoder(4)
