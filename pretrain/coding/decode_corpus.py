"""Trains a recipe's model again from a coded corpus, whose text comes out by the way."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from configs.common.files import atomic_path, temporary_beside, write_json, write_text
from configs.common.layout import MANIFEST, TOKENIZER
from configs.common.notices import note
from configs.schema.recipe import Recipe
from configs.schema.train import CheckpointPolicy
from data_prep.tokens.shards import DataManifest, beside, token_dtype, write_index
from data_prep.tokens.vocab import Vocab
from pretrain.coding.coded_training import CodedTraining, Side
from pretrain.coding.container import CodedCorpus, read_coded
from pretrain.coding.corpus_text import corpus_lines
from pretrain.coding.encode_corpus import TOKENIZER_FILES, recipe_settings
from pretrain.coding.entropy import DamagedStream
from pretrain.coding.facts import made_by, refuse_other, refuse_recipe
from pretrain.coding.strands import TRAIN, VALIDATION, Places, Strand, Strands, TokenFiles
from pretrain.coding.walk import Coder, Reading
from pretrain.engine.engine import Engine
from pretrain.session import run
from pretrain.signals import StoppedEarly

DATA = "data"
_NEVER = 2**31  # steps between checkpoints: the last one alone is saved
_MOST_TOKENS = 2**31 - 1  # a larger number is damage


def decode_corpus(file: Path, recipe: Recipe, out: Path, anyway: bool = False) -> None:
    """Writes the documents of the coded corpus `file` to `out`, one JSON object a line.

    Trains the recipe's model in a directory beside `out`, which is removed at the end. `anyway`: also with other
    software or on another machine, which may give the same bits; checksums in the stream tell.

    Raises:
        ValueError: when the file is damaged, or was coded by another recipe, software or machine; `out` is there
            already; or a signal ended training.
    """
    refuse_recipe(recipe)
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or choose another name with -o")
    content = read_coded(file)
    try:
        with _work_directory(out) as directory:
            strands = train_again(content, recipe, directory, str(file), anyway)
            _write_text(content, strands, Vocab.load(directory / DATA / TOKENIZER), out)
    except StoppedEarly as stopped:
        raise ValueError(f"training was stopped, and decoding starts from the beginning: {out} was not written") from (
            stopped
        )
    except DamagedStream as error:
        raise ValueError(f"{file}: {error}; {out} was not written") from error


def train_again(content: CodedCorpus, recipe: Recipe, directory: Path, name: str, anyway: bool) -> Strands:
    """Trains in a run directory until all tokens are decoded; its data and last checkpoint stay there.

    Raises:
        ValueError: for another recipe than that of the file, which messages call `name`, other software, or damage.
    """
    header, data = content.header, directory / DATA
    described = _described(header, name)
    refuse_other("another recipe", header["settings"], recipe_settings(recipe, described))
    vocab = _write_tokenizer(content, data / TOKENIZER, name)
    strands = Strands(described, vocab.size, vocab.eod_id)
    train = recipe.train.model_copy(
        update={"checkpoint": CheckpointPolicy(every=_NEVER, keep=1), "tensorboard": False, "wandb": None}
    )
    own_data = recipe.data.model_copy(update={"directory": None})
    inside = recipe.model_copy(update={"out": str(directory), "train": train, "data": own_data})
    side = _Decoding(inside, content, strands, _prepare_shards(data, header, strands), anyway)
    run(inside, make=lambda one: CodedTraining(one, side, validates=False))
    return strands


@contextmanager
def _work_directory(out: Path) -> Iterator[Path]:
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent}: no such directory; make it first")
    directory = temporary_beside(out.absolute())
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _described(header: dict[str, Any], name: str) -> list[Strand]:
    """The strands that a header names; raises `ValueError` for a header that is none."""
    found: list[Strand] = []
    start = 0
    try:
        for entry in header["strands"]:
            split, length = str(entry["split"]), int(entry["tokens"])
            if split not in (TRAIN, VALIDATION) or not 0 <= length <= _MOST_TOKENS - start:
                raise ValueError(f"{length} tokens in a split `{split}`")
            found.append(Strand(split, str(entry["name"]), start, length, int(entry["documents"]), int(entry["bytes"])))
            start += length
        known = (header["settings"], header["made by"], header["tokens"], header["text"])
        if not all(isinstance(value, dict) for value in known):
            raise ValueError("a value of another type")
        str(header["data"]), str(header["tokenizer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}: its header lacks what a decoder needs ({error!r}); get the file again") from error
    return found


def _write_tokenizer(content: CodedCorpus, directory: Path, name: str) -> Vocab:
    directory.mkdir(parents=True)
    for file, text in content.tokenizer.items():
        if file not in TOKENIZER_FILES:
            raise ValueError(f"{name} holds a file `{file[:80]}` that belongs to no tokenizer; get the file again")
        write_text(directory / file, text)
    return Vocab.load(directory)


def _prepare_shards(directory: Path, header: dict[str, Any], strands: Strands) -> list[Path]:
    """Prepared data with shards that are empty as yet: training fills them in. Returns the `.bin` files."""
    dtype, files = token_dtype(strands.vocab_size), list[Path]()
    splits: dict[str, list[dict[str, Any]]] = {TRAIN: [], VALIDATION: []}
    for number, (strand, entry) in enumerate(zip(strands.strands, header["strands"], strict=True)):
        prefix = directory / f"{number:05d}"
        files.append(beside(prefix, ".bin"))
        with files[-1].open("wb") as stream:
            stream.truncate(strand.length * dtype.itemsize)
        with beside(prefix, ".idx").open("wb") as stream:  # where documents end is not known
            write_index(stream, np.array([strand.length], dtype=np.int64), dtype)
        shard = {"prefix": prefix.name, "bin_bytes": strand.length * dtype.itemsize}
        splits[strand.split].append(
            {
                "name": strand.name,
                "weight": entry.get("weight"),
                "shards": [shard],
                "tokens": strand.length,
                "documents": strand.documents,
                "bytes": strand.bytes,
            }
        )
    content = {
        "fingerprint": header["data"],
        "tokenizer_fingerprint": header["tokenizer"],
        "splits": splits,
        "funnel": [],
    }
    write_json(directory / MANIFEST, content)
    return files


class _Decoding(Side):
    def __init__(self, recipe: Recipe, content: CodedCorpus, strands: Strands, files: list[Path], anyway: bool) -> None:
        self._recipe, self._header, self._strands, self._anyway = recipe, content.header, strands, anyway
        self._files = TokenFiles(strands, files, token_dtype(strands.vocab_size))
        self._reading = Reading(content.stream, strands.vocab_size)

    def begin(self, data: DataManifest, engine: Engine) -> tuple[Strands, Coder]:
        what = f"other software, on another machine or with other settings (by {self._header.get('written by')})"
        try:
            refuse_other(what, self._header["made by"], made_by(self._recipe, engine))
        except ValueError as error:
            if not self._anyway:
                raise ValueError(f"{error}. --anyway tries it: a decoder that goes wrong is stopped soon") from error
            note(f"{error}; it is tried")
        return self._strands, self._reading

    def coded(self, starts: Places, tokens: int) -> None:
        self._files.write(starts, tokens)

    def end(self, data: DataManifest, engine: Engine) -> None:
        self._reading.finish()
        if self._strands.digest() != self._header["tokens"].get("sha256"):
            raise DamagedStream(
                "the tokens that came out are not those that went in: training did not repeat to the bit, though "
                "recipe, software and machine say the same"
            )


def _write_text(content: CodedCorpus, strands: Strands, vocab: Vocab, out: Path) -> None:
    digest = hashlib.sha256()
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        for line in corpus_lines(strands, vocab):
            digest.update(line)
            stream.write(line)
        stream.flush()
        if digest.hexdigest() != content.header["text"].get("sha256"):
            raise DamagedStream("the tokens came out right and their text did not: the tokenizer works otherwise here")
