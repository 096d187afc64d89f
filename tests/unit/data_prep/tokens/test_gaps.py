"""Prompts with gaps: what is a gap, what is text, and what cannot be filled in."""

from __future__ import annotations

import pytest

from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from data_prep.tokens.gaps import gapped_prompt, has_gaps, without_escapes
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte", special_tokens=[END_OF_TEXT, MASK]), [])


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("It was a<|mask|>*3 night", ["It was a", 3, " night"]),
        ("a<|mask|>b<|mask|>", ["a", 1, "b", 1]),
        ("a<|mask|>*2<|mask|>*1*2", ["a", 2, 1, "*2"]),
        ("a<|mask|>* b", ["a", 1, "* b"]),
        (r"a\<|mask|>*3 and<|mask|>", ["a<|mask|>*3 and", 1]),
        (r"a\\<|mask|>*2", ["a\\", 2]),
        (r"a\\\<|mask|>*2", [r"a\<|mask|>*2"]),
        (r"C:\dir \\ <mask> <|mask", [r"C:\dir \\ <mask> <|mask"]),
        ("<|mask|>*2 end", ["", 2, " end"]),
    ],
)
def test_gaps_and_text_are_told_apart(vocab: Vocab, prompt: str, pieces: list[str | int]) -> None:
    assert vocab.mask_id is not None
    wanted: list[int] = []
    for piece in pieces:
        if piece == "":
            wanted.append(vocab.begin_id)
        else:
            wanted += vocab.encode(piece) if isinstance(piece, str) else [vocab.mask_id] * piece
    assert gapped_prompt(vocab, prompt, 100) == wanted
    assert has_gaps(prompt) == any(isinstance(piece, int) for piece in pieces)
    if not has_gaps(prompt):
        assert without_escapes(prompt) == pieces[0]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a<|mask|>*0", "no gap: give 1 or more"),
        ("a<|mask|>*000", "no gap: give 1 or more"),
        ("a<|mask|>*" + "9" * 5000, r"a gap of 9{20} tokens does not fit any"),
        ("a<|mask|>*" + "0" * 30 + "101", "a gap of 101 tokens does not fit the model's context of 100"),
        ("a<|mask|>*999999999", "a gap of 999,999,999 tokens does not fit"),
        ("a" * 90 + "<|mask|>*20", "110 tokens, gaps included, does not fit the context of 100"),
    ],
)
def test_gaps_that_cannot_be(vocab: Vocab, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gapped_prompt(vocab, prompt, 100)


def test_a_vocabulary_without_a_mask_has_no_gaps() -> None:
    plain = train_vocab(Tokenizer(kind="byte"), [])
    with pytest.raises(ValueError, match=r"the model's vocabulary has no such token.*write \\<\|mask\|> for the char"):
        gapped_prompt(plain, "a<|mask|>", 100)
    assert gapped_prompt(plain, r"\<|mask|>", 100) == plain.encode("<|mask|>")
