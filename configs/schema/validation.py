"""Defines `train.validation`: what is measured while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field

from configs.schema.section import Section

if TYPE_CHECKING:
    from configs.schema.evaluation import Evaluation

# What stands before the name of a score where it is measured during training, on fewer items than `replica eval`.
CURVE = "eval/"
# Values of the validation split whose direction is known: more of it is better.
_MORE_IS_BETTER = {
    **dict.fromkeys(("val/loss", "val/perplexity", "val/bits_per_byte", "val/kl"), False),
    **dict.fromkeys(("val/accuracy", "val/reward", "val/margin", "val/stop_rate"), True),
}


class PartsInTraining(Section):
    """Parts of `evaluation` that are scored during training; see docs/validation.md."""

    parts: list[str] = Field(
        [],
        description="Names of parts, such as `perplexity/heldout`, `benchmark/piqa`, `translation/wmt`, `chat/sums`, "
        "`conversations/sft`, `samples/prompts` or `aggregate/core`; `*` stands for any letters.",
    )
    every: int | None = Field(
        None, ge=1, description="Steps between evaluations; null: `train.validation.every`. The last step has one too."
    )
    max_items: int = Field(
        100, ge=1, description="Score only the first items of each task or set: documents, pairs, prompts."
    )
    max_seconds: float = Field(
        60.0,
        gt=0,
        description="Time of one evaluation. A part that has not ended then has no point in its curve at this step; "
        "the next evaluation begins with it, or ends with it if it had all the time to itself.",
    )


class ValidationPolicy(Section):
    """Validation loss during training, and parts of the evaluation."""

    every: int = Field(250, ge=1, description="Steps between validations. The last step is always validated.")
    max_tokens: int = Field(
        200_000,
        ge=1,
        description="Target tokens to score each time, from the start of the validation split; also of each "
        "perplexity set that is scored during training.",
    )
    by_source: bool = Field(
        True, description="Also bits per byte of each source, if there are several. It costs up to a batch a source."
    )
    evaluation: PartsInTraining = PartsInTraining()

    @property
    def evaluation_every(self) -> int:
        """Steps between evaluations."""
        return self.evaluation.every or self.every


def more_is_better(curve: str) -> bool | None:
    """Tells whether more of a value of the validation split is better; None where neither is known to be."""
    if curve.startswith("val/bits_per_byte/"):  # of a source
        return False
    return _MORE_IS_BETTER.get(curve)


def part_names(section: Evaluation) -> Iterator[str]:
    """Yields the names of the parts that a recipe's evaluation can have, without those of a stage's own data."""
    yield from (f"benchmark/{entry.shown}" for entry in section.benchmarks.entries)
    yield from ("aggregate/core",) if section.core.tasks else ()
    yield from ("samples/prompts", "samples/document")
    for kind in ("perplexity", "translation", "summarization", "information", "chat"):
        yield from (f"{kind}/{item.name}" for item in getattr(section, kind))


def check_parts(policy: ValidationPolicy, section: Evaluation, sharing: int) -> None:
    """Raises `ValueError` for a part that the evaluation does not have, or ranks that cannot score.

    Args:
        policy: what is measured during training.
        section: the recipe's evaluation.
        sharing: ranks that share a row of the batch.
    """
    known = list(part_names(section))
    for pattern in policy.evaluation.parts:
        if not pattern.startswith("conversations/") and not any(chosen(name, [pattern]) for name in known):
            raise ValueError(
                f"train.validation.evaluation.parts: `{pattern}` names no part of `evaluation`; there are "
                f"{', '.join(known)} and, in a stage, conversations/NAME"
            )
    if policy.evaluation.parts and sharing > 1:
        raise ValueError(
            "train.validation.evaluation: texts are scored by whole rows and whole matrices, so it cannot be combined "
            "with train.parallel; leave its parts out, and score the checkpoints by `replica eval`"
        )


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """Tells whether a part is one of those that the patterns name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
