"""Tells whether a report's page is current: same results, metrics, recipe and code."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import content_identity, fingerprint, read_json, write_json
from configs.common.layout import MANIFEST, REPORT, RESULTS, STAGES
from configs.common.versions import code_version
from configs.schema.recipe import load_run
from eval.report.baseline import baseline_of
from eval.report.item_pages import item_pages_are_there
from pretrain.metrics.metrics_file import metric_files

PAGES = ("index.html", "report.md")
# Code that affects the page, with templates, styles and tables.
CODE = (
    "eval/people/missing",
    *(
        "eval/text_metrics",
        "eval/summaries/summary_names",
        "eval/information/score_names",
        "eval/likelihood/bound_notes",
    ),
    *("eval/report", "eval/comparison", "eval/items", "eval/results", "eval/stage_facts", "eval/statistics"),
    *("eval/remarks", "eval/in_training/record"),
    *("data_prep/funnel/table", "data_prep/funnel/tally", "pretrain/metrics/metrics_file"),
    *("configs/common/rendering", "configs/common/style.css", "configs/common/numerics_record"),
    *("configs/safety/hide_secrets", "configs/safety/terminal", "pretrain/rollout/rollout_record"),
    *("data_prep/decontamination", "data_prep/documents/conversion", "data_prep/documents/document", "data_prep/text"),
    *("data_prep/readers", "data_prep/extraction", "data_prep/chat", "data_prep/tokens"),
)


def page_fingerprint(run: Path, baseline: Path | None) -> str:
    """Computes the fingerprint of the page's contents and code."""
    recipe = load_run(run)
    stages = [run / STAGES / name for name in recipe.stage_names]
    inputs = [place for one in (run, *stages) for place in (one / RESULTS, *metric_files(one))]
    if (other := baseline_of(recipe, baseline)) is not None:
        inputs += [other / RESULTS, *(other / STAGES / name / RESULTS for name in recipe.stage_names)]
    contents = [content_identity(path) if path.is_file() else None for path in inputs]
    return fingerprint([recipe.model_dump(mode="json"), contents, code_version(*CODE)])


def page_is_current(run: Path) -> bool:
    """Tells whether the page without a baseline exists and is current."""
    stamp = run / REPORT / MANIFEST
    if not all(path.is_file() for path in (stamp, *(run / REPORT / name for name in PAGES))):
        return False
    items = read_json(run / RESULTS).get("items", {}) if (run / RESULTS).is_file() else {}
    if not item_pages_are_there(run, list(items)):
        return False
    return bool(read_json(stamp).get("fingerprint") == page_fingerprint(run, None))


def write_stamp(run: Path, baseline: Path | None) -> None:
    """Records the fingerprint of the page that was just written."""
    write_json(run / REPORT / MANIFEST, {"fingerprint": page_fingerprint(run, baseline)})
