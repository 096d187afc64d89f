"""What end-to-end tests share: a corpus and a recipe that go from raw text to a report in well under a minute."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from configs.schema.recipe import load
from data_prep.stages import pipeline
from launch.cli import main

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "he",
    "was",
    "that",
    "it",
    "his",
    "her",
    "with",
    "as",
    "had",
    "she",
    "for",
]

TINY_RECIPE = """\
name: tiny
data:
  sources:
    - {name: words, path: corpus.jsonl, licence: CC0-1.0}
  tokenizer: {kind: byte}
  validation_fraction: 0.1
model: {family: llama, num_layers: 1, hidden_size: 32, num_heads: 2, context_length: 32, vocab_multiple: 1}
train:
  steps: 12
  global_batch_size: 8
  precision: fp32
  log_every: 1
  optimizer: {lr: 3e-3}
  checkpoint: {every: 6, keep: 2}
  validation: {every: 6, max_tokens: 512}
evaluation:
  perplexity: [{name: heldout, path: heldout.jsonl}]
  samples: {prompts: ["the"], max_new_tokens: 8}
  bootstrap_samples: 100
report:
  gates: ["perplexity/heldout/bits_per_byte < 8.5"]
"""


def write_corpus(path: Path, documents: int, seed: int) -> None:
    """Documents of common words in random order: enough for a model to learn something in a few steps."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(documents):
            text = " ".join(rng.choice(WORDS) for _ in range(80)).capitalize() + "."
            stream.write(json.dumps({"id": f"{path.stem}-{number}", "text": text}) + "\n")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe once more, with its data prepared beside it; not to be written to."""
    directory = tmp_path_factory.mktemp("prepared")
    write_corpus(directory / "corpus.jsonl", documents=100, seed=1)
    write_corpus(directory / "heldout.jsonl", documents=4, seed=2)
    recipe = directory / "tiny.yaml"
    text = TINY_RECIPE.replace("data:\n", "data:\n  directory: shards\n")
    recipe.write_text(text, encoding="utf-8")
    pipeline.prepare_inline(load(recipe))
    return recipe


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe file beside its corpus, in a directory of its own."""
    write_corpus(tmp_path / "corpus.jsonl", documents=100, seed=1)
    write_corpus(tmp_path / "heldout.jsonl", documents=4, seed=2)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY_RECIPE, encoding="utf-8")
    return recipe


@pytest.fixture
def tiny_overrides(tmp_path: Path) -> list[str]:
    """Overrides that make any recipe a run of seconds, offline, on the corpus of `tiny_recipe`."""
    write_corpus(tmp_path / "corpus.jsonl", documents=100, seed=1)
    write_corpus(tmp_path / "heldout.jsonl", documents=4, seed=2)
    return [
        f"data.sources=[{{name: words, path: {tmp_path / 'corpus.jsonl'}, licence: CC0-1.0}}]",
        # Words in random order are not what rules of quality keep.
        *("data.preset=none", "data.mixture={}", "data.decontaminate=null"),
        *("data.tokenizer.vocab_size=300", "data.validation_fraction=0.1"),
        *("model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.num_kv_heads=null"),
        *("model.intermediate_size=64", "model.context_length=32"),
        *("train.tokens=null", "train.steps=12", "train.global_batch_size=8", "train.micro_batch_size=4"),
        *("train.schedule.warmup_steps=2", "train.compile=false", "train.log_every=1"),
        *("train.checkpoint.every=6", "train.validation={every: 6, max_tokens: 512}"),
        f"evaluation.perplexity=[{{name: heldout, path: {tmp_path / 'heldout.jsonl'}}}]",
        *("evaluation.translation=[]", "evaluation.benchmarks.tasks=[]"),
        *("evaluation.information=[]", "evaluation.summarization=[]"),  # no pair fits so short a context
        *("evaluation.samples.max_new_tokens=8", "evaluation.bootstrap_samples=100", "report.gates=[]"),
    ]


@pytest.fixture
def prepares_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process prepare data without Ray, whose start and workers take longer than such small data."""
    monkeypatch.setattr(pipeline, "prepare", pipeline.prepare_inline)


@pytest.fixture
def replica(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the console command; `check` wants exit code 0.

    In this process, because a process of its own would spend seconds on importing torch: the command leaves the process
    as it found it (`run_command`). With `own_process` as from a shell.
    """

    def run(
        *arguments: str | Path, check: bool = True, cwd: Path = ROOT, own_process: bool = False
    ) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        if own_process:
            command = [sys.executable, "-m", "launch.cli", *words]
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
        else:
            capfd.readouterr()
            with chdir(cwd):
                try:
                    code = main(words)
                except SystemExit as end:  # after --help
                    code = end.code
            done = subprocess.CompletedProcess(["replica", *words], code, *capfd.readouterr())
        if check:
            assert done.returncode == 0, f"{done.args} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
