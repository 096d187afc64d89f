"""Less data for the same loss: does choosing text by code length beat a random choice of the same size?

    python benchmarks/selection.py [--out runs/selection] [--seeds 3] [--tiny]

A pool of general text holds a little text of a target domain, without labels. Each arm keeps the same share of the
pool's bytes, trains the same model on the same number of tokens, and is scored on held-out text of the target. Arms:

    random        the control, another choice for each seed
    low, middle, high    by bits per byte of a model of the pool (`rule` of data.select)
    moore-lewis   low, by bits per byte of a model of the target less those of the model of the pool

The model of the pool is trained on a random part of it. The model of the target goes on from there with a little text
of the target that is neither in the pool nor held out. All models share one tokenizer. By default the target is
Shakespeare among novels, out of configs/corpus; with technical documents among other text:

    python benchmarks/selection.py --target DOCS.jsonl --pool NEWS.csv.gz WEB.jsonl.gz

Without --heldout and --other-heldout, a tenth of the documents of target and pool are held out, by a hash of their ids.
Writes `selection.json` and `selection.md`, and goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.common.files import read_json, write_json, write_text
from configs.common.layout import MANIFEST
from configs.schema.recipe import Recipe, load
from data_prep.tokens.splits import unit_interval
from eval.texts.documents import texts_at

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks" / "selection.yaml"
CORPUS = ROOT / "configs" / "corpus"
PIECE_BYTES = 4000
REFERENCE = 0.2  # of the target's pieces, for the model of the target
HELD_OUT = 0.1  # of the documents, where no held-out file is given
HELD_OUT_CHARACTERS = 200_000  # scored, of each set
RANDOM, MOORE_LEWIS = "random", "moore-lewis"
ARMS = (RANDOM, "low", "middle", "high", MOORE_LEWIS)
SETS = ("target", "other")  # held-out text
TINY = ["model.num_layers=1", "model.hidden_size=32", "model.num_heads=1", "model.context_length=64",
        "data.tokenizer.vocab_size=300"]  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        target: bits per byte of held-out text of the target.
        other: bits per byte of other held-out text.
        share: of the kept bytes, those that are text of the target.
        epochs: passes over the kept text.
    """

    arm: str
    seed: int
    target: float
    other: float
    share: float
    epochs: float


@dataclass(frozen=True)
class Compared:
    """An arm against the random choice, in percent of its bits per byte: the mean over seeds and a 95% interval."""

    arm: str
    held_out: str
    bits: float
    change: float
    low: float | None
    high: float | None


# -------------------------------------------------------------------------------------------------------------- corpora
def pieces(text: str, size: int = PIECE_BYTES) -> list[str]:
    """Cuts a text at empty lines into pieces of about `size` characters, or longer where there are none."""
    found: list[str] = []
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= size:
            found.append("\n\n".join(held))
            held = []
    rest = "\n\n".join(held)
    return [piece for piece in [*found, rest] if piece.strip()]


def documents(paths: Sequence[str], text_field: str, most: int | None = None) -> list[tuple[str, str]]:
    """(id, text) of the documents; with `most`, a choice by a hash of their ids of so many characters in all."""
    found = [(f"{text.file} {text.id}", text.text) for text in texts_at(paths, text_field)]
    return found if most is None else _some(found, most)


def _some(texts: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    chosen, size = [], 0
    for identifier, text in sorted(texts, key=lambda one: unit_interval(one[0].encode())):
        if size >= most:
            break
        chosen.append((identifier, text[: most - size]))
        size += len(text)
    return chosen


def divide(texts: list[tuple[str, str]], heldout: list[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and held-out documents: the latter from files of their own, else by a hash."""
    if heldout:
        return texts, documents(heldout, "text")
    inside = [unit_interval(f"held out {identifier}".encode()) < HELD_OUT for identifier, _ in texts]
    return (
        [text for text, out in zip(texts, inside, strict=True) if not out],
        [text for text, out in zip(texts, inside, strict=True) if out],
    )


def write_corpora(given: argparse.Namespace, directory: Path) -> None:
    """Writes the pool, the reference text and the held-out texts as JSON lines, in pieces."""
    target, target_heldout = divide(documents(given.target, given.text_field, given.target_bytes), given.heldout)
    pool, other_heldout = divide(documents(given.pool, given.text_field, given.pool_bytes), given.other_heldout)
    cut = [(f"{identifier} {number}", piece)
           for identifier, text in target for number, piece in enumerate(pieces(text))]  # fmt: skip
    of_reference = [unit_interval(f"reference {identifier}".encode()) < REFERENCE for identifier, _ in cut]
    target_heldout, other_heldout = (
        _some(texts, given.heldout_characters) for texts in (target_heldout, other_heldout)
    )
    files = {
        "reference": [one for one, inside in zip(cut, of_reference, strict=True) if inside],
        "pool-target": [one for one, inside in zip(cut, of_reference, strict=True) if not inside],
    }
    for name, texts in (("pool-general", pool), ("target", target_heldout), ("other", other_heldout)):
        files[name] = [(f"{identifier} {number}", piece)
                       for identifier, text in texts for number, piece in enumerate(pieces(text))]  # fmt: skip
    for name, texts in files.items():
        if not texts:
            raise ValueError(f"there is no text for {name}; give more of it")
        size = sum(len(text.encode()) for _, text in texts)
        print(f"{name}: {len(texts):,} pieces, {size:,} bytes", file=sys.stderr)
        lines = [json.dumps({"id": identifier, "text": text}, ensure_ascii=False) for identifier, text in texts]
        write_text(directory / f"{name}.jsonl", "\n".join(lines) + "\n")


# ----------------------------------------------------------------------------------------------------------------- runs
class Experiment:
    """The runs of one experiment in a directory.

    Args:
        out: the directory.
        keep: share of the pool's bytes.
        tokens: that each arm trains on.
        common: overrides of all runs.
    """

    def __init__(self, out: Path, keep: float, tokens: int, common: Sequence[str]) -> None:
        self.out, self._keep, self._tokens, self._common = out, keep, tokens, list(common)

    def recipe(self, name: str, sources: Sequence[str], tokens: int, **settings: Any) -> Recipe:
        """The recipe of a run on these corpora."""
        corpus = self.out / "corpus"
        listed = [{"name": source, "path": str(corpus / f"{source}.jsonl")} for source in sources]
        sets = [{"name": name, "path": str(corpus / f"{name}.jsonl")} for name in SETS]
        values = {"data.sources": listed, "evaluation.perplexity": sets, "train.tokens": tokens, **settings}
        overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
        return load(RECIPE, [*self._common, *overrides], {"out": str(self.out / name)})

    def pooled(self, name: str, **settings: Any) -> Recipe:
        """The recipe of a run on the pool."""
        return self.recipe(name, ("pool-general", "pool-target"), self._tokens, **settings)

    def tokenizer(self) -> dict[str, Any]:
        """Settings by which a run has the tokenizer of the model of the pool."""
        return {"data.tokenizer": {"kind": "file", "path": str(self.out / "pool-model" / "data" / "tokenizer")}}

    def references(self) -> None:
        """Trains both reference models and scores the pool with them."""
        select = {"rule": RANDOM, "keep": self._keep, "seed": 1_000_000}
        trained(self.pooled("pool-model", **{"data.select": select}))
        start = {"train.init_from": str(self.out / "pool-model"), "train.optimizer.lr": 1e-3, **self.tokenizer()}
        trained(self.recipe("target-model", ("reference",), max(self._tokens // 3, 1), **start))
        for name in ("pool-model", "target-model"):
            if not self.scores(name).is_file():
                score(self.out / name, self.pooled("scored", **self.tokenizer()), self.scores(name))

    def scores(self, name: str) -> Path:
        """The file with the scores of the pool by a reference model."""
        return self.out / f"{name}.parquet"

    def arm(self, arm: str, seed: int) -> Measured:
        """Trains one arm with one seed, or finds it trained."""
        of_pool, of_target = str(self.scores("pool-model")), str(self.scores("target-model"))
        select: dict[str, Any] = {"rule": arm, "keep": self._keep, "scores": [of_pool]}
        if arm == RANDOM:
            select = {"rule": RANDOM, "keep": self._keep, "seed": seed}
        elif arm == MOORE_LEWIS:
            select = {"rule": "low", "keep": self._keep, "scores": [of_target], "minus": [of_pool]}
        run = f"{arm}-{seed}"
        trained(self.pooled(run, seed=seed, **{"data.select": select, **self.tokenizer()}))
        return self._measured(arm, seed, self.out / run)

    def _measured(self, arm: str, seed: int, run: Path) -> Measured:
        from eval.results import load_results

        scores = load_results(run).by_name()
        bits = [scores[f"perplexity/{name}/bits_per_byte"].value for name in SETS]
        kept = {source["name"]: source for source in read_json(run / "data" / MANIFEST)["splits"]["train"]}
        size, tokens = (sum(source[key] for source in kept.values()) for key in ("bytes", "tokens"))
        share = kept["pool-target"]["bytes"] / size if "pool-target" in kept else 0.0
        return Measured(arm, seed, *bits, share, self._tokens / tokens)


def trained(recipe: Recipe) -> None:
    """Prepares, trains and scores what is not there yet; text as short as this needs no Ray."""
    from data_prep.stages.pipeline import is_current, prepare_inline
    from launch.run_stages import run_all

    print(recipe.run_directory.name, file=sys.stderr, flush=True)
    if not is_current(recipe):
        prepare_inline(recipe)
    run_all(recipe)


def score(run: Path, recipe: Recipe, file: Path) -> None:
    """What `replica score RUN --data RECIPE --out FILE` does, without Ray."""
    from data_prep.stages.pipeline import parts_to_score
    from data_prep.workers.cluster import Cluster
    from eval.texts.documents import prepared_texts
    from launch.models.score_texts import score_documents
    from pretrain.checkpoint.choice import Choice

    parts = parts_to_score(recipe, Cluster(workers=0, directory=recipe.data_directory))
    score_documents(run, Choice(), lambda: (prepared_texts(parts), sum(part.bytes for part in parts)), file)


# --------------------------------------------------------------------------------------------------------------- result
def compare(runs: Sequence[Measured]) -> list[Compared]:
    """Compares each arm with the random choice, seed by seed; intervals are Student's over seeds."""
    from scipy.stats import t as student

    found = []
    for held_out in SETS:
        control = {run.seed: getattr(run, held_out) for run in runs if run.arm == RANDOM}
        for arm in dict.fromkeys(run.arm for run in runs):
            bits = {run.seed: getattr(run, held_out) for run in runs if run.arm == arm}
            changes = [100 * (bits[seed] / control[seed] - 1) for seed in bits if seed in control]
            mean, half = statistics.mean(changes), None
            if len(changes) > 1 and arm != RANDOM:
                error = statistics.stdev(changes) / len(changes) ** 0.5
                half = float(student.ppf(0.975, len(changes) - 1)) * error
            limits = (None, None) if half is None else (mean - half, mean + half)
            found.append(Compared(arm, held_out, statistics.mean(bits.values()), mean, *limits))
    return found


def markdown(runs: Sequence[Measured], compared: Sequence[Compared], keep: float) -> str:
    """The arms as a Markdown table."""
    count = len({run.seed for run in runs})
    columns = (f"{keep:.0%} of the pool, chosen by", "target text in it", "epochs", "held-out target, bits/byte",
               "against random", "other held-out text, bits/byte", "against random")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        cells = [arm, f"{statistics.mean(run.share for run in own):.1%}",
                 f"{statistics.mean(run.epochs for run in own):.2f}"]  # fmt: skip
        for held_out in SETS:
            one = next(one for one in compared if (one.arm, one.held_out) == (arm, held_out))
            interval = "" if one.low is None else f" ({one.low:+.1f} to {one.high:+.1f})"
            cells += [f"{one.bits:.3f}", "" if arm == RANDOM else f"{one.change:+.1f}%{interval}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Means over {count} seeds; 95% intervals over seeds, arm and control paired.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment, then prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "selection")
    parser.add_argument("--target", nargs="+", metavar="FILE", help="text of the target domain")
    parser.add_argument("--heldout", nargs="+", default=[], metavar="FILE", help="held-out text of the target")
    parser.add_argument("--pool", nargs="+", metavar="FILE", help="general text")
    parser.add_argument("--other-heldout", nargs="+", default=[], metavar="FILE", help="held-out general text")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--target-bytes", type=int, default=1_000_000, metavar="N", help="text of the target to use")
    parser.add_argument("--pool-bytes", type=int, default=10_000_000, metavar="N", help="general text to use")
    parser.add_argument("--keep", type=float, default=0.3, help="share of the pool that each arm keeps")
    parser.add_argument("--tokens", type=int, default=900_000, help="training tokens of each arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tiny", action="store_true", help="a try of the machinery in seconds; proves nothing")
    given = parser.parse_args(argv)
    if bool(given.target) != bool(given.pool):
        parser.error("give --target and --pool, or neither for the shipped texts")
    if not given.target:
        given.target, given.heldout = ([str(CORPUS / f"shakespeare-{part}.txt.zst")] for part in ("train", "val"))
        given.pool, given.other_heldout = (
            [str(CORPUS / f"gutenberg-{part}.jsonl.zst")] for part in ("train", "heldout")
        )
    common: list[str] = []
    given.heldout_characters = HELD_OUT_CHARACTERS
    if given.tiny:
        given.target_bytes, given.pool_bytes, given.tokens, common = 60_000, 120_000, 4_096, TINY
        given.heldout_characters = 8_000
    out = given.out.resolve()
    if not (out / "corpus").is_dir():
        write_corpora(given, out / "corpus")
    experiment = Experiment(out, given.keep, given.tokens, common)
    experiment.references()
    arms = list(dict.fromkeys([RANDOM, *given.arms]))
    runs = [experiment.arm(arm, seed) for seed in range(given.seeds) for arm in arms]
    compared = compare(runs)
    found = {"runs": [asdict(run) for run in runs], "compared": [asdict(one) for one in compared]}
    write_json(out / "selection.json", found)
    table = markdown(runs, compared, given.keep)
    write_text(out / "selection.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
