"""Small prepared data of conversations, pairs or prompts: single-digit sums, right and wrong, in bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.common.files import write_json
from configs.schema.chat import Unit
from configs.schema.data import Tokenizer
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate, Kind, Rendered
from data_prep.tokens.shards import beside
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from tests.parts.small_shards import write_shard

Documents = list[tuple[Rendered, dict[str, Any]]]  # as stored: without the first token, with the end of document


Make = Callable[[ChatTemplate, Unit, int, random.Random], Documents]  # the documents of the unit of this number


def chat_vocab() -> Vocab:
    """Bytes, and the tokens that a chat template writes."""
    return train_vocab(Tokenizer(kind="byte", special_tokens="chat"), [])


def prepare_units(directory: Path, unit: Unit, sources: dict[str, int] | None = None, make: Make | None = None) -> Path:
    """Writes that many units a source (default: 40), and 12 held out, with a manifest; `make` gives other ones."""
    make = make or _documents
    vocab = chat_vocab()
    vocab.save(directory / "tokenizer")
    splits = {
        "train": [
            _source(directory, vocab, unit, name, count, make) for name, count in (sources or {"tiny": 40}).items()
        ],
        "validation": [_source(directory, vocab, unit, "held-out", 12, make)],
    }
    content = {
        "fingerprint": f"{unit} {sources}", "tokenizer_fingerprint": vocab.fingerprint, "splits": splits, "funnel": [],
        "unit": unit,
    }  # fmt: skip
    write_json(directory / "manifest.json", content)
    return directory


def _source(directory: Path, vocab: Vocab, unit: Unit, name: str, count: int, make: Make) -> dict[str, Any]:
    template, generator = ChatTemplate(vocab), random.Random(name)
    units = [make(template, unit, number, generator) for number in range(count)]
    half = len(units) // 2
    shards, tokens, documents = [], 0, 0
    for number, part in enumerate([units[:half], units[half:]]):  # two, so that reading crosses their border
        rows = [document for one in part for document in one]
        prefix = directory / name / f"{number:05d}"
        write_shard(prefix, [rendered.ids for rendered, _ in rows], vocab.size)
        beside(prefix, ".kinds").write_bytes(bytes(kind for rendered, _ in rows for kind in rendered.kinds))
        pq.write_table(pa.Table.from_pylist([columns for _, columns in rows]), beside(prefix, ".parquet"))
        shards.append({"prefix": f"{name}/{number:05d}", "bin_bytes": beside(prefix, ".bin").stat().st_size})
        tokens, documents = tokens + sum(len(rendered.ids) for rendered, _ in rows), documents + len(rows)
    return {
        "name": name, "weight": None, "shards": shards, "tokens": tokens, "documents": documents, "bytes": tokens,
    }  # fmt: skip


def _documents(template: ChatTemplate, unit: Unit, number: int, generator: random.Random) -> Documents:
    def stored(messages: list[Message]) -> Rendered:
        rendered = template.render(messages)
        return Rendered([*rendered.ids[1:], template.bos], [*rendered.kinds[1:], int(Kind.GIVEN)])

    a, b = generator.randrange(10), generator.randrange(10)
    asked, right = Message.of("user", f"{a}+{b}"), Message.of("assistant", str(a + b))
    columns = {"id": f"unit {number}", "url": None}
    if unit == "pair":
        wrong = Message.of("assistant", f"{a + b + generator.randrange(1, 9)}" * generator.randrange(1, 3))
        columns |= {"margin": number % 3 / 2}
        earlier = [Message.of("user", "hi"), Message.of("assistant", "ho")] * (number % 2)
        return [(stored([*earlier, asked, answer]), columns) for answer in (right, wrong)]
    if unit == "prompt":
        ids = [*template.prompt([asked])[1:], template.bos]
        columns |= {"reference": str(a + b), "metadata": json.dumps({"number": number})}
        return [(Rendered(ids, [int(Kind.GIVEN)] * len(ids)), columns)]
    turns = [asked, right]
    for _ in range(number % 3):
        turns += [Message.of("user", "again"), Message.of("assistant", f"{a + b}, as I said")]
    return [(stored(turns), columns)]
