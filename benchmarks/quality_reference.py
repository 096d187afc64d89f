"""Compares the quality rules with datatrove's filters, document by document, and makes the test's fixture.

    python benchmarks/quality_reference.py --peer PYTHON FILE ...            # table of agreement, and every difference
    python benchmarks/quality_reference.py --peer PYTHON FILE ... --out X    # also writes texts and verdicts

PYTHON is an interpreter with datatrove 0.10.1 and spaCy 3.8.18 (`pip install datatrove==0.10.1 spacy==3.8.18 nltk
regex orjson`). FILE: .jsonl with a field `text`, .csv (fields joined by blanks) or .txt (a document a line), each also
.gz or .zst; FILE:N:K takes every K-th document and of it at most N characters. All filters stand in their default
settings; C4 also as FineWeb uses it, and FineWeb also on what that leaves. `made:N` is N texts made at random,
repetitive, with odd lines and words.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

FILTERS = ("gopher_repetition", "gopher_quality", "c4", "c4_fineweb", "fineweb", "fineweb_after_c4")
# datatrove's names of reasons that ours do not follow from by a prefix.
_RENAMED = {
    "gopher_short_doc": "gopher_too_few_words",
    "gopher_long_doc": "gopher_too_many_words",
    "gopher_below_avg_threshold": "gopher_short_mean_word",
    "gopher_above_avg_threshold": "gopher_long_mean_word",
    "gopher_too_many_hashes": "gopher_hashes_per_word",
    "gopher_too_many_ellipsis": "gopher_ellipses_per_word",
    "gopher_too_many_bullets": "gopher_bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher_ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher_alphabetic_words",
    "gopher_enough_stop_words": "gopher_stop_words",
}
Verdicts = dict[str, str]  # filter -> `keep`, `keep <digest of the text left>` or a reason of ours


def digest(text: str) -> str:
    """Short digest of a text that C4 leaves."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


# ------------------------------------------------------------------------------------------- in the peer's interpreter
def decide() -> None:
    """JSON texts, a line each, from standard input; their verdicts to standard output."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    def verdict(name: str, rule: Any, document: Any) -> str:
        try:
            result = rule.filter(document)
        except (ZeroDivisionError, AssertionError) as error:
            return f"{type(error).__name__}"
        if result is True:
            return f"keep {digest(document.text)}" if name.startswith("c4") else "keep"
        return reason(name.split("_")[0], result[1])

    loose = C4QualityFilter(filter_no_terminal_punct=False)
    rules = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "fineweb": FineWebQualityFilter(),
        "c4": C4QualityFilter(),
        "c4_fineweb": loose,
    }
    for line in sys.stdin:
        text = json.loads(line)
        documents = {name: Document(text=text, id="") for name in rules}
        found = {name: verdict(name, rule, documents[name]) for name, rule in rules.items()}
        if found["c4_fineweb"].startswith("keep"):
            found["fineweb_after_c4"] = verdict("fineweb", rules["fineweb"], documents["c4_fineweb"])
        print(json.dumps(found), flush=True)


def reason(family: str, theirs: str) -> str:
    """datatrove's name of a reason as ours."""
    name = theirs.replace("duplicated_", "dup_").replace("_n_grams", "_gram")
    name = name if name.startswith(family) else f"{family}_{name}"
    return _RENAMED.get(name, name)


# -------------------------------------------------------------------------------------------------- in this interpreter
def texts(argument: str) -> Iterator[str]:
    """Documents of one file, or what `FILE:N:K` takes of it."""
    if argument.startswith("made:"):
        yield from made(int(argument.removeprefix("made:")))
        return
    name, limit, step = [*argument.split(":"), "", ""][:3]
    for text in islice(_whole(Path(name)), 0, None, int(step or 1)):
        yield text[: int(limit)] if limit else text


def made(count: int) -> Iterator[str]:
    """Texts of which each has one or two faults, some more and some less."""
    draw = random.Random(3)
    words = [
        f"{a}{b}" for a in ("lo", "ma", "ter", "win", "sto", "par", "cle") for b in ("n", "ra", "dy", "st", "king")
    ]
    common = ["the", "of", "and", "to", "with", "that"]
    odd = ["#", "...", "…", "12", "x", "(", "internationalisation-of-words", "a.b", ":)", "don't", "-", "I"]

    def line(size: int, pool: list[str]) -> str:
        chosen = [draw.choice(pool if draw.random() < 0.5 else words) for _ in range(size)]
        return " ".join(chosen).capitalize() + draw.choice([".", ".", ".", "!", '."', "", "...", ",", " …"])

    for _ in range(count):
        pool = draw.choice([common, common, common, words, odd[:1], odd[1:3], odd[3:6], odd[6:7], odd + common])
        size, number = draw.choice([2, 4, 6, 12, 30]), draw.choice([3, 8, 20, 60])
        lines = [line(draw.randint(max(1, size // 2), size + 3), pool) for _ in range(number)]
        fault = draw.choice(["none", "lines", "paragraphs", "phrase", "bullets", "ends", "inside", "blank", "long"])
        if fault in ("lines", "paragraphs"):
            lines += [draw.choice(lines) for _ in range(draw.randint(1, number))]
        elif fault == "phrase":
            said = ["Lorem ipsum dolor sit.", "if (x) { y }.", "Please enable JavaScript now.", "We use cookies here."]
            lines += draw.sample([*said, "A note [1] of it [citation needed].", "w" * 1001 + " is a word."], 2)
            draw.shuffle(lines)
        elif fault == "bullets":
            lines = [draw.choice(["- ", "• ", "  - ", "- ", ""]) + text for text in lines]
        elif fault == "ends":
            lines = [text + draw.choice(["...", "…", ".", " .  "]) for text in lines]
        elif fault == "inside":
            phrase = line(draw.choice([2, 3, 4, 6, 9, 14]), pool)
            lines = [f"{text} {phrase}" if draw.random() < 0.5 else text for text in lines]
        elif fault == "blank":
            lines = [draw.choice(["", "  ", "\t", "\u00a0"]) + text for text in lines]
        text = ("\n\n" if fault == "paragraphs" else draw.choice(["\n", "\n", "\n\n\n", " "])).join(lines)
        yield (
            " ".join([text] * 400)[: draw.choice([2000, 700_000])]
            if fault == "long"
            else text + draw.choice(["", "\n"])
        )


def _whole(path: Path) -> Iterator[str]:
    kind = next(suffix for suffix in reversed(path.suffixes) if suffix not in {".gz", ".zst"})
    with _opened(path) as stream:
        if kind == ".csv":
            yield from (" ".join(row[1:]) for row in csv.reader(stream))
        elif kind == ".jsonl":
            yield from (json.loads(line)["text"] for line in stream)
        else:
            yield from (line.rstrip("\n") for line in stream if line.strip())


def _opened(path: Path) -> io.TextIOWrapper:
    if path.suffix == ".zst":
        import zstandard

        stream: Any = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(path.open("rb"))
    else:
        stream = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    return io.TextIOWrapper(stream, encoding="utf-8", newline="\n")


class Ours:
    """The same verdicts by data_prep.quality."""

    def __init__(self) -> None:
        from configs.schema.quality_rules import C4Rules, FineWebRules, GopherQualityRules, GopherRepetitionRules
        from data_prep.quality import build_rules

        settings = {
            "gopher_repetition": GopherRepetitionRules(rule="gopher_repetition"),
            "gopher_quality": GopherQualityRules(rule="gopher_quality"),
            "fineweb": FineWebRules(rule="fineweb"),
            "c4": C4Rules(rule="c4"),
            "c4_fineweb": C4Rules(rule="c4", terminal_punctuation=False),
        }
        self._rules = dict(zip(settings, build_rules(list(settings.values())), strict=True))

    def __call__(self, text: str) -> Verdicts:
        """Verdicts of all rule sets on one text."""
        from data_prep.quality import Drop, TextFacts

        facts = TextFacts(text)
        found = {}
        for name, rule in self._rules.items():
            result = rule(facts)
            if isinstance(result, Drop):
                found[name] = result.reason
            else:
                found[name] = f"keep {digest(result)}" if name.startswith("c4") else "keep"
            if name == "c4_fineweb" and not isinstance(result, Drop):
                after = self._rules["fineweb"](TextFacts(result))
                found["fineweb_after_c4"] = after.reason if isinstance(after, Drop) else "keep"
        return found


def compare(argument: str, peer: str, kept: list[dict[str, Any]] | None) -> None:
    """Prints a file's row of the table and its differences."""
    script = [peer, __file__, "--decide"]
    ours = Ours()
    agree: Counter[str] = Counter()
    documents = size = 0
    differences = []
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for text in texts(argument):
            process.stdin.write(json.dumps(text) + "\n")
            process.stdin.flush()
            mine = ours(text)  # while the other one works
            theirs = json.loads(process.stdout.readline())
            documents += 1
            size += len(text.encode("utf-8", "surrogatepass"))
            agree.update(name for name in FILTERS if mine.get(name) == theirs.get(name))
            differences += [
                f"    {documents}: {name}: ours {mine.get(name)}, datatrove {theirs.get(name)}: {text[:60]!r}"
                for name in FILTERS
                if mine.get(name) != theirs.get(name)
            ]
            if kept is not None:
                kept.append({"text": text, **theirs})
        process.stdin.close()
    shares = " | ".join(f"{agree[name]}" for name in FILTERS)
    print(
        f"| {Path(argument.split(':')[0]).name} | {documents} | {size / 1e6:.1f} | {shares} |",
        *differences,
        sep="\n",
        flush=True,
    )


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--peer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decide", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decide:
        return decide()
    kept: list[dict[str, Any]] | None = [] if arguments.out else None
    print("| file | documents | MB |", " | ".join(FILTERS), "|")
    for argument in arguments.files:
        compare(argument, arguments.peer, kept)
    if arguments.out:
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept or [])
        arguments.out.write_bytes(gzip.compress(lines.encode("utf-8", "surrogatepass"), 9, mtime=0))
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
