"""Implements `replica import`: makes a run from a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import sha256_file
from configs.safety.own_files import refuse_links
from configs.schema.data import Data, Tokenizer
from configs.schema.model import Model
from configs.schema.recipe import Recipe, load, save
from configs.schema.sources import Source
from configs.schema.train import Train


def import_run(directory: Path, out: Path, recipe_file: str | None) -> Path:
    """Makes a run directory with one checkpoint from a Hugging Face directory; returns the checkpoint.

    Args:
        directory: contains config.json, safetensors files and tokenizer.json.
        out: the run directory; it must not contain a run yet.
        recipe_file: recipe with the evaluation section of the new run.
    """
    if (out / "recipe.yaml").exists():
        raise ValueError(f"{out} already holds a run; choose another --out")
    refuse_links(out.resolve())
    from data_prep.tokens.shards import DataManifest
    from data_prep.tokens.vocab import Vocab
    from pretrain.checkpoint.manifest import IMPORTED
    from pretrain.checkpoint.saver import Snapshot, commit_checkpoint
    from pretrain.interchange.huggingface_import import import_directory, open_directory
    from pretrain.parallel.ranks import Ranks

    open_directory(directory)  # checks the headers before the weights are read
    vocab = Vocab.load(directory)
    model, _ = import_directory(directory)
    tokenizer = out.resolve() / "data" / "tokenizer"
    _keep_tokenizer(directory, tokenizer)
    recipe = _recipe_for(model.config, directory, out, recipe_file)
    origin = DataManifest(
        directory=directory,
        fingerprint=f"{IMPORTED}config.json {sha256_file(directory / 'config.json')[:16]}",
        tokenizer=tokenizer,
        tokenizer_fingerprint=Vocab.load(tokenizer).fingerprint,
        vocab_size=vocab.size,
        eod_id=vocab.eod_id,
        train=[],
        validation=[],
        funnel=[],
    )
    alone = Ranks(rank=0, count=1, local_rank=0, local_count=1)
    checkpoint = commit_checkpoint(Snapshot.of_model(model), recipe, origin, alone, lambda value: [value])
    save(recipe, recipe.run_directory)  # last: a directory with a recipe is a run, and a failed import can be repeated
    return checkpoint


def _keep_tokenizer(directory: Path, target: Path) -> None:
    """Copies a model's tokenizer with its companion files, and the special ids of config.json."""
    from configs.common.files import atomic_directory, read_object, write_json
    from data_prep.tokens.special_tokens import IDS, SPECIAL_IDS, copy_companions
    from data_prep.tokens.vocab import TOKENIZER_NAME

    source = read_object(directory / "config.json")
    with atomic_directory(target) as kept:
        (kept / TOKENIZER_NAME).write_bytes((directory / TOKENIZER_NAME).read_bytes())
        copy_companions(directory, kept)
        write_json(kept / SPECIAL_IDS, {key: source[key] for key in (*IDS, "vocab_size") if key in source})


def _recipe_for(model: Model, directory: Path, out: Path, recipe_file: str | None) -> Recipe:
    tokenizer = Tokenizer(kind="file", path=str(out.resolve() / "data" / "tokenizer"))
    if recipe_file is not None:
        given = load(recipe_file)
        data = given.data.model_copy(update={"tokenizer": tokenizer})
        return given.model_copy(update={"model": model, "data": data, "out": str(out.resolve())})
    sources = [Source(name="imported", path=str(directory.resolve()))]
    name = "".join(letter if letter.isalnum() or letter in "_.-" else "-" for letter in directory.resolve().name)
    return Recipe(
        name=f"imported-{name}",
        out=str(out.resolve()),
        data=Data(sources=sources, tokenizer=tokenizer),
        model=model,
        train=Train(steps=1),
    )
