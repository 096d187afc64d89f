"""Says in words what a table of scores hides: a model that has learnt nothing that its evaluation asks for.

A loss that falls tells that text is predicted better. It does not tell that any task is answered better than by
guessing, and a set of another kind than the training data may still be predicted worse than by a simple program.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.common.notices import note
from eval.results import Result

_BASELINES = {"gzip_bits_per_byte": "gzip -9"}


def remarks(results: Sequence[Result]) -> dict[str, str]:
    """Returns a key and a sentence for each finding; none where the model does what its scores ask for."""
    return {**_at_chance(results), **_below_programs(results)}


def tell(results: Sequence[Result]) -> None:
    """Prints the findings."""
    for text in remarks(results).values():
        note(text)


def above_chance(results: Sequence[Result]) -> list[Result]:
    """Returns the scores whose whole interval lies above guessing."""
    return [one for one in results if one.chance is not None and one.low is not None and one.low > one.chance]


def _at_chance(results: Sequence[Result]) -> dict[str, str]:
    known = [one for one in results if one.chance is not None and one.low is not None and one.named.kind != "aggregate"]
    if not known or above_chance(results):
        return {}
    items = sorted({one.n for one in known})
    count = f"{items[0]:,}" if len(items) == 1 else f"{items[0]:,} to {items[-1]:,}"
    subject = "the score" if len(known) == 1 else f"none of the {len(known)} scores"
    verb = "is not" if len(known) == 1 else "is"
    names = ", ".join(one.name for one in known[:4]) + (", …" if len(known) > 4 else "")
    return {
        "chance": f"{subject} with a known chance {verb} above guessing ({names}; {count} items each): the loss tells "
        "how well text is predicted, but here the model answers like one that guesses. It is too small or too early, "
        "or the items are too few"
    }


def _below_programs(results: Sequence[Result]) -> dict[str, str]:
    scores = {one.name: one for one in results}
    found = {}
    for one in results:
        kind, subject, metric, variant = one.named
        if (kind, metric, variant) != ("perplexity", "bits_per_byte", ""):
            continue
        for key, program in _BASELINES.items():
            other = scores.get(f"compression/{subject}/{key}")
            if other is not None and one.value >= other.value:
                found[one.name] = (
                    f"{one.name} is {one.value:.3f}, no better than {program} ({other.value:.3f}): the model knows "
                    "less of this text than a program that has never read any"
                )
    return found
