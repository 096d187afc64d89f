"""Vocabularies from a file: text is only text, and what does not come back is an error or counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from configs.schema.data import Tokenizer as Settings
from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare_inline
from data_prep.tokens.encode import NASTY, exact_encoder, fast_encoder
from data_prep.tokens.vocab import Vocab, byte_alphabet
from data_prep.tokens.vocab_training import train_vocab

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/.,[]|_▁ "
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def special(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def unigram(byte_fallback: bool = False) -> Tokenizer:
    """As SentencePiece models are converted."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0), *((letter, -3.0) for letter in LETTERS)]
    made = Tokenizer(models.Unigram([*pieces, *((name, -9.0) for name in BYTES)], 0, byte_fallback=byte_fallback))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return special(made, "</s>", "<unk>", "<s>")


def word_piece() -> Tokenizer:
    tokens = ["[UNK]", "</s>", "[SEP]", "[CLS]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return special(made, "</s>", "[SEP]", "[CLS]", "[UNK]")


def word_level() -> Tokenizer:
    made = Tokenizer(models.WordLevel(numbered(["[UNK]", "</s>", "write", "to", "close"]), unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return special(made, "</s>", "[UNK]")


def merged() -> Tokenizer:
    """BPE whose merges lead to its end-of-document token, as in converted Llama models."""
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("t", "o")]
    tokens = ["<unk>", "</s>", *BYTES, *LETTERS, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE(numbered(tokens), merges, unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return special(made, "</s>", "<unk>")


def whole_pieces() -> Tokenizer:
    """BPE that takes a piece from its table before merging, as Llama 3 does; the special token is a word."""
    made = Tokenizer(models.BPE(numbered(["EOD", *byte_alphabet()]), [], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return special(made, "EOD")


def plain_token() -> Tokenizer:
    """Its end-of-document token is an added token that is not special, which is looked for in text."""
    made = Tokenizer(models.BPE(numbered(byte_alphabet()), []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([AddedToken("<eod>", normalized=False), AddedToken("<gap>", normalized=False)])
    return made


MODELS: dict[str, tuple[Callable[[], Tokenizer], str, str]] = {
    "unigram": (unigram, "</s>", "write </s> to close the <s> tag <unk>"),
    "unigram with bytes": (lambda: unigram(True), "</s>", "write </s> to close, é"),
    "WordPiece": (word_piece, "</s>", "write </s> to [SEP] close [CLS]"),
    "WordLevel": (word_level, "</s>", "write </s> to close"),
    "BPE merges": (merged, "</s>", "write </s> to close"),
    "BPE pieces": (whole_pieces, "EOD", "EOD to close EOD"),
    "not special": (plain_token, "<eod>", "write <eod> to close<gap>"),
}


def saved(tokenizer: Tokenizer, directory: Path) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


@pytest.mark.parametrize("name", MODELS)
def test_no_special_id_comes_out_of_a_text(name: str, tmp_path: Path) -> None:
    make, end, text = MODELS[name]
    vocab = Vocab.load(saved(make(), tmp_path), end)
    ids = vocab.encode(text)
    assert vocab.special_ids.isdisjoint(set(ids) - {vocab.unknown_id})
    assert vocab.eod_id not in ids
    dtype = np.dtype(np.int32)
    for encode in filter(None, (exact_encoder(vocab, dtype), fast_encoder(vocab, dtype))):
        assert np.frombuffer(encode(text), dtype).tolist() == ids
    if name in ("BPE merges", "BPE pieces", "not special", "unigram"):
        assert vocab.lost(text, ids) == 0
    if vocab.lossless:
        assert vocab.decode(ids) == text
    # The ids are the file's own, and the file stays what it is.
    plain = "write to close"
    assert ids != vocab.tokenizer.encode(text, add_special_tokens=False).ids or name == "not special"
    assert vocab.encode(plain) == vocab.tokenizer.encode(plain, add_special_tokens=False).ids
    vocab.save(tmp_path / "again")
    assert Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json")).token_to_id(end) == vocab.eod_id


@pytest.mark.parametrize("kind", ["kmer", "char"])
def test_special_tokens_that_are_letters_stay_apart_from_text(kind: str, tmp_path: Path) -> None:
    token = "ACG" if kind == "kmer" else "A"
    train_vocab(Settings(kind=kind, special_tokens=[token]), ["ACGT"]).save(tmp_path)
    vocab = Vocab.load(tmp_path, token)
    ids = vocab.encode("ACGTACG")
    assert vocab.eod_id not in ids and vocab.decode(ids) == "ACGTACG" and vocab.lossless
    assert vocab.token_bytes[ids].sum() == 7


def byte_level(alphabet: list[str], end: str = "<|endoftext|>") -> Tokenizer:
    made = Tokenizer(models.BPE(numbered([end, *alphabet]), []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return special(made, end)


def test_a_byte_level_vocabulary_without_all_bytes_is_said_at_once(tmp_path: Path) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options: dict[str, Any] = {"vocab_size": 60, "special_tokens": ["<|endoftext|>"], "show_progress": False}
    trained.train_from_iterator(["hello world this is plain text"] * 100, trainers.BpeTrainer(**options))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the vocabulary is byte-level but has no token for \d+ of"):
        Vocab.load(saved(trained, tmp_path))
    with pytest.raises(ValueError, match=r"no token for 1 of the bytes .*0x41 \('A'\)"):
        Vocab.load(saved(byte_level([char for char in byte_alphabet() if char != "A"]), tmp_path))
    with pytest.raises(ValueError, match=r"0x41 \('A'\).*keep its special tokens apart"):
        train_vocab(Settings(kind="byte", special_tokens=["A"]), []).try_out()
    # Bytes that UTF-8 never has may be missing.
    never = {byte_alphabet()[byte] for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    kept = [char for char in byte_alphabet() if char not in never]
    assert Vocab.load(saved(byte_level(kept), tmp_path)).lossless


def without(part: str, **settings: Any) -> Tokenizer:
    """A byte-level tokenizer of which one part takes from the text, or adds to it."""
    made = byte_level(byte_alphabet())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=part == "prefix", use_regex=False)
    made.pre_tokenizer = whole
    if part == "split":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), whole])
    if part == "white space":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), whole])
    if part == "normalizer":
        made.normalizer = normalizers.Lowercase()
    if part == "strip":
        made.add_tokens([AddedToken("x", lstrip=True, rstrip=True)])
    return made


@pytest.mark.parametrize(
    ("part", "lost"), [("prefix", 0), ("split", 2), ("white space", 2), ("normalizer", 2), ("strip", 2), ("none", 0)]
)
def test_bytes_alone_make_no_vocabulary_lossless(part: str, lost: int, tmp_path: Path) -> None:
    """Those that `lossless` wrongly vouched for ended as 'a fault of the encoder', after everything was encoded."""
    vocab = Vocab.load(saved(without(part), tmp_path))
    text = "Hello x World" if part in ("strip",) else "Hello my World"
    ids = vocab.encode(text)
    assert vocab.lossless == (part == "none")
    assert vocab.lost(text, ids) == lost


def test_what_is_unknown_is_counted(tmp_path: Path) -> None:
    letters = special(
        Tokenizer(models.BPE(numbered(["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz "]), [])), "<|endoftext|>"
    )
    vocab = Vocab.load(saved(letters, tmp_path))
    assert vocab.lost("hello", vocab.encode("hello")) == 0
    text = "Hello World, 2024!"
    assert vocab.lost(text, vocab.encode(text)) == len("HW,2024!") and not vocab.lossless
    assert vocab.lost("naïve", vocab.encode("naïve")) == 2  # bytes
    known = Vocab.load(saved(word_piece(), tmp_path), "</s>")
    assert known.lost("abc Ünk", known.encode("abc Ünk")) == len(" Ünk".encode())


def test_the_unknown_token_ends_no_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gives '\[UNK\]', which ends documents, for what it does not know"):
        Vocab.load(saved(word_level(), tmp_path), "[UNK]")


def test_the_same_text_gives_the_same_ids(tmp_path: Path) -> None:
    made = train_vocab(Settings(vocab_size=265), ["the same text " * 50]).tokenizer
    description = json.loads(made.to_str())
    description["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    vocab = Vocab.load(tmp_path)
    assert len({tuple(vocab.encode("the same text the same text")) for _ in range(20)}) == 1


def test_trained_vocabularies_give_every_text_back() -> None:
    for settings in (Settings(vocab_size=280), Settings(kind="byte"), Settings(kind="char"), Settings(kind="kmer")):
        vocab = train_vocab(settings, NASTY)
        vocab.try_out()
        assert vocab.lossless
        assert [vocab.decode(vocab.encode(text)) for text in NASTY] == list(NASTY)


# -------------------------------------------------------------------------------------------------- a stranger's file
def changed(directory: Path, **parts: Any) -> Path:
    """A byte tokenizer with parts of its JSON replaced."""
    description = json.loads(byte_level(byte_alphabet()).to_str())
    for part, value in parts.items():
        description[part] = {**description[part], **value} if part == "model" else value
    (directory / "tokenizer.json").write_text(json.dumps(description))
    return directory


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWING = [{"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 10)] * 8}]
GROWING += [replace({"Regex": "a*"}, "b" * 100), replace({"String": ""}, "b" * 100)]
GROWING += [{"type": "Prepend", "prepend": "b" * 1000}, replace({"String": "ab"}, "b" * 1000)]


@pytest.mark.parametrize("normalizer", GROWING)
def test_normalizers_that_grow_text_are_refused(normalizer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its normalizer writes up to [\d,]+ characters for one"):
        Vocab.load(changed(tmp_path, normalizer=normalizer))


def test_tables_and_decoders_that_grow_text_are_refused(tmp_path: Path) -> None:
    import base64

    table = base64.b64encode((4).to_bytes(4, "little") + b"trie" + b"short\0" + b"x" * 1000 + b"\0").decode()
    with pytest.raises(ValueError, match=r"its normalizer writes up to 1,000 characters"):
        Vocab.load(changed(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": table}))
    steps = [replace({"String": "a"}, "a" * 10)] * 8
    with pytest.raises(ValueError, match=r"its decoder writes up to 100,000,000 characters"):
        Vocab.load(changed(tmp_path, decoder={"type": "Sequence", "decoders": steps}))
    with pytest.raises(ValueError, match="its normalizer has 65 steps"):
        Vocab.load(changed(tmp_path, normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}))


def test_normalizers_in_use_are_taken(tmp_path: Path) -> None:
    steps = [
        {"type": "NFKC"},
        replace({"Regex": " {2,}"}, "▁"),
        replace({"String": " "}, "▁"),
        replace({"String": "``"}, '"'),
    ]
    vocab = Vocab.load(changed(tmp_path, normalizer={"type": "Sequence", "normalizers": steps}))
    assert vocab.decode(vocab.encode("a  b")) == "a▁b"


def test_huge_ids_tokens_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = numbered(["<|endoftext|>", *byte_alphabet()])
    for largest in (20_000_000, 2**32 - 6):
        with pytest.raises(ValueError, match=rf"its 258 tokens have ids up to {largest:,}; number them without"):
            Vocab.load(changed(tmp_path, model={"vocab": {**vocab, "far": largest}}))
    with pytest.raises(ValueError, match=r"a token of 20,000 characters"):
        Vocab.load(changed(tmp_path, model={"vocab": {**vocab, "x" * 20_000: 257}}))
    added = [{"id": 300 + n, "content": f"t{n}", "special": True} for n in range(100_001)]
    with pytest.raises(ValueError, match=r"100,001 added tokens"):
        Vocab.load(changed(tmp_path, added_tokens=added))
    monkeypatch.setattr("data_prep.tokens.vocab.MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"bytes; a tokenizer has 1,000 at most"):
        Vocab.load(changed(tmp_path))
    monkeypatch.undo()
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        Vocab.load(tmp_path)


def test_regular_expressions_that_give_up_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = byte_level(byte_alphabet())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("(a+)+$"), "isolated"), whole])
    vocab = Vocab.load(saved(made, tmp_path))
    with pytest.raises(ValueError, match=re.escape("the tokenizer gave up on a text that begins 'aaaa")):
        vocab.encode("a" * 40 + "b")
    capfd.readouterr()


def test_a_vocabulary_is_read_once_and_again_when_its_file_changed(tmp_path: Path) -> None:
    train_vocab(Settings(kind="byte"), []).save(tmp_path)
    first = Vocab.load(tmp_path)
    assert Vocab.load(tmp_path) is first
    train_vocab(Settings(kind="char"), ["ab"]).save(tmp_path)
    assert Vocab.load(tmp_path).size == first.size + 2


def test_lost_characters_are_said_and_stand_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = Tokenizer(models.BPE(numbered(["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz "]), []))
    file = saved(special(letters, "<|endoftext|>"), tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "Hello World, 2024!"}\n{"text": "plain"}\n')
    tokenizer = {"kind": "file", "path": str(file)}
    recipe = {
        "name": "case",
        "data": {"sources": [{"name": "s", "path": "a.jsonl"}], "tokenizer": tokenizer, "validation_fraction": 0},
        "model": {"family": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"tokens": 1000, "global_batch_size": 1},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    prepare_inline(load(tmp_path / "recipe.yaml"))
    assert "lacks characters of this text: 8 of 23 bytes (34.78%) are lost" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())
    assert manifest["marks"]["s"]["shards/lost_characters"] == [1, 8]
    saved(byte_level(byte_alphabet()[:200]), tmp_path)
    with pytest.raises(ValueError, match="byte-level but has no token for"):
        prepare_inline(load(tmp_path / "recipe.yaml", ["out=" + str(tmp_path / "other")]))
    assert not (tmp_path / "other" / "data" / "documents").exists()  # before the work
