"""Seconds of an evaluation, beside lm-eval's `hf` model on the export of the same weights, with the same tasks.

    python benchmarks/eval_speed.py [--sizes demo 20m] [--tasks choices shots answers] [--items 200] [--rounds 3]

Both are in one process and take turns, fp32, the same threads. The tasks are made by seed from the passages of
configs/tasks/lambada.jsonl.gz, in the shapes of published ones:

- choices: HellaSwag, zero-shot. A context and four endings.
- shots: MMLU, five-shot. Five solved questions of a subject, a question, and the letters A to D.
- answers: a text to continue up to a line end, `generate_until`, at most 64 tokens, as in five-shot translation.

`hf` runs once with each of `--their-batch`, and the fastest counts. "whole" is lm-eval's `evaluate` with rendering and
scores; ours compiles each template of a task once, `hf` as lm-eval does. "model" is what the model's methods take,
tokenization included. Log-likelihoods
and texts of both are compared, item by item. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.schema.data import Tokenizer  # noqa: E402
from configs.schema.model import Model  # noqa: E402

_LLAMA: dict[str, Any] = {"family": "llama", "qk_norm": True, "tied_embeddings": True, "context_length": 1024}
SIZES: dict[str, tuple[Model, int]] = {  # settings, ids of the tokenizer
    "demo": (Model(num_layers=4, hidden_size=160, num_heads=5, **_LLAMA), 2048),
    "20m": (Model(num_layers=8, hidden_size=384, num_heads=6, **_LLAMA), 4096),
    "gpt2-20m": (Model(family="gpt2", num_layers=8, hidden_size=384, num_heads=6, context_length=1024), 4096),
}
_LETTERS = "ABCD"


# --------------------------------------------------------------------------------------------------------------- tasks
def passages() -> list[list[str]]:
    """The words of each passage."""
    with gzip.open(ROOT / "configs" / "tasks" / "lambada.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["context"].split() for line in lines]


def some_words(texts: list[list[str]], draw: random.Random, least: int, most: int) -> str:
    count = draw.randint(least, most)
    text = draw.choice([text for text in texts if len(text) > count])
    begin = draw.randrange(len(text) - count)
    return " ".join(text[begin : begin + count])


def question(texts: list[list[str]], draw: random.Random) -> dict[str, Any]:
    choices = [some_words(texts, draw, 2, 9) for _ in _LETTERS]
    return {"question": some_words(texts, draw, 15, 45), "choices": choices, "answer": draw.randrange(4)}


def write(directory: Path, name: str, splits: dict[str, list[dict[str, Any]]], **settings: Any) -> None:
    """Writes a task of lm-eval with its data."""
    for split, rows in splits.items():
        (directory / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(directory / f"{name}-{split}.jsonl") for split in splits}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    (directory / f"{name}.yaml").write_text(json.dumps({**task, **settings, "metadata": {"version": 1.0}}))


def write_tasks(directory: Path, items: int) -> dict[str, list[str]]:
    """Writes all tasks; returns the names of each kind."""
    texts, draw = passages(), random.Random(0)
    accuracy = [{"metric": "acc"}, {"metric": "acc_norm"}]
    write(
        directory,
        "endings",
        {
            "test": [
                {
                    "context": some_words(texts, draw, 25, 60),
                    "endings": [" " + some_words(texts, draw, 12, 30) for _ in range(4)],
                    "label": draw.randrange(4),
                }
                for _ in range(items)
            ]
        },
        output_type="multiple_choice",
        doc_to_text="context",
        doc_to_choice="endings",
        doc_to_target="label",
        target_delimiter="",
        metric_list=accuracy,
    )
    subjects = [f"subject_{number}" for number in range(4)]
    for subject in subjects:
        asked = [question(texts, draw) for _ in range(5 + items // 4)]
        write(
            directory,
            subject,
            {"dev": asked[:5], "test": asked[5:]},
            output_type="multiple_choice",
            description=f"The following are multiple choice questions (with answers) about {subject}.\n\n",
            fewshot_split="dev",
            fewshot_config={"sampler": "first_n"},
            num_fewshot=5,
            doc_to_text="{{question}}\n"
            + "".join(f"{letter}. {{{{choices[{number}]}}}}\n" for number, letter in enumerate(_LETTERS))
            + "Answer:",
            doc_to_choice=list(_LETTERS),
            doc_to_target="answer",
            metric_list=accuracy,
        )
    pairs = [
        {"source": some_words(texts, draw, 8, 30), "target": some_words(texts, draw, 8, 30)} for _ in range(items + 5)
    ]
    write(
        directory,
        "answers",
        {"dev": pairs[:5], "test": pairs[5:]},
        output_type="generate_until",
        fewshot_split="dev",
        fewshot_config={"sampler": "first_n"},
        num_fewshot=5,
        doc_to_text="Source: {{source}}\nTarget:",
        doc_to_target="target",
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    return {"choices": ["endings"], "shots": subjects, "answers": ["answers"]}


# --------------------------------------------------------------------------------------------------------------- models
def make_models(config: Model, ids: int, directory: Path) -> tuple[Any, Any, Path]:
    """Our model, its vocabulary, and the directory of the export."""
    import torch

    from data_prep.tokens.vocab_training import train_vocab
    from pretrain.interchange.huggingface_export import export_directory
    from pretrain.model.transformer import Transformer

    torch.manual_seed(0)
    vocab = train_vocab(Tokenizer(vocab_size=ids), [" ".join(words) for words in passages()])
    vocab.save(directory / "vocab")
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    return model, vocab, export_directory(model, directory / "vocab", directory / "export")


class Timed:
    """Adds up the seconds of a model's methods."""

    def __init__(self, adapter: Any, clock: Callable[[], float]) -> None:
        self.adapter, self.seconds = adapter, 0.0
        for name in ("loglikelihood", "generate_until"):
            setattr(adapter, name, self._timed(getattr(adapter, name), clock))

    def _timed(self, method: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            start = clock()
            try:
                return method(*arguments, **settings)
            finally:
                self.seconds += clock() - start

        return run


def evaluated(side: Timed, tasks: Any, clock: Callable[[], float]) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the whole, seconds in the model, and all samples."""
    from lm_eval.evaluator import evaluate

    side.seconds = 0.0
    start = clock()
    samples = evaluate(side.adapter, tasks, bootstrap_iters=0)["samples"]
    return clock() - start, side.seconds, samples


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Of log-likelihoods, in nats; of texts, how many differ."""
    worst, texts, count = 0.0, 0, 0
    for name, mine in ours.items():
        for one, other in zip(mine, theirs[name], strict=True):
            assert one["arguments"] == other["arguments"]
            for a, b in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                count += 1
                if isinstance(a, str):
                    texts += a != b
                else:
                    worst = max(worst, abs(a[0] - b[0]))
    return f"{texts} of {count} texts" if texts or not worst else f"{worst:.1e} nats"


def measure(kind: str, names: list[str], models: tuple[Any, Any, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Runs both sides in turns; medians in seconds."""
    from lm_eval.models.huggingface import HFLM

    from configs.safety.trust import trusting
    from configs.schema.evaluation import Benchmarks
    from data_prep.decontamination.benchmark_tasks import quiet
    from eval.harness.benchmarks import load_tasks
    from eval.harness.lm_eval_adapter import ReplicaLM
    from eval.harness.template_cache import templates_compiled_once
    from eval.reading.reader import LocalReader

    model, vocab, exported = models
    clock = time.process_time if options.cpu_time else time.perf_counter
    sides = {"ours": Timed(ReplicaLM(LocalReader(model, vocab.size), vocab, progress=False), clock)}
    for size in options.their_batch:
        other = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=size)
        sides[f"hf, batch {size}"] = Timed(other, clock)
    section = Benchmarks(tasks=names, include_path=str(options.directory))
    whole: dict[str, list[float]] = {side: [] for side in sides}
    inside: dict[str, list[float]] = {side: [] for side in sides}
    samples: dict[str, Any] = {}
    with quiet(), trusting([options.directory]):
        for number in range(options.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                tasks = load_tasks(section, options.directory / "cache")
                with templates_compiled_once() if name == "ours" else nullcontext():  # as `replica eval` does
                    total, own, samples[name] = evaluated(sides[name], tasks, clock)
                whole[name].append(total)
                inside[name].append(own)
    medians = {name: (statistics.median(whole[name]), statistics.median(inside[name])) for name in sides}
    best = min((name for name in sides if name != "ours"), key=lambda name: medians[name][0])
    difference = largest_difference(samples["ours"], samples[best])
    return {"kind": kind, "ours": medians["ours"], "theirs": medians[best], "best": best, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["demo", "20m"])
    parser.add_argument("--tasks", nargs="+", choices=["choices", "shots", "answers"], default=None)
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--their-batch", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU time: for a machine with other work")
    options = parser.parse_args()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.cpu_time:
        torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"transformers {transformers.__version__}; median seconds of {options.rounds} rounds, whole (model)\n")
    print("| model | task | ours | hf | ratio of the whole | of the model | fastest hf | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as directory:
            options.directory = Path(directory)
            kinds = write_tasks(options.directory, options.items)
            models = make_models(*SIZES[size], options.directory)
            for kind in options.tasks or kinds:
                found = measure(kind, kinds[kind], models, options)
                ours, theirs = found["ours"], found["theirs"]
                print(
                    f"| {size} | {kind} | {ours[0]:.2f} ({ours[1]:.2f}) | {theirs[0]:.2f} ({theirs[1]:.2f}) "
                    f"| {theirs[0] / ours[0]:.2f} | {theirs[1] / ours[1]:.2f} | {found['best']} "
                    f"| {found['difference']} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
