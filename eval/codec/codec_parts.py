"""Makes coded files a part of an evaluation: `evaluation.compression`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from configs.common.progress import progress_bar
from configs.common.versions import installed
from configs.schema.evaluation import PerplexitySet
from configs.schema.recipe import Recipe
from data_prep.decontamination.evaluation_sets import SetText, read_set
from eval.codec.codec import Coder
from eval.codec.scores import codec_results, weights_size
from eval.parts import Part, Scored
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.parallel.lockstep import Lockstep


def codec_parts(
    recipe: Recipe,
    checkpoint: CheckpointInfo,
    sets: dict[str, Any],
    common: dict[str, Any],
    ranks: Lockstep,
    progress: bool = True,
) -> list[Part]:
    """Returns a part for each set that is coded; rank 0 codes, on its CPU, in fp32.

    Args:
        recipe: with the evaluation.
        checkpoint: what codes.
        sets: identities of the files of sets.
        common: inputs of every score.
        ranks: the ranks that evaluate together.
        progress: show progress bars.
    """
    section = recipe.evaluation
    if not section.compression.codec:
        return []
    # One model for all sets, opened by the first that needs it.
    opened = cache(lambda: Coder.open(checkpoint))
    weights = cache(lambda: weights_size(opened().model))

    def score(item: PerplexitySet) -> Scored:
        documents: Sequence[SetText] = read_set(item, recipe.data.normalize)
        with progress_bar(f"coding {item.name}: tokens", None, progress) as bar:
            samples, verify = section.bootstrap_samples, section.compression.verify
            return codec_results(
                item, documents, opened(), weights(), samples, verify, lambda done, of: bar.update(done, total=of)
            )

    def inputs(item: PerplexitySet) -> dict[str, Any]:
        settings = item.model_dump(mode="json", exclude={"path"})
        rules = recipe.data.normalize.model_dump(mode="json") if item.normalize == "training" else None
        own = {**settings, "files": sets.get(f"perplexity set {item.name}"), "rules": rules}
        verify = section.compression.verify
        return {**common, "bootstrap": section.bootstrap_samples, "own": own, "verify": verify, **_library()}

    return [
        Part(
            f"compression/{item.name}/codec",
            inputs(item),
            partial(ranks.of_main, partial(score, item), f"coding {item.name}"),
        )
        for item in section.perplexity
        if item.name in section.compression.codec
    ]


def _library() -> dict[str, Any]:
    return {"constriction": installed("constriction")}
