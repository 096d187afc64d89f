"""Compares vocabularies on a recipe's own text before one is chosen: `replica tokenizer compare RECIPE`.

A bounded sample of every source is cut into passages; nine in ten train the vocabularies, the tenth, which none of
them has seen, tells how long their tokens are. Sizes of BPE are cut from one training: its vocabularies of different
sizes are beginnings of each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from configs.common.rendering import markdown_text
from configs.schema.chat import SERVES
from configs.schema.data import Data
from configs.schema.data import Tokenizer as TokenizerSettings
from configs.schema.sources import Source
from data_prep.chat.shapes import Wanted
from data_prep.documents.chain import Chain, Dropped
from data_prep.documents.conversion import to_documents
from data_prep.documents.document import Document, Rejected
from data_prep.documents.language import identify
from data_prep.funnel.tally import Tally
from data_prep.readers.origins import Origin, origins
from data_prep.tokens.encode import Encode, agrees, exact_encoder, fast_encoder, segments, splitter
from data_prep.tokens.pack import without_long
from data_prep.tokens.shards import token_dtype
from data_prep.tokens.splits import unit_interval
from data_prep.tokens.vocab import Vocab, byte_alphabet
from data_prep.tokens.vocab_training import train_vocab

KINDS = ("bpe", "char", "byte", "kmer")
_HELD_OUT = 0.1
_PASSAGE_CHARACTERS = 2000
_FILES = 8
_MIN_CONFIDENCE = 0.5
_CHARACTER_BYTES = 4  # at most, so less room may hold none
# A word: a run of letters, digits and marks, or one character of a script that is written without spaces.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|[^\W\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    text: str
    source: str
    language: str
    held_out: bool


@dataclass
class Measured:
    """One vocabulary on the sample. Bytes: UTF-8 of normalised text; tokens: without end-of-document ids."""

    name: str
    size: int = 0
    note: str = ""  # why it could not be made, if so
    bytes_per_token: dict[str, float] = field(default_factory=dict)  # held-out text: `all`, source/NAME, language/CODE
    tokens_per_word: dict[str, float] = field(default_factory=dict)  # the same: the vocabulary's fertility
    unused: float = 0.0  # share of the learnt tokens (not the 256 bytes) that do not occur in the whole sample
    megabytes_per_second: float = 0.0  # of encoding, on one core
    lost: float = 0.0  # share of the sample's bytes that the ids do not give back


def compare(
    data: Data,
    sizes: Sequence[int],
    kinds: Sequence[str] = ("bpe",),
    files: Sequence[str] = (),
    sample_bytes: int = 10_000_000,
) -> tuple[list[Measured], dict[str, int]]:
    """Measures vocabularies on a sample of the sources; nothing is written.

    Args:
        data: the recipe's section: sources, normalisation, and the tokenizer's pattern, alphabet and special tokens.
        sizes: of BPE vocabularies.
        kinds: out of `KINDS`.
        files: `tokenizer.json` files, or directories with one, to compare with.
        sample_bytes: text read in all, the same amount of every source.

    Returns:
        One entry a vocabulary, and the held-out bytes behind each key of the entries.

    Raises:
        ValueError: for an unknown kind, a source without text, a file that is no tokenizer.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {', '.join(unknown)}; kinds: {', '.join(KINDS)}")
    passages = [
        passage for source in data.sources for passage in _passages(data, source, sample_bytes // len(data.sources))
    ]
    keys = _group(passages)
    measured = [
        _measure(name, vocab, passages, keys) if isinstance(vocab, Vocab) else Measured(name, note=vocab)
        for name, vocab in _vocabularies(data.tokenizer, sizes, kinds, files, passages)
    ]
    return measured, {key: sum(len(passage.text.encode()) for passage in group) for key, group in keys.items()}


# --------------------------------------------------------------------------------------------------------------- sample
def _passages(data: Data, source: Source, budget: int) -> Iterator[Passage]:
    """Some `budget` bytes of a source as passages, nine in ten of them to train on."""
    held, kept, size = 0, 0, 0
    reading = _Reading(data, source)
    for document in reading.documents(budget):
        text, language = document.text, document.metadata.get("language") or _language(document.text)
        for number, passage in enumerate(segments(text, _PASSAGE_CHARACTERS)):
            for start in range(0, len(passage), 4 * _PASSAGE_CHARACTERS):  # a chromosome has no place to cut it
                piece = passage[start : start + 4 * _PASSAGE_CHARACTERS]
                held_out = unit_interval(f"compare {document.id} {number} {start}".encode()) < _HELD_OUT
                held, kept, size = held + held_out, kept + (not held_out), size + len(piece.encode())
                yield Passage(piece, source.name, language, held_out)
    if not held or not kept:
        why = "give the source more text" if size < budget else "raise --sample-bytes"
        raise ValueError(
            f"source {source.name}: {size:,} bytes of text in {held + kept} passages are too few to hold a part out; "
            f"{why}{reading.refused}"
        )


class _Reading:
    """Documents of a source as `replica data` would make them: extracted, normalised, judged, without exact doubles."""

    def __init__(self, data: Data, source: Source) -> None:
        self._data, self._source = data, source
        self._chain = Chain(data, source, Tally(0))
        self._seen: set[bytes] = set()
        self.refused = ""  # why a record was none, for a message

    def documents(self, budget: int) -> Iterator[Document]:
        """Documents of `budget` bytes, the last one cut there, or of all that the source has.

        Of files evenly spaced among all, an eighth of the budget each; what small files leave is asked of others, then
        of those that have more.
        """
        found = origins(self._source)
        share = -(-budget // min(_FILES, len(found)))
        width = len(found).bit_length()
        order = sorted(range(len(found)), key=lambda at: f"{at:0{width}b}"[::-1])  # every beginning is evenly spaced
        waiting = [self._of(found[at]) for at in order]
        while waiting:
            larger: list[Iterator[Document]] = []
            for documents in waiting:
                left = min(share, budget)
                for document in documents:
                    text = document.text.encode()[:left].decode(errors="ignore")
                    used = len(text.encode())
                    left, budget = left - used, budget - used
                    yield replace(document, text=text)
                    if left < _CHARACTER_BYTES:
                        rest = document.text[len(text) :]
                        larger.append(chain([replace(document, text=rest)] if rest else [], documents))
                        break
                if budget < _CHARACTER_BYTES:
                    return
            waiting = larger

    def _of(self, origin: Origin) -> Iterator[Document]:
        data = self._data
        wanted = Wanted(SERVES[self._source.shape][0])
        for record in origin.records(data.max_document_bytes, data.limits):
            for item in to_documents(record, self._source, origin.name, data.max_document_bytes, data.extract, wanted):
                if isinstance(item, Rejected):
                    self.refused = f" ({item.where}: {item.reason})"
                    continue
                kept = self._chain(replace(item, unit=None))  # of a conversation its text is enough
                if isinstance(kept, Dropped):
                    self.refused = f" ({item.id}: {kept.key})"
                elif not data.dedup.exact or self._is_new(kept[1]):
                    yield kept[0]

    def _is_new(self, encoded: bytes) -> bool:
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        new = digest not in self._seen
        self._seen.add(digest)
        return new


def _language(text: str) -> str:
    if text.isascii() and text.count(" ") * 100 < len(text):  # sequences are taken for one language or another
        return "und"
    code, confidence = identify(text)
    return code if confidence >= _MIN_CONFIDENCE else "und"


def _group(passages: Iterable[Passage]) -> dict[str, list[Passage]]:
    """Held-out passages by what they are counted under."""
    groups: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        if passage.held_out:
            for key in ("all", f"source/{passage.source}", f"language/{passage.language}"):
                groups[key].append(passage)
    return dict(groups)


# --------------------------------------------------------------------------------------------------------- vocabularies
def _vocabularies(
    settings: TokenizerSettings,
    sizes: Sequence[int],
    kinds: Sequence[str],
    files: Sequence[str],
    passages: list[Passage],
) -> Iterator[tuple[str, Vocab | str]]:
    """Name and vocabulary, or why there is none."""
    texts = [passage.text for passage in passages if not passage.held_out]
    common = {**settings.model_dump(), "path": None}
    for kind in kinds:
        if kind == "bpe":
            yield from _bpe(common, sorted(sizes), texts)
        else:
            made = TokenizerSettings.model_validate({**common, "kind": kind})
            yield f"kmer {made.kmer}" if kind == "kmer" else kind, train_vocab(made, texts)
    for file in files:
        yield file, Vocab.load(file)


def _bpe(common: dict[str, Any], sizes: list[int], texts: list[str]) -> Iterator[tuple[str, Vocab | str]]:
    """The sizes in order, cut from the largest one that the text supports."""
    made: dict[int, Vocab | str] = {}
    largest: Vocab | None = None
    for size in reversed(sizes):
        try:
            largest = largest or _train(common, size, texts)
            made[size] = shortened(largest, size)
        except ValueError as error:
            made[size] = str(error)
    yield from ((f"bpe {size:,}", made[size]) for size in sizes)


def _train(common: dict[str, Any], size: int, texts: list[str]) -> Vocab:
    settings = TokenizerSettings.model_validate({**common, "kind": "bpe", "vocab_size": size})
    cut = splitter(settings.pattern)
    return train_vocab(settings, (without_long(text, list(cut(text)), settings.max_piece_bytes) for text in texts))


def shortened(vocab: Vocab, size: int) -> Vocab:
    """The BPE vocabulary that a training for fewer tokens would have given: merges are learnt one after the other."""
    description = json.loads(vocab.tokenizer.to_str())
    model = description["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < size}
    model["merges"] = model["merges"][: len(model["merges"]) - (vocab.size - size)]
    return Vocab(Tokenizer.from_str(json.dumps(description)), vocab.end_of_document)


# ------------------------------------------------------------------------------------------------------------ measuring
def _measure(name: str, vocab: Vocab, passages: list[Passage], keys: dict[str, list[Passage]]) -> Measured:
    dtype = token_dtype(vocab.size)
    fast = fast_encoder(vocab, dtype)
    held_out = [passage.text for passage in keys["all"]]
    encode: Encode = fast if fast and agrees(fast, vocab, dtype, held_out[:2]) else exact_encoder(vocab, dtype)
    seen = np.zeros(vocab.size, dtype=bool)
    tokens: dict[int, int] = {}
    seconds, lost = 0.0, 0
    for passage in passages:
        started = time.process_time()
        ids = encode(passage.text)
        seconds += time.process_time() - started
        tokens[id(passage)] = len(ids) // dtype.itemsize
        seen[np.frombuffer(ids, dtype=dtype)] = True
        lost += vocab.lost(passage.text, np.frombuffer(ids, dtype=dtype))
    learnt = _learnt(vocab)
    everything = sum(len(passage.text.encode()) for passage in passages)
    result = Measured(
        name,
        vocab.size,
        unused=float(1 - seen[learnt].mean()) if len(learnt) else 0.0,
        megabytes_per_second=everything / 1e6 / max(seconds, 1e-9),
        lost=lost / max(1, everything),
    )
    for key, group in keys.items():
        count = sum(tokens[id(passage)] for passage in group)
        result.bytes_per_token[key] = sum(len(passage.text.encode()) for passage in group) / max(1, count)
        words = sum(len(_WORD.findall(passage.text)) for passage in group)
        result.tokens_per_word[key] = count / max(1, words)
    return result


def _learnt(vocab: Vocab) -> np.ndarray:
    """Ids that are neither special nor one of the 256 bytes, which every lossless vocabulary needs."""
    single = {*byte_alphabet()} if vocab.byte_level else {f"<0x{byte:02X}>" for byte in range(256)}
    ids = (index for token, index in vocab.tokenizer.get_vocab().items() if token not in single)
    return np.array(sorted(index for index in ids if vocab.token_bytes[index] > 0), dtype=np.int64)


# -------------------------------------------------------------------------------------------------------------- display
def markdown(measured: list[Measured], held_out: dict[str, int]) -> str:
    """A table of bytes per token and tokens per word by source and language, and one of the rest."""
    good = [item for item in measured if not item.note]
    lines = ["| held-out text | kB | " + " | ".join(markdown_text(item.name) for item in good) + " |"]
    lines.append("|---|--:|" + "--:|" * len(good))
    for title, values in (("bytes per token", "bytes_per_token"), ("tokens per word", "tokens_per_word")):
        for key, size in held_out.items():
            cells = " | ".join(f"{getattr(item, values)[key]:.3f}" for item in good)
            lines.append(f"| {title}, {markdown_text(key.replace('/', ' '))} | {size / 1000:,.0f} | {cells} |")
    lines += [
        "",
        "| vocabulary | ids | never used, bytes aside | bytes lost | encoding, MB/s |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {markdown_text(item.name)} | {item.size:,} | {item.unused:.1%} | {item.lost:.2%} "
        f"| {item.megabytes_per_second:.1f} |"
        for item in good
    ]
    lines += [f"\n{markdown_text(item.name)}: {markdown_text(item.note)}" for item in measured if item.note]
    return "\n".join(lines)


def as_json(measured: list[Measured], held_out: dict[str, int]) -> dict[str, Any]:
    """The same for programs."""
    return {"held_out_bytes": held_out, "vocabularies": [asdict(item) for item in measured]}


def read_size(text: str) -> int:
    """`8k` is 8,192.

    Raises:
        ValueError: for what is no size.
    """
    found = re.fullmatch(r"([0-9]+)(k?)", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is not a vocabulary size; write 8192 or 8k")
    return int(found[1]) * (1024 if found[2] else 1)
