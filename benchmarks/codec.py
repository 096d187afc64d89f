"""Files that a model codes: do they come back, how small are they, and how long does it take?

    python benchmarks/codec.py RUN [--bytes 400000] [--streams 1,4,16,64] [--out build/codec] [--tiny]

Three tables. *Kinds*: files of every kind at hand, from text like the training text to bytes that are no text, each
coded, decoded and compared; beside xz -9e and zstd -19. *Rates*: the perplexity sets of the run's recipe as one file,
beside their bits per byte by the model (of whole documents, stride half a context), decoded by a fresh process.
*Streams*: what side-by-side streams cost in bits and save in seconds.

Writes `codec.json` and `codec.md` into the directory and prints the tables. Run it on an idle machine, with no other
work: the seconds are part of the result.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from configs.common.files import write_json, write_text
from configs.schema.data import Normalize
from configs.schema.evaluation import PerplexitySet
from configs.schema.recipe import load_run
from data_prep.decontamination.evaluation_sets import SetText, read_set
from eval.codec.codec import Coder, compress, decompress
from eval.likelihood.compressors import compressed_sizes
from eval.likelihood.conventions import Convention, counted_texts
from eval.likelihood.perplexity import score_texts
from eval.reading.reader import LocalReader
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.manifest import CheckpointInfo

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "configs" / "corpus"
_TINY_BYTES = 2_000


@dataclass(frozen=True)
class Row:
    """A coded file: its size, what became of it, and how long that took.

    Attributes:
        kind: what the file is.
        bytes: of the file.
        form: how it was stored: `model`, `xz` or `stored`.
        coded: bytes of the coded file, header included; `xz` and `zstd`: those of these programs.
        perplexity: bits per byte of the same text by likelihood, where they were computed.
        came_back: it was decoded, and is equal.
    """

    kind: str
    bytes: int
    form: str
    coded: int
    xz: int
    zstd: int
    seconds: float
    back_seconds: float
    came_back: bool
    streams: int = 0
    perplexity: float | None = None

    def rate(self, size: int) -> str:
        """Bits per byte of a size; nothing for an empty file."""
        return f"{8 * size / self.bytes:.3f}" if self.bytes else ""


def measure(kind: str, data: bytes, coder: Coder, streams: int | None = None, perplexity: float | None = None) -> Row:
    """Codes a file and decodes it again, in this process."""
    began = time.perf_counter()
    coded = compress(lambda: coder, data, streams=streams)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    back = decompress(None, coded.file, opened=coder)
    taken = time.perf_counter() - began
    sizes = compressed_sizes(data)
    header = coded.header
    print(f"{kind}: {len(data):,} bytes to {len(coded.file):,} ({header.form}), {seconds:.1f} s", file=sys.stderr)
    packed = (len(coded.file), sizes["xz"], sizes["zstd"])
    return Row(kind, len(data), header.form, *packed, seconds, taken, back == data, header.streams, perplexity)


def kinds(size: int) -> dict[str, bytes]:
    """Files of every kind that comes with the project, and of kinds that break programs."""
    held = {
        "English novels, held out": _texts("gutenberg-heldout.jsonl.zst", size),
        "Chinese, held out": _texts("classical-modern-zh-heldout.jsonl.zst", size),
        "DNA (FASTA)": gzip.decompress((CORPUS / "ecoli-k12-heldout.fa.gz").read_bytes())[:size],
        "proteins (FASTA)": gzip.decompress((CORPUS / "swissprot-archaea-heldout.fa.gz").read_bytes())[:size],
        "program text (Python)": (ROOT / "eval" / "codec" / "codec.py").read_bytes()[:size],
    }
    odd = {
        "one sentence": b"It was the best of times, it was the worst of times.\n",
        "one byte": b"x",
        "empty": b"",
        "NULs": bytes(min(size, 4096)),
        "special token as text": b"<|endoftext|>" * 300,
        "not UTF-8": held["English novels, held out"][:4096] + b"\xff\xfe",
        "gzip of novels": gzip.compress(held["English novels, held out"], mtime=0),
        "random bytes": random.Random(0).randbytes(min(size, 20_000)),
    }
    return {**held, **odd}


def _texts(name: str, size: int) -> bytes:
    item = PerplexitySet(name="x", path=str(CORPUS / name))
    data = "".join(one.text for one in read_set(item, Normalize())).encode()[:size]
    return data.decode("utf-8", "ignore").encode()


def rates(run: Path, checkpoint: CheckpointInfo, coder: Coder, size: int) -> list[Row]:
    """Codes the run's perplexity sets as `replica compress` does, and checks each in a fresh process."""
    from launch.models.coding_files import decode_in_fresh_process

    recipe, reader, rows = load_run(run), LocalReader(coder.model, coder.vocab.size), []
    for item in recipe.evaluation.perplexity:
        documents = _cut(read_set(item, recipe.data.normalize), size)
        texts = counted_texts(item, [one.text for one in documents])
        how = Convention.of(item, coder.model.config.context_length)
        with torch.inference_mode():
            scores = score_texts(reader, coder.vocab, [text.read for text in texts], how)
        data = "".join(text.text for text in texts).encode()
        bits = float(scores.nats.sum() / torch.tensor(2.0).log().item() / len(data))
        rows.append(measure(f"{item.name} ({checkpoint.directory.name})", data, coder, perplexity=bits))
        file = ROOT / "build" / "codec-check.replica"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(compress(lambda: coder, data).file)
        decode_in_fresh_process(run, file, item.name)
        file.unlink()
    return rows


def _cut(documents: Sequence[SetText], size: int) -> list[SetText]:
    kept, left = [], size
    for one in documents:
        if left > 0:
            kept.append(SetText(one.id, one.text[:left]))
        left -= len(one.text)
    return kept


def table(rows: Sequence[Row], first: str) -> str:
    """Renders rows as Markdown."""
    likelihood = any(row.perplexity is not None for row in rows)
    names = [first, "bytes", "streams", "coded as", "bits per byte", *(["by perplexity"] if likelihood else [])]
    names += ["xz -9e", "zstd -19", "seconds there", "and back", "came back"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        by = [] if not likelihood else ["" if row.perplexity is None else f"{row.perplexity:.3f}"]
        cells = [row.kind, f"{row.bytes:,}", str(row.streams or ""), row.form, row.rate(row.coded), *by]
        cells += [row.rate(row.xz), row.rate(row.zstd), f"{row.seconds:.1f}", f"{row.back_seconds:.1f}"]
        lines.append("| " + " | ".join([*cells, "yes" if row.came_back else "NO"]) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a file did not come back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of a base model")
    parser.add_argument("--bytes", type=int, default=400_000, help="most bytes of a file (default: 400000)")
    parser.add_argument("--streams", default="1,4,16,64", help="numbers of streams that are compared")
    parser.add_argument("--out", type=Path, default=Path("build/codec"), help="directory of the tables")
    parser.add_argument("--tiny", action="store_true", help=f"{_TINY_BYTES} bytes of each file, for a test")
    arguments = parser.parse_args(argv)
    size = _TINY_BYTES if arguments.tiny else arguments.bytes
    checkpoint = Choice().find(arguments.run)
    coder = Coder.open(checkpoint)
    found: dict[str, list[Row]] = {
        "Kinds of files": [measure(kind, data, coder) for kind, data in kinds(min(size, 60_000)).items()],
        "Rates": rates(arguments.run, checkpoint, coder, size),
    }
    text = _texts("gutenberg-heldout.jsonl.zst", min(size, 60_000))
    numbers = [int(number) for number in arguments.streams.split(",")]
    found["Streams"] = [measure(f"{number} streams", text, coder, number) for number in numbers]
    written = "\n".join(f"## {title}\n\n{table(rows, title)}" for title, rows in found.items())
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "checkpoint": checkpoint.fingerprint,
        "parameters": sum(parameter.numel() for parameter in coder.model.parameters()),
    }
    write_json(
        arguments.out / "codec.json", {**facts, **{key: [asdict(row) for row in rows] for key, rows in found.items()}}
    )
    write_text(arguments.out / "codec.md", written)
    print(written)
    return 0 if all(row.came_back for rows in found.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
