"""Names the scores of a set of summaries, without anything that reads a model."""

from __future__ import annotations

from configs.schema.pair_sets import SummarySet
from eval.text_metrics.text_scores import metrics_of_set

# Choices by the names before their metrics, and what notes call them.
BASELINES = {
    "lead": "the first ones",
    "lexrank": "the most central ones, by LexRank",
    "random": "drawn with seed 1234",
    "oracle": "chosen by ROUGE-1 and -2 against the references, which bounds any choice",
}
INFORMATION = "information"
WEIGHED = (INFORMATION, "lead", "lexrank", "random")  # choices whose kept information is scored


def kept_name(choice: str) -> str:
    """Returns the metric that tells the kept information of a choice."""
    return "kept_information" if choice == INFORMATION else f"{choice}_kept_information"


def summary_metrics(section: SummarySet) -> list[str]:
    """Returns the last parts of the names of a set's scores."""
    informed = section.information_items > 0
    prefixes = ["", *(f"{name}_" for name in BASELINES), *([f"{INFORMATION}_"] if informed else [])]
    scored = [f"{prefix}{metric}" for prefix in prefixes for metric in metrics_of_set(section)]
    return scored + ([kept_name(name) for name in WEIGHED] if informed else [])
