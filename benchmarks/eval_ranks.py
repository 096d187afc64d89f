"""Seconds of an evaluation on one rank and on two, each rank on a core of its own with one thread.

    python benchmarks/eval_ranks.py [--size 20m] [--kinds choices shots answers text] [--items 200] [--rounds 3]

The tasks are those of `benchmarks/eval_speed.py`; `text` is a perplexity set. Weights are random: time does not depend
on them. `reader` is the time that rank 0 waits for log-likelihoods and answers, the exchange between ranks included:
what is divided. `whole` is what `results.json` says: from the loading of the model to the last score. It includes what
every rank does alike: the import of lm-eval, the reading of tasks, tokenization, bootstrap. Ways:

- one: one rank on core 0.
- two: two ranks on cores 0 and 1, over gloo.
- apart: two evaluations by themselves at the same time, one per core, each of all items. This is what the hardware
  allows: their cores share caches and memory.

Printed are medians in seconds, and the ratios one / two and 2 x one / apart. Scores of one and two are compared.
Needs Linux (`taskset`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from eval_speed import SIZES, make_models, passages, write_tasks  # noqa: E402

WAYS = {"one": 1, "two": 2, "apart": 2}


def make_run(directory: Path, size: str, items: int) -> dict[str, list[str]]:
    """Writes `directory/run` with the model, and the sets; returns the tasks of each kind."""
    from launch.models.import_model import import_run

    tasks = directory / "tasks"
    tasks.mkdir()
    names = write_tasks(tasks, items)
    _, _, exported = make_models(*SIZES[size], directory)
    texts = [" ".join(words) for words in passages()[:items]]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {
        "name": "ranks",
        "data": {"sources": [{"name": "text", "path": str(directory / "text.jsonl")}]},
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1},
        "train": {"steps": 1},
        "evaluation": {"samples": {"prompts": []}, "benchmarks": {"include_path": str(tasks)}},
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe))
    import_run(exported, directory / "run", str(directory / "recipe.yaml"))
    return names


def start(run: Path, way: str, core: int, port: int, overrides: list[str]) -> subprocess.Popen[bytes]:
    """One process of a way, on its core."""
    place = (
        {"RANK": str(core), "WORLD_SIZE": "2", "LOCAL_RANK": str(core), "LOCAL_WORLD_SIZE": "2"} if way == "two" else {}
    )
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **place, **address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    own = run.with_name(f"apart-{core}") if way == "apart" else run
    if own != run and not own.exists():
        shutil.copytree(run, own)
    shutil.rmtree(own / "scores", ignore_errors=True)
    alone = [] if place else ["--ranks", "1"]  # a rank that was started may not start others
    words = ["eval", str(own), "--again", *alone, "--trust", str(run.parent / "tasks"), *overrides]
    command = ["taskset", "-c", str(core), sys.executable, __file__, "--as-rank", str(own), *words]
    with (own / f"rank-{core}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def as_rank(run: Path, words: list[str]) -> int:
    """Runs `replica` with these words in this process, and notes the seconds of its reader."""
    from eval.reading.ranked import RankedReader
    from launch.cli import main as replica

    seconds = [0.0]

    def timed(method: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            begin = time.monotonic()
            try:
                return method(*arguments, **settings)
            finally:
                seconds[0] += time.monotonic() - begin

        return call

    for name in ("score", "generate"):
        setattr(RankedReader, name, timed(getattr(RankedReader, name)))
    main_rank = os.environ.get("RANK", "0") == "0"  # the launcher's variables are hidden later
    code = replica(words)
    if main_rank:
        (run / "reader.json").write_text(json.dumps(seconds[0]))
    return code


def evaluate(run: Path, way: str, overrides: list[str], limit: float) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one evaluation (the slower one of two), `whole` and `reader`, and its scores."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [start(run, way, core, port, overrides) for core in range(WAYS[way])]
    try:
        codes = [process.wait(limit) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        logs = "\n".join(file.read_text() for file in sorted(run.parent.glob("*/rank-*.log")))
        raise SystemExit(f"{way}: exit codes {codes}\n{logs[-4000:]}")
    places = [run] if way != "apart" else [run.with_name(f"apart-{core}") for core in range(2)]
    found = [json.loads((place / "results.json").read_text()) for place in places]
    scores = {result["name"]: result["value"] for result in found[0]["results"]}
    reader = max(json.loads((place / "reader.json").read_text()) for place in places)
    return {"whole": max(content["seconds"] for content in found), "reader": reader}, scores


def measure(run: Path, kind: str, tasks: dict[str, list[str]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of a kind, each way in turn."""
    if kind == "text":
        overrides = [f"evaluation.perplexity=[{{name: text, path: '{run.parent / 'text.jsonl'}'}}]"]
    else:
        overrides = [f"evaluation.benchmarks.tasks={json.dumps(tasks[kind])}"]
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    scores: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for way in WAYS:
            took, scores[way] = evaluate(run, way, overrides, options.limit)
            seconds[way].append(took)
    one, two = scores["one"], scores["two"]
    difference = max(abs(one[name] - two[name]) / max(1e-12, abs(one[name])) for name in one)
    row: dict[str, Any] = {"kind": kind, "largest relative difference": difference}
    for part in ("reader", "whole"):
        medians = {way: statistics.median(one[part] for one in values) for way, values in seconds.items()}
        row[part] = {
            "seconds": {way: round(value, 2) for way, value in medians.items()},
            "one / two": round(medians["one"] / medians["two"], 2),
            "hardware": round(2 * medians["one"] / medians["apart"], 2),
        }
    return row


def main() -> None:
    """Prints a line of JSON for each kind, and the machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--kinds", nargs="+", default=["choices", "shots", "answers", "text"])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1800, help="seconds of one evaluation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tasks = make_run(Path(place), options.size, options.items)
        for kind in options.kinds:
            print(json.dumps(measure(Path(place) / "run", kind, tasks, options)), flush=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        sys.exit(as_rank(Path(sys.argv[2]), sys.argv[3:]))
    main()
