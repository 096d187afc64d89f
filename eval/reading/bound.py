"""Reads with a masked model: upper bounds of nats by draws of masks, and texts by filling in masks.

A masked model gives a text no single probability. For each order of its tokens it gives one, and the mean of their nats
over all orders bounds those of the mean probability from above (Uria et al., arXiv:1310.1757; as NELBO of masked
diffusion, arXiv:2406.07524). A draw takes a number k, uniform from 1 to n, masks k of the n targets, and weighs their
nats by n / k: its mean over all draws is that bound.

The numbers k of a window's draws are spread evenly over 1 to n. Draws are counted noise of the seed and of what is
asked, so a score does not depend on batches, order or ranks (but for rounding).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eval.reading.scoring import BatchSize
from eval.reading.windows import Report, Score, Tokens, Window
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import Predictor, state_at
from pretrain.generation.noise import key_uniforms, noise_keys
from pretrain.generation.player import Answer, Request
from pretrain.generation.sampling import NO_PROBABILITIES, largest

# Most size of the (N, V) logits of one step of the output projection.
_LOGIT_BYTES = 256 * 2**20

# Windows that are scored between two reports.
_WINDOWS = 16

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Draw:
    """Targets of a window that are masked together.

    Attributes:
        places: (k,) of the masked targets in the window's tokens, in increasing order.
        factor: of their nats. The sum over a window's draws is its bound.
    """

    places: Places
    factor: float


@dataclass(frozen=True)
class Draws:
    """How masks are drawn.

    Attributes:
        count: of each window.
        seed: of the noise.
    """

    count: int
    seed: int

    def of(self, window: Window) -> list[Draw]:
        """Returns the draws of a window; all sets of its targets where these are not more, so one target is exact."""
        targets = _targets(window)
        if self._takes_all(len(targets)):
            return _all_sets(targets)
        size = len(targets)
        keys = noise_keys(_seed_of(window, self.seed), "bound", range(self.count + 1), [0] * (self.count + 1))
        offset = key_uniforms(keys[-1:], 0)[0]
        found = []
        for number in range(self.count):
            masked = min(size, 1 + int((number + offset) / self.count * size))
            chosen = np.argsort(key_uniforms(keys[number], np.arange(size)), kind="stable")[:masked]
            found.append(Draw(targets[np.sort(chosen)], size / masked / self.count))
        return found

    def variance(self, window: Window, estimates: Floats) -> float:
        """Variance of the sum of a window's estimates (draws,), in the order of `of`.

        From the differences of neighbours, as for systematic samples (Wolter 2007, chapter 8): neighbours have nearly
        as many masks, and what differs with their number is no error. Infinite for a single draw.
        """
        count = len(estimates)
        if self._takes_all(len(_targets(window))):
            return 0.0
        return float(np.square(np.diff(estimates)).sum() * count / (2 * (count - 1))) if count > 1 else math.inf

    def _takes_all(self, targets: int) -> bool:
        return targets <= self.count.bit_length() and 2**targets - 1 <= self.count


def _targets(window: Window) -> Places:
    """Places (n,) of what is scored. Targets of weight 0 are context, as the tokens before: they are never masked."""
    places = np.arange(len(window.tokens) - window.scored, len(window.tokens))
    return places if window.weights is None else places[window.weights != 0]


def _all_sets(targets: Places) -> list[Draw]:
    return [
        Draw(np.array(chosen), 1 / size / math.comb(len(targets), size))
        for size in range(1, len(targets) + 1)
        for chosen in itertools.combinations(targets.tolist(), size)
    ]


def _seed_of(window: Window, seed: int) -> int:
    """A seed that follows from the content of the request alone."""
    weights = b"" if window.weights is None else window.weights.tobytes()
    head = f"{seed} {len(window.tokens)} {window.scored} ".encode()
    return int.from_bytes(hashlib.blake2b(head + window.tokens.tobytes() + weights, digest_size=8).digest(), "little")


class BoundReader:
    """Reads with a masked model of this process; see `eval.reading.reader.Reader`.

    `Score.greedy` tells whether filling in all targets at temperature 0, the surest first, one a pass, gives them.

    Args:
        predictor: predicts tokens behind masks.
        vocab_size: number of ids of the tokenizer.
        precision: of the matrix products.
        denoiser: fills in masks, for `generate`.
        draws: of the masks of each window.
        size: of a forward pass.
    """

    def __init__(
        self,
        predictor: Predictor,
        vocab_size: int,
        precision: str,
        denoiser: Denoiser,
        draws: Draws,
        size: BatchSize,
    ) -> None:
        self._predictor, self._denoiser, self._draws, self._size = predictor, denoiser, draws, size
        self.context_length, self.vocab_size, self.precision = predictor.context_length, vocab_size, precision

    @torch.inference_mode()
    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        """See `Reader.score`. The nats are upper bounds, and `Score.variance` is that of the draws."""
        order = sorted(range(len(windows)), key=lambda number: -len(windows[number].tokens))
        scores: dict[int, Score] = {}
        for start in range(0, len(order), _WINDOWS):
            numbers = order[start : start + _WINDOWS]
            scores.update(zip(numbers, self._scores([windows[number] for number in numbers]), strict=True))
            if report is not None:
                report(len(scores), total=len(windows))
        return [scores[number] for number in range(len(windows))]

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        """See `Reader.generate`. A prompt with masks is filled in; see `pretrain.denoising.denoise.Denoiser.run`."""
        return self._denoiser.run(requests, report)

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        """See `Reader.rewards`: a masked model is no reward model."""
        raise ValueError("the model is no reward model; score preference sets with a stage of kind `reward`")

    # ---------------------------------------------------------------------------------------------------------- bounds
    def _scores(self, windows: Sequence[Window]) -> list[Score]:
        """Scores of a few windows."""
        jobs = [_Masked(number, one, draw) for number, one in enumerate(windows) for draw in self._draws.of(one)]
        estimates: list[list[float]] = [[] for _ in windows]
        matches: list[bool] = [True] * len(windows)
        for batch in self._batches(jobs):
            for job, (nats, best) in zip(batch, self._read(batch), strict=True):
                estimates[job.number].append(job.draw.factor * float(nats @ job.weights))
                matches[job.number] = bool((best == job.targets).all())
        many = [number for number, one in enumerate(windows) if len(_targets(one)) > 1]
        for number, match in zip(many, self._recalled([windows[number] for number in many]), strict=True):
            matches[number] = match
        return [
            Score(sum(own), match, self._draws.variance(one, np.array(own)))
            for one, own, match in zip(windows, estimates, matches, strict=True)
        ]

    def _batches(self, jobs: Sequence[_Masked]) -> Iterator[list[_Masked]]:
        """Cuts jobs into forward passes: their rows are of similar length where the windows are."""
        start = 0
        while start < len(jobs):
            width, rows = len(jobs[start].window.tokens) - 1, 1
            for job in jobs[start + 1 :]:
                width = max(width, len(job.window.tokens) - 1)
                if (rows + 1) * width > self._size.tokens or rows == self._size.rows:
                    break
                rows += 1
            yield list(jobs[start : start + rows])
            start += rows

    def _read(self, batch: Sequence[_Masked]) -> list[tuple[Floats, Tokens]]:
        """Nats of the masked targets of each job, and the likeliest ids at their places, (k,) each.

        Raises:
            ValueError: when the model's logits are NaN or infinite.
        """
        states = self._predictor.states([job.inputs(self._predictor.mask_id) for job in batch])
        chosen = state_at(states, [job.draw.places for job in batch])  # (N, D)
        targets = torch.from_numpy(np.concatenate([job.targets for job in batch])).to(chosen.device)
        step = max(1, _LOGIT_BYTES // (4 * self.vocab_size))
        parts = []
        for start in range(0, len(chosen), step):
            logits = self._predictor.logits(chosen[start : start + step])
            nats = -logits.log_softmax(dim=-1).gather(-1, targets[start : start + step, None]).squeeze(-1)
            parts.append(torch.stack([nats.double(), largest(logits).double()]).cpu())
        nats, best = torch.cat(parts, dim=1).numpy()
        if not np.isfinite(nats).all():
            raise ValueError(NO_PROBABILITIES)
        ends = np.cumsum([len(job.targets) for job in batch])[:-1]
        return list(zip(np.split(nats, ends), np.split(best.astype(np.int64), ends), strict=True))

    # ---------------------------------------------------------------------------------------------------------- greedy
    def _recalled(self, windows: Sequence[Window]) -> list[bool]:
        """Tells of each window whether its targets, all masked, are filled in as they are; stops at the first other."""
        open_places = {number: _targets(one) for number, one in enumerate(windows)}
        matches = [True] * len(windows)
        while open_places:
            jobs = [_Masked(number, windows[number], Draw(places, 1.0)) for number, places in open_places.items()]
            for batch in self._batches(jobs):
                for job, (place, right) in zip(batch, self._surest(batch), strict=True):
                    left = open_places[job.number][open_places[job.number] != place]
                    matches[job.number] = right
                    if right and len(left):
                        open_places[job.number] = left
                    else:
                        del open_places[job.number]
        return matches

    def _surest(self, batch: Sequence[_Masked]) -> list[tuple[int, bool]]:
        """The place of each job whose likeliest token is the surest, and whether that token is the target."""
        states = self._predictor.states([job.inputs(self._predictor.mask_id) for job in batch])
        found = []
        for row, job in enumerate(batch):
            logits = self._predictor.logits(state_at(states[row : row + 1], [job.draw.places]))
            best = largest(logits)
            surest = int(logits.log_softmax(dim=-1).gather(-1, best[:, None]).argmax())
            found.append((int(job.draw.places[surest]), int(best[surest]) == int(job.targets[surest])))
        return found


@dataclass(frozen=True, eq=False)
class _Masked:
    """A window whose targets are masked as a draw says."""

    number: int
    window: Window
    draw: Draw

    def inputs(self, mask_id: int) -> Tokens:
        """Ids of the forward pass: all but the last."""
        tokens = self.window.tokens.copy()
        tokens[self.draw.places] = mask_id
        return tokens[:-1]

    @property
    def targets(self) -> Tokens:
        return self.window.tokens[self.draw.places]

    @property
    def weights(self) -> Floats:
        if self.window.weights is None:
            return np.ones(len(self.draw.places))
        return self.window.weights[self.draw.places - len(self.window.tokens)]
