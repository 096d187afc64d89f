"""Runs stages `tokenizer` and `shards`: makes a vocabulary and token shards of the documents that stayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.common.notices import note
from configs.schema.sources import Source
from data_prep.stages.graph import Plan
from data_prep.tokens import pack
from data_prep.tokens.encode import agrees, fast_encoder
from data_prep.tokens.shards import token_dtype
from data_prep.tokens.splits import SPLITS
from data_prep.tokens.vocab import CONFIG_NAME, TOKENIZER_NAME, Vocab
from data_prep.tokens.vocab_training import train_vocab
from data_prep.workers.manifests import Counts, add_counts, add_marks
from data_prep.workers.runner import Runner
from data_prep.workers.stage import Stage, describe_file
from data_prep.workers.verdicts import Part

_CHECK_PARTS = 4
_CHECK_DOCUMENTS = 16
_CHECK_CHARACTERS = 20_000
_EMPTY = "the training split is empty; lower data.validation_fraction or give more documents"


def _split_parts(plan: Plan, stage: Stage, parts: list[Part]) -> list[pack.SplitPart]:
    sources = {source.name: source for source in plan.data.sources}
    unit = plan.unit, plan.room, plan.recipe.chat.system
    return [pack.SplitPart(stage, plan.data, sources[part.source], part, *unit) for part in parts]


# ------------------------------------------------------------------------------------------------------------ tokenizer
def make_tokenizer(plan: Plan, runner: Runner, parts: list[Part]) -> dict[str, Any]:
    """Trains the vocabulary, or reads it; returns the manifest.

    Raises:
        ValueError: the training split is empty, or the text does not support the vocabulary asked for.
    """
    stage, settings = plan.tokenizer, plan.data.tokenizer
    stage.begin()
    texts: Iterator[str] = iter(())
    if settings.kind in ("bpe", "char"):
        tasks = _split_parts(plan, stage, parts)
        total = sum(part.bytes for part in parts)
        fraction = min(1.0, settings.sample_bytes / total) if settings.kind == "bpe" else 1.0
        function = pack.sample_pieces if settings.kind == "bpe" else pack.sample_characters
        runner.of(stage)("tokenizer sample", function, [pack.SampleTask(task, fraction) for task in tasks])
        texts = _sampled(stage, [task.name for task in tasks], settings.kind, settings.sample_bytes)
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
        raise ValueError(_EMPTY)


# --------------------------------------------------------------------------------------------------------------- shards
def make_shards(plan: Plan, runner: Runner, parts: list[Part], vocab: Vocab) -> dict[str, Any]:
    """Encodes the parts and joins them to shards; returns the manifest.

    Raises:
        ValueError: the training split is empty.
    """
    stage = plan.shards(vocab)
    stage.begin()
    run = runner.of(stage)
    dtype = token_dtype(vocab.size)
    tasks = _split_parts(plan, stage, parts)
    if missing := stage.missing(tasks):
        fast = _fast_is_right(vocab, missing)
        place = str(plan.tokenizer.directory)
        encoding = [pack.EncodeTask(task, place, vocab.fingerprint, dtype.str, fast) for task in tasks]
        run("encode", pack.encode_part, encoding)
    counts = {task.name: stage.unit(task.name) or {} for task in tasks}
    token_bytes = vocab.token_bytes if vocab.lossless else None
    shards = [
        pack.ShardTask(
            stage,
            split,
            f"{source.name}-{number:05d}",
            parts=group,
            bytes=sum(counts[part][split]["bytes"] for part in group),
            dtype=dtype.str,
            token_bytes=token_bytes,
            unit=plan.unit,
            tag_bytes=len(source.prefix.encode()),
        )
        for split in SPLITS
        for source in plan.data.sources
        for number, group in enumerate(_groups(plan, parts, counts, source, split))
    ]
    if not any(shard.split == "train" for shard in shards):
        raise ValueError(_EMPTY if plan.unit == "document" else _nothing_fits(plan, parts, counts))
    run("shards", pack.assemble_shard, shards)
    described, files = [], {}
    for shard in shards:
        unit = stage.unit(shard.name) or {}
        files.update(unit.pop("files"))
        prefix = shard.prefix.relative_to(stage.directory).as_posix()
        described.append({"split": shard.split, "source": shard.shard.rpartition("-")[0], "prefix": prefix, **unit})
    content = {"shards": described, "dtype": dtype.name, "vocab_size": vocab.size, "lost": _lost(parts, counts)}
    if plan.unit != "document":
        content["units"] = _units(parts, counts)
    return stage.finish({**content, "dropped_tokens": _dropped_tokens(parts, counts)}, files)


def _nothing_fits(plan: Plan, parts: list[Part], counts: dict[str, dict[str, Any]]) -> str:
    """The error for a training split without a unit."""
    found: dict[str, int] = {}
    for own in _units(parts, counts).values():
        for reason, (count, _, _) in own.items():
            if reason not in SPLITS:
                found[reason] = found.get(reason, 0) + count
    said = ", ".join(f"{reason} {count:,}" for reason, count in found.items() if count)
    return (
        f"no {plan.unit} is left for training ({said or 'nothing was read'}); a {plan.unit} may have {plan.room:,} "
        "tokens: raise model.context_length, lower data.validation_fraction, or give shorter or more records"
    )


def _units(parts: list[Part], counts: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Units, bytes of their text and tokens by source, then split or reason."""
    total: dict[str, dict[str, list[int]]] = {}
    for part in parts:
        add_marks(total.setdefault(part.source, {}), counts[part.name].get("units", {}))
    return total


def _lost(parts: list[Part], units: dict[str, dict[str, Any]]) -> Counts:
    """Documents and bytes of which the tokens do not give everything back, by source; says so where there are any."""
    lost: Counts = {}
    for part in parts:
        if found := units[part.name].get("lost"):
            add_counts(lost, {part.source: found})
    if lost:
        gone = sum(count.bytes for count in lost.values())
        every = sum(units[part.name].get(split, {}).get("bytes", 0) for part in parts for split in SPLITS)
        note(
            f"the vocabulary lacks characters of this text: {gone:,} of {every:,} bytes ({gone / every:.2%}) are "
            "lost, so figures per byte are wrong by as much; a vocabulary with all bytes loses none"
        )
    return lost


def _groups(
    plan: Plan, parts: list[Part], counts: dict[str, dict[str, Any]], source: Source, split: str
) -> list[tuple[str, ...]]:
    tokens = {
        part.name: counts[part.name].get(split, {}).get("tokens", 0) for part in parts if part.source == source.name
    }
    return pack.plan_shards(tokens, plan.data.shard_tokens)


def _dropped_tokens(parts: list[Part], counts: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Tokens of dropped documents by source and stage/reason, where they were counted."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        own = total.setdefault(part.source, {})
        for key, tokens in counts[part.name].get("dropped_tokens", {}).items():
            own[key] = own.get(key, 0) + tokens
    return total


def _fast_is_right(vocab: Vocab, tasks: list[pack.SplitPart]) -> bool:
    """Tells whether the fast encoder gives the ids of `tokenizers` on a sample of this text."""
    dtype = token_dtype(vocab.size)
    encode = fast_encoder(vocab, dtype)
    texts = []
    for task in tasks[:: max(1, len(tasks) // _CHECK_PARTS)]:
        for (_, row), _ in zip(pack.by_split(task, ["text"]), range(_CHECK_DOCUMENTS), strict=False):
            texts.append(task.source.prefix + row["text"][:_CHECK_CHARACTERS])
    if encode is not None and agrees(encode, vocab, dtype, texts):
        return True
    why = "its pieces are not known to the fast encoder" if encode is None else "the fast encoder gave other ids"
    note(f"encoding with Hugging Face tokenizers alone, which is slower: {why}")
    return False
