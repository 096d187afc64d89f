"""`replica run`: raw text to report; then nothing is recomputed; then killed at random places and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.common.files import read_json, sha256_file

ROOT = Path(__file__).resolve().parents[2]
Replica = Callable[..., subprocess.CompletedProcess[str]]


def contents(run: Path) -> dict[str, tuple[str, int]]:
    """Hash and modification time of every file in a run directory."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in {".lock", "recipe.yaml"}]
    return {str(path.relative_to(run)): (sha256_file(path), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_raw_text_to_report_and_every_other_command(tiny_recipe: Path, tmp_path: Path, replica: Replica) -> None:
    run = tmp_path / "run"
    done = replica("run", tiny_recipe, "--out", run, own_process=True)
    for number, stage in enumerate(("data", "training", "evaluation", "report"), start=1):
        assert f"[{number}/4] {stage}" in done.stderr
    assert "perplexity/heldout/bits_per_byte" in done.stdout
    assert "gate passed: perplexity/heldout/bits_per_byte < 8.5" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {run}/report/index.html"
    for name in ("recipe.yaml", "data/manifest.json", "checkpoints/latest", "metrics.jsonl", "results.json"):
        assert (run / name).is_file(), name
    assert (run / "report" / "index.html").stat().st_size > 10_000

    before, began = contents(run), time.monotonic()
    again = replica("run", tiny_recipe, "--out", run)
    assert time.monotonic() - began < 15
    assert again.stderr.count("up to date") == 4
    assert contents(run) == before
    assert again.stdout == done.stdout

    check_trace(run, replica)
    check_models(run, tmp_path, tiny_recipe, replica)
    check_gate(run, replica)


def check_trace(run: Path, replica: Replica) -> None:
    """The table names documents of the corpus, and their first words are theirs."""
    table = replica("trace", run, "--step", "3").stdout.splitlines()
    assert table[0].split() == ["row", "document", "source", "offset", "tokens", "first", "words"]
    texts = {}
    for line in (run.parent / "corpus.jsonl").read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        texts[document["id"]] = document["text"]
    for line in table[1:]:
        _, identifier, source, offset, tokens, *words = line.split(maxsplit=5)
        assert source == "words"
        # One token is one byte here, so that the offset is a place in the text.
        start = int(offset)
        stretch = texts[identifier][start : start + min(int(tokens), 24)]
        assert "".join(words).strip() == " ".join(stretch.split())
    assert replica("trace", run, "--step", "13", check=False).stderr == (
        "error: step 13 is not in this run; it has the steps 1 to 12\n"
    )


def check_models(run: Path, tmp_path: Path, recipe: Path, replica: Replica) -> None:
    """The same text comes out of the run and of what was exported and imported again."""
    options = ("--prompt", "the ", "--max-new-tokens", "20", "--seed", "3")
    text = replica("sample", run, *options).stdout
    assert text.startswith("the ")
    assert len(text) > 10
    replica("export", run, tmp_path / "exported")
    replica("import", tmp_path / "exported", "--out", tmp_path / "imported", "--recipe", recipe)
    assert replica("sample", tmp_path / "imported", *options).stdout == text
    replica("eval", tmp_path / "imported")
    scores = [
        {result["name"]: result["value"] for result in read_json(directory / "results.json")["results"]}
        for directory in (run, tmp_path / "imported")
    ]
    name = "perplexity/heldout/bits_per_byte"
    assert scores[1][name] == pytest.approx(scores[0][name], rel=1e-5)
    assert "not empty" in replica("export", run, tmp_path / "exported", check=False).stderr
    assert "already holds a run" in replica("import", tmp_path / "exported", "--out", run, check=False).stderr


def check_gate(run: Path, replica: Replica) -> None:
    """A failed gate is exit code 1, and only where it was asked for."""
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("< 8.5", "< 0.1"), encoding="utf-8")
    assert replica("report", run, "--gate", check=False).returncode == 1
    assert "gate FAILED" in replica("report", run).stdout


@pytest.mark.slow
def test_two_ranks_interrupted_then_finished(prepared: Path, tmp_path: Path, replica: Replica) -> None:
    run = tmp_path / "run"
    settings = ["--out", str(run), "--num_accelerators", "2", "train.steps=100000", "train.checkpoint.every=20"]
    command = [sys.executable, "-m", "launch.cli", "train", str(prepared), *settings]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list((run / "checkpoints").glob("step_*")), process)
        second = replica("train", prepared, *settings, check=False)
        assert second.returncode == 2
        assert "another replica command uses" in second.stderr
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "the same command continues" in said
    assert not ranks_alive(run)
    stopped_at = read_json(max((run / "checkpoints").glob("step_*")) / "manifest.json")["step"]
    assert stopped_at > 0
    settings[4] = f"train.steps={stopped_at + 4}"
    done = replica("train", prepared, *settings)
    assert done.stdout.strip() == str(run / "checkpoints" / f"step_{stopped_at + 4:08d}")


@pytest.mark.chaos
def test_kill_9_leaves_no_rank_behind(prepared: Path, tmp_path: Path) -> None:
    """`test_what_is_bound_to_a_process_ends_with_it` shows in a second what this rests on."""
    run = tmp_path / "run"
    settings = ["--out", str(run), "--ranks", "2", "train.steps=100000", "train.checkpoint.every=20"]
    command = [sys.executable, "-m", "launch.cli", "train", str(prepared), *settings]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: list((run / "checkpoints").glob("step_*")), process)
        process.kill()
    try:
        wait_for(lambda: not ranks_alive(run))
    finally:
        for rank in ranks_alive(run):
            os.kill(rank, signal.SIGKILL)


def wait_for(holds: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ranks_alive(run: Path) -> list[int]:
    """Processes that have this run directory in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
