"""Are the vectors of `replica embed` any good: a linear probe on AG News, beside TF-IDF with a truncated SVD.

    python benchmarks/embed_probe.py runs/demo ag-news-test.csv.gz [--items 2000] [--out probe.json]

The file has rows of class, title and description, without a header. Items are split in halves by a hash of their text:
one half fits the principal components, the SVD and the classifier (logistic regression on standardised vectors), the
other is judged. Accuracy at 16 and 64 dimensions and with all of them, with Wilson's interval; guessing and the
majority class stand beside. Both sides see the same texts: title and description.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eval.embedding.projection import Projection
from eval.statistics import wilson

DIMENSIONS: tuple[int | None, ...] = (16, 64, None)

Vectors = npt.NDArray[np.float64]


def read_news(file: Path, items: int) -> tuple[list[str], list[str]]:
    """Texts and classes of evenly spaced rows."""
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    with io.StringIO(text, newline="") as stream:
        rows = [row for row in csv.reader(stream) if len(row) >= 3]
    chosen = [rows[index * len(rows) // items] for index in range(min(items, len(rows)))]
    return [f"{row[1]}. {row[2]}" for row in chosen], [row[0] for row in chosen]


def first_half(texts: list[str]) -> npt.NDArray[np.bool_]:
    """Tells of each text whether it is in the half that is learnt from."""
    return np.array([hashlib.blake2b(text.encode(), digest_size=1).digest()[0] < 128 for text in texts])


def accuracy(vectors: Vectors, classes: list[str], learns: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Of a logistic regression on the half that it did not learn from, with its interval."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array(classes)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(vectors[learns], labels[learns])
    right = probe.predict(vectors[~learns]) == labels[~learns]
    return float(right.mean()), *wilson(float(right.sum()), len(right))


def words(texts: list[str], learns: npt.NDArray[np.bool_], dims: int | None) -> Vectors:
    """TF-IDF of words, reduced by a truncated SVD; both are fitted on the half that is learnt from."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    counts = TfidfVectorizer(sublinear_tf=True).fit([text for text, own in zip(texts, learns, strict=True) if own])
    matrix = counts.transform(texts)
    # All dimensions of counts are thousands; so many as the model has would be another question.
    reduced = TruncatedSVD(dims or min(300, matrix.shape[1] - 1), random_state=1).fit(matrix[learns]).transform(matrix)
    return np.asarray(reduced, dtype=np.float64)


def states(run: Path, texts: list[str]) -> Vectors:
    """Vectors of the run's newest checkpoint."""
    from configs.schema.recipe import find_run, load_run
    from data_prep.tokens.vocab import Vocab
    from eval.embedding.mean_states import mean_states
    from pretrain.checkpoint.choice import Choice, choose_checkpoint
    from pretrain.checkpoint.load_weights import load_weights

    checkpoint = choose_checkpoint(load_run(find_run(run)).run_directory, Choice())
    return mean_states(load_weights(checkpoint), Vocab.load(checkpoint.tokenizer), texts)[0]


def probe(vectors: Vectors, texts: list[str], classes: list[str]) -> list[dict[str, object]]:
    """A row for each number of dimensions."""
    learns = first_half(texts)
    rows: list[dict[str, object]] = []
    for dims in DIMENSIONS:
        if dims is not None and dims >= vectors.shape[1]:
            continue
        own = vectors if dims is None else Projection.of(vectors[learns], dims).apply(vectors)
        found = {
            "model": accuracy(own, classes, learns),
            "tf-idf": accuracy(words(texts, learns, dims), classes, learns),
        }
        rows.append({"dims": dims or f"all ({vectors.shape[1]}; tf-idf 300)", **found})
    return rows


def main() -> int:
    """Prints a table, and writes JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    texts, classes = read_news(given.file, given.items)
    rows = probe(states(given.run, texts), texts, classes)
    learns = first_half(texts)
    held = Counter(name for name, own in zip(classes, learns, strict=True) if not own)
    usual = Counter(name for name, own in zip(classes, learns, strict=True) if own).most_common(1)[0][0]
    print(
        f"{len(texts):,} texts, {sum(held.values()):,} judged; the majority class: {held[usual] / held.total():.3f}\n"
    )
    print("| dimensions | states of the model | TF-IDF and SVD |\n|---|---|---|")
    for row in rows:
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*row[key]) for key in ("model", "tf-idf")]
        print(f"| {row['dims']} | {cells[0]} | {cells[1]} |")
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
