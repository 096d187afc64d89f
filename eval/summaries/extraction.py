"""Chooses sentences of a document: the first ones, the most central ones, the best possible ones, or any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from eval.statistics import SEED

Array = npt.NDArray[np.float64]

# Scores that are equal but for rounding are a tie, and the earlier sentence wins.
_DECIMALS = 9


def lead(count: int, most: int) -> list[int]:
    """Returns the numbers of the first sentences, at most `most` of `count`."""
    return list(range(min(count, most)))


def at_random(count: int, most: int, number: int) -> list[int]:
    """Draws sentences without replacement; returns their numbers in order.

    Args:
        count: sentences of the document.
        most: how many to draw.
        number: of the document, which decides the draw together with a fixed seed.
    """
    generator = np.random.default_rng([SEED, number])
    return sorted(generator.choice(count, size=min(count, most), replace=False).tolist())


def best(scores: Sequence[float] | Array, most: int) -> list[int]:
    """Returns the numbers of the sentences with the highest scores in the order of the document."""
    rounded = np.round(np.asarray(scores, dtype=np.float64), _DECIMALS)
    return sorted(np.argsort(-rounded, kind="stable")[:most].tolist())


def lexrank(
    sentences: Sequence[Sequence[str]], threshold: float = 0.1, damping: float = 0.85, tolerance: float = 1e-6
) -> Array:
    """Computes the centrality of sentences by LexRank (Erkan and Radev 2004, arXiv:1109.2128).

    Two sentences are neighbours if the cosine of their tf-idf vectors exceeds the threshold. Centrality is the
    stationary distribution of a walk between neighbours, found by power iteration. A sentence counts as a document of
    the idf, log(n / (1 + sentences with the word)), and tf is relative to the commonest word, as in the library sumy.

    Args:
        sentences: tokens of each of n sentences.
        threshold: least cosine of neighbours.
        damping: chance to go on to a neighbour; otherwise the walk goes on anywhere. 1: sumy's walk.
        tolerance: the iteration ends when the vector of unit length moves by no more than this. sumy's is 0.1.

    Returns:
        Centrality (n,), of Euclidean length 1.
    """
    n = len(sentences)
    columns = {word: column for column, word in enumerate(dict.fromkeys(word for one in sentences for word in one))}
    weights = np.zeros((n, len(columns)))
    for row, counts in enumerate(map(Counter, sentences)):
        for word, count in counts.items():
            weights[row, columns[word]] = count / max(counts.values())
    weights *= np.log(n / (1 + (weights > 0).sum(axis=0)))
    lengths = np.linalg.norm(weights, axis=1)
    weights /= np.where(lengths > 0, lengths, 1)[:, None]
    neighbours = np.round(weights @ weights.T, 12) > threshold  # (n, n)
    step = neighbours / np.maximum(neighbours.sum(axis=1), 1)[:, None]
    walk = damping * step.T + (1 - damping) / n
    ranks, moved = np.full(n, 1 / n), math.inf
    while moved > tolerance:
        after = walk @ ranks
        after /= np.linalg.norm(after) or 1
        ranks, moved = after, float(np.linalg.norm(after - ranks))
    return ranks


def oracle(count: int, most: int, score: Callable[[list[int]], float]) -> list[int]:
    """Chooses sentences greedily by their score against the references, until no sentence adds to it.

    It bounds what the choice of whole sentences can reach (Nallapati et al., arXiv:1611.04230), and needs references.

    Args:
        count: sentences of the document.
        most: largest number of sentences.
        score: of sentences by number, in order.

    Returns:
        Their numbers in order; at least one.
    """
    chosen: list[int] = []
    reached = -math.inf
    while len(chosen) < min(count, most):
        offered = [sorted([*chosen, number]) for number in range(count) if number not in chosen]
        values = [score(numbers) for numbers in offered]
        place = int(np.argmax(values))
        if values[place] <= reached:
            break
        chosen, reached = offered[place], values[place]
    return chosen
