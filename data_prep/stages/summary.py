"""Sums up the manifests of all stages: the funnel, the marks, and what training and evaluation read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.common.files import fingerprint
from data_prep.funnel.tally import KEPT, Funnel
from data_prep.stages.graph import Plan
from data_prep.tokens.splits import SPLITS
from data_prep.workers.manifests import DocumentsManifest, Marks, ShardsManifest, VerdictManifest, add_marks


@dataclass(frozen=True)
class Prepared:
    """Manifests of finished stages; the verdict stages by name."""

    documents: DocumentsManifest
    verdicts: dict[str, VerdictManifest]
    shards: ShardsManifest


def summary_of(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """The manifest over all stages, which training and evaluation read."""
    shards = prepared.shards
    unit = {} if plan.unit == "document" else {"unit": plan.unit}
    return {
        **unit,
        "fingerprint": fingerprint({"shards": shards.files, "tokenizer": shards.tokenizer}),
        "tokenizer_fingerprint": shards.tokenizer,
        "stages": ["documents", *prepared.verdicts, "tokenizer", "shards"],
        "splits": {split: _sources_of(plan, shards, split) for split in SPLITS},
        "funnel": funnel_of(plan, prepared.documents, prepared.verdicts, shards),
        "marks": _marks_of(prepared),
        "rejected": prepared.documents.examples,
        "licences": {source.name: source.licence for source in plan.data.sources},
    }


def _sources_of(plan: Plan, shards: ShardsManifest, split: str) -> list[dict[str, Any]]:
    """The shards of one split by source, with their totals."""
    sources = []
    for source in plan.data.sources:
        own = [shard for shard in shards.shards if shard.split == split and shard.source == source.name]
        if own:
            listed = [
                {"prefix": f"shards/{shard.prefix}", "bin_bytes": shards.files[f"{shard.prefix}.bin"]["bytes"]}
                for shard in own
            ]
            totals = {key: sum(getattr(shard, key) for shard in own) for key in ("tokens", "documents", "bytes")}
            sources.append({"name": source.name, "weight": source.weight, "shards": listed, **totals})
    return sources


def funnel_of(
    plan: Plan, documents: DocumentsManifest, verdicts: dict[str, VerdictManifest], shards: ShardsManifest | None
) -> list[dict[str, Any]]:
    """The funnel's rows; without shards, the documents that stay are not split."""
    funnel = Funnel(source.name for source in plan.data.sources)
    for source, counts in documents.counts.items():
        for key, count in counts.items():
            if key != KEPT:
                funnel.add(source, key, *count)
    for name, verdict in verdicts.items():
        for source, counts in verdict.counts.items():
            for reason, count in counts.items():
                funnel.add(source, f"{name}/{reason}", *count)
    if shards is None:
        for source, left in funnel.left().items():
            funnel.add(source, "shards/kept", *left)
    else:
        _add_shards(funnel, shards)
    return funnel.rows()


def _add_shards(funnel: Funnel, shards: ShardsManifest) -> None:
    """Adds documents, bytes and tokens of the shards, and the tokens of dropped documents."""
    for source, found in (shards.units or {}).items():
        for reason, counts in found.items():
            funnel.add(source, f"shards/{reason}", *counts)
    for shard in shards.shards if shards.units is None else ():
        funnel.add(shard.source, f"shards/{shard.split}", shard.documents, shard.bytes, shard.tokens)
    for source, reasons in shards.dropped_tokens.items():
        for key, tokens in reasons.items():
            funnel.add(source, key, 0, 0, tokens)


def _marks_of(prepared: Prepared) -> dict[str, Marks]:
    """Counts that drop no documents and no bytes, by source."""
    marks: dict[str, Marks] = {source: dict(own) for source, own in prepared.documents.marks.items()}
    for name, verdict in prepared.verdicts.items():
        for source, reasons in verdict.marks.items():
            add_marks(marks.setdefault(source, {}), {f"{name}/{key}": value for key, value in reasons.items()})
    for source, lost in prepared.shards.lost.items():
        marks.setdefault(source, {})["shards/lost_characters"] = list(lost)
    return marks
