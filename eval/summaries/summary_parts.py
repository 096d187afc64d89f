"""Builds the parts of an evaluation that score summaries."""

from __future__ import annotations

from typing import Any

from configs.common.progress import progress_bar
from configs.common.versions import installed
from configs.schema.pair_sets import GeneratedPairSet, SummarySet
from eval.parts import Part, PartMaker, Scored


def pair_inputs(scorer: PartMaker, section: GeneratedPairSet) -> dict[str, Any]:
    """Returns everything that decides the scores of a set whose targets are generated."""
    settings = section.model_dump(mode="json", exclude={"path"})
    libraries = {name: installed(name) for name in ("sacrebleu", "rouge-score")}
    return {**settings, **libraries, "files": scorer.sets.get(section.called.replace("`", ""))}


def summary_parts(scorer: PartMaker) -> list[Part]:
    """Returns a part for each set of documents with summaries."""
    return [
        scorer.part(f"{section.kind}/{section.name}", pair_inputs(scorer, section), _score, scorer, section)
        for section in scorer.recipe.evaluation.summarization
    ]


def _score(scorer: PartMaker, section: SummarySet) -> Scored:
    from eval.summaries.summary_set import summary_results  # needs torch

    samples = scorer.recipe.evaluation.bootstrap_samples
    with progress_bar(f"summaries of {section.name}", None, scorer.progress) as bar:
        return summary_results(section, scorer.reader, scorer.vocab, samples, bar.update, scorer.touched)
