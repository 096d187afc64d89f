"""The four stages in order: documents -> dedup -> tokenizer -> shards.

Every stage is skipped when the fingerprint of its inputs, settings and code holds; an interrupted one goes on with the
units of work that are missing. The shards' bytes depend on the recipe and the files alone, not on workers or restarts.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from configs.data_sections import Source
from configs.files import fingerprint, read_json, remove_leftovers, write_json
from configs.recipe import Recipe
from data_prep import collect, dedup, pack
from data_prep.cluster import Cluster
from data_prep.documents import Origin, origins
from data_prep.encode import agrees, fast_encoder
from data_prep.funnel import Funnel
from data_prep.plan import Plan
from data_prep.shards import MANIFEST_NAME, DataManifest, load_manifest, token_dtype
from data_prep.stages import Stage, describe_file
from data_prep.vocab import CONFIG_NAME, TOKENIZER_NAME, Vocab, train_vocab
from data_prep.watch import watch

_REJECTED_EXAMPLES = 5
_CHECK_PARTS = 4
_CHECK_DOCUMENTS = 16
_CHECK_CHARACTERS = 20_000

Manifest = dict[str, Any]
Task = TypeVar("Task")


def prepare(recipe: Recipe) -> DataManifest:
    """Makes the recipe's token shards, or finds them made; shows progress.

    Raises:
        ValueError: for anything the user can mend: missing, damaged or empty input, a vocabulary the text does not
            support, another process at work in the same directory.
        OSError: for a full disk; what is committed stays, and the next run goes on from there.
    """
    if is_current(recipe):
        return load_manifest(recipe.data_directory)
    return _prepare(recipe, Cluster(recipe.data.ray_address, recipe.data.workers))


def is_current(recipe: Recipe) -> bool:
    """Whether the data directory holds what the recipe asks for; fast, nothing is started."""
    plan = Plan(recipe)
    made = _read_all(plan)
    file = plan.directory / MANIFEST_NAME
    return made is not None and file.is_file() and read_json(file) == _summary(plan, made)


def prepare_inline(recipe: Recipe) -> DataManifest:
    """`prepare` in this process, without Ray: for tests and for looking inside with a debugger."""
    return _prepare(recipe, Cluster(workers=0))


def _prepare(recipe: Recipe, cluster: Cluster) -> DataManifest:
    with _only_one(recipe.data_directory):
        try:
            with cluster:
                return _run(recipe, cluster)
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
    dedup: Manifest
    tokenizer: Manifest
    shards: Manifest


def _read_all(plan: Plan) -> _Made | None:
    documents, removed, tokenizer = (stage.read() for stage in (plan.documents, plan.dedup, plan.tokenizer))
    plan.identities.save()
    if documents is None or removed is None or tokenizer is None:
        return None
    shards = plan.shards(Vocab.load(plan.tokenizer.directory)).read()
    return None if shards is None else _Made(documents, removed, tokenizer, shards)


def _run(recipe: Recipe, cluster: Cluster) -> DataManifest:
    plan = Plan(recipe)
    documents = plan.documents.read() or _make_documents(plan, cluster)
    plan.identities.save()
    removed = plan.dedup.read() or _make_dedup(plan, cluster, documents)
    tokenizer = plan.tokenizer.read() or _make_tokenizer(plan, cluster, documents, removed)
    vocab = Vocab.load(plan.tokenizer.directory)
    stage = plan.shards(vocab)
    shards = stage.read() or _make_shards(plan, stage, cluster, documents, removed, vocab)
    write_json(plan.directory / MANIFEST_NAME, _summary(plan, _Made(documents, removed, tokenizer, shards)))
    return load_manifest(plan.directory)


def _map(
    cluster: Cluster,
    stage: Stage,
    label: str,
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    size: Callable[[str], float],
    total: float | None,
) -> Iterator[tuple[Task, Any]]:
    if tasks:
        with watch(label, stage, size, total) as watcher:
            yield from cluster.map(function, tasks, watcher.tick)


def _make_documents(plan: Plan, cluster: Cluster) -> Manifest:
    found = [
        (f"{index:03d}-{number:05d}", origin)
        for index, source in enumerate(plan.data.sources)
        for number, origin in enumerate(origins(source))
    ]
    stage = plan.documents
    stage.begin()
    todo = [(origin, number) for number, origin in found if stage.unit(f"file.{number}") is None]
    everything = sum(origin.size for origin, _ in todo)
    tasks = [
        collect.FileTask(stage, plan.data, origin, number, first, stride)
        for origin, number in todo
        for stride in [_stride(origin, plan.data.unit_bytes, everything, cluster.workers)]
        for first in range(stride)
    ]
    left = {number: sum(task.number == number for task in tasks) for _, number in todo}

    def size(name: str) -> float:
        return float((stage.unit(name) or {}).get("raw_bytes", 0))

    for task, parts in _map(cluster, stage, "documents", collect.collect_file, tasks, size, None):
        left[task.number] -= 1
        if not left[task.number]:
            stage.commit(f"file.{task.number}", {"parts": parts})
    counted = {number: (stage.unit(f"file.{number}") or {})["parts"] for number, _ in found}
    names = [collect.part_name(number, part) for number, parts in counted.items() for part in range(parts)]
    return _finish_documents(stage, plan.data.sources, names)


def _stride(origin: Origin, unit_bytes: int, everything: int, workers: int) -> int:
    """Workers that read one file: its share of all bytes, but no more than it may have parts."""
    if not origin.size:
        return 1
    return max(1, min(workers, -(-workers * origin.size // everything), 1 + 3 * origin.size // unit_bytes))


def _finish_documents(stage: Stage, sources: Sequence[Source], names: Sequence[str]) -> Manifest:
    parts: list[Manifest] = []
    files: Manifest = {}
    rejected: list[dict[str, str]] = []
    counts: dict[str, dict[str, list[int]]] = {source.name: {} for source in sources}
    for name in names:
        unit = stage.unit(name)
        assert unit is not None, name
        parts.append({"name": name, **{key: unit[key] for key in ("source", "file", "documents", "bytes")}})
        files.update(unit["files"])
        total = counts[unit["source"]]
        for reason, (documents, size) in unit["counts"].items():
            entry = total.setdefault(reason, [0, 0])
            entry[0] += documents
            entry[1] += size
        for example in unit["rejected"]:
            same = sum(kept["source"] == unit["source"] and kept["reason"] == example["reason"] for kept in rejected)
            if same < _REJECTED_EXAMPLES:
                rejected.append({"source": unit["source"], **example})
    for name, reasons in counts.items():
        if not reasons.get("kept", [0])[0]:
            seen = (
                ", ".join(f"{reason} {entry[0]}" for reason, entry in sorted(reasons.items()) if entry[0]) or "nothing"
            )
            raise ValueError(
                f"source {name}: no document is left (found: {seen}); "
                "check its `path`, its `text_field` and data.quality"
            )
    return stage.finish({"parts": parts, "counts": counts, "rejected": rejected}, files)


def _make_dedup(plan: Plan, cluster: Cluster, documents: Manifest) -> Manifest:
    stage = plan.dedup
    stage.begin()
    names = tuple(part["name"] for part in documents["parts"])
    total = sum(part["documents"] for part in documents["parts"])
    ranges = dedup.range_count(total) if plan.data.dedup.exact else 0
    tasks = [dedup.RangeTask(stage, plan.documents.directory, names, index, ranges) for index in range(ranges)]
    size = sum(part["bytes"] for part in documents["parts"]) / max(1, ranges)
    missing = [task for task in tasks if stage.unit(task.name) is None]
    for _ in _map(cluster, stage, "dedup", dedup.find_duplicates, missing, lambda _: size, size * ranges):
        pass
    units = [stage.unit(task.name) or {} for task in tasks]
    counts: dict[str, list[int]] = {}
    for unit in units:
        for part, (found, amount) in unit["counts"].items():
            entry = counts.setdefault(part, [0, 0])
            counts[part] = [entry[0] + found, entry[1] + amount]
    files = {name: known for unit in units for name, known in unit["files"].items()}
    return stage.finish({"ranges": ranges, "counts": counts}, files)


def _part_tasks(plan: Plan, stage: Stage, documents: Manifest, removed: Manifest) -> list[pack.PartTask]:
    sources = {source.name: source for source in plan.data.sources}
    return [
        pack.PartTask(
            stage, plan.data, sources[part["source"]], plan.documents.directory, plan.dedup.directory,
            removed["ranges"], part["name"], number,
        )
        for number, part in enumerate(documents["parts"])
    ]  # fmt: skip


def _make_tokenizer(plan: Plan, cluster: Cluster, documents: Manifest, removed: Manifest) -> Manifest:
    stage, settings = plan.tokenizer, plan.data.tokenizer
    stage.begin()
    texts: Iterator[str] = iter(())
    if settings.kind in ("bpe", "char"):
        tasks = _part_tasks(plan, stage, documents, removed)
        sizes = {part["name"]: part["bytes"] for part in documents["parts"]}
        total = sum(sizes.values())
        fraction = min(1.0, settings.sample_bytes / total) if settings.kind == "bpe" else 1.0
        function = pack.sample_pieces if settings.kind == "bpe" else pack.sample_characters
        missing = [pack.SampleTask(task, fraction) for task in tasks if stage.unit(task.part) is None]
        for _ in _map(cluster, stage, "tokenizer sample", function, missing, lambda name: sizes[name], total):
            pass
        texts = _sampled(stage, [task.part for task in tasks], settings.kind, settings.sample_bytes)
    vocab = train_vocab(settings, texts)
    vocab.save(stage.directory)
    files = {name: describe_file(stage.directory / name) for name in (TOKENIZER_NAME, CONFIG_NAME)}
    return stage.finish({"size": vocab.size, "eod_id": vocab.eod_id}, files)


def _sampled(stage: Stage, parts: list[str], kind: str, limit: int) -> Iterator[str]:
    """The tokenizer's training text; raises `ValueError` when the training split has none."""
    found = 0
    chunks = (
        pack.sample_chunks(stage, parts) if kind == "bpe" else ((stage.unit(part) or {})["alphabet"] for part in parts)
    )
    for chunk in chunks:
        if found >= limit:
            break
        found += len(chunk.encode())
        yield chunk
    if not found:
        raise ValueError("the training split is empty; lower data.validation_fraction or give more documents")


def _make_shards(
    plan: Plan, stage: Stage, cluster: Cluster, documents: Manifest, removed: Manifest, vocab: Vocab
) -> Manifest:
    stage.begin()
    dtype = token_dtype(vocab.size)
    parts = _part_tasks(plan, stage, documents, removed)
    sizes = {part["name"]: float(part["bytes"]) for part in documents["parts"]}
    missing = [task for task in parts if stage.unit(task.part) is None]
    if missing:
        fast = _fast_is_right(vocab, missing)
        place = str(plan.tokenizer.directory)
        tasks = [pack.EncodeTask(task, place, vocab.fingerprint, dtype.str, fast) for task in missing]
        for _ in _map(cluster, stage, "encode", pack.encode_part, tasks, lambda name: sizes[name], sum(sizes.values())):
            pass
    counts = {part.part: stage.unit(part.part) or {} for part in parts}
    shards = [
        pack.ShardTask(
            stage, split, f"{source.name}-{number:05d}", group, dtype.str, vocab.token_bytes if vocab.lossless else None
        )
        for split in pack.SPLITS
        for source in plan.data.sources
        for number, group in enumerate(_groups(plan, parts, counts, source, split))
    ]
    if not any(shard.split == "train" for shard in shards):
        raise ValueError("the training split is empty; lower data.validation_fraction or give more documents")
    todo = [shard for shard in shards if stage.unit(shard.unit) is None]
    amounts = {shard.unit: sum(counts[part][shard.split]["bytes"] for part in shard.parts) for shard in shards}
    for _ in _map(
        cluster, stage, "shards", pack.assemble_shard, todo, lambda name: amounts.get(name, 0), sum(amounts.values())
    ):
        pass
    described, files = [], {}
    for shard in shards:
        unit = stage.unit(shard.unit) or {}
        files.update(unit.pop("files"))
        prefix = shard.prefix.relative_to(stage.directory).as_posix()
        described.append({"split": shard.split, "source": shard.name.rpartition("-")[0], "prefix": prefix, **unit})
    return stage.finish({"shards": described, "dtype": dtype.name, "vocab_size": vocab.size}, files)


def _groups(
    plan: Plan, parts: list[pack.PartTask], counts: dict[str, Manifest], source: Source, split: str
) -> list[tuple[str, ...]]:
    tokens = {
        part.part: counts[part.part].get(split, {}).get("tokens", 0)
        for part in parts
        if part.source.name == source.name
    }
    return pack.plan_shards(tokens, plan.data.shard_tokens)


def _fast_is_right(vocab: Vocab, parts: list[pack.PartTask]) -> bool:
    """Whether the fast encoder may be used: it must give the ids of `tokenizers` on a sample of this very text."""
    dtype = token_dtype(vocab.size)
    encode = fast_encoder(vocab, dtype)
    texts = []
    for part in parts[:: max(1, len(parts) // _CHECK_PARTS)]:
        for (_, row), _ in zip(pack.remaining(part, ["text"]), range(_CHECK_DOCUMENTS), strict=False):
            texts.append(row["text"][:_CHECK_CHARACTERS])
    if encode is not None and agrees(encode, vocab, dtype, texts):
        return True
    why = "its pieces are not known to the fast encoder" if encode is None else "the fast encoder gave other ids"
    print(f"note: encoding with Hugging Face tokenizers alone, which is slower: {why}", file=sys.stderr)
    return False


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
        "splits": splits,
        "funnel": _funnel(plan, made),
        "rejected": made.documents["rejected"],
        "licences": {source.name: source.licence for source in plan.data.sources},
    }


def _funnel(plan: Plan, made: _Made) -> list[Manifest]:
    funnel = Funnel(source.name for source in plan.data.sources)
    origin = {part["name"]: part["source"] for part in made.documents["parts"]}
    for name, reasons in made.documents["counts"].items():
        for reason, (documents, size) in reasons.items():
            if reason != "kept":
                funnel.add(name, reason, documents, size)
    for part, (documents, size) in made.dedup["counts"].items():
        funnel.add(origin[part], "duplicate", documents, size)
    for shard in made.shards["shards"]:
        funnel.add(shard["source"], shard["split"], shard["documents"], shard["bytes"], shard["tokens"])
    return funnel.rows()


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system lets go of when this process ends, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process prepares data in {directory}; wait for it, or choose another data.directory"
            ) from None
        yield
