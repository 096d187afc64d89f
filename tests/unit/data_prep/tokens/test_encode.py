"""The fast encoder gives the ids of `tokenizers`, whatever the text; vocabularies lose nothing."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from configs.schema.data import Tokenizer as Settings
from data_prep.tokens import encode as encode_module
from data_prep.tokens.encode import NASTY, agrees, exact_encoder, fast_encoder, segments, splitter
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab

KINDS: list[dict[str, Any]] = [
    {"kind": "byte"},
    {"kind": "char"},
    {"kind": "bpe", "vocab_size": 320, "pattern": "gpt2"},
    {"kind": "bpe", "vocab_size": 320, "pattern": "gpt4"},
    {"kind": "bpe", "vocab_size": 320, "pattern": "qwen2"},
    {"kind": "bpe", "vocab_size": 320, "pattern": "sequence"},
    {"kind": "kmer", "kmer": 3, "alphabet": "ACGT"},
    {"kind": "kmer", "kmer": 1, "alphabet": "ab-]^&中"},
    {"kind": "kmer", "kmer": 2, "alphabet": "hel中"},
]
TRAINING = [*NASTY * 3, *["hello there, the other weather is better than the other; don't wörld 中文中文"] * 5]
# All of Unicode that is assigned, and some that is not.
EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x32400), *range(0x3FF00, 0x40100), *range(0xE0000, 0xE0200)]))
U16 = np.dtype("<u2")


@cache
def vocab_of(number: int) -> Vocab:
    return train_vocab(Settings(**KINDS[number]), TRAINING)


def random_texts() -> list[str]:
    chance = random.Random(1)
    pools = [EVERY[:0x3000], EVERY, " \n'sStTlLrRevm1a\r\t😀中.𝔸"]
    return ["".join(chance.choice(chance.choice(pools)) for _ in range(1000)) for _ in range(100)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KINDS)))
def test_identical_ids(number: int) -> None:
    vocab = vocab_of(number)
    encode = fast_encoder(vocab, U16)
    assert encode is not None
    exact = exact_encoder(vocab, U16)
    every = [EVERY, "a".join(EVERY), " " + " ".join(EVERY[::5]) + " '"] if number in (2, 3) else [EVERY[::9]]
    for text in [*NASTY, *every, *random_texts(), "", "a"]:
        assert encode(text) == exact(text)


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_lossless_and_counted_in_bytes(number: int) -> None:
    vocab = vocab_of(number)
    assert vocab.lossless
    assert vocab.eod_id == 0
    for text in [*NASTY, "unseen: ☃ ẞ 𓀀 <0xE4> <|endoftext|>"]:
        ids = vocab.encode(text)
        assert vocab.decode(ids) == text
        assert vocab.eod_id not in ids
        assert int(vocab.token_bytes[ids].sum()) == len(text.encode())
    assert vocab.token_bytes[vocab.eod_id] == 0


def test_the_check_sees_a_wrong_id() -> None:
    vocab = vocab_of(2)
    encode = fast_encoder(vocab, U16)
    assert encode is not None
    assert agrees(encode, vocab, U16, ["plain"])
    assert not agrees(lambda text: encode(text.replace("plain", "plane")), vocab, U16, ["plain"])


def test_full_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "_CACHE_PIECES", 3)
    vocab = vocab_of(3)
    encode = fast_encoder(vocab, U16)
    assert encode is not None
    assert agrees(encode, vocab, U16, TRAINING)


def test_segments_are_cut_where_pieces_end() -> None:
    text = "".join(random_texts()) + " some words\n and 12 numbers " * 200
    for name in ("gpt2", "gpt4", "qwen2", "sequence"):
        cut = [piece for segment in segments(text, 100) for piece in splitter(name)(segment)]
        assert cut == list(splitter(name)(text))
    assert len(list(segments(text, 100))) > 10


def test_kmers() -> None:
    vocab = vocab_of(6)
    assert vocab.size == 1 + 256 + 4**3
    spell = vocab.tokenizer.id_to_token
    for text, tokens in {
        "ACGTTTGA": ["ACG", "TTT", "G", "A"],
        "ACNACGT": ["A", "C", "N", "ACG", "T"],
        "acgACG": ["a", "c", "g", "ACG"],
        "ACG\nTTT": ["ACG", "Ċ", "TTT"],
        "": [],
    }.items():
        assert [spell(index) for index in vocab.encode(text)] == tokens
        assert vocab.decode(vocab.encode(text)) == text


def test_chromosomes_and_proteins() -> None:
    chance = random.Random(2)
    dna = "".join(chance.choice("ACGT") for _ in range(300_001))
    protein = "M" + "".join(chance.choice("ACDEFGHIKLMNPQRSTVWYX*-") for _ in range(5000))
    for number in (5, 6):
        vocab = vocab_of(number)
        encode = fast_encoder(vocab, U16)
        assert encode is not None
        for text in (dna, protein, dna[:1000] + "N" * 70_000 + dna[1000:2000].lower(), f"{dna[:70]}\n{dna[70:140]}\n"):
            ids = np.frombuffer(encode(text), dtype=U16)
            assert encode(text) == exact_encoder(vocab, U16)(text)
            assert int(vocab.token_bytes[ids].sum()) == len(text)
            assert vocab.decode(ids[:1000].tolist()) == text[: int(vocab.token_bytes[ids[:1000]].sum())]
    assert len(encode(dna)) // 2 == 100_001


def test_a_vocabulary_over_sequences_learns_longer_tokens() -> None:
    chance = random.Random(3)
    motifs = ["".join(chance.choice("ACGT") for _ in range(12)) for _ in range(8)]
    genome = "".join(chance.choice(motifs) for _ in range(2000))
    vocab = train_vocab(Settings(vocab_size=320, pattern="sequence"), [genome])
    assert max(map(len, vocab.tokenizer.get_vocab())) > 8
    assert len(vocab.encode(genome)) < len(genome) / 3


def test_the_sample_of_sequences_is_small() -> None:
    assert Settings(pattern="sequence").sample_bytes == 20_000_000 < Settings().sample_bytes
    assert Settings(pattern="sequence", sample_bytes=5).sample_bytes == 5


def test_kmer_mistakes() -> None:
    with pytest.raises(ValueError, match=r"20 letters make 25,600,000,000 strings of 8, more than 1,048,576; lower"):
        train_vocab(Settings(kind="kmer", kmer=8, alphabet="ACDEFGHIKLMNPQRSTVWY"), [])
    with pytest.raises(ValueError, match="white space"):
        train_vocab(Settings(kind="kmer", alphabet="AC "), [])


def test_unknown_pre_tokenizers_are_left_to_tokenizers() -> None:
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert fast_encoder(Vocab(tokenizer), U16) is None


def test_added_tokens_in_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(vocab_of(2).tokenizer.to_str())
    tokenizer.add_tokens(["<think>"])
    vocab = Vocab(tokenizer)
    vocab.save(tmp_path)
    vocab = Vocab.load(tmp_path)
    encode = fast_encoder(vocab, U16)
    assert encode is not None
    assert agrees(encode, vocab, U16, ["well <think>hm</think> so"])


def test_training_is_repeatable_and_specials_come_first() -> None:
    settings = Settings(vocab_size=300, special_tokens=["<|endoftext|>", "<|pad|>"])
    first, second = (train_vocab(settings, TRAINING) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert [first.tokenizer.token_to_id(token) for token in settings.special_tokens] == [0, 1]
    assert first.size == 300


def test_vocabulary_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.tokenizer\.vocab_size is 5000, .* supports only (\d+) tokens"):
        train_vocab(Settings(vocab_size=5000), TRAINING)
    with pytest.raises(ValueError, match=r"need 258; raise it"):
        train_vocab(Settings(vocab_size=257, special_tokens=["<|endoftext|>", "<|b|>"]), TRAINING)
    vocab_of(2).save(tmp_path)
    with pytest.raises(ValueError, match=r"no token '<eos>'.*'<\|endoftext\|>'"):
        Vocab.load(tmp_path, "<eos>")
    with pytest.raises(ValueError, match=r"no tokenizer\.json here"):
        Vocab.load(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Vocab.load(tmp_path)
