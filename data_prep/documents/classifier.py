"""A trainable quality classifier: logistic regression on hashed n-grams of words and characters, in numpy.

The kind of model that GPT-3 (arXiv:2005.14165, appendix A) and CCNet's successors filtered the web with: examples of
what is wanted on one side, of what is not on the other. Features are hashed (Weinberger et al., arXiv:0902.2206), so
the model is one vector of fixed size and needs no vocabulary. It tells texts apart by the words they use: what it
calls good is what looks like the good examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from configs.common.files import atomic_path
from configs.safety.parsing import parse_json
from configs.schema.data import Normalize
from configs.schema.sources import Source
from data_prep.documents.conversion import read_documents
from data_prep.text.normalize import normalize

BUCKETS_LOG2 = 18
# The beginning of a document tells as much as all of it, in bounded time.
_CHARACTERS = 16_384
_CHARACTER_NGRAMS = (3, 5)
_PRIME = 0x100000001B3
_PRIME_INVERSE = pow(_PRIME, -1, 2**64)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_METADATA = "replica_classifier"
_HELD_OUT = 10  # every tenth example, by the hash of its text
_EPOCHS = 8
_RATE = 0.3
_MOST_EXAMPLES = 20_000  # of each side: some hundred megabytes of features
_FEWEST_EXAMPLES = 20


@dataclass(frozen=True)
class ClassifierReport:
    """Accuracy and AUC on held-out examples, none of which was trained on."""

    good: int  # training examples
    bad: int
    held_out_good: int
    held_out_bad: int
    accuracy: float  # at a score of 0.5, both sides weighing the same
    auc: float  # chance that a good example scores above a bad one

    def __str__(self) -> str:
        return (
            f"trained on {self.good:,} good and {self.bad:,} bad examples; held out {self.held_out_good:,} and "
            f"{self.held_out_bad:,}: accuracy {self.accuracy:.3f}, AUC {self.auc:.4f}"
        )


class QualityClassifier:
    """Text to a score in [0, 1]: the probability that it is like the good examples, both sides being as frequent."""

    def __init__(self, weights: np.ndarray, bias: float, report: ClassifierReport | None = None) -> None:
        self._weights = weights  # (2 ** BUCKETS_LOG2,) float32
        self._bias = bias
        self.report = report

    def __call__(self, text: str) -> float:
        """The score of a normalised text; 0.5 is the border of a balanced choice."""
        return _sigmoid(_margin(self._weights, self._bias, features(text)))

    def save(self, path: Path) -> None:
        """Writes a safetensors file; no code is run when it is read."""
        from safetensors.numpy import save

        metadata = json.dumps(asdict(self.report)) if self.report else "{}"
        tensors = {"weights": self._weights, "bias": np.array([self._bias], dtype=np.float32)}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={_METADATA: metadata}))

    @classmethod
    def load(cls, path: str | Path) -> QualityClassifier:
        """Reads a model file.

        Raises:
            ValueError: when it is missing or not such a file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
                metadata = parse_json((file.metadata() or {})[_METADATA])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is not a classifier ({error}); make one with "
                "`python -m data_prep classifier GOOD BAD --out FILE`"
            ) from error
        if weights.shape != (2**BUCKETS_LOG2,):
            raise ValueError(
                f"{path}: weights of shape {weights.shape}, this version reads {2**BUCKETS_LOG2}; train anew"
            )
        return cls(weights, float(bias[0]), ClassifierReport(**metadata) if metadata else None)


# ------------------------------------------------------------------------------------------------------------- features
def features(text: str) -> np.ndarray:
    """Sorted numbers below 2 ** BUCKETS_LOG2 of the text's words, pairs of words and byte n-grams, each once (int64).

    A word is a run of ASCII letters and digits and of bytes beyond ASCII; case does not count.
    """
    data = np.frombuffer(text[:_CHARACTERS].lower().encode(errors="replace"), dtype=np.uint8)
    if not len(data):
        return np.zeros(0, dtype=np.int64)
    present = np.zeros(2**BUCKETS_LOG2, dtype=bool)
    values = data.astype(np.uint64) + np.uint64(1)
    for size in _CHARACTER_NGRAMS:
        if len(values) >= size:
            grams = np.zeros(len(values) - size + 1, dtype=np.uint64)
            for shift in range(size):
                grams = grams * np.uint64(_PRIME) + values[shift : shift + len(grams)]
            present[_bucket(grams, size)] = True
    words = _word_hashes(data, values)
    present[_bucket(words, 1)] = True
    present[_bucket(words[:-1] * np.uint64(_PRIME) + words[1:], 2)] = True
    return np.flatnonzero(present)


def _word_hashes(data: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A polynomial hash modulo 2 ** 64 of every word, all at once: differences of one running sum."""
    inside = np.concatenate([[False], _word_bytes()[data], [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    powers, inverse = _powers()
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values * powers[: len(values)], dtype=np.uint64)])
    hashes: np.ndarray = (sums[ends] - sums[starts]) * inverse[starts]
    return hashes


@cache
def _word_bytes() -> np.ndarray:
    return np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    longest = 4 * _CHARACTERS + 1
    bases = (np.full(longest, base, dtype=np.uint64) for base in (_PRIME, _PRIME_INVERSE))
    first, second = (
        np.concatenate([np.ones(1, dtype=np.uint64), np.cumprod(base[1:], dtype=np.uint64)]) for base in bases
    )
    return first, second


def _bucket(hashes: np.ndarray, kind: int) -> np.ndarray:
    mixed = (hashes + np.uint64(kind)) * _MIX
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
    bucket: np.ndarray = mixed >> np.uint64(64 - BUCKETS_LOG2)
    return bucket


# ------------------------------------------------------------------------------------------------------------- training
def train(good: Path, bad: Path) -> QualityClassifier:
    """Trains on the documents of two files or folders, in any format that data_prep reads; always the same result.

    Raises:
        ValueError: when a side has too few documents.
    """
    files = [_files(path) for path in (bad, good)]
    sides = [_examples(found) for found in files]
    for path, (kept, held_out) in zip((bad, good), sides, strict=True):
        if len(kept) < _FEWEST_EXAMPLES or not held_out:
            raise ValueError(f"{path}: {len(kept)} documents to train on, {len(held_out)} to test; give more than "
                             f"{_FEWEST_EXAMPLES}")  # fmt: skip
    (bad_kept, bad_held), (good_kept, good_held) = sides
    weights, bias = _fit(bad_kept, good_kept)
    scores = [np.array([_margin(weights, bias, item) for item in held]) for held in (bad_held, good_held)]
    accuracy = (float((scores[0] < 0).mean()) + float((scores[1] >= 0).mean())) / 2
    report = ClassifierReport(len(good_kept), len(bad_kept), len(good_held), len(bad_held), accuracy, _auc(*scores))
    return QualityClassifier(weights, bias, report)


def _examples(files: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of the documents to train on and of those held out."""
    kept: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for text in _texts(files):
        found = features(text)
        if len(found):
            key = int(_bucket(found.astype(np.uint64).sum(keepdims=True), 0)[0])
            (held_out if key % _HELD_OUT == 0 else kept).append(found.astype(np.int32))
        if len(kept) >= _MOST_EXAMPLES:
            break
    return kept, held_out


def _files(path: Path) -> list[str]:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give one with example documents")
    files = sorted(str(file) for file in path.rglob("*") if file.is_file()) if path.is_dir() else [str(path)]
    if not files:
        raise ValueError(f"{path}: the folder is empty; give one with example documents")
    return files


def _texts(files: list[str]) -> Iterator[str]:
    for document in read_documents(Source(name="examples", path=list(files))):
        yield normalize(document.text, Normalize())


def _fit(bad: list[np.ndarray], good: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Weights and bias by AdaGrad (Duchi et al. 2011), one example at a time; a side's examples weigh half in all."""
    examples = [*bad, *good]
    labels = np.array([0.0] * len(bad) + [1.0] * len(good))
    weight = np.where(labels == 1, len(examples) / (2 * len(good)), len(examples) / (2 * len(bad)))
    weights = np.zeros(2**BUCKETS_LOG2, dtype=np.float32)
    squares = np.full(2**BUCKETS_LOG2, 1e-6, dtype=np.float32)
    bias, bias_square = 0.0, 1e-6
    order = np.random.default_rng(0)
    for _ in range(_EPOCHS):
        for number in order.permutation(len(examples)):
            found = examples[number]
            error = (_sigmoid(_margin(weights, bias, found)) - labels[number]) * weight[number]
            gradient = np.float32(error / np.sqrt(len(found)))
            squares[found] += gradient * gradient
            weights[found] -= np.float32(_RATE) * gradient / np.sqrt(squares[found])
            bias_square += error * error
            bias -= _RATE * error / float(np.sqrt(bias_square))
    return weights, bias


def _margin(weights: np.ndarray, bias: float, found: np.ndarray) -> float:
    return float(weights[found].sum(dtype=np.float64) / np.sqrt(max(1, len(found))) + bias)


def _sigmoid(margin: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(margin, -40, 40))))


def _auc(bad: np.ndarray, good: np.ndarray) -> float:
    """The Mann-Whitney statistic: the share of pairs in the right order, ties counting half."""
    ordered = np.sort(bad)
    below, up_to = np.searchsorted(ordered, good, "left"), np.searchsorted(ordered, good, "right")
    return float(np.mean(below + up_to)) / (2 * len(bad))
