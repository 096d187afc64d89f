"""Takes a few documents of every source through all steps, to show what the rules do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.safety.own_files import refuse_links
from configs.schema.recipe import Recipe
from configs.schema.sources import Source
from data_prep.funnel.page import PAGE_NAME, verdict_examples, write_page
from data_prep.readers.origins import origins
from data_prep.sources.file_lists import source_files
from data_prep.sources.places import as_pattern
from data_prep.stages.graph import Plan
from data_prep.stages.make_documents import Look, evenly, make_documents
from data_prep.stages.pipeline import make_verdicts, only_one
from data_prep.stages.summary import funnel_of
from data_prep.workers.cluster import Cluster
from data_prep.workers.manifests import DocumentsManifest
from data_prep.workers.runner import Runner

_LOOK = Look(examples=12, characters=6000, files=8, may_be_empty=True)
_DOCUMENT_BYTES = 20_000
_FIRST_LOOK = 20


def sample(recipe: Recipe, documents: int) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Prepares about this many documents of every source, without tokens; yields the page and the funnel.

    They are the first ones of up to eight files, evenly spaced among all, and fewer where they are long. All happens in
    this process, first with a few documents, so that there is something to look at after seconds; then the page is
    written anew. It lies in `sample/` of the data directory.

    Raises:
        ValueError: for an input that cannot be read at all, or a data directory that leads elsewhere.
    """
    refuse_links(recipe.data_directory)
    if documents > 2 * _FIRST_LOOK:
        yield _sample(recipe, _FIRST_LOOK)
    yield _sample(recipe, documents)


def _sample(recipe: Recipe, count: int) -> tuple[Path, list[dict[str, Any]]]:
    small = _smaller(recipe, count)
    plan = Plan(small)
    with only_one(small.data_directory), Cluster(workers=0) as cluster:
        runner = Runner(cluster)
        documents = DocumentsManifest.of(plan.documents.read() or make_documents(plan, runner, _LOOK))
        verdicts, parts = make_verdicts(plan, runner, documents)
        funnel = funnel_of(plan, documents, verdicts, None)
        examples = [
            *documents.examples,
            *verdict_examples(list(verdicts.items()), parts, _LOOK.examples, _LOOK.characters),
        ]
        note = (
            f"A sample of up to {count:,} documents of every source of the recipe {recipe.name}: what each step of "
            "its data section does to them."
        )
        page = write_page(
            small.data_directory / PAGE_NAME, "What the rules do", funnel, documents.marks, examples, note
        )
    return page, funnel


def _smaller(recipe: Recipe, documents: int) -> Recipe:
    sources = [_fewer(source, documents) for source in recipe.data.sources]
    directory = str(recipe.data_directory / "sample")
    data = recipe.data.model_copy(update={"sources": sources, "directory": directory, "keep_dropped": False})
    return recipe.model_copy(update={"data": data})


def _fewer(source: Source, documents: int) -> Source:
    """The source with few files, and limits for each of them."""
    update: dict[str, Any] = {}
    if source.hub is not None:
        count = len(origins(source))
    else:
        files = [file for _, file in source_files(source)]
        count = len(files)
        update = dict.fromkeys(("paths_file", "paths_prefix", "sample", "max_files"))
        update["path"] = [as_pattern(file) for file in evenly(files, _LOOK.files)]
    each = -(-documents // min(count, _LOOK.files or count))
    update["max_documents"] = min(each, source.max_documents or each)
    update["max_bytes"] = min(each * _DOCUMENT_BYTES, source.max_bytes or each * _DOCUMENT_BYTES)
    return source.model_copy(update=update)
