"""The stages in order: documents -> verdicts (deduplication, decontamination) -> tokenizer -> shards.

Every stage is skipped when the fingerprint of its inputs, settings and code holds; an interrupted one goes on with the
units of work that are missing. The shards' bytes depend on the recipe and the files alone, not on workers or restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.common.files import fingerprint, read_json, remove_leftovers, write_json
from configs.common.layout import MANIFEST
from configs.common.locks import locked
from configs.safety.own_files import refuse_links
from configs.schema.recipe import Recipe
from data_prep.funnel.page import PAGE_NAME, verdict_examples, write_page
from data_prep.funnel.tally import KEPT, Funnel, merge_counts
from data_prep.sources.places import shown
from data_prep.stages.graph import Plan
from data_prep.stages.make_documents import make_documents
from data_prep.stages.make_tokens import make_shards, make_tokenizer
from data_prep.stages.reuse import Reuse
from data_prep.stages.text_needed import say_what_is_too_much
from data_prep.tokens import pack
from data_prep.tokens.shards import DataManifest, load_manifest
from data_prep.tokens.vocab import Vocab
from data_prep.work.cluster import Cluster
from data_prep.work.runner import Runner
from data_prep.work.stage import Stage
from data_prep.work.verdicts import Part, VerdictStage

_EXAMPLES = 5
# On the page: examples of a reason by all verdict stages, and how much of each.
_SHOWN = 3
_CHARACTERS = 3000

Manifest = dict[str, Any]


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
    """Whether the data directory holds what the recipe asks for; fast, nothing is started."""
    plan = Plan(recipe)
    made = _read_all(plan)
    file = plan.directory / MANIFEST
    return made is not None and file.is_file() and read_json(file) == _summary(plan, made)


def prepare_inline(recipe: Recipe) -> DataManifest:
    """`prepare` in this process, without Ray: for tests and for looking inside with a debugger."""
    return _prepare(recipe, Cluster(workers=0, directory=recipe.data_directory))


def _prepare(recipe: Recipe, cluster: Cluster) -> DataManifest:
    with only_one(recipe.data_directory):
        try:
            with cluster:
                return _run(recipe, Runner(cluster))
        except BaseException:
            # Workers that were stopped in the middle of a file could not clean up after themselves.
            for directory in [path for path in recipe.data_directory.rglob("*") if path.is_dir()]:
                remove_leftovers(directory)
            raise


# --------------------------------------------------------------------------------------------------------------- stages
@dataclass(frozen=True)
class _Made:
    """Manifests of finished stages."""

    documents: Manifest
    verdicts: dict[str, Manifest]
    shards: Manifest


def _read_all(plan: Plan) -> _Made | None:
    documents, tokenizer = plan.documents.read(), plan.tokenizer.read()
    verdicts = {verdict.name: stage.read() for verdict, stage in plan.verdicts}
    plan.identities.save()
    if documents is None or tokenizer is None or None in verdicts.values():
        return None
    shards = plan.shards(Vocab.load(plan.tokenizer.directory)).read()
    known = {name: manifest for name, manifest in verdicts.items() if manifest is not None}
    return None if shards is None else _Made(documents, known, shards)


def _run(recipe: Recipe, runner: Runner) -> DataManifest:
    plan = Plan(recipe)
    if (settings := plan.data.tokenizer).path is not None:
        Vocab.load(settings.path, settings.special_tokens[0])  # what does not serve is said before the work
    reuse = Reuse(recipe)
    documents = reuse.have(plan.documents) or make_documents(plan, runner)
    plan.identities.save()
    verdicts, parts = judge(plan, runner, documents, reuse)
    if reuse.have(plan.tokenizer) is None:
        make_tokenizer(plan, runner, parts)
    vocab = Vocab.load(plan.tokenizer.directory)
    shards = reuse.have(plan.shards(vocab)) or make_shards(plan, runner, parts, vocab)
    summary = _summary(plan, _Made(documents, verdicts, shards))
    examples = [*documents["examples"], *verdict_examples(list(verdicts.items()), parts, _SHOWN, _CHARACTERS)]
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


def judge(
    plan: Plan, runner: Runner, documents: Manifest, reuse: Reuse | None = None
) -> tuple[dict[str, Manifest], list[Part]]:
    """Runs the verdict stages; returns their manifests by name, and the parts with all verdicts."""
    parts = [
        Part(part["name"], number, part["source"], plan.documents.directory, (), part["documents"], part["bytes"])
        for number, part in enumerate(documents["parts"])
    ]
    manifests = {}
    for verdict, stage in plan.verdicts:
        made = reuse.have(stage) if reuse is not None else stage.read()
        manifests[verdict.name] = made or _make_verdicts(verdict, stage, runner, parts)
        parts = [part.after(stage.directory) for part in parts]
    return manifests, parts


def _make_verdicts(verdict: VerdictStage, stage: Stage, runner: Runner, parts: list[Part]) -> Manifest:
    stage.begin()
    extra = verdict.make(stage, parts, runner.of(stage))
    files = dict(extra.pop("files", {}))
    counts: dict[str, dict[str, list[int]]] = {}
    marks: dict[str, dict[str, list[int]]] = {}
    examples: list[Manifest] = []
    seen: dict[tuple[str, str], int] = {}
    for part in parts:
        unit = stage.unit(part.name)
        assert unit is not None, f"{verdict.name} left out {part.name}"
        files.update(unit["files"])
        merge_counts(counts.setdefault(part.source, {}), unit["counts"])
        merge_counts(marks.setdefault(part.source, {}), unit["marks"])
        for example in unit["examples"]:
            place = (part.source, example["reason"])
            seen[place] = seen.get(place, 0) + 1
            if seen[place] <= _EXAMPLES:
                examples.append({"source": part.source, "part": part.name, **example})
    return stage.finish({"counts": counts, "marks": marks, "examples": examples, **extra}, files)


# -------------------------------------------------------------------------------------------------------------- summary
def _summary(plan: Plan, made: _Made) -> Manifest:
    """The manifest over all stages: what training and evaluation read."""
    shards = made.shards["shards"]
    files = made.shards["files"]
    weights = {source.name: source.weight for source in plan.data.sources}
    splits: dict[str, list[Manifest]] = {split: [] for split in pack.SPLITS}
    for split, sources in splits.items():
        for name, weight in weights.items():
            own = [shard for shard in shards if shard["split"] == split and shard["source"] == name]
            if own:
                totals = {key: sum(shard[key] for shard in own) for key in ("tokens", "documents", "bytes")}
                listed = [
                    {"prefix": f"shards/{shard['prefix']}", "bin_bytes": files[f"{shard['prefix']}.bin"]["bytes"]}
                    for shard in own
                ]
                sources.append({"name": name, "weight": weight, "shards": listed, **totals})
    tokenizer = made.shards["inputs"]["tokenizer"]
    return {
        "fingerprint": fingerprint({"shards": files, "tokenizer": tokenizer}),
        "tokenizer_fingerprint": tokenizer,
        "stages": ["documents", *made.verdicts, "tokenizer", "shards"],
        "splits": splits,
        "funnel": funnel_of(plan, made.documents, made.verdicts, made.shards),
        "marks": _marks(made),
        "rejected": made.documents["examples"],
        "licences": {source.name: source.licence for source in plan.data.sources},
    }


def funnel_of(
    plan: Plan, documents: Manifest, verdicts: dict[str, Manifest], shards: Manifest | None
) -> list[Manifest]:
    """The funnel's rows; without shards, what is left is not split."""
    funnel = Funnel(source.name for source in plan.data.sources)
    for source, reasons in documents["counts"].items():
        for key, (count, size) in reasons.items():
            if key != KEPT:
                funnel.add(source, key, count, size)
    for name, manifest in verdicts.items():
        for source, reasons in manifest["counts"].items():
            for reason, (count, size) in reasons.items():
                funnel.add(source, f"{name}/{reason}", count, size)
    if shards is None:
        for source, counts in funnel.left().items():
            funnel.add(source, "shards/kept", *counts)
        return funnel.rows()
    for shard in shards["shards"]:
        key = f"shards/{shard['split']}"
        funnel.add(shard["source"], key, shard["documents"], shard["bytes"], shard["tokens"])
    for source, reasons in shards["dropped_tokens"].items():
        for key, tokens in reasons.items():
            funnel.add(source, key, 0, 0, tokens)
    return funnel.rows()


def _marks(made: _Made) -> Manifest:
    """Things counted that neither drop documents nor take bytes, by source."""
    marks: dict[str, dict[str, list[int]]] = {source: dict(own) for source, own in made.documents["marks"].items()}
    for name, manifest in made.verdicts.items():
        for source, reasons in manifest["marks"].items():
            merge_counts(marks.setdefault(source, {}), {f"{name}/{key}": value for key, value in reasons.items()})
    for source, lost in made.shards["lost"].items():
        marks.setdefault(source, {})["shards/lost_characters"] = lost
    return marks


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system lets go of when this process ends, however it ends.

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
