"""Computes the summed nats of token windows; all likelihood scores use it.

Shapes: B rows of a forward pass, T positions, D width, V vocabulary, U scored positions, N targets (of the four choices
of a question, N is 4 and U may be 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from configs.schema.reading_direction import needs_causal
from eval.reading.prefix_tree import Node, prefix_forest
from eval.reading.windows import Score, Window
from pretrain.generation.sampling import NO_PROBABILITIES, largest
from pretrain.model.branch_cache import BranchCache, Places, TokenStore
from pretrain.model.transformer import Transformer

# Maximum size of the (U, V) logits of one step of the output projection.
_LOGIT_BYTES = 256 * 2**20
# Most elements of an attention mask: rows x new tokens x all tokens.
_MASK_ELEMENTS = 2**25
# Most memory of keys and values of nodes that wait for their children, on a CPU; on a GPU, a part of what is free.
_STORE_BYTES = 2**30
_STORE_PART = 4
_NONE: Places = np.zeros(0, dtype=np.int64)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BatchSize:
    """How much goes through the model in one forward pass. It does not change scores, except for rounding.

    Attributes:
        tokens: at most so many, padding included, or one row.
        rows: at most so many; None: no bound.
    """

    tokens: int
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A node whose path has been read, and the places of its path."""

    node: Node
    before: Places


class _Scores:
    """Adds up the targets of windows, which may lie in several nodes."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._nats, self._greedy = np.zeros(len(windows)), np.ones(len(windows), dtype=bool)
        self._left = np.array([window.scored for window in windows])

    def add(self, window: int, nats: Floats, greedy: npt.NDArray[np.bool_]) -> bool:
        """Adds targets; tells whether they are the window's last.

        Raises:
            ValueError: when they are NaN or infinite.
        """
        total = float(nats.sum())
        if not math.isfinite(total):
            raise ValueError(NO_PROBABILITIES)
        self._nats[window] += total
        self._greedy[window] &= bool(greedy.all())
        self._left[window] -= len(nats)
        return not self._left[window]

    def of(self, window: int) -> Score:
        return Score(float(self._nats[window]), bool(self._greedy[window]))


def scored_windows(
    model: Transformer, windows: Sequence[Window], vocab_size: int, size: BatchSize
) -> Iterator[list[tuple[int, Score]]]:
    """Scores windows; after each forward pass, gives the numbers and scores of those that are complete.

    What windows have in common is read once (`eval.reading.prefix_tree`). Rows of similar length share a pass. They are
    padded on the right, which causal attention ignores.

    Args:
        model: in evaluation mode.
        windows: the windows to score.
        vocab_size: number of ids of the tokenizer. Padding rows of the embedding get no probability, since the exported
            model has none.
        size: of a forward pass.

    Raises:
        ValueError: when the model is not causal, or its logits are NaN or infinite.
    """
    needs_causal(model.config, "scoring a text token by token")
    scores = _Scores(windows)
    with torch.inference_mode():
        store = TokenStore(model)
    for batch in _passes(prefix_forest(windows), store, size):
        with torch.inference_mode():
            hidden = _read(model, store, batch)
            done = _add_scores(model, hidden, [waiting.node for waiting in batch.rows], vocab_size, scores)
        yield [(window, scores.of(window)) for window in done]


# -------------------------------------------------------------------------------------------------------------- batches
@dataclass(eq=False)
class _Pass:
    """The rows of a forward pass. `kept`: of which the keys and values are kept; then `places` are set by `_read`."""

    rows: list[_Waiting]
    kept: bool
    places: list[Places]


def _passes(roots: Sequence[Node], store: TokenStore, size: BatchSize) -> Iterator[_Pass]:
    """Orders the tree's nodes into passes: a node comes after its path; few nodes wait for their children at a time."""
    room = _room(store)
    agenda = [([_Waiting(root, _NONE) for root in roots], 0)]
    while agenda:
        waiting, used = agenda.pop()
        store.release(used)
        yield from (
            _Pass(rows, False, []) for rows in _batches([one for one in waiting if not one.node.children], size)
        )
        store.release(used)
        inner = [one for one in waiting if one.node.children]
        if not inner:
            continue
        chunk, tokens = [inner.pop()], 0
        while inner and tokens + len(inner[-1].node.tokens) <= room:
            chunk.append(inner.pop())
            tokens += len(chunk[-1].node.tokens)
        if inner:
            agenda.append((inner, used))
        below: list[_Waiting] = []
        for rows in _batches(chunk, size):
            batch = _Pass(rows, True, [])
            yield batch
            for one, places in zip(rows, batch.places, strict=True):
                path = np.concatenate([one.before, places])
                below += [_Waiting(child, path) for child in one.node.children]
        agenda.append((below, store.used))


def _room(store: TokenStore) -> int:
    """Tokens whose keys and values may wait at a time."""
    device = store.keys.device
    memory = torch.cuda.mem_get_info(device)[0] // _STORE_PART if device.type == "cuda" else _STORE_BYTES
    return max(1, int(memory) // store.bytes_per_token)


def _batches(waiting: list[_Waiting], size: BatchSize) -> Iterator[list[_Waiting]]:
    """Cuts nodes into batches of similar length, the longest first."""
    order = sorted(waiting, key=lambda one: (len(one.node.tokens), len(one.before)), reverse=True)
    start = 0
    while start < len(order):
        new, before, rows = len(order[start].node.tokens), len(order[start].before), 1
        for one in order[start + 1 :]:
            before = max(before, len(one.before))
            elements = (rows + 1) * new * (before + new) if before else 0
            if (rows + 1) * new > size.tokens or elements > _MASK_ELEMENTS or rows == size.rows:
                break
            rows += 1
        yield order[start : start + rows]
        start += rows


# -------------------------------------------------------------------------------------------------------------- reading
def _read(model: Transformer, store: TokenStore, batch: _Pass) -> Tensor:
    """Hidden states (B, T, D) of the rows."""
    width = max(len(one.node.tokens) for one in batch.rows)
    inputs = np.zeros((len(batch.rows), width), dtype=np.int64)
    for row, one in enumerate(batch.rows):
        inputs[row, : len(one.node.tokens)] = one.node.tokens
    tokens = torch.from_numpy(inputs).to(model.embed.weight.device)
    if not batch.kept and not any(len(one.before) for one in batch.rows):
        return model.backbone(tokens)
    used = store.used
    cache = BranchCache(store, [one.before for one in batch.rows], width)
    hidden = model.backbone(tokens, cache)
    if batch.kept:
        batch.places = [places[: len(one.node.tokens)] for one, places in zip(batch.rows, cache.places, strict=True)]
    else:
        store.release(used)
    return hidden


def _add_scores(
    model: Transformer, hidden: Tensor, nodes: Sequence[Node], vocab_size: int, scores: _Scores
) -> list[int]:
    """Scores the targets in the nodes of hidden (B, T, D); returns the windows that are complete."""
    width = hidden.shape[1]
    parts = [(row * width, part) for row, node in enumerate(nodes) for part in node.parts]
    if not parts:
        return []
    places = np.concatenate([start + part.offsets for start, part in parts])  # (N,)
    targets = np.concatenate([part.targets for _, part in parts])
    nats, greedy = _score_places(model, hidden.flatten(0, 1), places, targets, vocab_size)
    weights = np.concatenate([part.weights for _, part in parts])
    nats, greedy = nats * weights, greedy | (weights == 0)
    ends = np.cumsum([len(part.offsets) for _, part in parts])
    done = []
    for (_, part), end in zip(parts, ends, strict=True):
        begin = end - len(part.offsets)
        if scores.add(part.window, nats[begin:end], greedy[begin:end]):
            done.append(part.window)
    return done


def _score_places(
    model: Transformer, hidden: Tensor, places: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], vocab_size: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Nats and greedy matches (N,) of targets (N,) that follow the states hidden[places]; hidden is (B T, D)."""
    order = np.argsort(places, kind="stable")
    unique, firsts = np.unique(places[order], return_index=True)  # (U,)
    nats, greedy = np.zeros(len(places)), np.zeros(len(places), dtype=bool)
    step = max(1, _LOGIT_BYTES // (4 * model.vocab_size))
    for start in range(0, len(unique), step):
        chosen = unique[start : start + step]
        end = firsts[start + step] if start + step < len(unique) else len(order)
        numbers = order[firsts[start] : end]  # of the targets there
        rows = np.searchsorted(chosen, places[numbers])
        states = hidden.index_select(0, torch.from_numpy(chosen).to(hidden.device))
        own, wanted = (torch.from_numpy(array).to(hidden.device) for array in (rows, targets[numbers]))
        found = _nats_and_greedy(model, states, own, wanted, vocab_size)
        nats[numbers], greedy[numbers] = found[0].cpu().numpy(), found[1].cpu().numpy()
    return nats, greedy


def _nats_and_greedy(
    model: Transformer, states: Tensor, rows: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Nats, float64, and greedy matches (N,) of targets (N,) after states[rows]; states is (U, D)."""
    logits = model.head(states).float()  # (U, V)
    logits[:, vocab_size:] = -torch.inf
    best = largest(logits)  # (U,)
    nats = -logits.log_softmax(dim=-1)[rows, targets]
    return nats.double(), best[rows] == targets
