"""Main text of web pages: agreement with gold segments, and speed, of every setting and of datatrove's extractor.

The pages and segments are trafilatura's own evaluation set (`tests/eval`, `tests/cache`, `tests/evaldata.json` of its
repository, packed as .tar.zst); counted as its `tests/eval_common.py` does: a `with` segment found is a true positive,
a `without` segment found a false positive, blanks alike. Seconds are of the processor, and the extractors take turns
page by page in blocks, so that a busy machine slows all of them.

    python benchmarks/extraction.py trafilatura-eval-html.tar.zst --peer /tmp/venv-datatrove/bin/python
    python benchmarks/extraction.py trafilatura-eval-html.tar.zst --wet whirlwind.warc.gz whirlwind.warc.wet.gz

`--peer` needs datatrove[processing]; its trafilatura needs lxml_html_clean as well.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SPACE = re.compile(r"\s+")
Page = tuple[str, bytes, list[str], list[str]]
PEER = """
import json, pickle, sys, time
sys.stdout, out = sys.stderr, sys.stdout
from datatrove.pipeline.extractors import Trafilatura
extract = Trafilatura().extract
extract("<p>warm</p>")
for line in sys.stdin:
    with open(json.loads(line), "rb") as file:
        pages = pickle.load(file)
    texts, start = [], time.process_time()
    for page in pages:
        try:
            texts.append(extract(page) or "")
        except Exception:
            texts.append("")
    out.write(json.dumps([texts, time.process_time() - start]) + chr(10))
    out.flush()
"""


def normal(text: str) -> str:
    """Runs of blanks as one."""
    return _SPACE.sub(" ", text).strip()


def read_pages(archive: Path) -> list[Page]:
    """File name, bytes, wanted and unwanted segments of the pages that the archive holds."""
    import zstandard

    members: dict[str, bytes] = {}
    with archive.open("rb") as raw:
        stream = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(raw)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                handle = tar.extractfile(member)
                if handle:
                    members[member.name.removeprefix("./")] = handle.read()
    pages = []
    for item in json.loads(members["evaldata.json"]).values():
        data = members.get(f"cache/{item['file']}") or members.get(f"eval/{item['file']}")
        if data:
            pages.append((item["file"], data, item["with"], item["without"]))
    return pages


def ours(**settings: Any) -> Callable[[bytes], str]:
    """`data_prep.extraction.extract` with these settings."""
    from configs.schema.data import Extract
    from data_prep.extraction.extract import NotExtracted, extract

    made = Extract.model_validate(settings)

    def run(data: bytes) -> str:
        try:
            return extract(data, "text/html", made).text
        except NotExtracted:
            return ""

    return run


def trafilatura_alone(**settings: Any) -> Callable[[bytes], str]:
    """trafilatura as it is, text output."""
    from trafilatura import extract

    return lambda data: extract(data, include_comments=False, **settings) or ""


def resiliparse_alone(**settings: Any) -> Callable[[bytes], str]:
    """resiliparse as it is."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    return lambda data: extract_plain_text(bytes_to_str(data, detect_encoding(data) or "utf-8"), **settings)


def extractors() -> dict[str, Callable[[bytes], str]]:
    """All that are compared, by name."""
    return {
        "ours: trafilatura (default)": ours(),
        "ours: resiliparse": ours(html="resiliparse"),
        "ours: text": ours(html="text"),
        "trafilatura": trafilatura_alone(),
        "trafilatura, fast": trafilatura_alone(fast=True),
        "trafilatura, favor_recall": trafilatura_alone(favor_recall=True),
        "trafilatura, favor_precision": trafilatura_alone(favor_precision=True),
        "trafilatura, fast, favor_precision": trafilatura_alone(fast=True, favor_precision=True),
        "resiliparse, main_content": resiliparse_alone(main_content=True),
        "resiliparse, all text": resiliparse_alone(main_content=False),
    }


class Score:
    """Counts and seconds of one extractor."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, text: str, wanted: list[str], unwanted: list[str]) -> None:
        """Counts the segments of one page."""
        text = normal(text)
        hits = sum(normal(segment) in text for segment in wanted)
        slips = sum(normal(segment) in text for segment in unwanted)
        self.counts.update(tp=hits, fn=len(wanted) - hits, fp=slips, tn=len(unwanted) - slips, empty=not text)

    def row(self, name: str, pages: int, size: int) -> str:
        """One line of the table."""
        c = self.counts
        precision, recall = c["tp"] / max(c["tp"] + c["fp"], 1), c["tp"] / (c["tp"] + c["fn"])
        f1 = 2 * c["tp"] / (2 * c["tp"] + c["fp"] + c["fn"])
        accuracy = (c["tp"] + c["tn"]) / (c["tp"] + c["tn"] + c["fp"] + c["fn"])
        return (
            f"| {name} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {accuracy:.3f} | {c['empty']} "
            f"| {pages / self.seconds:.0f} | {size / 1e6 / self.seconds:.2f} |"
        )


def blocks(pages: list[Page], size: int = 100) -> Iterator[list[Page]]:
    """The pages, some at a time."""
    for start in range(0, len(pages), size):
        yield pages[start : start + size]


def compare(pages: list[Page], peer: str | None) -> None:
    """Prints the table."""
    import pickle

    runs = extractors()
    for run in runs.values():
        run(pages[0][1])  # imports and first-use work are not the extractors' speed
    scores = {name: Score() for name in runs}
    process = None
    if peer:
        process = subprocess.Popen([peer, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        scores["datatrove: its `Trafilatura()`"] = Score()
    for block in blocks(pages):
        for name, run in runs.items():
            start = time.process_time()
            texts = [run(data) for _, data, _, _ in block]
            scores[name].seconds += time.process_time() - start
            for text, page in zip(texts, block, strict=True):
                scores[name].add(text, page[2], page[3])
        if process and process.stdin and process.stdout:
            with tempfile.NamedTemporaryFile() as file:
                file.write(pickle.dumps([data for _, data, _, _ in block]))
                file.flush()
                process.stdin.write(json.dumps(file.name) + "\n")
                process.stdin.flush()
                texts, seconds = json.loads(process.stdout.readline())
            score = scores["datatrove: its `Trafilatura()`"]
            score.seconds += seconds
            for text, page in zip(texts, block, strict=True):
                score.add(text, page[2], page[3])
    if process and process.stdin:
        process.stdin.close()
        process.wait()
    size = sum(len(data) for _, data, _, _ in pages)
    print(f"{len(pages)} pages, {size / 1e6:.1f} MB, {sum(len(p[2]) + len(p[3]) for p in pages)} segments\n")
    print(
        "| extractor | precision | recall | F1 | accuracy | empty | pages/s | MB/s |\n|---|---|---|---|---|---|---|---|"
    )
    for name, score in scores.items():
        print(score.row(name, len(pages), size))


def compare_with_wet(warc: Path, wet: Path) -> None:
    """Prints how many words ours has in common with Common Crawl's own text (all of the page, boilerplate too)."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    official: dict[str, str] = {}
    with gzip.open(wet) as file:
        for record in ArchiveIterator(io.BytesIO(file.read()), record_types=WarcRecordType.conversion):
            official[record.headers["WARC-Target-URI"]] = record.reader.read().decode()
    with warc.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            url = record.headers["WARC-Target-URI"]
            if url not in official:
                continue
            data = record.reader.read()
            reference = Counter(official[url].split())
            for name in ("trafilatura", "resiliparse", "text"):
                words = Counter(ours(html=name)(data).split())
                shared = (words & reference).total()
                print(
                    f"| {name} | {words.total()} words, WET {reference.total()} | "
                    f"{shared / words.total():.3f} of its words are in WET | "
                    f"{shared / reference.total():.3f} of WET's |"
                )


def main() -> int:
    """Reads the arguments and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="trafilatura's evaluation set as .tar.zst")
    parser.add_argument("--peer", help="python of an environment with datatrove[processing]")
    parser.add_argument(
        "--wet", type=Path, nargs=2, metavar=("WARC", "WET"), help="compare with official WET text instead"
    )
    parser.add_argument("--pages", type=int, help="only the first so many pages")
    options = parser.parse_args()
    if options.wet:
        compare_with_wet(*options.wet)
    else:
        compare(read_pages(options.archive)[: options.pages], options.peer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
