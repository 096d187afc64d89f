"""Compresses bytes by a checkpoint's predictions, and brings them back.

    coder = Coder.open(checkpoint)
    coded = compress(coder, data)
    assert decompress(run, coded.file) == data

What the model cannot code, or codes in more bytes than xz, is stored in the same container, which says so.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.common.notices import warn
from configs.schema.objectives import RewardModelling
from configs.schema.reading_direction import needs_causal
from data_prep.tokens.encode import exact_encoder, fast_encoder
from data_prep.tokens.vocab import Vocab
from eval.codec.circumstances import differences, held, here
from eval.codec.container import Circumstances, Form, Header, NotACodedFile, pack, sha256, unpack
from eval.codec.tokens import Code, Ids, Layout, OtherTokens, decode, encode, usual_streams
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo, all_checkpoints, find_damage
from pretrain.model.transformer import Transformer

# The whole file, its tokens and xz's own memory are held at a time.
MOST_BYTES = 2**27
MOST_STREAMS = 2**14
_XZ = lzma.PRESET_EXTREME | 9

# Told the number of tokens done and of all.
Report = Callable[[float, float], None]
Tell = Callable[[str], None]


class CannotDecode(ValueError):
    """A coded file and this run, or this machine, do not fit together; the message says in what."""


@dataclass(frozen=True)
class Coder:
    """A model that codes.

    Attributes:
        model: in evaluation mode, fp32.
        vocab: its tokenizer.
        checkpoint: fingerprint of the checkpoint.
    """

    model: Transformer
    vocab: Vocab
    checkpoint: str

    @classmethod
    def open(cls, checkpoint: CheckpointInfo, device: str = "cpu") -> Coder:
        """Loads a checkpoint, whose files are compared with their checksums.

        Args:
            checkpoint: its description.
            device: `cpu` or `cuda`.

        Raises:
            ValueError: when it is damaged, is no causal model of text, or there is no such device.
        """
        if isinstance(checkpoint.recipe.train.objective, RewardModelling):
            raise ValueError(
                f"{checkpoint.directory}: a reward model gives scores, not text, so it codes none; take the stage that "
                "it started from"
            )
        needs_causal(checkpoint.recipe.model, "coding a file")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: this machine has no GPU that torch can use; take --device cpu")
        if problem := find_damage(checkpoint, hashes=True):
            raise ValueError(f"{checkpoint.directory} is damaged: {problem}; use another checkpoint")
        model = load_weights(checkpoint).to(device)
        return cls(model, Vocab.load(checkpoint.tokenizer), checkpoint.fingerprint)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    def tokens(self, text: str) -> Ids:
        """Returns the ids of a text."""
        width = np.dtype("<i4")
        encoder = fast_encoder(self.vocab, width) or exact_encoder(self.vocab, width)
        return np.frombuffer(encoder(text), dtype=width)


@dataclass(frozen=True)
class Coded:
    """A coded file.

    Attributes:
        file: its bytes.
        header: what it says of itself.
        ids: of its tokens, in order; None where the model did not code it.
        bits: (tokens,) ideal code length of each, where it was asked for.
    """

    file: bytes
    header: Header
    ids: Ids | None = None
    bits: NDArray[np.float64] | None = None


def check_size(size: int) -> None:
    """Raises `ValueError` for more bytes than are coded at a time."""
    if size > MOST_BYTES:
        raise ValueError(
            f"{size:,} bytes are more than the {MOST_BYTES:,} that are coded at a time; cut the file first, such as "
            f"with `split -C {MOST_BYTES // 2**20}M`"
        )


def compress(
    open_coder: Callable[[], Coder],
    data: bytes,
    threads: int | None = None,
    streams: int | None = None,
    report: Report | None = None,
    measure: bool = False,
) -> Coded:
    """Compresses bytes, in the smallest of three forms: coded by the model, by xz, or as they are.

    Args:
        open_coder: gives the model; called where the model can code the bytes.
        data: at most `MOST_BYTES`.
        threads: of torch; None: those that it has now. A decoder takes as many.
        streams: rows of text that advance together; None: chosen by the length.
        report: is told the progress.
        measure: also give the ideal code length of each token.

    Raises:
        ValueError: for too many bytes or streams, and as `Coder.open`.
    """
    check_size(len(data))
    if streams is not None and not 1 <= streams <= MOST_STREAMS:
        raise ValueError(f"{streams} streams: give a number from 1 to {MOST_STREAMS:,}")
    text, reason = _text_of(data)
    if not text:
        return _stored(data, reason)
    coder = open_coder()
    ids = coder.tokens(text)
    if coder.vocab.decode(ids.tolist()) != text:
        return _stored(data, "the tokenizer does not give it back")
    layout = Layout.of(len(ids), min(len(ids), streams or usual_streams(len(ids), coder.model.config.context_length)))
    ours = _by_model(coder, data, ids, layout, threads or torch.get_num_threads(), report, measure)
    theirs = _stored(data, "the model needs more bytes")
    return ours if len(ours.file) < len(theirs.file) else replace(theirs, ids=ids, bits=ours.bits)


def _text_of(data: bytes) -> tuple[str, str]:
    """The text that bytes stand for, or an empty one and the reason."""
    try:
        return data.decode(), "it is empty"
    except UnicodeDecodeError as error:
        return "", f"it is not UTF-8 text (byte {data[error.start]:#04x} at {error.start:,})"


def _stored(data: bytes, reason: str) -> Coded:
    """Without a model: as xz, or as it is where that is smaller."""
    forms: list[tuple[Form, bytes]] = [("stored", data), ("xz", lzma.compress(data, preset=_XZ, check=lzma.CHECK_NONE))]
    made = []
    for form, payload in forms:
        header = Header(form, len(data), sha256(data), reason)
        made.append(Coded(pack(header, payload), header))
    return min(made, key=lambda one: len(one.file))


def _by_model(
    coder: Coder, data: bytes, ids: Ids, layout: Layout, threads: int, report: Report | None, measure: bool
) -> Coded:
    vocab = coder.vocab
    with held(threads):
        where = here(coder.device, threads)
        code = encode(coder.model, vocab.begin_id, vocab.size, ids, layout, _of_all(report, layout), measure)
    header = Header(
        "model",
        len(data),
        sha256(data),
        tokens=layout.tokens,
        streams=layout.streams,
        check_steps=layout.check_steps,
        checks=code.checks,
        checkpoint=coder.checkpoint,
        tokenizer=vocab.fingerprint,
        circumstances=where,
    )
    return Coded(pack(header, code.stream), header, ids, code.bits)


def _of_all(report: Report | None, layout: Layout) -> Callable[[float], None] | None:
    return None if report is None else lambda done: report(done, layout.tokens)


# ------------------------------------------------------------------------------------------------------------ decoding
def decompress(
    run: Path | None,
    file: bytes,
    report: Report | None = None,
    tell: Tell = warn,
    opened: Coder | None = None,
) -> bytes:
    """Brings bytes back.

    Args:
        run: the run directory with the checkpoint, whichever it is of those that are kept; None: `opened` must be it.
        file: the coded file.
        report: is told the progress.
        tell: is told in what this machine differs from the one that coded the file, which may not matter.
        opened: a model that is open already, taken where it is the right one.

    Raises:
        NotACodedFile: for damaged files and other files.
        CannotDecode: when the run has no such checkpoint, the tokenizer or the device is another one, or other bytes
            came out than were coded.
    """
    header, payload = unpack(file)
    if header.bytes > MOST_BYTES:
        raise NotACodedFile(f"it says to hold {header.bytes:,} bytes, more than are ever coded at a time")
    if header.form != "model":
        data = payload if header.form == "stored" else _from_xz(payload, header.bytes)
        if len(data) != header.bytes or sha256(data) != header.sha256:
            raise NotACodedFile("its content is not what was coded, though its checksum matches; it was made so")
        return data
    where, layout = _promised(header)
    coder = _coder_of(run, header, where, opened)
    differing = differences(where, here(coder.device, where.threads))
    if differing:
        tell(
            f"it was coded elsewhere: {', '.join(differing)}. Equal results are promised for none of these; it is "
            "tried, and the checksum decides"
        )
    vocab = coder.vocab
    try:
        with held(where.threads):
            code = Code(payload, header.checks)
            ids = decode(coder.model, vocab.begin_id, vocab.size, code, layout, _of_all(report, layout))
    except OtherTokens as error:
        raise CannotDecode(_complaint(str(error), differing)) from error
    data = vocab.decode(ids.tolist()).encode("utf-8", "surrogatepass")
    if len(data) != header.bytes or sha256(data) != header.sha256:
        raise CannotDecode(_complaint("other bytes than were coded", differing))
    return data


def _promised(header: Header) -> tuple[Circumstances, Layout]:
    """What the header of a file that a model coded must say."""
    tokens, streams = header.tokens, header.streams
    if header.circumstances is None or not 1 <= streams <= tokens <= 4 * MOST_BYTES or header.check_steps < 1:
        raise NotACodedFile("its header lacks what a model's code needs; it was made by another program")
    return header.circumstances, Layout(tokens, streams, header.check_steps)


def _from_xz(payload: bytes, size: int) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(payload, size + 1)
    except lzma.LZMAError as error:
        raise NotACodedFile(f"its xz part cannot be read ({error})") from error


def _coder_of(run: Path | None, header: Header, where: Circumstances, opened: Coder | None) -> Coder:
    """Opens the checkpoint that coded a file, unless it is open already."""
    if opened is None or (opened.checkpoint, opened.device.type) != (header.checkpoint, where.device):
        if run is None:
            raise CannotDecode(f"another checkpoint or device: the file was coded by {header.checkpoint[:12]}")
        opened = Coder.open(_checkpoint_of(run, header), where.device)
    if (found := opened.vocab.fingerprint) != header.tokenizer:
        raise CannotDecode(
            f"another tokenizer: the file was coded with {header.tokenizer}, and that of the checkpoint is {found}; "
            "put back the tokenizer, or the version of the package `tokenizers`, that it was coded with"
        )
    return opened


def _checkpoint_of(run: Path, header: Header) -> CheckpointInfo:
    kept = [found for found in all_checkpoints(run) if isinstance(found, CheckpointInfo)]
    for found in kept:
        if found.fingerprint == header.checkpoint:
            return found
    listed = ", ".join(f"{found.fingerprint[:12]} (step {found.step:,})" for found in kept) or "none"
    raise CannotDecode(
        f"another checkpoint: the file was coded by {header.checkpoint[:12]}, and {run} has {listed}; name the run "
        "that coded it"
    )


def _complaint(what: str, differing: Sequence[str]) -> str:
    if differing:
        return f"decoding gave {what}; what differs from the machine that coded it: {', '.join(differing)}"
    return (
        f"decoding gave {what}, though checkpoint, tokenizer, threads, device, processor, torch and code are those of "
        "the header. Libraries of matrix products may still choose other code, by the environment (MKL_…, "
        "ONEDNN_…) or the model of the processor; try the machine that coded it"
    )
