"""Builds the parts of an evaluation that measure information."""

from __future__ import annotations

from configs.common.progress import progress_bar
from configs.schema.pair_sets import InformationSet
from eval.parts import Part, PartMaker, Scored


def information_parts(scorer: PartMaker) -> list[Part]:
    """Returns a part for each information set of the recipe."""
    parts = []
    for section in scorer.recipe.evaluation.information:
        settings = section.model_dump(mode="json", exclude={"path"})
        inputs = {**settings, "files": scorer.sets.get(f"{section.kind} set {section.name}")}
        parts.append(scorer.part(f"information/{section.name}", inputs, _score, scorer, section))
    return parts


def _score(scorer: PartMaker, section: InformationSet) -> Scored:
    from eval.information.information_set import information_results  # needs torch

    samples = scorer.recipe.evaluation.bootstrap_samples
    with progress_bar(f"information of {section.name}: windows", None, scorer.progress) as bar:
        return information_results(section, scorer.reader, scorer.vocab, samples, bar.update, scorer.touched)
