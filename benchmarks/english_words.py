"""Writes data_prep/quality/english.json: the word-splitting rules of spaCy's blank English pipeline, as data.

Run with an interpreter that has spaCy (`pip install spacy==3.8.18`):

    PYTHON benchmarks/english_words.py data_prep/quality/english.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


def main(out: Path) -> None:
    """Takes the rules from the installed spaCy."""
    import spacy
    from spacy.lang.tokenizer_exceptions import URL_PATTERN
    from spacy.symbols import ORTH

    english = spacy.blank("en")
    sentencizer = english.add_pipe("sentencizer")
    defaults = english.Defaults
    content = {
        "source": f"spaCy {spacy.__version__}, blank English pipeline with the sentencizer",
        "licence": LICENCE,
        "prefixes": [rule for rule in defaults.prefixes if rule.strip()],
        "suffixes": [rule for rule in defaults.suffixes if rule.strip()],
        "infixes": [rule for rule in defaults.infixes if rule.strip()],
        "address": URL_PATTERN,
        "sentence_ends": "".join(sorted(sentencizer.punct_chars)),
        "exceptions": {
            chunk: " ".join(part[ORTH] for part in parts)
            for chunk, parts in sorted(english.tokenizer.rules.items())
            if not any(map(str.isspace, chunk))
        },
    }
    out.write_text(json.dumps(content, indent=0, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
