"""A few documents of every source through all steps, quickly: for tuning rules by looking at what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.data_sections import Source
from configs.recipe import Recipe
from data_prep.cluster import Cluster
from data_prep.gather import make_documents
from data_prep.page import PAGE_NAME, verdict_examples, write_page
from data_prep.pipeline import funnel_of, judge, only_one
from data_prep.plan import Plan
from data_prep.readers import expand
from data_prep.runner import Runner

_FILES = 8
_EXAMPLES = 12
_CHARACTERS = 6000


def sample(recipe: Recipe, documents: int) -> tuple[Path, list[dict[str, Any]]]:
    """Prepares about this many documents of every source, without tokens; returns the page and the funnel.

    They are the first ones of up to eight files, evenly spaced among all. Everything lies in `sample/` of the data
    directory, and works in this process, so that a page is there after seconds.

    Raises:
        ValueError: for an input that cannot be read at all.
    """
    small = _smaller(recipe, documents)
    plan = Plan(small)
    with only_one(small.data_directory), Cluster(workers=0) as cluster:
        runner = Runner(cluster)
        made = plan.documents.read() or make_documents(plan, runner, _EXAMPLES, _CHARACTERS, may_be_empty=True)
        verdicts, parts = judge(plan, runner, made)
        funnel = funnel_of(plan, made, verdicts, None)
        examples = [
            *made["examples"],
            *verdict_examples(list(verdicts.items()), parts, _EXAMPLES, _CHARACTERS),
        ]
        note = (
            f"A sample of about {documents:,} documents of every source of the recipe {recipe.name}: what each step of "
            "its data section does to them."
        )
        page = write_page(small.data_directory / PAGE_NAME, "What the rules do", funnel, made["marks"], examples, note)
    return page, funnel


def _smaller(recipe: Recipe, documents: int) -> Recipe:
    sources = [_fewer(source, documents) for source in recipe.data.sources]
    directory = str(recipe.data_directory / "sample")
    data = recipe.data.model_copy(update={"sources": sources, "directory": directory, "keep_dropped": False})
    return recipe.model_copy(update={"data": data})


def _fewer(source: Source, documents: int) -> Source:
    if source.path is None:
        return source.model_copy(update={"max_documents": min(documents, source.max_documents or documents)})
    files = [str(file) for file in expand(source.path)]
    chosen = [files[index * len(files) // min(_FILES, len(files))] for index in range(min(_FILES, len(files)))]
    each = -(-documents // len(chosen))
    return source.model_copy(update={"path": chosen, "max_documents": min(each, source.max_documents or each)})
