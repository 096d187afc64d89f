"""Implements `replica score`: scores documents of files, or those that a recipe prepares."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.common.console import Console
from configs.common.files import refuse_existing
from configs.common.progress import progress_bar
from configs.common.versions import own_version
from configs.schema.recipe import load, load_run
from data_prep.selection.score_files import ScoredBy
from data_prep.stages.pipeline import parts_to_score
from data_prep.tokens.vocab import Vocab
from eval.currency import scored_recipe
from eval.stage_facts import is_reward_model
from eval.texts.documents import Text, prepared_texts, texts_at
from eval.texts.score_sums import Row, summary_rows
from pretrain.checkpoint.choice import Choice, choose_checkpoint

_SHOWN = 20

Documents = tuple[Iterator[Text], float | None]


def score_texts(arguments: Namespace) -> None:
    """Scores documents, writes `--out`, and prints a row for each source or file.

    Raises:
        ValueError: for arguments that exclude each other, a file that exists without `--force`, and as
            `score_documents`.
    """
    if bool(arguments.paths) == bool(arguments.data):
        raise ValueError("give PATHS, or --data RECIPE for the documents that a recipe prepares, and not both")
    if arguments.overrides and not arguments.data:
        raise ValueError(f"{arguments.overrides[0]} is a setting of a recipe; give the recipe by --data")
    refuse_existing(arguments.out, arguments.force)
    run, choice = load_run(arguments.run).run_directory, Choice(arguments.checkpoint_step, arguments.best)
    score_documents(run, choice, partial(_documents, arguments), arguments.out)


def score_documents(run: Path, choice: Choice, documents: Callable[[], Documents], file: Path) -> None:
    """Scores documents with a checkpoint, writes a file, and prints a row for each source or file.

    Args:
        run: the run directory.
        choice: the checkpoint.
        documents: gives them, and the bytes of all where they are known. It is called when all else is in order,
            because it may take hours.
        file: ends in .parquet.

    Raises:
        ValueError: for a model that gives no text, and as `score_to_file`.
    """
    checkpoint = choose_checkpoint(run, choice)
    if is_reward_model(checkpoint.recipe):
        raise ValueError(f"{run} has a reward model, which gives texts no probability; use a model of text")
    from eval.reading.opening import HERE, open_reader  # torch takes seconds to import
    from eval.texts.score_file import check_target, score_to_file

    check_target(file)
    vocab = Vocab.load(checkpoint.tokenizer)
    recipe = scored_recipe(run, checkpoint)
    reader = open_reader(checkpoint, vocab, recipe, HERE)
    context = reader.context_length
    settings: dict[str, Any] = {"context": context, "new tokens per window": max(1, context // 2)}
    settings["precision"] = reader.precision
    if not checkpoint.recipe.model.causal:  # nats are upper bounds, estimated from draws
        settings["bound"] = {"draws": recipe.evaluation.bound_draws, "seed": recipe.seed}
    name = f"{run}, step {checkpoint.step}"
    scored_by = ScoredBy(checkpoint.fingerprint, vocab.fingerprint, settings, own_version(), name)
    texts, total = documents()
    with progress_bar("bytes scored", total) as bar:
        score_to_file(texts, file, reader, vocab, scored_by, bar.update)
    _print(summary_rows(file), file, name)
    if "bound" in settings:
        print("the model is masked: nats and bits per byte are upper bounds")


def _documents(arguments: Namespace) -> Documents:
    if not arguments.data:
        return texts_at(arguments.paths, arguments.text_field, arguments.lines), None
    parts = parts_to_score(load(arguments.data, arguments.overrides))
    return prepared_texts(parts), float(sum(part.bytes for part in parts))


def _print(rows: list[Row], file: Path, name: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", title=f"{file}: by {name}", title_justify="left")
    left_out = len(rows) - _SHOWN - 1
    shown = rows if left_out <= 0 else [*rows[:_SHOWN], rows[-1]]
    cells = [
        [
            row.name,
            *(f"{count:,}" for count in (row.documents, row.bytes, row.tokens)),
            *(f"{value:.3f}" for value in (row.bits_per_byte, *row.quantiles)),
        ]
        for row in shown
    ]
    table.add_column("file", overflow="fold")
    for number, header in enumerate(("documents", "bytes", "tokens", "bits/byte", "10%", "50%", "90%"), start=1):
        # A narrow terminal breaks names, never numbers.
        width = max(len(header), *(len(row[number]) for row in cells))
        table.add_column(header, justify="right", no_wrap=True, min_width=width)
    for row in cells:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
    if left_out > 0:
        print(f"… and {left_out:,} more files")
