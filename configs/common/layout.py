"""Names the files and folders of a run directory. docs/run-directory.md describes them."""

from __future__ import annotations

MANIFEST = "manifest.json"  # of prepared data, of each of its stages, of a checkpoint, of the report
CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
REPORT = "report"
PEOPLE = "people"  # what people judged: a folder for each set
METRICS = "metrics.jsonl"
STAGES = "stages"  # of a run with stages after its base: a run directory for each
TOKENIZER = "tokenizer"  # in prepared data and in a checkpoint
