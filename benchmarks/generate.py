"""Tokens per second of generation, beside `transformers.generate` on the export of the same weights.

    python benchmarks/generate.py [--sizes demo 20m] [--rows 1 32] [--rounds 5] [--new 128] [--prompt 32] [--ragged]

Both are in one process and take turns, fp32, each with its key/value cache; greedy, and drawn at temperature 0.8 from
the whole vocabulary. No text ends early, so both make the same number of tokens. Weights are random: time does not
depend on them. `--ragged`: prompts of a quarter of the length up to the whole; transformers pads them on the left.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.schema.data import Tokenizer  # noqa: E402
from configs.schema.model import Model  # noqa: E402

_LLAMA: dict[str, Any] = {"family": "llama", "qk_norm": True, "tied_embeddings": True}
SIZES: dict[str, tuple[Model, int]] = {  # settings, rows of the vocabulary
    "demo": (Model(num_layers=4, hidden_size=160, num_heads=5, context_length=256, **_LLAMA), 2048),
    "20m": (Model(num_layers=8, hidden_size=384, num_heads=6, context_length=512, **_LLAMA), 8192),
    "gpt2-20m": (Model(family="gpt2", num_layers=8, hidden_size=384, num_heads=6, context_length=512), 8192),
}
TEMPERATURES = {"greedy": 0.0, "sampled": 0.8}


def make_models(config: Model, rows: int, directory: Path) -> tuple[Any, Any]:
    """Ours, and the same weights in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from data_prep.tokens.vocab_training import train_vocab
    from pretrain.interchange.huggingface_export import export_directory
    from pretrain.model.transformer import Transformer

    torch.manual_seed(0)
    model = Transformer(config, rows).eval()
    train_vocab(Tokenizer(vocab_size=257), ["a"]).save(directory / "vocab")
    exported = export_directory(model, directory / "vocab", directory / "export")
    return model, AutoModelForCausalLM.from_pretrained(exported).eval()


def ours(model: Any, prompts: list[list[int]], new: int, temperature: float) -> Callable[[], int]:
    """One call that gives the number of new tokens."""
    from pretrain.generation.generate import generate_batch
    from pretrain.generation.sampling import Sampling

    return lambda: sum(map(len, generate_batch(model, prompts, new, Sampling(temperature))))


def theirs(model: Any, prompts: list[list[int]], new: int, temperature: float) -> Callable[[], int]:
    """The same with `generate` of transformers."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings: dict[str, Any] = {"do_sample": False}
    if temperature:
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

    def run() -> int:
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, eos_token_id=None, pad_token_id=0, **settings
        )
        return int(out[:, longest:].numel())

    return run


def compare(sides: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Tokens per second of each side in each round; the sides take turns, and who begins alternates."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            start = clock()
            tokens = sides[name]()
            if number:  # the first round warms up
                rates[name].append(tokens / (clock() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["demo", "20m"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU time: for a machine with other work")
    options = parser.parse_args()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"transformers {transformers.__version__}; median and best tokens/s of {options.rounds} rounds\n")
    print("| model | rows | choice | ours | transformers | ratio of medians | median of ratios |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        config, rows = SIZES[size]
        with tempfile.TemporaryDirectory() as directory:
            model, other = make_models(config, rows, Path(directory))
        for count in options.rows:
            shortest = options.prompt // 4 if options.ragged else options.prompt
            lengths = [shortest + (options.prompt - shortest) * (row + 1) // count for row in range(count)]
            prompts = [[(7 * place + row) % rows for place in range(length)] for row, length in enumerate(lengths)]
            for choice, temperature in TEMPERATURES.items():
                sides = {
                    "ours": ours(model, prompts, options.new, temperature),
                    "theirs": theirs(other, prompts, options.new, temperature),
                }
                rates = compare(sides, options.rounds, clock)
                middle = {name: statistics.median(values) for name, values in rates.items()}
                best = {name: max(values) for name, values in rates.items()}
                ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
                print(
                    f"| {size} | {count} | {choice} | {middle['ours']:,.0f} ({best['ours']:,.0f}) "
                    f"| {middle['theirs']:,.0f} ({best['theirs']:,.0f}) | {middle['ours'] / middle['theirs']:.2f} "
                    f"| {statistics.median(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
