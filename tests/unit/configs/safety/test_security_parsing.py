"""YAML and JSON of a stranger: neither takes memory or time without bound, nor ends in a traceback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import configs.safety.parsing
from configs.common.files import read_json
from configs.safety.parsing import parse_json, parse_yaml
from configs.schema.recipe import RecipeError, load
from data_prep.readers.fields import split_front_matter
from data_prep.tokens.vocab import Vocab
from pretrain.metrics.metrics_file import read_metrics

SECONDS = 5.0  # on a busy machine; what is refused here took from 10 seconds to for ever


@contextmanager
def cheap() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


def aliases(levels: int, what: str = "[*l{0}, *l{0}, *l{0}, *l{0}, *l{0}, *l{0}, *l{0}, *l{0}, *l{0}]") -> str:
    lines = ["l0: &l0 x", *(f"l{n + 1}: &l{n + 1} {what.format(n)}" for n in range(levels))]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "aliases": (aliases(9), "line 7: it stands for more than 100,000 values"),
    "merges": (aliases(9, "{{a: *l{0}, b: *l{0}, c: *l{0}, d: *l{0}, e: *l{0}}}"), "stands for more than"),
    "keys": (aliases(9, "{{? [*l{0}, *l{0}, *l{0}, *l{0}, *l{0}] : 1}}"), "stands for more than"),
    "deep aliases": (aliases(100, "[*l{0}]"), "line 65: values are nested deeper than 64 levels by aliases"),
    "cycle": ("a: &a [*a]\n", "line 1: an alias is used inside the value it stands for"),
    "cycle of a mapping": ("a: &a\n  b: *a\n", "line 2: an alias is used inside the value it stands for"),
    "brackets": ("a: " + "[" * 20_000, "line 1: values are nested deeper than 64 levels"),
    "closed brackets": ("a: " + "[" * 300 + "]" * 300, "nested deeper than"),
    "braces": ("a: " + "{b: " * 20_000, "nested deeper than"),
    "dashes": ("\n".join(" " * n + "-" for n in range(100)), "nested deeper than"),
    "large": ("a: " + "x" * 2_000_000, "more than 1,048,576 characters"),
    "digits": ("a: " + "9" * 100_000, "line 1: a number has more than 100 digits"),
    "base 60": ("a: " + "1:" * 50_000 + "1", "line 1: a number has more than 100 digits"),
    "hexadecimal": ("a: 0x" + "f" * 100_000, "line 1: a number has more than 100 digits"),
    "wrong bool": ("a: !!bool x", "'x'"),
    "wrong int": ('a: !!int ""', "index out of range"),
    "wrong time": ("a: !!timestamp x", "NoneType"),
    "no such day": ("a: 2024-13-45", "month must be in"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_yaml_that_would_take_all_memory_or_for_ever(name: str, tmp_path: Path) -> None:
    text, message = HOSTILE[name]
    (tmp_path / "recipe.yaml").write_text(text)
    with cheap(), pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml")
    assert message in str(caught.value)


def test_almost_a_number_is_read_in_linear_time() -> None:
    with cheap():
        assert parse_yaml("a: " + "1" * 50_000 + "x") == {"a": "1" * 50_000 + "x"}


def test_more_values_than_anybody_writes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs.safety.parsing, "MOST_NODES", 1_000)
    with pytest.raises(ValueError, match="line 1: it stands for more than"):
        parse_yaml("[" + "1," * 1_000)


def test_keys_are_not_compared_with_all_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 took 35 seconds."""
    compared = 0

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

    construct = yaml.SafeLoader.construct_object
    monkeypatch.setattr(
        configs.safety.parsing._Loader,
        "construct_object",
        lambda self, node, deep=False: Key(construct(self, node, deep)),
    )
    parse_yaml("".join(f"{n}: x\n" for n in range(300)))
    assert compared < 1_000


def test_what_yaml_may_do_stays() -> None:
    assert parse_yaml("base: &b {x: 1, y: 1e-3}\nmore: {<<: *b, y: 2}\nlist: [*b, 0x1f, 12:30]\n") == {
        "base": {"x": 1, "y": 0.001},
        "more": {"x": 1, "y": 2},
        "list": [{"x": 1, "y": 0.001}, 31, 750],
    }
    with pytest.raises(ValueError, match="line 2: the key `a` is given twice"):
        parse_yaml("a: 1\na: 2")


def test_front_matter_of_documents_is_bounded_too() -> None:
    text = f"---\n{aliases(9)}---\nbody"
    with cheap():
        assert split_front_matter(text) == ({}, text)
    assert split_front_matter("---\na: 1\na: 2\n---\nbody")[0] == {"a": 2}


DEEP = "[" * 200_000 + "]" * 200_000


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"file\.json is not valid JSON \(its brackets are nested too deeply"):
        read_json(tmp_path / "file.json")
    (tmp_path / "metrics.jsonl").write_text(DEEP + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is not valid JSON"):
        list(read_metrics(tmp_path))
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP.encode())


@pytest.mark.parametrize("content", [DEEP, "[1]", "\xff", "{"])
def test_settings_of_a_tokenizer_that_are_none(tmp_path: Path, content: str) -> None:
    from configs.schema.data import Tokenizer
    from data_prep.tokens.vocab_training import train_vocab

    train_vocab(Tokenizer(kind="byte"), []).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json (is n|holds list where)"):
        Vocab.load(tmp_path)


def test_numbers_beyond_what_python_reads(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps({"a": 1})[:-1] + ', "b": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match=r"file\.json is not valid JSON"):
        read_json(tmp_path / "file.json")
