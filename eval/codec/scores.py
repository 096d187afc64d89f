"""Scores a checkpoint by sizes of files: of texts that it codes, its weights, and the text that it learnt from."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from configs.schema.evaluation import PerplexitySet
from data_prep.decontamination.evaluation_sets import SetText, set_key
from data_prep.tokens.vocab import Vocab
from eval.codec.codec import Coded, Coder, Report, compress, decompress
from eval.items.item import Item
from eval.likelihood.conventions import counted_texts, of_text
from eval.likelihood.document_items import document_items
from eval.likelihood.perplexity import SetScores
from eval.likelihood.perplexity_set import byte_kind
from eval.parts import Scored
from eval.results import EXACT, Result
from eval.statistics import bootstrap_ratio
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.model.transformer import Transformer

CODEC = "codec_bits_per_byte"
WITH_MODEL = "with_model_bits_per_byte"
PREQUENTIAL = "compression/training/prequential_bits_per_byte"
# Above, xz would take minutes, and it saves little of weights.
_MOST_XZ_BYTES = 2**28
_SIZE = f"{EXACT}: a size, not an estimate"


def codec_results(
    item: PerplexitySet,
    documents: Sequence[SetText],
    coder: Coder,
    model_bytes: tuple[int, str],
    bootstrap_samples: int,
    verify: bool = True,
    report: Report | None = None,
) -> Scored:
    """Codes the texts of a set, joined to one file as compressors get them; see `eval.codec.codec.compress`.

    The bits of the file are shared out over the documents by their code lengths, for items and intervals.

    Args:
        item: the set.
        documents: its texts.
        coder: the model.
        model_bytes: size of its weights as `weights_size` gives it.
        bootstrap_samples: number of resamples of each interval.
        verify: decode the file again.
        report: is told the progress.

    Raises:
        ValueError: when the file does not come back, and as `compress`.
    """
    texts = [text.text for text in counted_texts(item, [one.text for one in documents])]
    data = "".join(texts).encode()
    coded = compress(lambda: coder, data, report=report, measure=True)
    if verify and decompress(None, coded.file, report, opened=coder) != data:
        raise ValueError(f"the coded file of {item.name} does not come back")
    scores = _shared_out(coded, texts, coder.vocab, coder.model.config.context_length)
    size, (weights, how) = len(coded.file), model_bytes
    made = Result(
        name=f"compression/{item.name}/{CODEC}",
        value=8 * size / len(data),
        low=None,
        high=None,
        n=1 if item.stream == "end_of_document" else len(texts),
        unit=f"bits per byte{byte_kind(item)}",
        higher_is_better=False,
        interval=_SIZE,
        note=f"{len(data):,} bytes to {size:,}, {_described(coded)}{', decoded again and equal' if verify else ''}",
        set=set_key([[text] for text in texts]),
        settings={**of_text(item), "precision": "fp32"},
    )
    name, more = f"compression/{item.name}/{WITH_MODEL}", 8 * weights / len(data)
    note = f"{size:,} bytes of the file, and {weights:,} of the weights in bf16 {how}"
    both = [_with_interval(made, scores, bootstrap_samples)]
    both.append(_shifted(replace(both[0], name=name, note=note), more))
    return Scored(both, items=_items(item, texts, documents, scores, more))


def _described(coded: Coded) -> str:
    header = coded.header
    if header.form == "model":
        return f"{header.tokens:,} tokens in {header.streams} streams"
    return f"stored {'as xz' if header.form == 'xz' else 'as it is'} because {header.reason}"


def _shared_out(coded: Coded, texts: Sequence[str], vocab: Vocab, context: int) -> SetScores | None:
    """Sums over stretches of half a context, so that they add up to the file; None where no model coded it."""
    if coded.ids is None or coded.bits is None:
        return None
    lengths = vocab.token_bytes[coded.ids].astype(np.float64)
    lengths[0] -= vocab.prefix_bytes(texts[0])
    ends = np.cumsum([len(text.encode()) for text in texts])
    starts = np.cumsum(lengths) - lengths
    document = np.minimum(np.searchsorted(ends, starts, side="right"), len(texts) - 1)
    stretch = document * len(coded.ids) + np.arange(len(coded.ids)) // max(1, context // 2)
    _, first, of = np.unique(stretch, return_index=True, return_inverse=True)
    nats = coded.bits * (8 * len(coded.file) / coded.bits.sum()) * math.log(2)
    # A token can begin in one document and end in the next; each has the bytes of its text.
    own = np.bincount(document, weights=lengths, minlength=len(texts))
    size = lengths * (np.diff(ends, prepend=0) / np.maximum(own, 1))[document]
    sums = [np.bincount(of, weights=one).astype(np.float64) for one in (nats, np.ones(len(of)), size)]
    return SetScores(document[first], *sums)


def _with_interval(result: Result, scores: SetScores | None, samples: int) -> Result:
    interval = None
    if scores is not None:
        sums, units = scores.units()
        interval = bootstrap_ratio(sums.nats / math.log(2), sums.bytes, samples)
    if interval is None:
        return replace(result, low=result.value, high=result.value)
    return replace(result, low=interval[0], high=interval[1], interval=f"bootstrap over {units}")


def _shifted(result: Result, more: float) -> Result:
    """The same result, larger by what the weights take."""
    low, high = (None if end is None else end + more for end in (result.low, result.high))
    return replace(result, value=result.value + more, low=low, high=high)


def _items(
    item: PerplexitySet, texts: Sequence[str], documents: Sequence[SetText], scores: SetScores | None, more: float
) -> list[Item]:
    if scores is None:
        return []
    named = [one.id for one in documents if one.text]
    found = document_items(texts, scores, ids=named if len(named) == len(texts) else None)
    return [_coded_item(one, item.name, more) for one in found]


def _coded_item(item: Item, subject: str, more: float) -> Item:
    bits, size = item.measures["bits_per_byte"]
    units = item.units.get("bits_per_byte", ())
    made = {CODEC: units, WITH_MODEL: tuple(_more_of_pairs(units, more))} if units else {}
    measures = {CODEC: (bits, size), WITH_MODEL: (bits + more * size, size)}
    return replace(item, subject=subject, measures=measures, units=made, log_likelihoods=())


def _more_of_pairs(units: Sequence[float], more: float) -> Iterator[float]:
    for above, below in zip(units[::2], units[1::2], strict=True):
        yield from (above + more * below, below)


def weights_size(model: Transformer) -> tuple[int, str]:
    """Returns the bytes of a model's weights in bf16, and how they were packed: by xz, unless they are many."""
    weights = [parameter.detach().to(torch.bfloat16).view(torch.int16) for parameter in model.parameters()]
    size = 2 * sum(weight.numel() for weight in weights)
    if size > _MOST_XZ_BYTES:
        return size, "as they are, because xz would take long and save little"
    packer = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    packed = sum(len(packer.compress(weight.cpu().numpy().tobytes())) for weight in weights) + len(packer.flush())
    return packed, "under xz -9e"


def prequential_results(checkpoint: CheckpointInfo) -> list[Result]:
    """Returns the code length of the training text by the model that learnt it; none for a stage or without a meter.

    The loss of each batch *before* its update, as long as no text was seen twice, adds up to the length of a code that
    a decoder can read by training again (Dawid 1984).
    """
    meter = checkpoint.state.get("meter", {})
    nats, size = meter.get("code_nats", 0.0), meter.get("code_bytes", 0.0)
    if not (size and math.isfinite(nats)):
        return []
    value = nats / math.log(2) / size
    return [
        Result(
            name=PREQUENTIAL,
            value=value,
            low=value,
            high=value,
            n=1,
            unit="bits per byte of training text",
            higher_is_better=False,
            interval=f"{EXACT}: a sum of losses, not an estimate",
            note=f"{size:,.0f} bytes that were read once, in {nats / math.log(2) / 8:,.0f} bytes of code",
            set=checkpoint.data_fingerprint,
            settings={"bytes": int(size)},
        )
    ]
