"""Trains a recipe's model, and codes its corpus by the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.common.files import refuse_unwritable, write_json
from configs.common.notices import say
from configs.common.versions import git_commit, own_version
from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.special_tokens import COMPANIONS, SPECIAL_IDS
from data_prep.tokens.vocab import TOKENIZER_NAME
from pretrain.batches.mixture import window_count
from pretrain.checkpoint.manifest import newest
from pretrain.coding.coded_training import CodedTraining, Side
from pretrain.coding.container import CodedCorpus, write_coded
from pretrain.coding.corpus_text import text_facts
from pretrain.coding.facts import made_by, refuse_recipe, settings
from pretrain.coding.strands import TRAIN, Strand, Strands
from pretrain.coding.walk import Coder, Writing
from pretrain.engine.engine import Engine
from pretrain.metrics.evaluated import find_evaluator
from pretrain.reliability.loss_guard import SKIPPED
from pretrain.session import run
from pretrain.signals import StoppedEarly

RECORD = "coding.json"  # in the run directory: the bytes of the file's parts, and what they hold
TOKENIZER_FILES = (TOKENIZER_NAME, *COMPANIONS, SPECIAL_IDS)


def refuse_file(file: Path) -> None:
    """Raises `ValueError` for a file that is there already, or cannot be made."""
    if file.exists():
        raise ValueError(f"{file} is there already; remove it, or name another file")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{file.parent}: no such directory; make it first")
    refuse_unwritable(file)


def train_coded(recipe: Recipe, file: Path) -> None:
    """Trains to the end and writes the coded corpus to `file`.

    Raises:
        ValueError: for settings that cannot be coded, a run that has begun already, a file that is there already; and
            when a signal ended training, which cannot go on.
    """
    refuse_recipe(recipe)
    refuse_file(file)
    if newest(recipe.run_directory) is not None or (recipe.run_directory / SKIPPED).is_file():
        raise ValueError(
            f"{recipe.run_directory} was trained already, and a corpus is coded from the first step on; use another "
            "--out"
        )
    try:
        run(recipe, None, find_evaluator(recipe), lambda one: CodedTraining(one, _Encoding(one, file), validates=True))
    except StoppedEarly as stopped:
        raise ValueError(
            f"training was stopped, and coding cannot go on from a checkpoint: {file} was not written; start again "
            "with another --out"
        ) from stopped


class _Encoding(Side):
    def __init__(self, recipe: Recipe, file: Path) -> None:
        self._recipe, self._file = recipe, file

    def begin(self, data: DataManifest, engine: Engine) -> tuple[Strands, Coder]:
        self._strands = Strands.of(data)
        self._strands.read(data)
        tags = {source.name: source.prefix for source in self._recipe.data.sources}
        self._text = text_facts(self._strands, data.vocab, tags)
        self._writing = Writing(data.vocab_size)
        return self._strands, self._writing

    def end(self, data: DataManifest, engine: Engine) -> None:
        header = self._header(data, engine)
        files = {name: data.tokenizer / name for name in TOKENIZER_FILES}
        tokenizer = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
        parts = write_coded(self._file, CodedCorpus(header, tokenizer, self._writing.stream()))
        total = sum(parts.values())
        record = {
            "file": str(self._file),
            "file_bytes": total,
            "parts": parts,
            "text_bytes": self._text.bytes,
            "tokens": len(self._strands.tokens),
            "symbols": dict(self._writing.symbols),
            "bits": dict(self._writing.bits),
        }
        write_json(self._recipe.run_directory / RECORD, record)
        rate = 8 * total / max(1, self._text.bytes)
        say(
            f"coded {len(self._strands.tokens):,} tokens, {self._text.bytes:,} bytes of text, in {total:,} bytes "
            f"({rate:.3f} bits per byte): {parts['stream']:,} of stream, {parts['tokenizer']:,} of tokenizer, "
            f"{parts['header']:,} of header"
        )

    def _header(self, data: DataManifest, engine: Engine) -> dict[str, Any]:
        sources = [*data.train, *data.validation]
        return {
            "settings": recipe_settings(self._recipe, self._strands.strands),
            "written by": f"Replica {own_version()}, commit {git_commit() or 'unknown'}",
            "made by": made_by(self._recipe, engine),
            "strands": [
                {
                    "split": strand.split,
                    "name": strand.name,
                    "weight": source.weight,
                    "tokens": strand.length,
                    "documents": strand.documents,
                    "bytes": strand.bytes,
                }
                for strand, source in zip(self._strands.strands, sources, strict=True)
            ],
            "data": data.fingerprint,
            "tokenizer": data.tokenizer_fingerprint,
            "tokens": {"sha256": self._strands.digest()},
            "text": {"bytes": self._text.bytes, "sha256": self._text.sha256},
        }


def recipe_settings(recipe: Recipe, strands: Sequence[Strand]) -> dict[str, Any]:
    """The settings that decide the weights, the number of steps among them."""
    context = recipe.model.context_length
    windows = sum(window_count(strand.length, context) for strand in strands if strand.split == TRAIN)
    return settings(recipe, total_steps(recipe, windows))
