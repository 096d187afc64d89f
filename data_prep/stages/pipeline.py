"""Runs the stages in order: documents -> verdicts (deduplication, decontamination, selection) -> tokenizer -> shards.

Every stage is skipped when the fingerprint of its inputs, settings and code holds; an interrupted one goes on with the
units of work that are missing. The shards' bytes depend on the recipe and the files alone, not on workers or restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.common.files import read_json, remove_leftovers, write_json
from configs.common.layout import MANIFEST
from configs.common.locks import locked
from configs.safety.own_files import refuse_links
from configs.schema.recipe import Recipe
from data_prep.funnel.page import PAGE_NAME, verdict_examples, write_page
from data_prep.sources.places import shown
from data_prep.stages.graph import Plan
from data_prep.stages.make_documents import make_documents
from data_prep.stages.make_tokens import make_shards, make_tokenizer
from data_prep.stages.reuse import Reuse
from data_prep.stages.summary import Prepared, summary_of
from data_prep.stages.text_needed import say_what_is_too_much
from data_prep.tokens.shards import DataManifest, load_manifest
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import read_vocab
from data_prep.workers.cluster import Cluster
from data_prep.workers.manifests import (
    Capped,
    DocumentsManifest,
    ShardsManifest,
    VerdictManifest,
    add_counts,
    add_marks,
)
from data_prep.workers.runner import Runner
from data_prep.workers.stage import Stage
from data_prep.workers.verdicts import Part, VerdictStage

_EXAMPLES = 5
# On the page: examples of a reason by all verdict stages, and how much of each.
_SHOWN = 3
_CHARACTERS = 3000


def prepare(recipe: Recipe) -> DataManifest:
    """Makes the recipe's token shards, or finds them made; shows progress.

    Raises:
        ValueError: for anything the user can mend: missing, damaged or empty input, a vocabulary the text does not
            support, another process at work in the same directory.
        OSError: for a full disk; what is committed stays, and the next run goes on from there.
    """
    if not (recipe.data_directory / MANIFEST).is_file():
        say_what_is_too_much(recipe)  # before every file of a source is asked about
    if is_current(recipe):
        return load_manifest(recipe.data_directory)
    plan, data = Plan(recipe), recipe.data
    Reuse(recipe).wait([plan.documents, *(stage for _, stage in plan.verdicts), plan.tokenizer])
    return _prepare(recipe, Cluster(data.ray_address, data.workers, data.limits.attempts, recipe.data_directory))


def is_current(recipe: Recipe) -> bool:
    """Tells whether the data directory holds what the recipe asks for; fast, nothing is started."""
    plan = Plan(recipe)
    made = _read_all(plan)
    file = plan.directory / MANIFEST
    return made is not None and file.is_file() and read_json(file) == summary_of(plan, made)


def prepare_inline(recipe: Recipe) -> DataManifest:
    """`prepare` in this process, without Ray: for tests and for looking inside with a debugger."""
    return _prepare(recipe, Cluster(workers=0, directory=recipe.data_directory))


def _prepare(recipe: Recipe, cluster: Cluster) -> DataManifest:
    with _at_work(recipe.data_directory), cluster:
        return _run(recipe, Runner(cluster))


def parts_to_score(recipe: Recipe, cluster: Cluster | None = None) -> list[Part]:
    """Returns what `data.select` chooses among: the documents with all earlier verdicts. Makes what is not there yet.

    Args:
        recipe: of the data.
        cluster: does the work; None: that of the recipe.

    Raises:
        ValueError: as `prepare`.
    """
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"select": None})})
    plan, data = Plan(recipe), recipe.data
    Reuse(recipe).wait([plan.documents, *(stage for _, stage in plan.verdicts)])
    cluster = cluster or Cluster(data.ray_address, data.workers, data.limits.attempts, recipe.data_directory)
    with _at_work(recipe.data_directory), cluster:
        runner, reuse = Runner(cluster), Reuse(recipe)
        documents = DocumentsManifest.of(reuse.have(plan.documents) or make_documents(plan, runner))
        plan.identities.save()
        return make_verdicts(plan, runner, documents, reuse)[1]


@contextmanager
def _at_work(directory: Path) -> Iterator[None]:
    """Holds the directory's lock; clears away what workers left that were stopped in the middle of a file."""
    with only_one(directory):
        try:
            yield
        except BaseException:
            for place in [path for path in directory.rglob("*") if path.is_dir()]:
                remove_leftovers(place)
            raise


# --------------------------------------------------------------------------------------------------------------- stages
def _read_all(plan: Plan) -> Prepared | None:
    """The manifests of all stages; None when one of them is missing or out of date."""
    documents, tokenizer = plan.documents.read(), plan.tokenizer.read()
    verdicts = {verdict.name: stage.read() for verdict, stage in plan.verdicts}
    plan.identities.save()
    if documents is None or tokenizer is None or None in verdicts.values():
        return None
    shards = plan.shards(Vocab.load(plan.tokenizer.directory)).read()
    if shards is None:
        return None
    known = {name: VerdictManifest.of(manifest) for name, manifest in verdicts.items() if manifest is not None}
    return Prepared(DocumentsManifest.of(documents), known, ShardsManifest.of(shards))


def _run(recipe: Recipe, runner: Runner) -> DataManifest:
    plan = Plan(recipe)
    if (settings := plan.data.tokenizer).path is not None:
        read_vocab(settings)  # what does not serve is said before the work
    reuse = Reuse(recipe)
    documents = DocumentsManifest.of(reuse.have(plan.documents) or make_documents(plan, runner))
    plan.identities.save()
    verdicts, parts = make_verdicts(plan, runner, documents, reuse)
    if reuse.have(plan.tokenizer) is None:
        make_tokenizer(plan, runner, parts)
    vocab = Vocab.load(plan.tokenizer.directory)
    shards = ShardsManifest.of(reuse.have(plan.shards(vocab)) or make_shards(plan, runner, parts, vocab))
    summary = summary_of(plan, Prepared(documents, verdicts, shards))
    examples = [*documents.examples, *verdict_examples(list(verdicts.items()), parts, _SHOWN, _CHARACTERS)]
    write_page(
        plan.directory / PAGE_NAME,
        f"The data of {recipe.name}",
        summary["funnel"],
        summary["marks"],
        examples,
        "What became of everything that was read, counted to the byte.",
    )
    write_json(plan.directory / MANIFEST, summary)
    return load_manifest(plan.directory)


def make_verdicts(
    plan: Plan, runner: Runner, documents: DocumentsManifest, reuse: Reuse | None = None
) -> tuple[dict[str, VerdictManifest], list[Part]]:
    """Runs the verdict stages; returns their manifests by name, and the parts with all verdicts."""
    parts = [
        Part(part.name, number, part.source, plan.documents.directory, (), part.documents, part.bytes)
        for number, part in enumerate(documents.parts)
    ]
    manifests = {}
    for verdict, stage in plan.verdicts:
        made = reuse.have(stage) if reuse is not None else stage.read()
        manifests[verdict.name] = VerdictManifest.of(made or _make_stage(verdict, stage, runner, parts))
        parts = [part.after(stage.directory) for part in parts]
    return manifests, parts


def _make_stage(verdict: VerdictStage, stage: Stage, runner: Runner, parts: list[Part]) -> dict[str, Any]:
    """Runs one verdict stage; returns its manifest."""
    stage.begin()
    extra = verdict.make(stage, parts, runner.of(stage))
    files = dict(extra.pop("files", {}))
    manifest = VerdictManifest({}, {}, [])
    shown = Capped(_EXAMPLES)
    for part in parts:
        unit = stage.unit(part.name)
        assert unit is not None, f"{verdict.name} left out {part.name}"
        files.update(unit["files"])
        add_counts(manifest.counts.setdefault(part.source, {}), unit["counts"])
        add_marks(manifest.marks.setdefault(part.source, {}), unit["marks"])
        manifest.examples.extend(
            {"source": part.source, "part": part.name, **example}
            for example in unit["examples"]
            if shown.take((part.source, example["reason"]))
        )
    return stage.finish({**manifest.content(), **extra}, files)


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Holds the directory's lock. The system releases it when this process ends, however it ends.

    Raises:
        ValueError: another process holds it, something in it leads out of it, or Ray and Arrow could not write down the
            directory's name.
    """
    for place in (directory, Path.cwd()):
        if shown(str(place)) != str(place):
            raise ValueError(
                f"{shown(str(place))}: the name of this directory is not UTF-8; work in another one, and choose "
                "data.directory or --out accordingly (files to be read may have such names)"
            )
    refuse_links(directory)
    directory.mkdir(parents=True, exist_ok=True)
    busy = f"another process prepares data in {directory}; wait for it, or choose another data.directory"
    with locked(directory / ".lock", busy):
        yield
