"""Draws, for each pair, another pair's source as a control and other targets as candidates: the same for any model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.decontamination.pair_files import TextPair

SEED = 1234


@dataclass(frozen=True)
class DrawnPairs:
    """What is read beside each of n pairs, as numbers of pairs.

    Attributes:
        other: (n,) the pair whose source is the control; its source text is another one.
        candidates: (n, N - 1) pairs whose targets are wrong answers: all texts differ, and so do those of the sources
            from the pair's own. Empty rows without matching.
    """

    other: list[int]
    candidates: list[list[int]]


def draw(pairs: Sequence[TextPair], candidates: int | None, called: str) -> DrawnPairs:
    """DrawnPairs by a fixed seed: pairs are put in a random order on a circle, and each takes those that follow it.

    So every source is the control of one other pair, if no source occurs twice, and no draw depends on a model.

    Args:
        pairs: the scored pairs.
        candidates: N targets to choose from, the right one included; None: none are drawn.
        called: names the set in messages.

    Raises:
        ValueError: when the set has too few pairs that differ.
    """
    order = sorted(range(len(pairs)), key=lambda index: _rank(pairs[index], index))
    others: list[int] = [0] * len(pairs)
    drawn: list[list[int]] = [[] for _ in pairs]
    for place, index in enumerate(order):
        other = next(_following(pairs, order, place), None)
        if other is None:
            raise ValueError(
                f"{called}: all pairs have the source of pair {index + 1}, so there is no other source to compare "
                "with; give the set more pairs"
            )
        others[index] = other
        if candidates is not None:
            drawn[index] = _wrong(pairs, order, place, candidates - 1)
            if len(drawn[index]) < candidates - 1:
                raise ValueError(
                    f"{called}: candidates is {candidates}, but beside pair {index + 1} the set has only "
                    f"{len(drawn[index])} targets of other sources that differ; lower candidates, or set it to null"
                )
    return DrawnPairs(others, drawn)


def _following(pairs: Sequence[TextPair], order: Sequence[int], place: int) -> Iterator[int]:
    """Yields the pairs after a place of the circle whose source is another text."""
    own = pairs[order[place]].source
    for step in range(1, len(order)):
        index = order[(place + step) % len(order)]
        if pairs[index].source != own:
            yield index


def _wrong(pairs: Sequence[TextPair], order: Sequence[int], place: int, count: int) -> list[int]:
    """Returns up to `count` pairs whose targets differ from each other and from that of the pair at a place."""
    known = {pairs[order[place]].target}
    found: list[int] = []
    for index in _following(pairs, order, place):
        if len(found) == count:
            break
        if pairs[index].target not in known:
            known.add(pairs[index].target)
            found.append(index)
    return found


def _rank(pair: TextPair, index: int) -> tuple[bytes, int]:
    text = f"{SEED}\x00{pair.source}\x00{pair.target}".encode()
    return hashlib.blake2b(text, digest_size=16).digest(), index
