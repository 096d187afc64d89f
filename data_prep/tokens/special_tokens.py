"""Reads the special tokens at the beginning and end of a text from the files beside a tokenizer.

The beginning and the end are two ids in Llama, Gemma and many others, and one in GPT-2 and in what is trained here.
Read the way `transformers` 5 reads them, so that lm-eval's `hf` and ours score the same numbers (tests/reference).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.files import read_object, write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
# What an imported directory's config.json says about ids, kept beside its tokenizer.
SPECIAL_IDS = "special_ids.json"
# Our own key of tokenizer_config.json: what ends a document, where `eos_token` is what ends an answer.
END_OF_DOCUMENT = "end_of_document"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Files of a Hugging Face directory that belong to its tokenizer, beside tokenizer.json; kept as they are.
COMPANIONS = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
)


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens that the files name; None where they name none."""

    begin: str | int | None = None  # what the first token of a text is conditioned on; a token or its id
    end: str | int | None = None  # what ends a document
    ends: tuple[int, ...] = ()  # ids that end generation
    rows: int | None = None  # of the model's embedding, where it has fewer than the tokenizer tokens


def read_special_tokens(directory: Path) -> SpecialTokens:
    """Reads the files beside a tokenizer.json.

    Names of tokens come from tokenizer_config.json (or special_tokens_map.json); where that says nothing, from the ids
    of config.json and generation_config.json. Whether a prompt begins with `begin` is for the template in
    tokenizer.json to say: `transformers` 5.23 takes no notice of `add_bos_token` beside it.

    Raises:
        ValueError: naming the file and the key, when one is not what it must be.
    """
    config, names = _object(directory / TOKENIZER_CONFIG), _object(directory / "special_tokens_map.json")
    if "added_tokens_decoder" not in config:  # as transformers: the older file counts only then
        config = {**config, **names}
    file = SPECIAL_IDS if (directory / SPECIAL_IDS).is_file() else "config.json"
    model, generation = _object(directory / file), _object(directory / GENERATION_CONFIG)
    ends = _ids(directory / GENERATION_CONFIG, generation, "eos_token_id")
    ends = ends or _ids(directory / file, model, "eos_token_id")
    begins = _ids(directory / file, model, "bos_token_id")
    begin: str | int | None = _name(directory, config, "bos_token")
    # A chat model's answers end with another token than its documents: the export names both.
    end: str | int | None = _name(directory, config, END_OF_DOCUMENT) or _name(directory, config, "eos_token")
    if end is None and ends:
        begin, end = begin if begin is not None or not begins else begins[0], ends[0]
    rows = model.get("vocab_size")
    return SpecialTokens(begin, end, ends, rows if type(rows) is int else None)


def copy_companions(source: Path, target: Path) -> None:
    """Copies the files beside a tokenizer as they are, but for the names of code that `transformers` would run."""
    for name in COMPANIONS:
        file = source / name
        if not file.is_file():
            continue
        if name == TOKENIZER_CONFIG and "auto_map" in (content := _object(file)):
            write_json(target / name, {key: value for key, value in content.items() if key != "auto_map"})
        else:
            (target / name).write_bytes(file.read_bytes())


def _object(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _name(directory: Path, config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{directory / TOKENIZER_CONFIG}: {key} is {_short(value)}, not a token")


def _ids(file: Path, source: dict[str, Any], key: str) -> tuple[int, ...]:
    value = source.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in values):
        raise ValueError(f"{file}: {key} is {_short(value)}, neither an id nor a list of ids")
    return tuple(values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
