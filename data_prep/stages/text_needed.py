"""Estimates the text that a training run can use, and warns of far larger sources before they are read."""

from __future__ import annotations

from pathlib import Path

from configs.common.notices import warn
from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from data_prep.readers import file_format
from data_prep.sources.file_lists import source_files
from data_prep.sources.places import ask_all, size_of
from data_prep.workers.stage_progress import expected_bytes

_BYTES_PER_TOKEN = 4.0
# What web pages leave of their archives: FineWeb's published totals are about one byte of text for a hundred packed.
_OF_A_CRAWL = 0.01
_FAR_TOO_MUCH = 5.0
_SOON_READ = 100e6  # bytes of files: read within a minute, so nothing is worth a warning
_ASKED = 8


def say_what_is_too_much(recipe: Recipe) -> None:
    """Prints a warning for every source of files, 100 MB or more, that holds far more text than the run trains on.

    Sizes are those of a few files, evenly spaced. A run that counts in epochs uses all that is there.

    Raises:
        ValueError: when the files of a source cannot be found or asked about.
    """
    if recipe.train.epochs is not None:
        return
    tokens = total_steps(recipe, 0) * recipe.train.global_batch_size * recipe.model.context_length
    each = 1.0 if recipe.data.tokenizer.kind in ("char", "byte") else _BYTES_PER_TOKEN
    for source in recipe.data.sources:
        if source.hub is not None or source.max_documents is not None or source.max_bytes is not None:
            continue
        files, size, text = _held(source)
        select = recipe.data.select
        if select is not None and (select.sources is None or source.name in select.sources):
            text *= select.keep
        if size > _SOON_READ and text > _FAR_TOO_MUCH * tokens * each:
            counted = f"{files:,} {'file' if files == 1 else 'files'}"
            warn(
                f"source {source.name} is {counted} of some {size / 1e9:,.1f} GB in all, about "
                f"{text / (tokens * each):,.0f} times the text that {tokens:,} tokens of training need, and all is "
                "read before training begins: set the source's `max_files` or `sample`"
            )


def _held(source: Source) -> tuple[int, float, float]:
    """Number of files, bytes of all, and bytes of text in them as far as that can be told."""
    files = source_files(source)
    some = files[:: -(-len(files) // _ASKED)]
    sizes = ask_all(size_of, [place for _, place in some])
    scale = len(files) / len(some)
    if file_format(some[0][0], source.format) == "warc":
        return len(files), scale * sum(sizes), scale * sum(sizes) * _OF_A_CRAWL
    places = [place if isinstance(place, Path) else Path(name) for name, place in some]
    return len(files), scale * sum(sizes), scale * expected_bytes(zip(places, sizes, strict=True))
