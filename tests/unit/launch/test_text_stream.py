"""Text that comes token by token: the same as all at once, no cut characters, and no part of a stop string."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.tokens.vocab import Vocab, byte_alphabet
from launch.models.text_stream import StopStrings, TextStream, decode_stream

TEXT = "naïve 中文 😀 \n<|end|> a\u0301 Ωmega\t👩‍👩‍👧 x"


@pytest.fixture(scope="module")
def of_bytes() -> Vocab:
    letters = byte_alphabet()
    ids = {letter: index for index, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(ids, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return Vocab(made)


@pytest.fixture(scope="module")
def with_fallback() -> Vocab:
    """As SentencePiece writes: words with a space before them, and bytes for what it does not know."""
    words = ["▁he", "llo", "▁", "a", "▁中"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    made = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<|endoftext|>"])
    return Vocab(made)


def streamed(vocab: Vocab, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    return list(decode_stream(vocab, prompt, ids))


def test_pieces_are_whole_characters_and_together_the_text(of_bytes: Vocab) -> None:
    pieces = streamed(of_bytes, of_bytes.encode(TEXT))
    assert "".join(pieces) == TEXT and "�" not in "".join(pieces)
    assert pieces[:6] == ["n", "a", "ï", "v", "e", " "]


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_at_all_give_what_decoding_all_gives(of_bytes: Vocab, seed: int) -> None:
    """Bytes that are no UTF-8 as well, special tokens between them, and an end in the middle of a character."""
    draw = random.Random(seed)
    alphabet = [*range(256)] if seed % 2 else [*of_bytes.encode("中😀ï"), of_bytes.eod_id]
    ids = [draw.choice(alphabet) for _ in range(60)]
    assert "".join(streamed(of_bytes, ids)) == of_bytes.decode(ids)


def test_a_vocabulary_with_byte_fallback_and_spaces_before_words(with_fallback: Vocab) -> None:
    hello, llo, byte = (with_fallback.vocabulary[token] for token in ("▁he", "llo", "<0xE4>"))
    ids = [hello, llo, hello, byte, byte - 0xE4 + 0xB8, byte - 0xE4 + 0xAD, llo, byte, llo]
    assert streamed(with_fallback, ids)[:4] == ["he", "llo", " he", "中"]
    assert "".join(streamed(with_fallback, ids)) == with_fallback.decode(ids)
    after = streamed(with_fallback, [hello, llo], prompt=[hello, llo])
    assert after == [" he", "llo"], "a word in the middle of a text keeps its space"


def test_the_work_for_a_token_does_not_grow(of_bytes: Vocab, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    decode = Vocab.decode

    def counted(self: Vocab, ids: Any) -> str:
        nonlocal longest
        longest = max(longest, len(list(ids)))
        return decode(self, ids)

    monkeypatch.setattr(Vocab, "decode", counted)
    stream = TextStream(of_bytes)
    for token in [*of_bytes.encode("text " * 200), *[of_bytes.vocabulary["ÿ"]] * 200]:
        stream.push(token)
    assert longest < 16


def through(strings: list[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    stops = StopStrings(strings)
    given = [stops.push(piece) for piece in pieces]
    return [*given, stops.end()], stops.met


def test_what_could_begin_a_stop_string_is_held_back() -> None:
    given, met = through(["END", "##"], ["a", " E", "N", "ough", " #", "x"])
    assert given == ["a", " ", "", "ENough", " ", "#x", ""] and not met
    given, met = through(["END"], ["some E", "N", "D more", "never"])
    assert given == ["some ", "", "", "", ""] and met
    assert through(["END"], ["no EN"]) == (["no ", "EN"], False)


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    assert through(["cd", "bc"], ["abcd"]) == (["a", ""], True)
    assert through(["", "x"], ["abc"]) == (["abc", ""], False)


@pytest.mark.parametrize("seed", range(30))
def test_stop_strings_do_not_depend_on_the_pieces(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("ab\n") for _ in range(40))
    strings = ["".join(draw.choice("ab\n") for _ in range(draw.randint(3, 6))) for _ in range(2)]
    cut = sorted(draw.sample(range(1, 40), 10))
    pieces = [text[start:end] for start, end in zip([0, *cut], [*cut, 40], strict=True)]
    given, met = through(strings, pieces)
    places = [text.find(string) for string in strings if string in text]
    assert "".join(given) == (text[: min(places)] if places else text) and met == bool(places)
