"""Language identification: accuracy and speed of our setting and of other offline models, on texts of known language.

    python benchmarks/language.py en=multi30k-val.en.gz cs=multi30k-val.cs.gz zh=lctt-zh.jsonl.zst code=code.jsonl.zst …

Each argument is LANGUAGE=FILE; a .jsonl file has a document a line (`text`), any other a text a line. `whole` judges
all of a text, as FineWeb did. Of the others (py3langid, pycld2, resiliparse, lingua-language-detector) those installed
are run; lingua, which is slow, on the first 150 texts and 1,000 characters of each.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema.sources import Source
from data_prep.documents import language
from data_prep.documents.conversion import read_documents

Identify = Callable[[str], tuple[str, float]]
_SLOW_TEXTS = 150
_THRESHOLD = 0.65  # FineWeb's


def whole(text: str) -> tuple[str, float]:
    """The same model on all of the text."""
    labels, probabilities = language._model().predict(" ".join(text.split()))
    return labels[0].removeprefix("__label__"), probabilities[0]


def head(characters: int) -> Identify:
    """The same model on the beginning alone."""
    return lambda text: whole(text[:characters])


def others() -> dict[str, Identify]:
    """Those of the other models that are installed."""
    found: dict[str, Identify] = {}
    for module, make in (
        ("py3langid", lambda m: lambda text: m.classify(text[:2100])),
        ("pycld2", lambda m: lambda text: (m.detect(text[:2100].encode())[2][0][1], 1.0)),
        ("resiliparse.parse.lang", lambda m: lambda text: (m.detect_fast(text[:2100])[0], 1.0)),
        ("lingua", _lingua),
    ):
        try:
            found[module.partition(".")[0]] = make(importlib.import_module(module))
        except ImportError:
            print(f"{module} is not installed")
    return found


def _lingua(module: Any) -> Identify:
    detector = module.LanguageDetectorBuilder.from_all_languages().build()

    def run(text: str) -> tuple[str, float]:
        found = detector.detect_language_of(text[:1000])
        return (found.iso_code_639_1.name.lower(), 1.0) if found else ("und", 0.0)

    return run


def read(file: str, limit: int) -> list[str]:
    """Texts of a file, at most so many."""
    kind = "auto" if ".jsonl" in file else "text"
    source = Source(name="s", path=file, format=kind, text_documents="line", max_documents=limit)
    return [document.text for document in read_documents(source) if getattr(document, "text", "").strip()][:limit]


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="LANGUAGE=FILE")
    parser.add_argument("--texts", type=int, default=600, help="at most so many of each file")
    options = parser.parse_args()
    models: dict[str, Identify] = {
        "identify": language.identify, "whole": whole, "first 1,000": head(1000), "first 2,100": head(2100), **others(),
    }  # fmt: skip
    print(
        "| texts | model | right | right and ≥ 0.65 | texts/s | MB/s | most frequent answers |\n"
        "|---|---|---|---|---|---|---|"
    )
    for item in options.files:
        code, _, file = item.partition("=")
        texts = read(file, options.texts)
        for name, identify in models.items():
            chosen = texts[:_SLOW_TEXTS] if name == "lingua" else texts
            identify(chosen[0])
            start = time.process_time()
            answers = [identify(text) for text in chosen]
            seconds = time.process_time() - start
            size = sum(len(text.encode()) for text in chosen)
            right = sum(found == code for found, _ in answers) / len(answers)
            sure = sum(found == code and score >= _THRESHOLD for found, score in answers) / len(answers)
            common = ", ".join(f"{found} {count}" for found, count in Counter(a for a, _ in answers).most_common(3))
            print(
                f"| {code} {Path(file).name} | {name} | {right:.3f} | {sure:.3f} | {len(chosen) / seconds:.0f} "
                f"| {size / 1e6 / seconds:.1f} | {common} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
