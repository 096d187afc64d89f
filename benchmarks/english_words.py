"""The word-splitting rules of spaCy's blank English pipeline as data, and lines of which spaCy says the words.

Run with an interpreter that has spaCy (`pip install spacy==3.8.18`):

    PYTHON benchmarks/english_words.py data_prep/quality/english.json tests/data/english-words.jsonl.gz

The lines are made of exceptions, affixes, units, addresses and blanks put together at random, so that all rules meet.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

LICENCE = (
    "spaCy, https://github.com/explosion/spaCy, MIT licence. Copyright (C) 2016-2024 ExplosionAI GmbH, "
    "2016 spaCy GmbH, 2015 Matthew Honnibal. Permission is hereby granted, free of charge, to any person obtaining a "
    'copy of this software and associated documentation files (the "Software"), to deal in the Software without '
    "restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, "
    "sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, "
    "subject to the following conditions: The above copyright notice and this permission notice shall be included in "
    'all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY '
    "KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A "
    "PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY "
    "CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR "
    "IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."
)


_PIECES = """
word Word WORD I a 's 'S ’s n't 'll 've ' " “ ” ’ ‘ . .. ... .... … …… , : ; ! ? ( ) [ ] { } < > / \\ - -- — – _ # * &
+ = % @ ~ | ^ $ US$ £ € ° °C. °F. 1 23 4.5 1,000 10km 5kg 3km/h 10am 9p.m. 2nd http:// www. example.com user@ 10.0.0.1
:8080 ?q=1 é Ж 中 。 ！ ？ 😀 ★ \u200b \u0301 v1.2 a.b A.B x/y and/or cannot gonna Mr. Ph.D. e.g. etc. :) :-( ;D <3
"""
_BLANKS = [" "] * 12 + ["  ", "\t", " \t ", "\u00a0", "\u3000"]


def rules(english: Any) -> dict[str, Any]:
    """What data_prep.quality.english_words needs to know."""
    import spacy
    from spacy.lang.tokenizer_exceptions import URL_PATTERN
    from spacy.symbols import ORTH

    defaults = english.Defaults
    return {
        "source": f"spaCy {spacy.__version__}, blank English pipeline with the sentencizer",
        "licence": LICENCE,
        "prefixes": [rule for rule in defaults.prefixes if rule.strip()],
        "suffixes": [rule for rule in defaults.suffixes if rule.strip()],
        "infixes": [rule for rule in defaults.infixes if rule.strip()],
        "address": URL_PATTERN,
        "sentence_ends": "".join(sorted(english.get_pipe("sentencizer").punct_chars)),
        "exceptions": {
            chunk: " ".join(part[ORTH] for part in parts)
            for chunk, parts in sorted(english.tokenizer.rules.items())
            if not any(map(str.isspace, chunk))
        },
    }


def cases(english: Any, count: int) -> list[dict[str, Any]]:
    """Lines with their words, blanks left out, and their number of sentences."""
    random.seed(20)
    exceptions = [chunk for chunk in sorted(english.tokenizer.rules) if not any(map(str.isspace, chunk))]
    found = []
    for _ in range(count):
        line = ""
        for _ in range(random.randint(1, 8)):
            pool = exceptions if random.random() < 0.3 else _PIECES.split()
            line += "".join(random.choices(pool, k=random.choice((1, 1, 2, 3, 4)))) + random.choice(_BLANKS)
        parsed = english(line)
        words = [token.text for token in parsed if token.text.strip()]
        found.append({"line": line, "words": words, "sentences": max(1, len(list(parsed.sents)))})
    return found


def main(out: Path, lines: Path) -> None:
    """Takes rules and words from the installed spaCy."""
    import spacy

    english = spacy.blank("en")
    english.add_pipe("sentencizer")
    out.write_text(json.dumps(rules(english), indent=0, ensure_ascii=True) + "\n", encoding="utf-8")
    content = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases(english, 2500))
    lines.write_bytes(gzip.compress(content.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
