"""Compresses the bytes of a perplexity set by general-purpose programs: a baseline for models."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_prep.decontamination.evaluation_sets import set_key
from eval.results import EXACT, Result


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=19).compress(data)


_PROGRAMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd": _zstd,
}
PROGRAMS = tuple(_PROGRAMS)


def compressed_sizes(data: bytes, programs: Iterable[str] = PROGRAMS) -> dict[str, int]:
    """Returns the bytes after `gzip -9`, `xz -9e` and `zstd -19`, headers included."""
    return {program: len(_PROGRAMS[program](data)) for program in programs}


def compression_results(
    name: str,
    texts: Sequence[str],
    settings: dict[str, Any] | None = None,
    of: str = "",
    programs: Sequence[str] = PROGRAMS,
) -> list[Result]:
    """Computes bits per byte of each compressor on the set's texts (UTF-8), joined into a single file.

    Args:
        name: of the set.
        texts: what is compressed.
        settings: what was done to them.
        of: follows `byte` in the unit, as in `eval.likelihood.perplexity.perplexity_results`.
        programs: the compressors.
    """
    data = "".join(texts).encode()
    return [
        Result(
            name=f"compression/{name}/{program}_bits_per_byte",
            value=8 * size / len(data),
            low=8 * size / len(data),
            high=8 * size / len(data),
            n=len(texts),
            unit=f"bits per byte{of}",
            higher_is_better=False,
            interval=f"{EXACT}: a size, not an estimate",
            note=f"{len(data):,} bytes to {size:,}",
            set=set_key([[text] for text in texts]),
            settings=settings or {},
        )
        for program, size in compressed_sizes(data, programs).items()
    ]
