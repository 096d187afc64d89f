"""Implements `replica show`: prints every setting of a recipe with its origin, and derived figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.text import Text

from configs.common.console import Console
from configs.common.layout import MANIFEST
from configs.safety.hide_secrets import is_secret, mask
from configs.schema.batch_plan import solve_batch, total_steps
from configs.schema.recipe import Origins, Recipe
from pretrain.sizes.embedding_rows import embedding_rows

if TYPE_CHECKING:
    from pretrain.model.transformer import Transformer

Path = tuple[str | int, ...]
_ORIGIN_COLUMN = 64


def before_preparation(stage: Recipe, base: Recipe) -> Recipe:
    """Returns a stage's recipe whose vocabulary can be counted before the base's tokenizer is there."""
    path = stage.data.tokenizer.path
    if not stage.parents or path is None or FilePath(path).exists():
        return stage
    return stage.model_copy(update={"data": stage.data.model_copy(update={"tokenizer": base.data.tokenizer})})


class StageOrigins:
    """Tells where each value of a stage's recipe comes from, like `Origins`; `inherited` stands behind the recipe's."""

    def __init__(self, recipe: Recipe, origins: Origins, name: str) -> None:
        self._recipe, self._stage, self._origins = recipe, recipe.stage(name), origins
        self._index = recipe.stage_names.index(name)

    def of(self, path: Path) -> str:
        """Returns `override …`, the file name, one of these with `inherited`, `as in STAGE` or `default`."""
        own = path[1:] if path[:2] == ("train", "objective") else path
        origin = self._origins.of(("stages", self._index, *own))
        if origin != "default":
            return origin
        like = self._recipe.stages[self._index].data.get("like")
        if path[0] == "data" and like is not None:
            return f"as in {like}"
        above = self._origins.of(path)
        same = above != "default" and _value(self._stage, path) == _value(self._recipe, path)
        return f"{above}, inherited" if same else "default"


def _value(recipe: Recipe, path: Path) -> Any:
    node: Any = recipe
    for key in path:
        try:
            node = node[key] if isinstance(key, int) or isinstance(node, dict) else getattr(node, key)
        except (LookupError, AttributeError, TypeError):
            return None
    return node


def settings(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields every leaf of a recipe with its path, depth first. Sections and list items are rows of their own."""
    if isinstance(value, BaseModel):
        items: list[tuple[str | int, Any]] = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    if path:
        yield path, None if items else {}
    for key, item in items:
        yield from settings(item, (*path, key))


def print_recipe(recipe: Recipe, origins: Origins | StageOrigins, console: Console) -> None:
    """Prints the recipe: YAML on the left, the origin of each value on the right."""
    for path, value in settings(recipe):
        is_section = value is None and _is_section(recipe, path)
        label = f"- {path[-1]}" if isinstance(path[-1], int) else f"{path[-1]}"
        line = Text("  " * (len(path) - 1)).append(f"{label}:", style="bold" if is_section else "cyan")
        if not is_section:
            line.append(" ").append(_plain(mask(value, hidden=any(map(is_secret, path)))))
            origin = origins.of(path)
            style = {"default": "dim"}.get(origin, "yellow" if origin.startswith("override") else "green")
            line.append(" " * max(2, _ORIGIN_COLUMN - len(line))).append(f"# {origin}", style=style)
        console.print(line, soft_wrap=True)


def _is_section(recipe: Recipe, path: Path) -> bool:
    node: Any = recipe
    for key in path:
        node = node[key] if isinstance(key, int) else getattr(node, key)
    return isinstance(node, BaseModel | list)


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def print_facts(recipe: Recipe, ranks: int, console: Console) -> None:
    """Prints figures derived from the recipe: parameters, the batch equation, steps and tokens."""
    console.print()
    for name, text in facts(recipe, ranks).items():
        console.print(Text(f"{name:<16}", style="bold").append(text, style=""), soft_wrap=True)


def facts(recipe: Recipe, ranks: int) -> dict[str, str]:
    """Maps names to figures derived from the recipe, for this number of ranks."""
    figures = {"run directory": str(recipe.run_directory)}
    plan = solve_batch(recipe.train, ranks)
    tokens_per_step = plan.global_batch * recipe.model.context_length
    figures["batch"] = (
        f"{plan.global_batch} sequences = {plan.micro_batch} micro x {plan.accumulation} accumulation x "
        f"{plan.ranks} ranks; {tokens_per_step:,} tokens a step"
    )
    tokens = None
    if recipe.train.epochs is None:
        steps = total_steps(recipe, train_windows=0)
        tokens = steps * tokens_per_step
        figures["length"] = f"{steps:,} steps = {tokens:,} tokens"
    else:
        figures["length"] = f"{recipe.train.epochs:g} passes over the training split"
    if (recipe.data_directory / MANIFEST).is_file():
        figures["mixture"] = "; ".join(_mixture(recipe))
    rows = embedding_rows(recipe)
    model = meta_model(recipe, rows or 1)
    if model is not None:
        count = model.parameter_count()
        figures["parameters"] = f"{count.non_embedding:,} without embeddings" + (
            f"; {count.total:,} with {rows:,} rows" if rows else "; the alphabet is known once the data is prepared"
        )
        if tokens is not None and rows:
            figures["compute"] = f"{model.flops_per_token() * tokens:.2e} FLOPs (PaLM, appendix B)"
    return figures


def _mixture(recipe: Recipe) -> list[str]:
    """Returns the mixture of the prepared data, or the reason why it is impossible."""
    from data_prep.tokens.shards import load_manifest
    from pretrain.batches.mixture import mixture_lines, mixture_table

    try:
        return mixture_lines(mixture_table(recipe, load_manifest(recipe.data_directory)))
    except ValueError as error:  # this command only shows: stale data or an impossible mixture is no error here
        return [str(error)]


def meta_model(recipe: Recipe, vocab_size: int) -> Transformer | None:
    """Builds the recipe's model without memory for its weights; None when torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    from pretrain.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(recipe.model, vocab_size)
