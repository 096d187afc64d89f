"""Learning to learn, in bits: how much shorter is the code of language B for a model that has learnt A before?

    python benchmarks/transfer.py [--out runs/transfer] [--target de] [--seeds 3] [--tiny]

Trains a small model of bytes (`benchmarks/transfer.yaml`) on a text in language B once, from scratch and from a
checkpoint of another language (`train.init_from`). Each time the text costs what the model needs to code it while it
learns (prequential coding). The difference is what A has taught about B, in bits. It is taken within a seed, because
the order of the text is that of the seed; the interval is Student's t over seeds. Controls tell what of it is language:
English with its words in random order, English with its letters in random order, and DNA, each of the same size.

Writes `transfer.json` and `transfer.md` into the directory. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard
from scipy import stats

from configs.common.files import write_json, write_text
from configs.schema.recipe import Recipe, load

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks" / "transfer.yaml"
CORPUS = ROOT / "configs" / "corpus"
NOVELS = "gutenberg-train.jsonl.zst"
HELP = "five-languages-train.jsonl.zst"
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "cs": "Czech", "zh": "Chinese"}
UNITS = {"words": r"\S*\s+|\S+", "letters": r"(?s)."}
PARAGRAPH_BYTES = 150  # on average
SCRATCH = "scratch"
EARLY = 0.1  # part of the text of which what is saved is shown by itself


@dataclass(frozen=True)
class Text:
    """A text to learn: its name, and its source of a recipe."""

    name: str
    shown: str
    source: Mapping[str, object]


@dataclass(frozen=True)
class Saved:
    """What starting from a text saves of the code of language B, over seeds; lengths in bits.

    Attributes:
        bits_per_byte: of B, the mean over seeds.
        bits: saved of the whole text, by seed.
        early: saved of its first tenth, by seed.
        low, high: interval of the mean of `bits`; None for fewer than two seeds.
    """

    start: str
    bits_per_byte: float
    bits: list[float]
    early: list[float]
    low: float | None
    high: float | None


def shuffled(directory: Path, size: int, kind: str) -> Path:
    """Writes as many bytes of the novels with the words or the letters of each passage in random order."""
    content = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader((CORPUS / NOVELS).read_bytes()).read()
    numbers, lines, left = random.Random(0), [], size
    for line in content.splitlines():
        record = json.loads(line)
        text = record["text"].encode()[:left].decode(errors="ignore")
        units = re.findall(UNITS[kind], text)
        numbers.shuffle(units)
        lines.append(json.dumps({"id": record["id"], "text": "".join(units)}, ensure_ascii=False) + "\n")
        left -= len(text.encode())
        if left <= 0:
            break
    file = directory / f"{kind}.jsonl"
    write_text(file, "".join(lines))
    return file


def texts_of(target: str, size: int, directory: Path) -> list[Text]:
    """Language B first, then what a model may have learnt before, each of about so many bytes.

    Args:
        directory: where texts are written that do not ship.
    """
    # Its records hold five languages, so their bytes are not those of the text.
    of_help = {"path": str(CORPUS / HELP), "max_documents": size // PARAGRAPH_BYTES}
    found = [Text(target, f"{LANGUAGES[target]} (help)", {**of_help, "text_field": target})]
    # Languages of the same help would teach its contents too: other texts are of other subjects.
    found += [
        Text("novels", "English (novels)", {"path": str(CORPUS / NOVELS), "max_bytes": size}),
        Text("histories", "Chinese (histories)",
             {"path": str(CORPUS / "classical-modern-zh-train.jsonl.zst"), "max_bytes": size}),
        Text("words", "English, words shuffled (control)", {"path": str(shuffled(directory, size, "words"))}),
        Text("letters", "English, letters shuffled (control)", {"path": str(shuffled(directory, size, "letters"))}),
        Text("dna", "DNA (control)", {"path": str(CORPUS / "ecoli-k12-train.fa.gz"), "max_bytes": size}),
    ]  # fmt: skip
    same_help = "fr" if target != "fr" else "de"
    shown = f"{LANGUAGES[same_help]} (the same help)"
    found.append(Text(same_help, shown, {**of_help, "text_field": same_help}))
    return found


def recipe_of(text: Text, seed: int, out: Path, start: Path | None, common: Sequence[str]) -> Recipe:
    """The recipe that learns a text, from scratch or from a run."""
    source = {"name": "text", "licence": "see configs/corpus/README.md", **text.source}
    run = f"{text.name}-{seed}" if start is None else f"{text.name}-from-{start.name}"
    given = {"out": str(out / run), "data.directory": str(out / "data" / text.name), "seed": seed}
    if start is not None:
        given["train.init_from"] = str(start)
    return load(RECIPE, [*common, f"data.sources=[{json.dumps(source)}]"], given)


def trained(recipe: Recipe) -> Path:
    """Prepares and trains what is not there yet; returns the run directory."""
    from data_prep.stages.pipeline import is_current, prepare_inline
    from launch.run_stages import train_stage, working_in
    from pretrain.checkpoint.compatible import is_finished

    with working_in(recipe):
        if not is_current(recipe):
            prepare_inline(recipe)
        if not is_finished(recipe):
            train_stage(recipe)
    return recipe.run_directory


def code_of(run: Path) -> tuple[float, float, float]:
    """Bits of the text, bits of its first tenth, and bytes, as the run coded them while it learnt.

    Raises:
        ValueError: when the run logged no code length.
    """
    from eval.report.history import read_history

    history = read_history(run)
    bits, rates = (history.get(f"train/{name}") for name in ("code_length_bits", "code_bits_per_byte"))
    if not bits:
        raise ValueError(f"{run} has no train/code_length_bits in its metrics; delete it and run again")
    sizes = [length / rate for (_, length), (_, rate) in zip(bits, rates, strict=True)]
    early = next(length for (_, length), size in zip(bits, sizes, strict=True) if size >= EARLY * sizes[-1])
    return bits[-1][1], early, sizes[-1]


def compare(codes: Mapping[str, Sequence[tuple[float, float, float]]]) -> list[Saved]:
    """What each start saves against scratch, paired by seed.

    Args:
        codes: start -> (bits, bits of the first tenth, bytes) by seed.

    Raises:
        ValueError: when a seed coded other bytes from one start than from scratch.
    """
    scratch = codes[SCRATCH]
    found = []
    for start, own in codes.items():
        if any(round(one[2]) != round(other[2]) for one, other in zip(own, scratch, strict=True)):
            raise ValueError(f"from {start} another text was coded than from scratch; delete the runs and start again")
        bits = [other[0] - one[0] for one, other in zip(own, scratch, strict=True)]
        early = [other[1] - one[1] for one, other in zip(own, scratch, strict=True)]
        rate = float(np.mean([one[0] / one[2] for one in own]))
        low, high = _interval(bits) if start != SCRATCH else (None, None)
        found.append(Saved(start, rate, bits, early, low, high))
    return found


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's t interval of the mean, 95%."""
    n = len(values)
    if n < 2:
        return None, None
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def markdown(target: str, saved: Sequence[Saved], shown: Mapping[str, str], scratch_bits: float) -> str:
    """The table."""
    columns = (f"learnt before {LANGUAGES[target]}", "bits per byte", "saved, kbit (95% interval)", "of the code",
               "saved of the first tenth, kbit")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for one in saved:
        if one.start == SCRATCH:
            lines.append(f"| nothing | {one.bits_per_byte:.3f} | | | |")
            continue
        mean = float(np.mean(one.bits))
        ends = "" if one.low is None or one.high is None else f" ({one.low / 1e3:.1f} to {one.high / 1e3:.1f})"
        lines.append(
            f"| {shown[one.start]} | {one.bits_per_byte:.3f} | {mean / 1e3:.1f}{ends} | {mean / scratch_bits:.1%} | "
            f"{float(np.mean(one.early)) / 1e3:.1f} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    """Trains all runs, then prints and writes what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "transfer")
    parser.add_argument("--target", choices=sorted(LANGUAGES), default="de")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=300_000, help="size of each text")
    parser.add_argument("--tiny", action="store_true", help="a try of the machinery in seconds a run; proves nothing")
    given = parser.parse_args()
    size, common = (20_000, ["model.num_layers=1", "model.hidden_size=24"]) if given.tiny else (given.bytes, [])
    out = given.out.resolve() / given.target
    target, *before = texts_of(given.target, size, out / "texts")
    codes: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (SCRATCH, *(one.name for one in before))}
    for seed in range(1, given.seeds + 1):
        print(f"seed {seed} of {given.seeds}", file=sys.stderr, flush=True)
        codes[SCRATCH].append(code_of(trained(recipe_of(target, seed, out, None, common))))
        for text in before:
            start = trained(recipe_of(text, seed, out, None, common))
            codes[text.name].append(code_of(trained(recipe_of(target, seed, out, start, common))))
    saved = compare(codes)
    scratch = float(np.mean([bits for bits, _, _ in codes[SCRATCH]]))
    table = markdown(given.target, saved, {text.name: text.shown for text in before}, scratch)
    write_json(out / "transfer.json", {"target": given.target, "starts": [asdict(one) for one in saved]})
    write_text(out / "transfer.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
