"""`replica trace`: from a training step back to the documents it read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from configs.recipe import Recipe

_FIRST_TOKENS = 24
_FIRST_CHARACTERS = 60


@dataclass(frozen=True)
class TracedSpan:
    """A stretch of one document in a training batch."""

    row: int  # of the global batch
    id: str
    source: str
    offset: int  # tokens of the document before the stretch
    tokens: int
    words: str  # how the stretch begins


def trace(recipe: Recipe, step: int) -> Iterator[TracedSpan]:
    """The documents behind the update that `metrics.jsonl` calls `step`, in the order of the batch.

    Raises:
        ValueError: when the step is not in the run, or the data is gone.
    """
    from configs.recipe import total_steps
    from data_prep.shards import load_manifest
    from data_prep.vocab import Vocab
    from pretrain.batches import BatchSource

    manifest = load_manifest(recipe.data_directory)
    source = BatchSource(recipe, manifest)
    steps = total_steps(recipe, source.windows)
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not in this run; it has the steps 1 to {steps}")
    vocab = Vocab.load(manifest.tokenizer)
    # Updates are counted from 1, batches from 0: update s consumes batch s - 1.
    batch = source.batch(step - 1)
    for row, spans in enumerate(source.documents(step - 1)):
        ids = [*batch.tokens[row].tolist(), int(batch.targets[row, -1])]
        position = 0
        for span in spans:
            begin = ids[position : position + min(span.tokens, _FIRST_TOKENS)]
            words = " ".join(vocab.decode([token for token in begin if token != vocab.eod_id]).split())
            yield TracedSpan(row, span.id, span.source, span.offset_in_document, span.tokens, words[:_FIRST_CHARACTERS])
            position += span.tokens


def print_trace(recipe: Recipe, step: int) -> None:
    """Prints `trace` as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("row", "document", "source", "offset", "tokens", "first words"):
        table.add_column(title, justify="right" if title in {"row", "offset", "tokens"} else "left")
    for span in trace(recipe, step):
        cells = (f"{span.row}", span.id, span.source, f"{span.offset:,}", f"{span.tokens:,}", span.words)
        table.add_row(*(_plain(cell) for cell in cells))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # text from documents is not rich markup
