"""The GPU set: tokens/s, MFU and memory at 124M, 350M, 1.3B and 3B, sequence 2,048, on one GPU, ours and peers.

    benchmarks/gpu.sh --markdown gpu.md [--nanogpt DIR] [--litgpt PYTHON] [--trainer PYTHON]

Ours comes first at every size, in bf16 and where the GPU can in fp8 (`--precisions bf16` leaves more time to the rest),
then the peers at the same shapes, as far as the budget of seconds goes; what was not run is said in the table, which is
written again after every run. Tokens are random: speed does not depend on them.
The micro-batch is the largest that should fit, then smaller ones when the GPU's memory runs out. `--resume` keeps the
rows of an earlier call. Needs neither ray nor datasets. `--device cpu --tiny` tries everything on a small scale.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from train import OURS, PEERS, ROOT, Contestant, run

sys.path[:0] = [str(ROOT), str(PEERS)]

from job import Job  # noqa: E402

from configs.schema.model import Model  # noqa: E402
from configs.schema.recipe import load  # noqa: E402

RECIPE = ROOT / "benchmarks" / "gpu.yaml"
_VALIDATION_TOKENS = 10_000
_LEAST_SECONDS = 40  # a run is not begun with less


class Size(NamedTuple):
    """A shape and the micro-batches to try, the largest first. Heads are 64 or 128 wide, MLPs four times the width."""

    layers: int
    width: int
    heads: int
    micro: tuple[int, ...]
    context: int = 2048
    vocabulary: int = 50_304
    tokens_per_step: int = 131_072


SIZES = {
    "124M": Size(12, 768, 12, (64, 32, 16, 8, 4)),
    "350M": Size(24, 1024, 16, (32, 16, 8, 4, 2)),
    "1.3B": Size(24, 2048, 16, (16, 8, 4, 2, 1)),
    "3B": Size(32, 2560, 20, (16, 8, 4, 2, 1)),
}
TINY = {
    "tiny": Size(2, 64, 2, (4, 2), 32, 512, 256),
    "tiny, wider": Size(2, 128, 2, (2,), 32, 512, 256),
}


def likely_micro(size: Size, memory: float) -> list[int]:
    """The micro-batches that should fit, the smallest always among them.

    18 bytes a parameter (bf16 weights, fp32 master, moments and gradient sums); a token stores some 34 bytes per layer
    and width with fused attention (Korthikanti et al., arXiv:2205.05198, without its 5 a s / h), and rows of logits.
    """
    parameters = 12 * size.layers * size.width**2 + size.vocabulary * size.width
    token = 34 * size.layers * size.width + 10 * size.vocabulary
    fitting = [m for m in size.micro if 18 * parameters + m * size.context * token < 0.95 * memory]
    return fitting or [size.micro[-1]]


def synthetic(directory: Path, size: Size, tokens: int) -> None:
    """Random ids as our shards with their manifest, and as train.bin, val.bin and meta.pkl for the peers."""
    from configs.common.files import write_json
    from configs.schema.data import Tokenizer
    from data_prep.tokens.shards import beside, token_dtype, write_index
    from data_prep.tokens.vocab_training import train_vocab

    directory.mkdir(parents=True, exist_ok=True)
    letters = "".join(
        map(chr, range(0x20000, 0x20000 + size.vocabulary - 300))
    )  # 256 bytes and specials come with them
    vocab = train_vocab(Tokenizer(kind="char"), [letters])
    assert vocab.size <= size.vocabulary
    vocab.save(directory / "tokenizer")
    generator, splits = np.random.default_rng(1), {}
    for name, file, count in (("train", "train", tokens), ("validation", "val", _VALIDATION_TOKENS)):
        ids = generator.integers(1, vocab.size, count).astype(np.uint16)
        ids.tofile(directory / f"{file}.bin")
        prefix = directory / name / "00000"
        prefix.parent.mkdir(parents=True, exist_ok=True)
        dtype = token_dtype(vocab.size)
        ids.astype(dtype).tofile(beside(prefix, ".bin"))
        with beside(prefix, ".idx").open("wb") as stream:
            write_index(stream, np.array([count]), dtype)
        shard = {"prefix": f"{name}/00000", "bin_bytes": beside(prefix, ".bin").stat().st_size}
        splits[name] = [
            {"name": name, "weight": None, "shards": [shard], "tokens": count, "documents": 1, "bytes": count}
        ]
    (directory / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": size.vocabulary}))
    content = {"fingerprint": f"random {tokens}", "tokenizer_fingerprint": vocab.fingerprint, "splits": splits}
    write_json(directory / "manifest.json", {**content, "funnel": []})


def shape(size: Size) -> list[str]:
    """Our model of this size, as settings of the recipe."""
    return [
        f"model.num_layers={size.layers}", f"model.hidden_size={size.width}", f"model.num_heads={size.heads}",
        f"model.intermediate_size={4 * size.width}", f"model.context_length={size.context}",
        f"model.vocab_size={size.vocabulary}",
    ]  # fmt: skip


def flops_per_token(size: Size, overrides: list[str]) -> float:
    """6 N + attention, as in training's own MFU (pretrain/sizes/flops.py); the same figure for every trainer."""
    from pretrain.sizes import flops

    model: Model = load(str(RECIPE), [*shape(size), *overrides]).model
    return flops.flops_per_token(model, size.vocabulary)


class Bench:
    """One call: budget, machine, rows so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        self._arguments, self._end = arguments, time.monotonic() + arguments.budget
        self._directory: Path = arguments.directory.resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = self._directory / "rows.jsonl"
        if not arguments.resume:
            self._file.unlink(missing_ok=True)
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._torch = torch.__version__
        self.precisions, self._left_out = arguments.precisions, ""
        if arguments.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            self._memory, self._name, self.peak = 4e9, f"{os.cpu_count()} CPU cores", arguments.peak
        else:
            from pretrain.engine.devices import peak_flops

            properties = torch.cuda.get_device_properties(0)
            self._memory, self._name = float(properties.total_memory), properties.name
            self.peak = arguments.peak or peak_flops(torch.device("cuda"), "bf16")
        if self.precisions is None:
            self.precisions, self._left_out = default_precisions(arguments.device)
        if self.peak is None:
            from train import peak_flops as measured

            self.peak = measured(0.1)

    def contestants(self) -> list[Contestant]:
        """Ours in every precision, then the peers that were given."""
        given = self._arguments
        found = [
            Contestant(
                OURS if precision == "bf16" else f"{OURS}, {precision}", [sys.executable, _runner("replica")], []
            )
            for precision in self.precisions
        ]
        if given.nanogpt:
            found.append(Contestant("nanoGPT", [sys.executable, _runner("nanogpt")], [str(given.nanogpt.resolve())]))
        if given.litgpt:
            found.append(Contestant("litgpt", [given.litgpt, _runner("litgpt")], []))
        if given.trainer:
            found.append(Contestant("Trainer", [given.trainer, _runner("trainer")], []))
        return [c for c in found if not given.only or c.name in given.only]

    def measure(self, name: str, size: Size, contestant: Contestant) -> None:
        """One row: the first micro-batch that the memory holds."""
        if any((row["size"], row["name"]) == (name, contestant.name) and "tokens_per_s" in row for row in self.rows):
            return
        row: dict[str, Any] = {"size": name, "name": contestant.name, "note": "did not run: out of time"}
        for micro in likely_micro(size, self._memory):
            left = self._end - time.monotonic()
            if left < _LEAST_SECONDS and not self._arguments.tiny:
                break
            job = self._job(name, size, contestant, micro)
            result = run(contestant, job, max(1.0, min(left, self._arguments.limit)))
            if result is not None:
                row = {"size": name, **result, "micro": micro, "batch": job.batch}
                row["flops_per_token"] = flops_per_token(size, self._arguments.overrides)
                del row["step_seconds"]
                break
            log = Path(job.out).with_suffix(".log").read_text(errors="replace").lower()
            if "out of memory" not in log:
                row["note"] = "failed, or took too long"
                break
            row["note"] = f"out of memory at micro-batch {micro}"
        self.rows.append(row)
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _job(self, name: str, size: Size, contestant: Contestant, micro: int) -> Job:
        data = self._directory / f"data-{size.vocabulary}"
        if not (data / "manifest.json").is_file():
            synthetic(data, size, 6_000_000 if size.vocabulary > 10_000 else 60_000)
        slug = f"{name}-{contestant.name}".replace(", ", "-")
        job = Job(
            out=str(self._directory / f"{slug}.json"), data=str(data), vocab=size.vocabulary, layers=size.layers,
            heads=size.heads, width=size.width, context=size.context, micro=micro, spawned=0.0,
            batch=max(micro, size.tokens_per_step // size.context // micro * micro), steps=self._arguments.steps,
            device=self._arguments.device, lr=3e-4, seconds=self._arguments.seconds,
            compile=not self._arguments.eager,
        )  # fmt: skip
        if not contestant.name.startswith(OURS):
            return job
        precision = contestant.name.partition(", ")[2] or "bf16"
        overrides = [
            *shape(size), f"out={job.out}.dir", f"data.directory={data}", f"train.steps={job.steps}",
            f"train.global_batch_size={job.batch}", f"train.micro_batch_size={micro}",
            f"train.compile={str(job.compile).lower()}", f"train.precision={precision}", *self._arguments.overrides,
        ]  # fmt: skip
        return replace(job, recipe=str(RECIPE), overrides=overrides)

    def table(self) -> str:
        """All rows so far as Markdown."""
        head = f"{time.strftime('%Y-%m-%d')}, {self._name}, torch {self._torch}, peak {self.peak / 1e12:,.1f} TFLOP/s"
        head += "; compiled, sequence length and shapes of benchmarks/gpu.py" + self._left_out
        return f"{head}\n\n{rows_table(self.rows, self.peak)}"


def default_precisions(device: str) -> tuple[list[str], str]:
    """Ours in bf16, and in fp8 where the device can; with what the table says when it cannot."""
    import torch

    from pretrain.model.float8 import float8_problem

    if device == "cpu":
        return ["bf16"], ""
    problem = float8_problem(torch.device(device))
    return (["bf16"], f"; fp8 not measured: {problem}") if problem else (["bf16", "fp8"], "")


def _runner(name: str) -> str:
    return str(PEERS / f"run_{name}.py")


def rows_table(rows: list[dict[str, Any]], peak: float) -> str:
    """Markdown of all rows, by size."""
    lines = [
        "| size | trainer | parameters | micro-batch x accumulation | tok/s | MFU | memory, GiB | start-up, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in dict.fromkeys(row["size"] for row in rows):
        for row in rows:
            if row["size"] != size:
                continue
            if "tokens_per_s" not in row:
                lines.append(f"| {size} | {row['name']} | {row['note']} | | | | | |")
                continue
            lines.append(
                f"| {size} | {row['name']} | {row['parameters'] / 1e6:,.1f} M | {row['micro']} x "
                f"{row['batch'] // row['micro']} | {row['tokens_per_s']:,.0f} "
                f"| {row['tokens_per_s'] * row['flops_per_token'] / peak:.1%} | {row['memory_bytes'] / 2**30:.1f} "
                f"| {row['startup_seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures what fits into the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--litgpt", metavar="PYTHON", help="the Python of an environment with litgpt")
    parser.add_argument(
        "--trainer", metavar="PYTHON", help="the Python of an environment with transformers, accelerate"
    )
    parser.add_argument("--only", nargs="*", help="these trainers alone, by their names in the table")
    parser.add_argument("--sizes", nargs="*", help=f"of {', '.join(SIZES)} (default: all)")
    parser.add_argument(
        "--precisions", nargs="*", help="of ours, as train.precision takes them (default: bf16, and fp8 if it can)"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does everything work?")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--steps", type=int, default=30, help="optimizer steps of a run at most, five of them to settle"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of steady state in a run at most")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which a run is given up")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds of the whole call")
    parser.add_argument("--peak", type=float, help="FLOP/s that MFU divides by (default: dense bf16, for fp8 too)")
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "benchmark-gpu", help="data and rows")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier call")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="for our recipe")
    arguments = parser.parse_intermixed_args()
    bench, sizes = Bench(arguments), TINY if arguments.tiny else SIZES
    for contestant in bench.contestants():
        for name in arguments.sizes or sizes:
            bench.measure(name, sizes[name], contestant)
            if arguments.markdown:
                arguments.markdown.write_text(bench.table(), encoding="utf-8")
            print(rows_table(bench.rows[-1:], bench.peak).splitlines()[-1], flush=True)
    print(bench.table())


if __name__ == "__main__":
    main()
