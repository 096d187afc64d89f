"""Masked diffusion beside a causal model at equal tokens, from a causal start, and with the number of epochs.

    python benchmarks/any_order.py [text proteins] [--out runs/any-order] [--seeds 1] [--tiny]

`text`: `configs/diffusion.yaml` (the demo's novels, model and tokens) with both objectives, and masked diffusion with
half the tokens: from new weights, from the causal run, and from one of half the tokens, the same text. `proteins`:
`configs/protein.yaml` on a part of its text that is read 1, 4 and 16 times, with both objectives. The figure is bits
per byte of the held-out text: exact for a causal model, an upper bound for a masked one.

Writes `any-order.json`, `any-order.md`, and a curve over epochs `any-order.svg` into the directory. Finished runs are
not made again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent))
from picture import standalone

from configs.common.files import write_json, write_text
from configs.schema.recipe import Recipe, load
from eval.report.charts import Axes, Series, line_chart

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = "perplexity/heldout/bits_per_byte"
CAUSAL, MASKED = "causal", "masked"
OBJECTIVES = {CAUSAL: "train.objective=null", MASKED: "train.objective={kind: masked_diffusion}"}
PARTS = ("text", "proteins")
EPOCHS = (1, 4, 16)
PROTEIN_BYTES = 250_000
_TOKENS = 1_600_000  # of diffusion.yaml and its stage
_TINY = {
    "text": [
        "data.sources.0.max_bytes=300000", "data.tokenizer.vocab_size=400", "model.num_layers=1",
        "model.hidden_size=40", "model.num_heads=2", "model.context_length=64", "evaluation.bound_draws=2",
        "evaluation.perplexity.0.max_documents=1", "evaluation.samples.prompts=[]", "train.validation.max_tokens=500",
    ],
    "proteins": [
        "model.num_layers=1", "model.hidden_size=40", "model.num_heads=2", "model.context_length=64",
        "evaluation.bound_draws=2", "evaluation.perplexity.0.max_documents=5", "evaluation.samples.prompts=[]",
        "train.validation.max_tokens=500",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run to train: `start` names the run whose weights it begins with."""

    part: str
    name: str
    objective: str
    what: str
    overrides: Sequence[str] = ()
    start: str | None = None


@dataclass(frozen=True)
class Measured:
    """A finished run: bits per byte of the held-out text with its interval, and how fast it trained."""

    part: str
    name: str
    objective: str
    what: str
    seed: int
    tokens: float
    bits_per_byte: float
    low: float
    high: float
    tokens_per_s: float


def runs_of(part: str, tiny: bool) -> list[Run]:
    """The runs of a part, in an order in which each finds its start."""
    if part == "text":
        tokens = 8_192 if tiny else _TOKENS
        whole, half = f"train.tokens={tokens}", f"train.tokens={tokens // 2}"
        return [
            Run(part, CAUSAL, CAUSAL, "all tokens", [whole]),
            Run(part, MASKED, MASKED, "all tokens", [whole]),
            Run(part, "masked-half", MASKED, "half the tokens", [half]),
            Run(part, "masked-from-causal", MASKED, "half the tokens, from the causal run", [half], CAUSAL),
            Run(part, "causal-half", CAUSAL, "half the tokens", [half]),
            Run(part, "masked-after-half", MASKED, "half the tokens causal, then half masked", [half], "causal-half"),
        ]
    size = 10_000 if tiny else PROTEIN_BYTES
    of_text = [f"data.sources.0.max_bytes={size}", "train.tokens=null"]
    special = 'data.tokenizer={kind: char, special_tokens: ["<|endoftext|>", "<|mask|>"]}'
    return [
        Run(part, f"{kind}-{epochs}", kind, f"{epochs} epochs" if epochs > 1 else "1 epoch",
            [special, *of_text, f"train.epochs={epochs}"])
        for epochs in EPOCHS[: 2 if tiny else None]
        for kind in (CAUSAL, MASKED)
    ]  # fmt: skip


def recipe_of(run: Run, out: Path, seed: int, tiny: bool) -> Recipe:
    """The recipe of a run; the runs of a part share their data."""
    base = ROOT / "configs" / {"text": "diffusion.yaml", "proteins": "protein.yaml"}[run.part]
    overrides = [*run.overrides, OBJECTIVES[run.objective], f"seed={1233 + seed}", *(_TINY[run.part] if tiny else [])]
    # Gates and prompts are written for the recipe's own objectives; each run here is one.
    gates = ["report.gates=[]", "evaluation.samples.prompts=[]", "stages=[]"]
    places: dict[str, str | int] = {
        "out": str(out / run.part / f"{run.name}-{seed}"),
        "data.directory": str(out / run.part / "data"),
    }
    if run.start is not None:
        places["train.init_from"] = str(out / run.part / f"{run.start}-{seed}")
    return load(base, [*overrides, *gates], places)


def trained(recipe: Recipe) -> None:
    """Prepares, trains and scores what is not there yet; text as short as this needs no Ray."""
    from data_prep.stages.pipeline import is_current, prepare_inline
    from launch.run_stages import run_all

    if not is_current(recipe):
        prepare_inline(recipe)
    run_all(recipe)


def measured(run: Run, seed: int, directory: Path) -> Measured:
    """Reads the figures of a finished run; raises `ValueError` when it has no held-out score."""
    from eval.report.history import read_history
    from eval.results import load_results

    score, history = load_results(directory).by_name().get(HELD_OUT), read_history(directory)
    tokens = history.last("tokens")
    if score is None or tokens is None:
        raise ValueError(f"{directory} has no {HELD_OUT}; delete it and run again")
    speed = median(value for _, value in history.get("train/tokens_per_s"))
    low, high = (math.nan if side is None else side for side in (score.low, score.high))
    return Measured(run.part, run.name, run.objective, run.what, seed, tokens, score.value, low, high, speed)


def table(found: Sequence[Measured]) -> str:
    """A Markdown table: a row for each run, means over seeds, the interval of the first seed."""
    lines = ["| part | objective | trained on | tokens | bits per byte | 95% interval | seeds | tokens/s |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for part, name in dict.fromkeys((one.part, one.name) for one in found):
        same = [one for one in found if (one.part, one.name) == (part, name)]
        first = same[0]
        sign = "≤ " if first.objective == MASKED else ""
        values = ", ".join(f"{one.bits_per_byte:.3f}" for one in same) if len(same) > 1 else "1"
        cells = [
            part, first.objective, first.what, f"{first.tokens:,.0f}",
            f"{sign}{mean(one.bits_per_byte for one in same):.3f}", f"{first.low:.3f} to {first.high:.3f}", values,
            f"{mean(one.tokens_per_s for one in same):,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def curve(found: Sequence[Measured]) -> str | None:
    """Bits per byte of held-out proteins over the number of epochs, as SVG; None without runs of it."""
    series, labels = [], {CAUSAL: "causal", MASKED: "masked (upper bound)"}
    for number, kind in enumerate((CAUSAL, MASKED), start=1):
        of_kind = [one for one in found if one.part == "proteins" and one.objective == kind]
        epochs = sorted({int(one.name.rpartition("-")[2]) for one in of_kind})
        points = [
            (math.log2(count), mean(one.bits_per_byte for one in of_kind if one.name == f"{kind}-{count}"))
            for count in epochs
        ]
        series += [Series(labels[kind], points, f"series-{number}", markers=True)] if points else []
    if not series:
        return None
    axes = Axes("epochs over the same text", lambda x: f"{2**x:.0f}", lambda y: f"{y:.2f}", x_ticks=[0, 2, 4])
    drawn = line_chart(series, axes, title="Bits per residue of held-out proteins")
    return standalone(str(drawn), list(labels.values()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="text, proteins, or both")
    parser.add_argument("--out", type=Path, default=Path("runs/any-order"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="minutes of training become steps")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    out, found = given.out.resolve(), list[Measured]()
    for part in given.parts:
        for seed in range(1, given.seeds + 1):
            for run in runs_of(part, given.tiny):
                recipe = recipe_of(run, out, seed, given.tiny)
                trained(recipe)
                found.append(measured(run, seed, recipe.run_directory))
    text = table(found)
    write_json(out / "any-order.json", [asdict(one) for one in found])
    write_text(out / "any-order.md", text)
    if (svg := curve(found)) is not None:
        write_text(out / "any-order.svg", svg)
    print(text)


if __name__ == "__main__":
    main()
