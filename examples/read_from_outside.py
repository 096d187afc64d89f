"""Reads what a run leaves behind with numpy and safetensors alone: nothing of Replica is imported.

    python examples/read_from_outside.py runs/tiny

Token shards are Megatron-LM's `.bin`/`.idx` pairs. A checkpoint is JSON and safetensors files.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HEADER = struct.Struct("<9sQBQQ")  # magic, version, type of the ids, documents, documents + 1
TYPES = {4: np.int32, 8: np.uint16}


def read_shard(prefix: Path) -> list[np.ndarray]:
    """The token ids of each document of a shard; the last id of each ends the document."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    magic, _version, kind, count, _ = HEADER.unpack_from(index)
    assert magic == b"MMIDIDX\x00\x00", "no Megatron-LM index"
    lengths = np.frombuffer(index, np.int32, count, HEADER.size)
    tokens = np.memmap(prefix.with_name(prefix.name + ".bin"), dtype=TYPES[kind], mode="r")
    return np.split(tokens, np.cumsum(lengths)[:-1])


def read_weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """The fp32 weights by name. Each rank wrote pieces of them, called `name@offset`, into a file of its own."""
    shapes = json.loads((checkpoint / "manifest.json").read_text())["shapes"]
    weights = {name: np.zeros(int(np.prod(shape)), np.float32) for name, shape in shapes.items()}
    for file in sorted(checkpoint.glob("weights-*.safetensors")):
        for key, piece in load_file(file).items():
            name, _, offset = key.rpartition("@")
            weights[name][int(offset) : int(offset) + piece.size] = piece.ravel()
    return {name: values.reshape(shapes[name]) for name, values in weights.items()}


def main(run: Path) -> tuple[int, int]:
    """Prints what lies in a run directory; returns the numbers of training tokens and of weights."""
    data = run / "data"
    tokens = 0
    for source in json.loads((data / "manifest.json").read_text())["splits"]["train"]:
        for shard in source["shards"]:
            documents = read_shard(data / shard["prefix"])
            tokens += sum(map(len, documents))
            print(f"{shard['prefix']}: {len(documents)} documents, the first ids {documents[0][:8].tolist()}")
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    weights = read_weights(newest)
    for name, values in weights.items():
        print(f"{name:40} {values.shape!s:12} mean {values.mean():+.4f} deviation {values.std():.4f}")
    return tokens, sum(values.size for values in weights.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
