"""Makes batches as a pure function of (recipe, step).

A *window* is `model.context_length` target positions of one source's token stream: tokens [w*C, w*C + C], where the
target of each token is the next one. The last, partial window of a stream is left out of training. With best-fit
packing a window holds whole documents instead, and no token is left out (`pretrain.batches.packing`). Conversations are
never cut: a window holds one, or with best-fit packing several that do not see each other. A *slot* is a
place in the endless order of windows (`pretrain.batches.order`); step s takes the slots [s*G, (s+1)*G) with G the
global batch size, and rank r of R the r-th R-th of them. Nothing depends on ranks, micro-batches, accumulation or
restarts.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema.objectives import Supervised
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest, DocumentSpan, SourceShards, TokenStream
from pretrain.batches.mixture import plan_mixture
from pretrain.batches.packing import load_packing
from pretrain.batches.slots import StepSlots
from pretrain.batches.units import UnitWindows, learnt, too_long
from pretrain.batches.windows import CutWindows, PackedWindows, Windows
from pretrain.sizes.limits import PREFETCH_BATCHES


@dataclass(frozen=True)
class Batch:
    """Sequences to train on or to score."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64: the token after each
    weights: Tensor  # (B, T) float32: how much each target counts in the loss; 0 leaves it out
    target_bytes: int  # UTF-8 bytes that the targets with weight stand for
    fresh: bool  # no window of the *global* batch was seen in an earlier epoch
    positions: Tensor | None = None  # (B, T) int64: of each token in its document, where they do not see each other
    columns: dict[str, Tensor] = field(default_factory=dict)  # what the objective's loss takes beside: (B, T) or (B,)
    count: float | None = None  # this rank's share of what the loss is a mean over; None: the sum of `weights`
    lengths: tuple[int, ...] | None = None  # (B,): positions of each row before its padding, which has no weight
    statistics: dict[str, float] = field(default_factory=dict)  # of how it was made, the same on all ranks
    read: int | None = None  # targets that were read, where not all have a weight; None: those that have one

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a `LossModule`."""
        inputs = (self.tokens, self.targets, self.weights)
        return inputs if self.positions is None else (*inputs, self.positions)

    def to(self, device: torch.device) -> Batch:
        """A copy on `device`; does not wait for the transfer if the batch is pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which transfers to a GPU run by themselves."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in values if isinstance(value, Tensor)}
        columns = {name: change(value) for name, value in self.columns.items()}
        return replace(self, **changed, columns=columns)

    def rows(self, first: int, last: int, multiple: int = 1) -> Batch:
        """Rows [first, last), cut to the longest of them where `lengths` are known.

        `multiple`: of which the width is made one, as far as the batch is wide.
        """
        lengths = None if self.lengths is None else self.lengths[first:last]
        width = self.tokens.shape[1]
        if lengths is not None:
            width = min(width, -(-max(1, *lengths) // multiple) * multiple)

        def cut(tensor: Tensor) -> Tensor:
            part = tensor[first:last]
            return part if tensor.dim() == 1 or part.shape[1] == width else part[:, :width].contiguous()

        return replace(self._mapped(cut), lengths=lengths)


def document_positions(begins: NDArray[np.bool_]) -> Tensor:
    """(B, T) int64: the place of each token in its document, from 0, given where one begins; a row begins at 0 too.

    As input, an end-of-document token begins the next document: it is what that document's first token is predicted
    from, in training as in generation and evaluation. As target it ends its own. So every target can be predicted, and
    all are coded.
    """
    columns = np.arange(begins.shape[1])
    return torch.from_numpy(columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1))


Read = TypeVar("Read", covariant=True)


class Batches(Protocol[Read]):
    """What the steps of training read: batches, or what an objective makes batches of. A pure function of the step."""

    @property
    def windows(self) -> int:
        """Rows of batches in one epoch."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Read:
        """This rank's share of what a step reads; has `fresh` and `pinned` as a `Batch` has."""


class BatchSource:
    """Training windows in the order of the recipe.

    Raises:
        ValueError: without a whole window, with shares that cannot be had (see `WindowOrder`), or, on reading, when a
            token id lies outside the vocabulary.
    """

    def __init__(self, recipe: Recipe, manifest: DataManifest) -> None:
        self.context = recipe.model.context_length
        self.global_batch = recipe.train.global_batch_size
        self._token_bytes = manifest.vocab.token_bytes
        self._eod = manifest.eod_id
        self.packed = recipe.train.packing == "best_fit"
        objective = recipe.train.objective
        # Conversations: which answers are learnt. Side by side they must not see each other.
        self._train_on = objective.train_on if isinstance(objective, Supervised) else None
        # Slices of rows that ranks share have one width.
        self._cuts_rows = self._train_on is not None and recipe.train.parallel.sequence == 1
        self.opens_with_input = not self.packed and self._train_on is None
        self._masking = self.packed if self._train_on else recipe.train.document_masking
        streams = {
            source.name: TokenStream(source.prefixes, source.name, manifest.vocab_size) for source in manifest.train
        }
        self._order = plan_mixture(recipe, manifest, {name: stream.length for name, stream in streams.items()})
        self._slots = StepSlots(self._order, self.global_batch)
        shards = {source.name: source for source in manifest.train}
        self._windows = [
            self._read_windows(manifest, shards[source.name], streams[source.name]) for source in self._order.sources
        ]
        self._rows = sum(source.windows for source in self._order.sources)

    @property
    def windows(self) -> int:
        """Windows of one epoch."""
        return self._rows

    def _read_windows(self, manifest: DataManifest, source: SourceShards, stream: TokenStream) -> Windows:
        if self.packed:
            packing = load_packing(manifest, source, self.context)
            if self._train_on and packing.cut_documents:
                raise ValueError(too_long(source.name, self.context + 1, self.context))
            return PackedWindows(stream, packing, self._eod)
        if self._train_on:
            return UnitWindows(source, manifest.vocab_size, self.context, self._eod)
        return CutWindows(stream, self.context)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows [rank*G/ranks, (rank+1)*G/ranks) of the global batch of `step`."""
        assert self.global_batch % ranks == 0
        share = self.global_batch // ranks
        # All slots are looked up on every rank, so that `fresh` is the same everywhere.
        windows = self._slots.windows(step)
        rows = slice(rank * share, (rank + 1) * share)
        chosen = list(zip(windows.source[rows].tolist(), windows.window[rows].tolist(), strict=True))
        # Padding holds end-of-document tokens: they stand for no bytes.
        tokens, targets = np.full((2, share, self.context), self._eod)
        pieces = [
            self._windows[source].read(window, tokens[row], targets[row]) for row, (source, window) in enumerate(chosen)
        ]
        weights = self._weights(chosen, pieces)
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            target_bytes=int(self._token_bytes[targets[weights > 0]].sum(dtype=np.int64)),
            fresh=not windows.epoch.any(),
            positions=document_positions(self._begins(tokens, pieces)) if self._masking else None,
            lengths=tuple(map(sum, pieces)) if self._cuts_rows else None,
        )

    def digest(self, step: int, ranks: int = 1) -> str:
        """SHA-256 of the global batch of `step`, put together from `ranks` shares."""
        shares = [self.batch(step, rank, ranks) for rank in range(ranks)]
        digest = hashlib.sha256()
        for parts in zip(*(share.inputs for share in shares), strict=True):
            digest.update(torch.cat(parts).numpy().tobytes())
        return digest.hexdigest()

    def placed(self, step: int) -> list[tuple[str, int]]:
        """For each row of the global batch: its source, and the number of its window there."""
        windows = self._slots.windows(step)
        names = [source.name for source in self._order.sources]
        pairs = zip(windows.source.tolist(), windows.window.tolist(), strict=True)
        return [(names[source], window) for source, window in pairs]

    def documents(self, step: int) -> list[list[DocumentSpan]]:
        """For each row of the global batch: the documents its window was cut from."""
        windows = self._slots.windows(step)
        return [
            self._windows[source].documents(window)
            for source, window in zip(windows.source.tolist(), windows.window.tolist(), strict=True)
        ]

    def _weights(self, chosen: list[tuple[int, int]], pieces: list[list[int]]) -> NDArray[np.float32]:
        weights = np.zeros((len(chosen), self.context), dtype=np.float32)
        for row, ((source, window), lengths) in enumerate(zip(chosen, pieces, strict=True)):
            used = sum(lengths)
            if self._train_on is None:
                weights[row, :used] = 1
                continue
            parts = np.split(self._windows[source].kinds(window), np.cumsum(lengths)[:-1])
            weights[row, :used] = np.concatenate([learnt(kinds, self._train_on) for kinds in parts])
        return weights

    def _begins(self, tokens: NDArray[np.int64], pieces: list[list[int]]) -> NDArray[np.bool_]:
        """(B, T) bool: a document, a piece of one, or padding begins here."""
        begins: NDArray[np.bool_] = tokens == self._eod
        if not self.packed:
            return begins
        for row, lengths in enumerate(pieces):
            ends = np.cumsum(lengths)
            begins[row, ends[ends < self.context]] = True
        return begins


def drawn_batch(rows: int, width: int, vocab_size: int, seed: int) -> Batch:
    """A batch of uniformly drawn tokens, all of which count, for measurements without data."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, vocab_size, (rows, width + 1), generator=generator)
    weights = torch.ones(rows, width)
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), weights, weights.numel(), fresh=True)


@contextmanager
def prefetched(
    source: Batches[Any], steps: Sequence[int], rank: int, ranks: int, device: torch.device
) -> Iterator[Iterator[Any]]:
    """Yields an iterator over what `steps` read, which a thread reads ahead so that training does not wait.

    They stay on the CPU; for a GPU in page-locked memory.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=PREFETCH_BATCHES)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break

    def read_ahead() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a thread starts on GPU 0, where pinning would make a context
            for step in steps:
                if stop.is_set():
                    return
                batch = source.batch(step, rank, ranks)
                put(batch.pinned() if device.type == "cuda" else batch)
        except Exception as error:
            put(error)  # raised again where the batch is taken

    def take() -> Iterator[Any]:
        for _ in steps:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=read_ahead, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        thread.join()
