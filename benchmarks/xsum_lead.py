"""Scores XSum's lead baseline by ROUGE and compares it with the published figures of the Perl tool.

    python benchmarks/xsum_lead.py PATH                 # a minute on one core; prints a Markdown table
    python benchmarks/xsum_lead.py PATH --lines 200     # only the first lines
    python benchmarks/xsum_lead.py PATH --out X.json

PATH: `xsum-model-predictions.tar.gz` of EdinburghNLP/XSum (also as .tar.zst, or unpacked), with the files
`gold-test-sentences.txt`, `lead-test-output.txt` and `lead-test-output.rouge` of the Perl tool ROUGE-1.5.5.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import zstandard

from eval.statistics import bootstrap_ratio
from eval.text_metrics.rouge import ROUGE, UNITS, Rouge

FILES = ("gold-test-sentences.txt", "lead-test-output.txt", "lead-test-output.rouge")
PLACES = {"rouge1": 0, "rouge2": 1, "rougeL": 3}  # in `ROUGE(1/2/3/L/SU4)` of the Perl tool's summary
SAMPLES = 1000


def read(path: Path) -> dict[str, str]:
    """Reads the three files from a folder or an archive."""
    if path.is_dir():
        found = {file.name: file.read_text(encoding="utf-8") for file in path.rglob("*.*") if file.name in FILES}
    else:
        content = path.read_bytes()
        if path.suffix == ".zst":
            content = zstandard.ZstdDecompressor().stream_reader(content).read()
        found = {}
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = archive.extractfile(member) if Path(member.name).name in FILES else None
                if file is not None:
                    found[Path(member.name).name] = file.read().decode("utf-8")
    if missing := [name for name in FILES if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}; name xsum-model-predictions.tar.gz of EdinburghNLP/XSum")
    return found


def published(summary: str) -> dict[str, float]:
    """Reads the F-scores of the Perl tool's summary."""
    match = re.search(r"^f-score.*: ([\d./]+)", summary, re.MULTILINE)
    assert match is not None, summary
    values = [float(value) for value in match[1].split("/")]
    return {kind: values[place] for kind, place in PLACES.items()}


def measure(files: dict[str, str], lines: int | None) -> list[dict[str, object]]:
    """Scores the lead sentences without and with a stemmer; returns a row for each kind of ROUGE."""
    gold, leads = (files[name].splitlines()[:lines] for name in FILES[:2])
    assert len(gold) == len(leads), "the files have not as many lines"
    perl = published(files[FILES[2]])
    rows: list[dict[str, object]] = []
    for stem in (False, True):
        rouge = Rouge(stem=stem)
        scores = rouge.scores(leads, [[one] for one in gold])
        for kind in ROUGE:
            values = np.array([100 * score.fmeasure for score in scores[kind]])
            rows.append(
                {
                    "kind": kind,
                    "stem": stem,
                    "value": float(values.mean()),
                    "interval": bootstrap_ratio(values, np.ones(len(values)), SAMPLES),
                    "published": perl.get(kind),
                    "lines": len(values),
                    "signature": rouge.signature(1, SAMPLES),
                }
            )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Writes the rows in Markdown."""
    out = ["| score | stemmer | rouge-score, 95% interval | Perl tool, published |", "|---|---|---|---|"]
    for row in rows:
        interval = row["interval"]
        said = f" ({interval[0]:.2f} to {interval[1]:.2f})" if isinstance(interval, tuple) else ""
        perl = row["published"] if row["published"] is not None else ""
        out.append(
            f"| {UNITS[str(row['kind'])]} | {'yes' if row['stem'] else 'no'} | {row['value']:.2f}{said} | {perl} |"
        )
    return "\n".join([*out, "", f"{rows[0]['lines']:,} pairs. `{rows[0]['signature']}`"])


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--lines", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = measure(read(arguments.path), arguments.lines)
    print(table(rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
