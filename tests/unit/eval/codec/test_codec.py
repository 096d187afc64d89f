"""Files that a model codes come back to the byte; what it cannot code is stored, and what does not fit is named."""

from __future__ import annotations

import gzip
import lzma
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.codec import codec
from eval.codec.circumstances import held
from eval.codec.codec import CannotDecode, Coded, Coder, compress, decompress
from eval.codec.container import Header, NotACodedFile, pack, sha256, unpack
from eval.codec.rows import Rows
from eval.codec.tokens import Code, Layout, OtherTokens, decode, encode, usual_streams
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import score_texts
from eval.reading.reader import LocalReader
from pretrain.checkpoint.choice import Choice
from tests.parts.chat_model import write_tiny_run
from tests.parts.coding_model import CONTEXT, coding_model, coding_text
from tests.parts.exact_coder import exact_decode, exact_encode

KINDS = {
    "one byte": b"x",
    "NULs": bytes(300),
    "special token": b"<|endoftext|> as text <|user|>" * 9,
    "Chinese": "学而时习之，不亦说乎？".encode() * 9,
    "FASTA": b">sequence 1\nacgtacgtnnacgt\n>sequence 2\nMKVLAAGIV*\n" * 9,
    "line ends": b"a\r\nb\rc\n\n\n\xef\xbb\xbf\x0b\x0c\xc2\x85",
    "emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈 \u0301\u202e\ufffd\U0010ffff".encode(),
}
OTHERS = {
    "empty": b"",
    "invalid UTF-8": b"text, then \xff\xfe and text" * 20,
    "half a character": "é".encode()[:1],
    "a lone surrogate": b"\xed\xa0\x80",
    "binary": gzip.compress(random.Random(1).randbytes(3000), mtime=0),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("codec") / "run", None, model=coding_model())


@pytest.fixture(scope="module")
def coder(run: Path) -> Coder:
    return Coder.open(Choice().find(run))


def by_model(coder: Coder, data: bytes, streams: int = 3) -> Coded:
    """Coded by the model, whether or not that is smaller."""
    ids = coder.tokens(data.decode())
    return codec._by_model(coder, data, ids, Layout.of(len(ids), min(streams, len(ids))), 1, None, True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_text_comes_back(run: Path, coder: Coder, kind: str) -> None:
    coded = by_model(coder, KINDS[kind])
    assert unpack(coded.file)[0].form == "model"
    assert decompress(run, coded.file, opened=coder) == KINDS[kind]
    assert decompress(run, compress(lambda: coder, KINDS[kind]).file, opened=coder) == KINDS[kind]


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_model_cannot_code_is_stored_and_says_so(run: Path, kind: str) -> None:
    def refuse() -> Coder:
        raise AssertionError("no model is needed")

    coded = compress(refuse, OTHERS[kind])
    header = unpack(coded.file)[0]
    assert header.form in ("stored", "xz")
    assert header.reason.startswith("it is empty" if not OTHERS[kind] else "it is not UTF-8 text (byte 0x")
    assert len(coded.file) < len(OTHERS[kind]) + 120
    assert decompress(run, coded.file) == OTHERS[kind]


def test_a_text_that_xz_codes_better_is_stored_as_xz(run: Path, coder: Coder) -> None:
    coded = compress(lambda: coder, b"The same line.\n" * 500)
    assert (coded.header.form, coded.header.reason) == ("xz", "the model needs more bytes")
    assert decompress(run, coded.file) == b"The same line.\n" * 500


def test_a_tokenizer_that_loses_something_is_found(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(coder.vocab), "decode", lambda *_: "otherwise")
    assert compress(lambda: coder, b"ab" * 99).header.reason == "the tokenizer does not give it back"


@pytest.mark.parametrize("streams", [13, 64])
def test_the_file_is_as_long_as_the_code_length_says(run: Path, coder: Coder, streams: int) -> None:
    """The sum of -log2 p of the same steps, and at most 64 bits and 0.1% more; the header apart."""
    data = coding_text().encode()
    coded = compress(lambda: coder, data, streams=streams, measure=True)
    assert coded.header.form == "model" and coded.bits is not None
    payload = 8 * len(unpack(coded.file)[1])
    ideal = coded.bits.sum()
    assert ideal - 1 <= payload <= 1.001 * ideal + 64
    assert decompress(run, coded.file, opened=coder) == data


def test_the_length_of_an_exact_arithmetic_coder(coder: Coder) -> None:
    """A coder in whole fractions needs as many bits for the same steps, and decodes the same tokens from them."""
    ids = coder.tokens(coding_text(15) + "?")
    layout = Layout.of(len(ids), 2)
    begin, size = coder.vocab.begin_id, coder.vocab.size
    with held(1):
        code = encode(coder.model, begin, size, ids, layout)
        rows, table = Rows(coder.model, 2, layout.steps), layout.table(ids)
        logits = [rows.feed(np.full(2, begin))]
        logits += [rows.feed(table[:, step]) for step in range(layout.steps - 1)]
    order = [(step, row) for step in range(layout.steps) for row in range(layout.rows(step))]
    symbols = np.array([table[row, step] for step, row in order])
    used = np.array([logits[step][row, :size] for step, row in order])
    exact = exact_encode(symbols, used)
    assert exact_decode(exact, used) == symbols.tolist()
    assert len(exact) <= 8 * len(code.stream) <= len(exact) + 64


def test_the_rate_is_that_of_perplexity_at_half_a_context(coder: Coder) -> None:
    text = coding_text(600)
    bits = by_model(coder, text.encode(), streams=1).bits
    assert bits is not None
    how = Convention(CONTEXT, CONTEXT // 2)
    nats = score_texts(LocalReader(coder.model, coder.vocab.size), coder.vocab, [text], how).nats.sum()
    assert bits.sum() * np.log(2) == pytest.approx(nats, rel=0.01)


def test_past_the_context_both_sides_read_the_last_half_again(coder: Coder) -> None:
    """Each step's logits are those of the whole model on the tokens that it then sees."""
    ids = np.array([coder.tokens(coding_text(60)), coder.tokens(coding_text(61)[1:])])
    rows, length = Rows(coder.model, 2, 60), 0
    with torch.inference_mode():
        for step in range(60):
            length = CONTEXT // 2 if length == CONTEXT else length + 1
            seen = torch.from_numpy(ids[:, step + 1 - length : step + 1].astype(np.int64))
            np.testing.assert_allclose(rows.feed(ids[:, step]), coder.model(seen)[:, -1].numpy(), atol=1e-4)


@pytest.mark.parametrize(("tokens", "streams"), [(1, 1), (7, 3), (9, 3), (64, 64), (130, 64)])
def test_streams_are_of_near_equal_length(tokens: int, streams: int) -> None:
    layout, ids = Layout.of(tokens, streams), np.arange(tokens, dtype=np.int32)
    assert layout.lengths.sum() == tokens and np.ptp(layout.lengths) <= 1
    assert sum(layout.rows(step) for step in range(layout.steps)) == tokens
    assert (layout.ids(layout.table(ids)) == ids).all()


def test_a_short_text_is_one_stream() -> None:
    assert [usual_streams(tokens, 256) for tokens in (1, 300, 6_700, 145_000, 10**7)] == [1, 1, 13, 64, 64]


# --------------------------------------------------------------------------------------------------------- other places
def changed(coded: Coded, where: dict[str, Any] | None = None, **header: Any) -> bytes:
    """The same file with another header, whole by its checksum."""
    before, payload = unpack(coded.file)
    assert before.circumstances is not None
    return pack(replace(before, circumstances=replace(before.circumstances, **(where or {})), **header), payload)


OTHER_PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "torch": ({"torch": "1.0"}, "torch 1.0 (here 2"),
    "processor": ({"processor": "x86_64 Other AVX9"}, "processor x86_64 Other AVX9 (here "),
    "code": ({"code": "older"}, "code older (here "),
    "dtype": ({"dtype": "bf16"}, "dtype bf16 (here fp32)"),
    "two": ({"torch": "1.0", "code": "older"}, "torch 1.0"),
}


@pytest.mark.parametrize("field", OTHER_PLACES)
def test_what_differs_is_named_and_tried(run: Path, coder: Coder, field: str) -> None:
    """The checksum decides: here the arithmetic is the same after all."""
    said: list[str] = []
    change, named = OTHER_PLACES[field]
    coded = by_model(coder, b"abba" * 20)
    assert decompress(run, changed(coded, change), tell=said.append, opened=coder) == b"abba" * 20
    assert len(said) == 1 and named in said[0] and said[0].count("(here") == len(change)
    assert decompress(run, coded.file, tell=said.append, opened=coder) == b"abba" * 20 and len(said) == 1


def test_other_arithmetic_is_found_and_names_what_differs(run: Path, coder: Coder) -> None:
    """A model that computes otherwise in the last bits, as another library of matrix products does."""
    data = coding_text(900).encode()
    coded = by_model(coder, data)
    other = replace(coder, model=coding_model())
    with torch.no_grad():
        other.model.embed.weight *= 1 + 1e-5
    with pytest.raises(CannotDecode, match=r"what differs from the machine that coded it: torch 1\.0 \(here 2"):
        decompress(run, changed(coded, {"torch": "1.0"}), tell=lambda _: None, opened=other)
    with pytest.raises(CannotDecode, match="Libraries of matrix products may still choose other code"):
        decompress(run, coded.file, opened=other)


def test_wrong_tokens_are_found_early(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only at the end, which may be hours away."""
    monkeypatch.setattr("eval.codec.tokens._CHECKED_TOKENS", 60)
    coded = by_model(coder, coding_text(600).encode())
    assert len(coded.header.checks) == 600 // 60
    header, payload = unpack(coded.file)
    layout = Layout(header.tokens, header.streams, header.check_steps)
    other = coding_model(seed=2)
    with held(1), pytest.raises(OtherTokens) as caught:
        decode(other, coder.vocab.begin_id, coder.vocab.size, Code(payload, header.checks), layout)
    assert caught.value.place <= 120


def test_threads_are_those_of_the_header(run: Path, coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    coded, before = by_model(coder, b"abba" * 20), torch.get_num_threads()
    asked: list[int] = []
    other = changed(coded, {"threads": 3})
    assert decompress(run, other, lambda *_: asked.append(torch.get_num_threads()), opened=coder) == b"abba" * 20
    assert set(asked) == {3} and torch.get_num_threads() == before
    with pytest.raises(ValueError, match="100000 threads: from 1 to"):
        decompress(run, changed(coded, {"threads": 100_000}), opened=coder)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        with pytest.raises(ValueError, match="needs 3 threads, and torch computes with 1 here"):
            decompress(run, changed(coded, {"threads": 3}), opened=coder)
    torch.set_num_threads(before)


def test_another_device_is_named(run: Path, coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device cuda: this machine has no GPU"):
        decompress(run, changed(by_model(coder, b"abba"), {"device": "cuda"}), opened=coder)


def test_another_checkpoint_is_refused(run: Path, coder: Coder) -> None:
    own = Choice().find(run)
    coded = by_model(coder, b"abba")
    assert decompress(run, coded.file) == b"abba"
    said = rf"another checkpoint: the file was coded by ffffffffffff, and .* has {own.fingerprint[:12]} \(step 0\)"
    with pytest.raises(CannotDecode, match=said):
        decompress(run, changed(coded, checkpoint="f" * 32))


def test_another_tokenizer_is_refused(run: Path, coder: Coder) -> None:
    with pytest.raises(CannotDecode, match=f"coded with {'f' * 32}, and that of .* is {coder.vocab.fingerprint}"):
        decompress(run, changed(by_model(coder, b"abba"), tokenizer="f" * 32))


def test_a_checkpoint_with_a_changed_weight_is_refused(tmp_path: Path) -> None:
    """Its size is the same, so that only its checksum tells."""
    checkpoint = Choice().find(write_tiny_run(tmp_path / "run", None, model=coding_model()))
    (file,) = checkpoint.directory.glob("weights-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum mismatch"):
        Coder.open(checkpoint)


# ------------------------------------------------------------------------------------------------------ made on purpose
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "more bytes than any": ({"bytes": 2**40}, "1,099,511,627,776 bytes, more than"),
    "no streams": ({"streams": 0}, "lacks what a model's code needs"),
    "more tokens than any": ({"tokens": 2**40}, "lacks what a model's code needs"),
    "no circumstances": ({"circumstances": None}, "lacks what a model's code needs"),
    "other hash": ({"sha256": sha256(b"other")}, "other bytes than were coded"),
    "other length": ({"bytes": 5}, "other bytes than were coded"),
    "more tokens": ({"tokens": 9}, "other tokens than were coded|other bytes than were coded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_headers_that_lie(run: Path, coder: Coder, kind: str) -> None:
    header, payload = unpack(by_model(coder, b"abba", 1).file)
    with pytest.raises(ValueError, match=BROKEN[kind][1]):
        decompress(run, pack(replace(header, **BROKEN[kind][0]), payload), opened=coder)


def test_stored_files_that_lie(run: Path) -> None:
    header = Header("stored", 3, sha256(b"abc"))
    assert decompress(run, pack(header, b"abc")) == b"abc"
    for form, payload in (("stored", b"xyz"), ("stored", b"abcd"), ("xz", b"abc"), ("xz", gzip.compress(b""))):
        with pytest.raises(NotACodedFile):
            decompress(run, pack(replace(header, form=form), payload))  # type: ignore[arg-type]


def test_a_bomb_of_xz_is_not_unpacked(run: Path) -> None:
    with pytest.raises(NotACodedFile, match="not what was coded"):
        decompress(run, pack(Header("xz", 3, sha256(b"abc")), lzma.compress(bytes(2**22))))


def test_a_reward_model_codes_nothing(tmp_path: Path) -> None:
    write_tiny_run(tmp_path / "run", {"kind": "reward"})
    with pytest.raises(ValueError, match="a reward model gives scores, not text"):
        Coder.open(Choice().find(tmp_path / "run"))


def test_a_model_that_reads_both_ways_codes_nothing(run: Path) -> None:
    own = Choice().find(run)
    both = own.recipe.model.model_copy(update={"causal": False})
    other = replace(own)
    other.__dict__["recipe"] = own.recipe.model_copy(update={"model": both})
    with pytest.raises(ValueError, match="coding a file needs a model that predicts each token from those before it"):
        Coder.open(other)


@pytest.mark.parametrize("streams", [0, -1, 2**20])
def test_numbers_of_streams_are_bounded(coder: Coder, streams: int) -> None:
    with pytest.raises(ValueError, match="give a number from 1 to"):
        compress(lambda: coder, b"ab", streams=streams)


def test_a_huge_file_is_refused(monkeypatch: pytest.MonkeyPatch, coder: Coder) -> None:
    monkeypatch.setattr(codec, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="101 bytes are more than the 100 that are coded at a time; cut the file"):
        compress(lambda: coder, bytes(101))
