"""Makes texts with two labels each, and measures what learning both together saves of either one.

    python benchmarks/multi_task.py make functions FILE DIR       # the shipped sample; FILE: {text, meta} a line
    python benchmarks/multi_task.py make ag-news FILE.csv.gz DIR   # title and class of news
    python benchmarks/multi_task.py make dialogsum FILE.jsonl.gz DIR   # summary and topic of dialogues
    python benchmarks/multi_task.py run DIR [--recipe configs/summaries.yaml] [--seeds 3] [--tokens N] [--tiny]
        [--out X.json]

`make` writes train.jsonl.zst with the texts `with_summary` and `with_topic`, both.jsonl.zst with both labels behind a
text, in either order, heldout.jsonl.zst with `source`, `summary` and `topic`, and the benchmark `topic.yaml`. `run`
trains with one tokenizer on both labels, in documents of one label and in documents of both, and on each label alone:
once on half as many tokens, which are as many of that label, once on as many tokens, which is as many steps and about
as many readings of a text. It prints bits of the held-out labels, the accuracy of the topic by code length, and ROUGE.
Keep `--tokens` below a few epochs, or the models learn the texts by heart. AG News (non-commercial use) and DialogSum
(CC BY-NC-SA 4.0) are not shipped; name files of your own.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import hashlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from eval.text_metrics.rouge import ROUGE

Row = dict[str, str]  # id, source, summary, topic; "file" where several come from one
NEWS = ("World", "Sports", "Business", "Science")
HELD_OUT = 300
_OF_A_FILE = 10
WAYS = {"joint": "in documents of one each", "together": "in documents of both"}
ALONE = {"same_label": "half as many tokens", "same_total": "as many tokens"}
LABELS = ("summary", "topic")
_BODY = (60, 400)  # characters
_SUMMARY = (15, 80)


# -------------------------------------------------------------------------------------------------------------- sources
def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file, which may be compressed."""
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(content).read()
    elif path.suffix == ".gz":
        content = gzip.decompress(content)
    yield from io.StringIO(content.decode("utf-8"), newline="\n")


def functions(path: Path) -> Iterator[Row]:
    """Python functions without their docstring; its first line is the summary, the place of the file the topic."""
    seen: set[str] = set()
    for line in read_lines(path):
        record = json.loads(line)
        place = record["meta"]["path"]
        topic = "biology" if place.startswith("Bio/") else "tests" if "/test" in place else "library"
        if not place.endswith(".py"):
            continue
        for number, source, summary in _documented(record["text"]):
            key = hashlib.sha256(" ".join(source.split()).encode()).hexdigest()
            if key not in seen:
                seen.add(key)
                label = {"summary": summary, "topic": topic}
                yield {"id": f"{place}:{number}", "file": place, "source": source, **label}


def _documented(text: str) -> Iterator[tuple[int, str, str]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if not said or not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        first, *more = said.splitlines()
        whole = first.endswith(".") and not (more and more[0].strip())
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno or 0 : node.end_lineno]
        source = textwrap.dedent("\n".join(line for line in [*head, *body] if line.strip()))
        if whole and _BODY[0] <= len(source) <= _BODY[1] and _SUMMARY[0] <= len(first) <= _SUMMARY[1]:
            yield node.lineno, source, first


def ag_news(path: Path) -> Iterator[Row]:
    """News: the description is the source, the title the summary, the class the topic."""
    for number, (kind, title, text) in enumerate(csv.reader(read_lines(path)), start=1):
        cells = [" ".join(cell.replace("\\", " ").split()) for cell in (text, title)]
        if all(cells):
            yield {"id": str(number), "source": cells[0], "summary": cells[1], "topic": NEWS[int(kind) - 1]}


def dialogsum(path: Path) -> Iterator[Row]:
    """Dialogues with a summary and a topic in words."""
    for line in read_lines(path):
        record = json.loads(line)
        yield {
            "id": record["fname"],
            "source": record["dialogue"],
            "summary": " ".join(record["summary"].split()),
            "topic": record["topic"].strip(),
        }


KINDS = {"functions": functions, "ag-news": ag_news, "dialogsum": dialogsum}


def labelled(row: Row, *labels: str) -> str:
    """A training document: a text with some of its labels behind it."""
    return "\n".join([f"Text: {row['source']}", *(f"{label.title()}: {row[label]}" for label in labels)])


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Cuts rows into those to learn and those held out: `HELD_OUT` at most, or a fifth, of evenly spaced files.

    Functions of one file are much alike. So a file is on one side, and what it has beyond `_OF_A_FILE` rows is on none.
    """
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(row.get("file", row["id"]), []).append(row)
    most = min(HELD_OUT, len(rows) // 5)
    count = sum(min(len(own), _OF_A_FILE) for own in files.values())
    held = list(files)[:: max(1, count // most)]
    held_out = [row for name in held for row in files[name][:_OF_A_FILE]][:most]
    outside = {row.get("file", row["id"]) for row in held_out}
    return [row for name, own in files.items() if name not in outside for row in own], held_out


def make(kind: str, path: Path, out: Path) -> None:
    """Writes training texts, held-out pairs and the benchmark of topics."""
    rows = list(KINDS[kind](path))
    learnt, kept = halves(rows)
    held_out = [{name: row[name] for name in ("id", "source", *LABELS)} for row in kept]
    texts = [{"id": row["id"], **{f"with_{label}": labelled(row, label) for label in LABELS}} for row in learnt]
    both = [
        {"id": row["id"], **{f"{order[0]}_first": labelled(row, *order) for order in (LABELS, LABELS[::-1])}}
        for row in learnt
    ]
    out.mkdir(parents=True, exist_ok=True)
    for name, written in (("train", texts), ("both", both), ("heldout", held_out)):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written).encode()
        (out / f"{name}.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    topics = sorted({row["topic"] for row in rows})
    if len(topics) <= 10:
        questions = "".join(json.dumps({"source": row["source"], "topic": row["topic"]}) + "\n" for row in held_out)
        (out / "topic.jsonl.gz").write_bytes(gzip.compress(questions.encode(), mtime=0))
        (out / "topic.yaml").write_text(topic_task("replica_topic", "topic.jsonl.gz", topics), encoding="utf-8")
    print(f"{len(texts):,} texts for training, {len(held_out):,} held out, topics: {', '.join(topics[:10])}")


def topic_task(name: str, file: str, topics: list[str]) -> str:
    """Writes a task of lm-eval that asks for the topic by code length."""
    return textwrap.dedent(f"""\
        # Which topic does a text have? By the likelihood of each; chance: 1/{len(topics)}.
        task: {name}
        dataset_path: json
        dataset_kwargs:
          data_files:
            validation: {file}
        output_type: multiple_choice
        validation_split: validation
        doc_to_text: "Text: {{{{source}}}}\\nTopic:"
        doc_to_choice: {json.dumps(topics)}
        doc_to_target: topic
        metric_list:
          - metric: acc
            aggregation: mean
            higher_is_better: true
        metadata:
          version: 1.0
        """)


# ----------------------------------------------------------------------------------------------------------- experiment
@dataclass(frozen=True)
class Setup:
    """What all runs share; `tokens`: to train on where both labels are learnt."""

    recipe: Path
    data: Path
    runs: Path
    tokens: int
    tiny: bool


@dataclass(frozen=True)
class Arm:
    """What one model learns: fields of the documents, their file, and tokens to train on."""

    fields: tuple[str, ...]
    tokens: int
    file: str = "train"


def arms_of(tokens: int) -> dict[str, Arm]:
    """The arms by name; `joint` is the first, whose tokenizer the others have."""
    arms = {"joint": Arm(tuple(f"with_{label}" for label in LABELS), tokens)}
    arms["together"] = Arm(tuple(f"{label}_first" for label in LABELS), tokens, "both")
    for label in LABELS:
        arms[label] = Arm((f"with_{label}",), tokens // len(LABELS))
        arms[f"{label}-longer"] = Arm((f"with_{label}",), tokens)
    return arms


def train(setup: Setup, name: str, arm: Arm, seed: int, tokenizer: Path | None) -> dict[str, float]:
    """Trains one arm and scores both labels; returns the scores by name.

    Args:
        tokenizer: of another run, so that the scores are of the same tokens; None: trained on the texts.
    """
    data, tiny, run = setup.data, setup.tiny, setup.runs / f"{name}-{seed}"
    sources = [
        {
            "name": field.removeprefix("with_"),
            "path": str(data / f"{arm.file}.jsonl.zst"),
            "text_field": field,
            "language": "en",
        }
        for field in arm.fields
    ]
    pairs: dict[str, Any] = {"path": str(data / "heldout.jsonl.zst"), "source_field": "source", "source_label": "Text"}
    pairs |= {"max_items": 10 if tiny else None}
    settings: dict[str, Any] = {
        "seed": seed,
        "data.sources": sources,
        "train.tokens": arm.tokens,
        "evaluation.information": [
            {"name": label, "target_field": label, "target_label": label.title(), "candidates": None, **pairs}
            for label in LABELS
        ],
        "evaluation.summarization": [
            {"name": "summary", "max_new_tokens": 24, "sentences": 1, "information_items": 0, **pairs}
            | {"split": "lines", "rouge": {"stem": True}}
        ],
        "evaluation.benchmarks.include_path": str(data),
        "evaluation.benchmarks.tasks": ["replica_topic"] if (data / "topic.yaml").is_file() else [],
        "evaluation.perplexity": [],
        "evaluation.samples.prompts": [],
        "report.gates": [],
    }
    if tiny:
        settings["evaluation.benchmarks.limit"] = 10
    if tokenizer is not None:
        settings["data.tokenizer"] = {"kind": "file", "path": str(tokenizer.resolve())}
    command = [sys.executable, "-m", "launch.cli", "run", str(setup.recipe), "--out", str(run), "--trust", str(data)]
    command += [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]
    return {result["name"]: result["value"] for result in found}


def experiment(setup: Setup, seeds: int) -> list[dict[str, Any]]:
    """Trains on both labels and on each alone, with several seeds; returns a row for each score.

    A row holds the values by seed: `joint`, `together` (documents of both labels), `same_label` (alone, with as many
    tokens of the label) and `same_total` (alone, with as many tokens in all).
    """
    arms = arms_of(setup.tokens)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, arm in arms.items():
            shared = None if name == "joint" else setup.runs / f"joint-{seed}" / "data" / "tokenizer"
            scores[name].append(train(setup, name, arm, seed, shared))
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    names = {
        "summary": ["information/summary/given_bits/0-shot", *(f"summarization/summary/{kind}" for kind in ROUGE)],
        "topic": ["information/topic/given_bits/0-shot", "benchmark/replica_topic/acc"],
    }
    rows = []
    for label, metrics in names.items():
        columns = {name: name for name in WAYS} | {"same_label": label, "same_total": f"{label}-longer"}
        for metric in metrics:
            values = {key: [one[metric] for one in scores[arm] if metric in one] for key, arm in columns.items()}
            if all(values.values()):
                rows.append({"score": metric, **values})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Writes the rows in Markdown: means over seeds, and what each way of both labels differs from one, by seed."""
    heads = ["score", "both labels", "this label alone", "mean", "alone, mean", "difference, by seed"]
    out = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        for way, alone in itertools.product(WAYS, ("same_label", "same_total")):
            differences = (ours - theirs for ours, theirs in zip(row[way], row[alone], strict=True))
            means = [f"{statistics.fmean(row[name]):.3f}" for name in (way, alone)]
            by_seed = ", ".join(f"{value:+.3f}" for value in differences)
            out.append(f"| {row['score']} | {WAYS[way]} | {ALONE[alone]} | {' | '.join(means)} | {by_seed} |")
    return "\n".join(out)


def main() -> int:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    making = commands.add_parser("make")
    making.add_argument("kind", choices=KINDS)
    making.add_argument("path", type=Path)
    making.add_argument("out", type=Path)
    running = commands.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("--recipe", type=Path, default=Path("configs/summaries.yaml"))
    running.add_argument("--runs", type=Path, default=Path("runs/multi-task"))
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--tokens", type=int, default=2_000_000, help="training tokens of both labels together")
    running.add_argument("--tiny", action="store_true")
    running.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.kind, arguments.path, arguments.out)
        return 0
    tokens = 40_000 if arguments.tiny else arguments.tokens
    setup = Setup(arguments.recipe, arguments.data.resolve(), arguments.runs, tokens, arguments.tiny)
    rows = experiment(setup, 1 if arguments.tiny else arguments.seeds)
    print(table(rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
