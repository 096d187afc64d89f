"""Finds what windows have in common, so that a model reads it once: few-shot examples, contexts, equal questions.

The inputs of all windows form a tree whose nodes are runs of tokens. What a node's tokens are conditioned on is the
path to it. A beginning that windows share becomes a node of its own where that saves more than it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eval.reading.windows import Tokens, Window

# Tokens that a row of its own in a batch is worth: the keys and values before it are copied, and its end is padded.
_ROW_COST = 4


@dataclass(eq=False)
class Node:
    """A run of tokens that is read in one row.

    Attributes:
        begin: its first token's place in the windows.
        tokens: (n,) ids.
        children: nodes that continue it.
        parts: what is scored in it.
    """

    begin: int
    tokens: Tokens
    children: list[Node] = field(default_factory=list)
    parts: list[Targets] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of one window that are scored in one node.

    Attributes:
        window: number of the window.
        offsets: (m,) places in the node whose next token is a target.
        targets: (m,) ids.
        weights: (m,).
    """

    window: int
    offsets: npt.NDArray[np.int64]
    targets: Tokens
    weights: npt.NDArray[np.float64]


@dataclass(eq=False)
class _Draft:
    """A node of the whole tree: its end, an example of its tokens, and the windows that end there."""

    end: int
    example: int
    children: list[_Draft] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)


def prefix_forest(windows: Sequence[Window]) -> list[Node]:
    """Returns the roots of the tree of some windows; every target is scored in one node."""
    top = _drafted(windows)
    roots: list[Node] = []
    # A draft, the kept node above it and the path of kept nodes, from the root on.
    agenda: list[tuple[_Draft, tuple[Node, ...]]] = [(child, ()) for child in reversed(top.children)]
    while agenda:
        draft, path = agenda.pop()
        begin = path[-1].begin + len(path[-1].tokens) if path else 0
        rows = len(draft.children) + bool(draft.windows)
        kept = (rows - 1) * (draft.end - begin) >= _ROW_COST * rows
        if kept or draft.windows or not draft.children:
            node = Node(begin, windows[draft.example].tokens[begin : draft.end])
            (path[-1].children if path else roots).append(node)
            for window in draft.windows:
                _score_in((*path, node), windows[window], window)
            if kept:
                path = (*path, node)
        agenda += [(child, path) for child in reversed(draft.children)]
    return roots


def _sorted(windows: Sequence[Window]) -> tuple[list[int], list[int]]:
    """Windows in lexicographic order of their inputs, and the tokens that each shares with the one before it."""
    keys = [window.tokens[:-1].astype(">u4").tobytes() for window in windows]
    order = sorted(range(len(windows)), key=keys.__getitem__)
    shared = [0] * len(order)
    for place in range(1, len(order)):
        one, other = windows[order[place - 1]].tokens[:-1], windows[order[place]].tokens[:-1]
        size = min(len(one), len(other))
        unequal = one[:size] != other[:size]
        shared[place] = int(unequal.argmax()) if unequal.any() else size
    return order, shared


def _drafted(windows: Sequence[Window]) -> _Draft:
    """Builds the tree of all common beginnings from neighbours in lexicographic order, as a suffix tree is built."""
    top = _Draft(0, -1)
    path = [top]  # from the top to the newest window
    for index, same in zip(*_sorted(windows), strict=True):
        below: _Draft | None = None
        while path[-1].end > same:
            below = path.pop()
        if path[-1].end < same:  # the newest windows part within a run: it is cut in two
            assert below is not None
            between = _Draft(same, index, [below])
            path[-1].children[-1] = between
            path.append(between)
        if len(windows[index].tokens) - 1 > path[-1].end:
            leaf = _Draft(len(windows[index].tokens) - 1, index)
            path[-1].children.append(leaf)
            path.append(leaf)
        path[-1].windows.append(index)
    return top


def _score_in(path: Sequence[Node], window: Window, number: int) -> None:
    """Adds a window's targets to the nodes of its path."""
    first, end = len(window.tokens) - 1 - window.scored, len(window.tokens) - 1  # places of inputs that are scored
    weights = np.ones(window.scored) if window.weights is None else window.weights
    for node in reversed(path):
        begin = max(first, node.begin)
        if begin >= end:
            continue
        stop = min(end, node.begin + len(node.tokens))
        node.parts.append(
            Targets(
                number,
                np.arange(begin - node.begin, stop - node.begin),
                window.tokens[begin + 1 : stop + 1],
                weights[begin - first : stop - first],
            )
        )
        if node.begin <= first:
            return
