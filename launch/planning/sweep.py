"""Implements `replica sweep`: trains a recipe at several sizes, or over a grid of settings, on the same data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.common.files import write_json
from configs.common.notices import say
from configs.common.rendering import short
from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe, RecipeError, load
from configs.schema.scaling import GOVERNED, read_size
from launch.planning.checks import check
from launch.run_stages import data_stage, train_stage, working_in

# Settings that a recipe without the dial sets itself. A sweep over sizes unsets them, so that the dial derives them.
_FREED = (*(".".join(path) for path in GOVERNED), "model.num_kv_heads", "model.intermediate_size")
_FREED = (*_FREED, "train.steps", "train.epochs", "train.micro_batch_size")


class Point(NamedTuple):
    """One run of a sweep: its label, its overrides, and the values of a grid by setting."""

    label: str
    overrides: list[str]
    varied: dict[str, str] = {}  # noqa: RUF012  (a tuple's default; nobody writes to it)


def sizes(recipe: str, overrides: Sequence[str], dial: str, values: Sequence[str]) -> list[Point]:
    """Returns a point for each value of the dial (`depth` or `size`), smallest first, then the point to predict.

    The dial replaces the recipe's own shape and training settings. Overrides on the command line win.

    Raises:
        ValueError: for fewer than three values, values out of order, or a size that is impossible for the recipe.
    """
    numbers = [read_size(value) for value in values]
    if not 3 <= len(numbers) <= 6 or sorted(set(numbers)) != numbers:
        raise ValueError(f"--{dial}s {','.join(values)}: give three to six values in ascending order")
    base = load(recipe, overrides)
    freed = [] if base.model.depth or base.model.size else [f"{key}=null" for key in _FREED]
    ratio = numbers[-1] / numbers[-2]
    following = f"{2 * int(numbers[-1]) - int(numbers[-2])}" if dial == "depth" else short(numbers[-1] * ratio)
    other = "model.size=null" if dial == "depth" else "model.depth=null"
    return [
        Point(f"{dial}-{value}", [*freed, other, f"model.{dial}={value}", *overrides]) for value in (*values, following)
    ]


def grid(overrides: Sequence[str], axes: Sequence[str]) -> list[Point]:
    """Returns a point for every combination of the values of one or two `a.b=x,y,z`.

    Raises:
        ValueError: for more than two settings, one without values, or one that would change the data.
    """
    if len(axes) > 2:
        raise ValueError(f"--vary is given {len(axes)} times; give it once or twice")
    choices = []
    for axis in axes:
        key, _, listed = axis.partition("=")
        if not listed or not key.startswith(("model.", "train.")):
            raise ValueError(f"--vary {axis}: write model.… or train.… and its values, as train.optimizer.lr=1e-3,2e-3")
        choices.append([f"{key}={value}" for value in listed.split(",")])
    return [
        Point(
            ",".join(item.partition("=")[0].rpartition(".")[2] + "=" + item.partition("=")[2] for item in settings),
            [*overrides, *settings],
            dict(item.split("=", 1) for item in settings),
        )
        for settings in itertools.product(*choices)
    ]


def compute(recipe: Recipe, rows: int) -> float:
    """Computes the FLOPs of the whole training run (`pretrain.sizes.flops`) with `rows` of the embedding."""
    from pretrain.sizes.flops import flops_per_token

    if recipe.train.epochs is not None:
        raise RecipeError("a sweep needs the compute of a run: set train.tokens or train.steps, not train.epochs")
    tokens = total_steps(recipe, 0) * recipe.train.global_batch_size * recipe.model.context_length
    return flops_per_token(recipe.model, rows) * tokens


class Sweep:
    """Runs points under one directory, `runs/<name>-sweep`, on shared data."""

    def __init__(self, recipe: str, overrides: Sequence[str], out: str | None) -> None:
        base = load(recipe, overrides)
        self.name, self._recipe = base.name, recipe
        if out == "":
            raise ValueError("--out is empty; give a directory, or leave it out")
        self.directory = Path(out or f"runs/{base.name}-sweep").resolve()
        self._data = base.data.directory or str(self.directory / "data")

    def recipe(self, point: Point) -> Recipe:
        """Loads the recipe of a point, with its own run directory."""
        directories: dict[str, str | int] = {"out": str(self.directory / point.label), "data.directory": self._data}
        return load(self._recipe, point.overrides, directories)

    def run(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """Trains every point that is not finished; returns a row of figures for each.

        Raises:
            ValueError: for an invalid recipe, a run that was trained with other settings, or data without a validation
                split.
        """
        recipes = [self.recipe(point) for point in points]  # find all mistakes before the first run
        for recipe in recipes:
            check(recipe, trains_here=True)
        rows = []
        for number, (point, recipe) in enumerate(zip(points, recipes, strict=True), start=1):
            say(f"[{number}/{len(points)}] {point.label}")
            with working_in(recipe):
                data_stage(recipe)
                train_stage(recipe)
            rows.append(self.row(point, recipe))
        return rows

    def row(self, point: Point, recipe: Recipe) -> dict[str, Any]:
        """Returns the figures of a finished run."""
        from data_prep.tokens.shards import load_manifest
        from eval.report.history import read_history
        from pretrain.sizes.flops import count_parameters

        history = read_history(recipe.run_directory)
        bits, loss, tokens = map(history.last, ("val/bits_per_byte", "val/loss", "tokens"))
        if bits is None or loss is None:
            raise ValueError(
                "a sweep compares validation losses, but the data has no validation split; set data.validation_fraction"
            )
        vocabulary = recipe.model.padded_vocab(load_manifest(recipe.data_directory).vocab_size)
        return {
            "label": point.label,
            "varied": point.varied,
            "layers": recipe.model.num_layers,
            "width": recipe.model.hidden_size,
            "parameters": count_parameters(recipe.model, vocabulary).total,
            "tokens": int(tokens or 0),
            "compute": compute(recipe, vocabulary),
            "lr": recipe.train.optimizer.lr,
            "batch": recipe.train.global_batch_size,
            "weight_decay": recipe.train.optimizer.weight_decay,
            "val_loss": loss,
            "bits_per_byte": bits,
        }

    def law(self, points: Sequence[Point], check: bool) -> dict[str, Any]:
        """Trains all points but the last, predicts the last, and with `check` trains it too."""
        from data_prep.tokens.shards import load_manifest
        from eval.scaling_law import predict

        rows = self.run(points[:-1])
        following = self.recipe(points[-1])
        vocabulary = following.model.padded_vocab(load_manifest(following.data_directory).vocab_size)
        at = compute(following, vocabulary)
        fitted, prediction = predict([row["compute"] for row in rows], [row["bits_per_byte"] for row in rows], at)
        summary: dict[str, Any] = {"name": self.name, "runs": rows, "law": fitted._asdict()}
        summary["prediction"] = {"label": points[-1].label, "compute": at, **prediction._asdict()}
        self.write(summary)  # before the outcome is known
        if check:
            summary["outcome"] = self.run(points[-1:])[0]
            self.write(summary)
        return summary

    def write(self, summary: dict[str, Any]) -> None:
        """Writes `sweep.json`, `sweep.md` and `index.html`."""
        from configs.common.files import write_text
        from launch.planning.sweep_page import markdown, page

        write_json(self.directory / "sweep.json", summary)
        write_text(self.directory / "sweep.md", markdown(summary))
        write_text(self.directory / "index.html", page(summary))
