"""Reads a file format that Replica does not know: subtitles (.srt).

    python examples/custom_reader.py

The recipe names the function as `FILE.py:NAME` (docs/custom-code.md). With `replica run` the directory of the file must
be named too: `replica run RECIPE --trust examples`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

FILM = """1
00:00:01,000 --> 00:00:03,000
The sea was quiet

2
00:00:03,500 --> 00:00:06,000
when the boat came home.
"""
RECIPE = """
data:
  sources: [{{name: films, path: {folder}/*.srt, reader: {{code: {code}, options: {{separator: " "}}}}}}]
  tokenizer: {{kind: byte}}
  dedup: {{exact: false}}
model: {{num_layers: 1, hidden_size: 32, num_heads: 2, context_length: 16}}
train: {{steps: 1}}
"""


def read_subtitles(stream: BinaryIO, separator: str) -> Iterator[dict[str, Any]]:
    """One document for each file: what is said, without numbers and times.

    A reader gets the file's bytes, decompressed. It gives texts, or the fields of a row: `text` is the text, `id` the
    document's id (the source's `text_field` and `id_field`), and all others are kept as metadata.
    """
    blocks = stream.read().decode("utf-8").split("\n\n")
    lines = [line for block in blocks for line in block.splitlines() if not re.match(r"\d+$|\d\d:\d\d:", line)]
    yield {"text": separator.join(lines), "blocks": len(blocks)}


def main(folder: Path) -> list[str]:
    """Writes two films and a recipe into the folder; returns the texts that the data preparation makes of them."""
    from configs.safety.trust import trusting
    from configs.schema.recipe import load
    from data_prep.stages.pipeline import prepare

    (folder / "sea.srt").write_text(FILM, encoding="utf-8")
    (folder / "land.srt").write_text(FILM.replace("boat", "train"), encoding="utf-8")
    recipe = folder / "films.yaml"
    recipe.write_text(RECIPE.format(folder=folder, code=f"{Path(__file__).resolve()}:read_subtitles"))

    # Code that a recipe names runs only where somebody says so: `--trust DIR`, or this.
    with trusting([Path(__file__).parent]):
        data = prepare(load(recipe, [f"out={folder}/run", "data.workers=2"]))

    # Documents lie in Parquet files, one for each stretch of a source's file.
    parts = sorted((data.directory / "documents").glob("*.parquet"))
    return [text for part in parts for text in pq.read_table(part).column("text").to_pylist()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print("\n".join(main(Path(temporary))))
