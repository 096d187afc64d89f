"""Checks a foreign vocabulary: no text may end a document, get lost unseen, or grow without bound.

Works on the description of a tokenizer, the JSON of its `tokenizer.json` (Hugging Face `tokenizers` 0.23), so that
nothing of it has run yet.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Collection, Iterator
from typing import Any

MAX_FILE_BYTES = 64 * 2**20  # the largest ones in use have some 35 MB
_MAX_ADDED = 100_000
_MAX_TOKEN_CHARACTERS = 2**14
_MAX_STEPS = 64
# A step may write this many characters for one, all steps together as many: SentencePiece's own tables write 18.
_MAX_GROWTH = 64
# Ids that stand for nothing cost rows of the embedding.
_FREE_IDS = 2**16
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# All that UTF-8 uses: continuation bytes, leads of 1 to 4 bytes.
UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))

Description = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------- bounds
def check_bounds(text: str) -> None:
    """Looks at the JSON of a tokenizer before `tokenizers` does.

    Raises:
        ValueError: saying what is beyond all bounds; for what is no JSON.
    """
    try:
        description = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    if not isinstance(description, dict):
        raise ValueError("it is not a JSON object")
    added = description.get("added_tokens") or []
    if len(added) > _MAX_ADDED:
        raise ValueError(f"it has {len(added):,} added tokens; {_MAX_ADDED:,} are taken at most")
    for part, growth_of in (("normalizer", _normalizer_growth), ("decoder", _decoder_growth)):
        steps = list(_steps(description.get(part)))
        if len(steps) > _MAX_STEPS:
            raise ValueError(f"its {part} has {len(steps):,} steps; {_MAX_STEPS} are taken at most")
        growth = 1.0
        for step in steps:
            growth *= growth_of(step)
        if growth > _MAX_GROWTH:
            raise ValueError(
                f"its {part} writes up to {growth:,.0f} characters for one; {_MAX_GROWTH} are taken at most"
            )
    longest = max(map(len, _tokens(description)), default=0)
    if longest > _MAX_TOKEN_CHARACTERS:
        raise ValueError(f"it has a token of {longest:,} characters; {_MAX_TOKEN_CHARACTERS:,} are taken at most")


def check_ids(ids: Collection[int]) -> None:
    """Raises `ValueError` where most ids up to the largest stand for nothing."""
    largest = max(ids, default=-1)
    if largest >= len(ids) + max(len(ids), _FREE_IDS):
        raise ValueError(f"its {len(ids):,} tokens have ids up to {largest:,}; number them without such gaps")


def _steps(node: Any) -> Iterator[Description]:
    """The steps of a normalizer or decoder, without the sequences around them."""
    if not isinstance(node, dict):
        return
    inner = [node[key] for key in ("normalizers", "decoders") if isinstance(node.get(key), list)]
    if not inner:
        yield node
    for steps in inner:
        for step in steps:
            yield from _steps(step)


def _normalizer_growth(step: Description) -> float:
    """Greatest number of characters that a normalizer of the file may make of one (Unicode's forms are bounded)."""
    if step.get("type") == "Precompiled":
        return _largest_entry(step.get("precompiled_charsmap"))
    if step.get("type") == "Prepend":
        return max(1, len(str(step.get("prepend") or "")))
    return _replaced(step)


def _decoder_growth(step: Description) -> float:
    return _replaced(step)


def _replaced(step: Description) -> float:
    if step.get("type") != "Replace":
        return 1.0
    pattern, content = step.get("pattern"), str(step.get("content") or "")
    literal = pattern.get("String") if isinstance(pattern, dict) else pattern
    # A regular expression may match at a single character, or between two.
    taken = len(literal) if isinstance(literal, str) else 1
    return max(1.0, len(content) / taken if taken else 1 + len(content))


def _largest_entry(table: Any) -> float:
    """The longest text in SentencePiece's table: a trie, its size before it, then what it points to, NUL between."""
    try:
        data = base64.b64decode(table or b"")
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError("the table of its normalizer is not base64") from error
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    return max([1, *(len(text.decode("utf-8", "replace")) for text in texts)])


def _tokens(description: Description) -> Iterator[str]:
    vocab = (description.get("model") or {}).get("vocab") or {}
    yield from (str(item[0] if isinstance(item, list) and item else item) for item in vocab)
    for token in description.get("added_tokens") or []:
        yield str(token.get("content") if isinstance(token, dict) else token)


# ------------------------------------------------------------------------------------------------ text is only text
def for_text_alone(description: Description, forbidden: Collection[int]) -> Description:
    """The tokenizer that encodes text as `description` says, except that no text gives one of the `forbidden` ids.

    `encode_special_tokens` keeps added tokens from being looked for in text, but a model finds what stands in its own
    table: Unigram its control symbols, WordPiece a word in brackets, BPE what its merges lead to. Such entries keep
    their ids under names that no text has; the unknown token still stands for what is unknown.
    """
    model = dict(description["model"])
    nonce = secrets.token_hex(16)
    names: dict[str, str] = {}

    def hidden(token: str) -> str:
        return names.setdefault(token, f"\U0010fffe{nonce} {len(names)}")

    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[hidden(item[0]), *item[1:]] if at in forbidden else item for at, item in enumerate(vocab)]
    else:
        model["vocab"] = {hidden(token) if index in forbidden else token: index for token, index in vocab.items()}
    added = [
        {**token, "content": hidden(token["content"])} if token["id"] in forbidden else token
        for token in description["added_tokens"]
    ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        prefix = len(model.get("continuing_subword_prefix") or "")
        gone = names.keys()
        model["merges"] = [
            pair
            for pair in model["merges"]
            if gone.isdisjoint([*pair, made := pair[0] + pair[1][prefix:]])
            and not (model.get("byte_fallback") and BYTE_TOKEN.fullmatch(made))
        ]
    if "dropout" in model:  # the same text must give the same ids
        model["dropout"] = None
    return {**description, "model": model, "added_tokens": added, "post_processor": None}


def for_text_inside(description: Description) -> Description:
    """The tokenizer for a text that stands behind a marker: SentencePiece's space before the first word is not its."""
    before = description["pre_tokenizer"]
    if before is None:
        return description
    return {**description, "pre_tokenizer": _never_first(before)}


def _never_first(step: Description) -> Description:
    if step["type"] == "Sequence":
        return {**step, "pretokenizers": [_never_first(part) for part in step["pretokenizers"]]}
    return {**step, "prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else step


# ------------------------------------------------------------------------------------------------------------- lossless
def missing_bytes(description: Description, names: Collection[str]) -> list[int]:
    """The bytes of UTF-8 that have no token of their own; `names`: of the tokens of the bytes 0-255, in order."""
    vocab = description["model"]["vocab"]
    known = {item[0] for item in vocab} if isinstance(vocab, list) else vocab
    names = list(names)
    return [byte for byte in UTF8_BYTES if names[byte] not in known]


def keeps_text(description: Description, byte_level: bool) -> bool:
    """Tells whether nothing between a text and the model's tokens takes from it or adds to it, whatever the text is."""
    model = description["model"]
    if description["normalizer"] is not None or model["type"] != "BPE":
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if any(token["lstrip"] or token["rstrip"] for token in description["added_tokens"] if not token["special"]):
        return False
    before = description["pre_tokenizer"]
    if byte_level:
        return before is not None and _keeps(before) and "ByteLevel" in map(_type, _parts(before))
    return before is None and bool(model.get("byte_fallback"))


def _keeps(step: Description) -> bool:
    """Tells whether a pre-tokenizer cuts and does nothing else."""
    return all(
        (part["type"] == "ByteLevel" and not part["add_prefix_space"])
        or (part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed")
        or part["type"] in ("Digits", "UnicodeScripts", "FixedLength")
        for part in _parts(step)
    )


def _parts(step: Description) -> list[Description]:
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step["pretokenizers"] for part in _parts(inner)]


def _type(step: Description) -> str:
    return str(step["type"])
