"""The claim itself: does a run that codes its training text in fewer bits predict new text better?

Trains small runs of `benchmarks/claim.yaml` and compares two numbers of each: bits per byte of the training text, coded
by the model while it learns (prequential coding), and bits per byte of held-out novels by the finished model.

    python benchmarks/claim.py [--out runs/claim] [--only base,narrow,…] [--tiny]

Three groups of runs. `same`: all read the same text once, so that their code lengths are lengths of the same bytes, and
differ in size, rate, batch, schedule or vocabulary. `repeated`: as many tokens of less text, which is read several
times. `other`: other text; its code length is that of other bytes, given per byte. The claim is about `same`. The
other two show where the number stops to rank runs. The last tenth of the training loss stands beside as a control.

Writes `claim.json`, `claim.md` and `claim.svg` into the directory. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent))
from picture import standalone

from configs.common.files import write_json, write_text
from configs.schema.recipe import Recipe, load
from eval.report.charts import Axes, Series, line_chart

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks" / "claim.yaml"
CORPUS = ROOT / "configs" / "corpus"
SAME, REPEATED, OTHER = "same", "repeated", "other"
GROUPS = {SAME: "same text, read once", REPEATED: "repeated text", OTHER: "other text"}
HELD_OUT = "perplexity/heldout/bits_per_byte"
_RESAMPLES, _SEED, _ALL_ORDERS = 10_000, 1234, 7
# The last batch of an epoch is not counted when it begins the next epoch; a batch of 64 rows is 1.6% of the text.
_UNCOUNTED, _UNCOUNTED_OF_TINY = 0.03, 0.2


@dataclass(frozen=True)
class Run:
    """A run to train: its name, group, what is different about it, and the overrides that make it so."""

    name: str
    group: str
    what: str
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """What is known of a finished run; all lengths in bits per byte.

    Attributes:
        coded_bytes: bytes of training text that the code length is of.
        prequential: of these bytes, coded by the model while it learns.
        last_losses: the mean training loss of the last tenth of the steps, which counts repeated text too.
        heldout: of the held-out novels, with its interval `low` to `high`.
    """

    name: str
    group: str
    what: str
    coded_bytes: int
    prequential: float
    last_losses: float
    heldout: float
    low: float
    high: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over `runs` runs, its bootstrap interval over runs, and the p-value of a permutation test."""

    runs: int
    rho: float
    low: float
    high: float
    p: float


@dataclass
class Claim:
    """All that was measured, and what follows from it."""

    runs: list[Measured]
    correlations: dict[str, Correlation] = field(default_factory=dict)
    controls: dict[str, Correlation] = field(default_factory=dict)
    reversed: list[tuple[str, str]] = field(default_factory=list)


def runs_of(text_bytes: int) -> list[Run]:
    """The runs over a text of so many bytes."""
    quarter, sixteenth = text_bytes // 4, text_bytes // 16
    copies = ", ".join(_source(f"copy-{number}", "gutenberg-train.jsonl.zst", quarter) for number in range(4))
    half = _source("novels", "gutenberg-train.jsonl.zst", text_bytes // 2)
    chinese = _source("histories", "classical-modern-zh-train.jsonl.zst", text_bytes // 2)
    return [
        Run("base", SAME, "3 layers of 128"),
        Run("seed", SAME, "another seed: other weights and order", ["seed=2"]),
        Run("narrow", SAME, "2 layers of 64", ["model.num_layers=2", "model.hidden_size=64"]),
        Run("least", SAME, "1 layer of 32", ["model.num_layers=1", "model.hidden_size=32"]),
        Run("wide", SAME, "3 layers of 192", ["model.hidden_size=192"]),
        Run("slow", SAME, "rate 4e-4", ["train.optimizer.lr=4e-4"]),
        Run("fast", SAME, "rate 4e-2", ["train.optimizer.lr=4e-2"]),
        Run("batch", SAME, "batches of 64", ["train.global_batch_size=64"]),
        Run("constant", SAME, "constant rate", ["train.schedule.kind=constant"]),
        Run("letters", SAME, "400 tokens", ["data.tokenizer.vocab_size=400"]),
        Run("quarter", REPEATED, "1/4 of the text, 4 times", _pass(quarter, 4)),
        Run("sixteenth", REPEATED, "1/16 of the text, 16 times", _pass(sixteenth, 16)),
        Run("copies", REPEATED, "4 copies of 1/4, not deduplicated",
            ["data.dedup.exact=false", f"data.sources=[{copies}]"]),
        Run("mixed", OTHER, "half of it Chinese", [f"data.sources=[{half}, {chinese}]"]),
    ]  # fmt: skip


def _source(name: str, file: str, size: int) -> str:
    return json.dumps({"name": name, "path": str(CORPUS / file), "max_bytes": size})


def _pass(size: int, epochs: int) -> list[str]:
    return [f"data.sources.0.max_bytes={size}", f"train.epochs={epochs}"]


# ------------------------------------------------------------------------------------------------------------ measuring
def recipe_of(run: Run, out: Path, common: Sequence[str]) -> Recipe:
    """The recipe of a run; those with equal data share it."""
    of_data = [override for override in run.overrides if override.startswith("data.")]
    data = out / "data" / (run.name if of_data else "novels")
    return load(RECIPE, [*common, *run.overrides], {"out": str(out / run.name), "data.directory": str(data)})


def trained(recipe: Recipe) -> None:
    """Prepares, trains and scores what is not there yet; text as short as this needs no Ray."""
    from data_prep.stages.pipeline import is_current, prepare_inline
    from launch.run_stages import run_all

    if not is_current(recipe):
        prepare_inline(recipe)
    run_all(recipe)


def measured(run: Run, directory: Path) -> Measured:
    """Reads the numbers of a finished run.

    Raises:
        ValueError: when the run has no held-out score, or logged no code length.
    """
    from eval.report.history import read_history
    from eval.results import load_results

    score = load_results(directory).by_name().get(HELD_OUT)
    history = read_history(directory)
    bits, rate = history.last("train/code_length_bits"), history.last("train/code_bits_per_byte")
    if score is None or not bits or not rate:
        raise ValueError(f"{directory} has no {HELD_OUT} or no code length; delete it and run again")
    # The steps of the first pass tell how many bytes a token stands for.
    grows = history.get("train/code_length_bits")
    last = next(step for step, value in grows if value == bits)
    tokens = dict(history.get("tokens"))[last]
    losses = [loss for _, loss in history.get("train/loss")]
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail) / math.log(2) * tokens / (bits / rate)
    assert score.low is not None and score.high is not None
    size = round(bits / rate)
    return Measured(run.name, run.group, run.what, size, rate, loss, score.value, score.low, score.high)


# -------------------------------------------------------------------------------------------------------------- judging
def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """Spearman's rho with a percentile bootstrap over pairs, and a two-sided permutation test.

    All orders are tried for up to 7 pairs, else 10,000 random ones. Resamples with less than three different pairs are
    left out, because two pairs have a rank correlation of 1 or -1 whatever they are.
    """
    first, second = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    n = len(first)
    rho = float(spearmanr(first, second).statistic)
    draw = np.random.default_rng(_SEED)
    index = draw.integers(0, n, (_RESAMPLES, n))
    index = index[(np.diff(np.sort(index), axis=1) > 0).sum(axis=1) >= 2]
    low, high = np.percentile(_rhos(first[index], second[index]), [2.5, 97.5])
    whole = n <= _ALL_ORDERS
    orders = list(itertools.permutations(range(n))) if whole else [draw.permutation(n) for _ in range(_RESAMPLES)]
    reached = np.abs(_rhos(first[None], second[np.array(orders)])) >= abs(rho) - 1e-12
    # One is added on both sides for random orders, so that p is never 0 (Phipson and Smyth 2010).
    p = reached.mean() if whole else (reached.sum() + 1) / (len(reached) + 1)
    return Correlation(n, rho, float(low), float(high), float(p))


def _rhos(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Spearman's rho (m,) of samples (m, n), as the correlation of mean ranks; 0 where all values are equal."""
    first, second = _ranks(xs), _ranks(ys)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return (first * second).sum(axis=1) / np.where(scale > 0, scale, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks (m, n) less their mean: equal values share the mean of their places."""
    less = (values[:, :, None] > values[:, None, :]).sum(axis=2)
    equal = (values[:, :, None] == values[:, None, :]).sum(axis=2)
    return less + equal / 2 - values.shape[1] / 2


def judge(runs: Sequence[Measured], uncounted: float = _UNCOUNTED) -> Claim:
    """Correlates the two numbers within and over groups, and lists the pairs of runs that they order differently.

    Args:
        runs: all of them.
        uncounted: share of the text by which runs of group `same` may differ.

    Raises:
        ValueError: when the code lengths of group `same` are of different text.
    """
    sizes = [run.coded_bytes for run in runs if run.group == SAME]
    if sizes and min(sizes) < (1 - uncounted) * max(sizes):
        raise ValueError(f"runs of group {SAME} coded {min(sizes):,} to {max(sizes):,} bytes; they must read the same")
    claim = Claim(list(runs))
    for groups in ((SAME,), (SAME, REPEATED), (SAME, REPEATED, OTHER)):
        chosen = [run for run in runs if run.group in groups]
        name = " + ".join(groups)
        if len(chosen) < 3 or (len(groups) > 1 and not any(run.group == groups[-1] for run in chosen)):
            continue
        heldout = [run.heldout for run in chosen]
        claim.correlations[name] = rank_correlation([run.prequential for run in chosen], heldout)
        claim.controls[name] = rank_correlation([run.last_losses for run in chosen], heldout)
    for one, other in itertools.permutations(runs, 2):
        # Only pairs whose held-out intervals do not touch: others may be equal.
        if one.prequential < other.prequential and one.low > other.high:
            claim.reversed.append((one.name, other.name))
    return claim


# -------------------------------------------------------------------------------------------------------------- showing
def markdown(claim: Claim) -> str:
    """The runs, the correlations and the reversed pairs, as Markdown."""
    columns = ("run", "group", "what differs", "MB coded", "training text, bits/byte", "last tenth of the loss",
               "held out (95% interval)")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        f"| {run.name} | {run.group} | {run.what} | {run.coded_bytes / 1e6:.2f} | {run.prequential:.3f} | "
        f"{run.last_losses:.3f} | {run.heldout:.3f} ({run.low:.3f} to {run.high:.3f}) |"
        for run in sorted(claim.runs, key=lambda run: (list(GROUPS).index(run.group), run.heldout))
    ]
    lines += [
        "",
        "| groups | runs | rho of the code length with held out | p | rho of the last tenth of the loss | p |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name, found in claim.correlations.items():
        control = claim.controls[name]
        lines.append(f"| {name} | {found.runs} | {_said(found)} | {found.p:.4f} | {_said(control)} | {control.p:.4f} |")
    lines += ["", "Fewer bits for its training text, and yet worse on new text (intervals do not touch):", ""]
    lines += [f"- {one} against {other}" for one, other in claim.reversed] or ["- none"]
    return "\n".join([*lines, ""])


def _said(found: Correlation) -> str:
    return f"{found.rho:.2f} ({found.low:.2f} to {found.high:.2f})"


def svg(claim: Claim) -> str:
    """A picture of held-out bits over prequential bits, one dot a run, as a file of its own."""
    series = []
    for number, (group, label) in enumerate(GROUPS.items(), start=1):
        chosen = [run for run in claim.runs if run.group == group]
        points = [(run.prequential, run.heldout) for run in chosen]
        labels = [run.name for run in chosen]
        series.append(Series(label, points, f"series-{number}", markers=True, joined=False, labels=labels))
    both = [value for run in claim.runs for value in (run.prequential, run.heldout)]
    series.append(Series("equal", [(value, value) for value in (min(both), max(both))], "series-4", faint=True))
    axes = Axes("training text, bits per byte (prequential)", _two, _two, y_label="held out, bits per byte")
    drawn = line_chart(
        series, axes, title="Held-out bits per byte over prequential bits per byte", width=720, height=440
    )
    return standalone(str(drawn), list(GROUPS.values()))


def _two(value: float) -> str:
    return f"{value:.2f}"


def main() -> int:
    """Trains the runs, then prints and writes what follows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "claim")
    parser.add_argument("--only", help="names of runs, separated by commas; default: all")
    parser.add_argument("--bytes", type=int, default=1_600_000, help="size of the text")
    parser.add_argument("--tiny", action="store_true", help="a try of the machinery in seconds a run; proves nothing")
    given = parser.parse_args()
    size = 40_000 if given.tiny else given.bytes
    chosen = [run for run in runs_of(size) if given.only is None or run.name in given.only.split(",")]
    common = [f"data.sources.0.max_bytes={size}"]
    if given.tiny:
        common += ["model.num_layers=1", "model.hidden_size=32", "evaluation.perplexity.0.max_documents=1"]
    out = given.out.resolve()
    for number, run in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {run.name}: {run.what}", file=sys.stderr, flush=True)
        trained(recipe_of(run, out, common))
    claim = judge([measured(run, out / run.name) for run in chosen], _UNCOUNTED_OF_TINY if given.tiny else _UNCOUNTED)
    write_json(out / "claim.json", asdict(claim))
    write_text(out / "claim.md", markdown(claim))
    write_text(out / "claim.svg", svg(claim))
    print(markdown(claim))
    return 0


if __name__ == "__main__":
    sys.exit(main())
