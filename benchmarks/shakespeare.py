"""Peer check: nanoGPT's CPU recipe for tinyshakespeare against `configs/shakespeare-char.yaml`, side by side.

Same text, same split, same parameter count (0.80 M), same token budget (2,000 x 12 x 64 characters), same threads. The
two train in turn, so that a drifting machine hurts both. Both are scored the same way: mean nats per character over
the whole validation text in consecutive windows of 64 characters.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/shakespeare.py --nanogpt nanoGPT --pairs 3
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from pretrain.metrics.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "shakespeare-char.yaml"
# The command of nanoGPT's README for "only a macbook"; validation only at the end, so that none of it is timed twice.
PEER_COMMAND = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0 --eval_interval=2000 --always_save_checkpoint=True --dataset=shakespeare_replica"
)
PEER_SCORE = """
import sys, numpy as np, torch, torch.nn.functional as F
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1] + "/ckpt.pt", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict(saved["model"])
text = torch.from_numpy(np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64))
n = (len(text) - 1) // 64
x, y = text[: n * 64].view(n, 64), text[1 : n * 64 + 1].view(n, 64)
with torch.no_grad():
    nats = sum(F.cross_entropy(model(x[i : i + 64], y[i : i + 64])[0].flatten(0, 1), y[i : i + 64].flatten(),
               reduction="sum").item() for i in range(0, n, 64))
print(nats / (n * 64))
"""


class Outcome(NamedTuple):
    """One training: seconds of wall clock of the whole command, validation loss in nats per character."""

    seconds: float
    loss: float


def corpus(split: str) -> str:
    """The text of one split, as it lies in the project."""
    packed = (ROOT / "configs" / "corpus" / f"shakespeare-{split}.txt.zst").read_bytes()
    return zstandard.ZstdDecompressor().stream_reader(packed).readall().decode()


def prepare_peer(peer: Path) -> Path:
    """Writes the corpus the way nanoGPT reads it; returns the directory."""
    directory = peer / "data" / "shakespeare_replica"
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"train": corpus("train"), "val": corpus("val")}
    alphabet = sorted(set("".join(texts.values())))
    ids = {character: index for index, character in enumerate(alphabet)}
    for name, text in texts.items():
        np.array([ids[character] for character in text], dtype=np.uint16).tofile(directory / f"{name}.bin")
    meta = {"vocab_size": len(alphabet), "stoi": ids, "itos": dict(enumerate(alphabet))}
    (directory / "meta.pkl").write_bytes(pickle.dumps(meta))
    return directory


def run(command: list[str], cwd: Path) -> float:
    """Runs a command quietly and returns its seconds; shows its output when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds


def train_peer(peer: Path, data: Path, out: Path) -> Outcome:
    """nanoGPT, as its README has it."""
    seconds = run([sys.executable, *PEER_COMMAND.split(), f"--out_dir={out}"], cwd=peer)
    score = subprocess.run(
        [sys.executable, "-c", PEER_SCORE, str(out), str(data / "val.bin")],
        cwd=peer, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Outcome(seconds, float(score.stdout.split()[-1]))


def train_ours(out: Path, overrides: list[str]) -> Outcome:
    """Our recipe; the data stage runs first and is not counted, as nanoGPT's own preparation is not."""
    base = [sys.executable, "-m", "launch.cli"]
    arguments = [str(RECIPE), "--out", str(out), *overrides]
    run([*base, "data", *arguments], cwd=ROOT)
    seconds = run([*base, "train", *arguments], cwd=ROOT)
    return Outcome(seconds, [line["val/loss"] for line in read_metrics(out) if "val/loss" in line][-1])


def main() -> None:
    """Trains both in turn and prints every run, the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--pairs", type=int, default=3, help="how often each trains")
    parser.add_argument("overrides", nargs="*", help="a.b=value for our recipe")
    arguments = parser.parse_args()
    peer = arguments.nanogpt.resolve()
    data = prepare_peer(peer)
    pairs: list[tuple[Outcome, Outcome]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(arguments.pairs):
            theirs = train_peer(peer, data, Path(scratch) / f"peer{index}")
            ours = train_ours(Path(scratch) / f"ours{index}", [f"seed={1337 + index}", *arguments.overrides])
            pairs.append((theirs, ours))
            print(f"pair {index + 1}: nanoGPT {theirs.loss:.4f} in {theirs.seconds:.1f} s, "
                  f"replica {ours.loss:.4f} in {ours.seconds:.1f} s", flush=True)  # fmt: skip
    ratio = statistics.median(ours.seconds / theirs.seconds for theirs, ours in pairs)
    print(f"median loss: nanoGPT {statistics.median(t.loss for t, _ in pairs):.4f}, "
          f"replica {statistics.median(o.loss for _, o in pairs):.4f} nats/char; "
          f"time ratio replica/nanoGPT {ratio:.2f} (median of pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
