"""Verifies an exported directory: compares `transformers` with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from configs.common.files import read_object
from data_prep.tokens.encode import NASTY
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.interchange.huggingface_export import HEAD, Weights

# Largest RMS difference of logits, divided by their standard deviation. Rounding changes a weight by at most 2^-9
# (bf16) or 2^-12 (fp16) of itself, and layers add this up. A mistake in the mapping gives about 1.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
_TOKENS = 64


class NotTheSame(Exception):
    """The export differs from its checkpoint."""


def check_export(directory: Path, checkpoint: CheckpointInfo, dtype: str) -> str:
    """Compares logits over random tokens, and token ids of difficult texts; returns the result as a sentence.

    Both models are computed in fp32, one after the other, so that only one is in memory.

    Args:
        directory: the output of `export_directory`.
        checkpoint: the exported checkpoint.
        dtype: dtype of the exported weights: fp32, bf16 or fp16.

    Raises:
        NotTheSame: when logits differ by more than rounding to `dtype` explains, or token ids differ.
    """
    from transformers import AutoTokenizer

    vocab = Vocab.load(checkpoint.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    special = [token for token, index in vocab.vocabulary.items() if index in vocab.special_ids]
    # Texts that spell a special token are skipped: we encode them as text, transformers as the token.
    texts = [text for text in NASTY if not any(token in text for token in special)]
    for text in texts:
        if tokenizer(text)["input_ids"] != vocab.prompt(text):
            raise NotTheSame(f"{directory}: transformers gives other token ids for {text!r}")
    tokens = torch.randint(0, vocab.size, (2, _TOKENS), generator=torch.Generator().manual_seed(0))
    tokens = tokens[:, : checkpoint.recipe.model.context_length]
    with torch.inference_mode():
        expected = _ours(checkpoint, tokens, vocab.size)
        actual = _theirs(directory, tokens)
    if actual.shape != expected.shape:
        raise NotTheSame(
            f"{directory}: logits of {tuple(actual.shape)}, where the checkpoint has {tuple(expected.shape)}"
        )
    difference = float((actual - expected).square().mean().sqrt() / expected.std())
    comparison = (
        f"logits of transformers differ by {difference:.1e} of their deviation ({TOLERANCE[dtype]:.0e} are allowed)"
    )
    if not difference <= TOLERANCE[dtype]:
        raise NotTheSame(f"{directory}: {comparison}")
    return f"verified: {comparison}; ids equal on {len(texts)} texts"


def _ours(checkpoint: CheckpointInfo, tokens: torch.Tensor, size: int) -> torch.Tensor:
    """Logits (B, T, size) of the checkpoint, or scores (B, T, 1) of a reward model after each token."""
    model, weights = load_weights(checkpoint), Weights.of_checkpoint(checkpoint)
    if not weights.scores:
        return torch.as_tensor(model(tokens)[..., :size])
    return model.backbone(tokens) @ weights.read(HEAD).T


def _theirs(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    """The same of transformers, whose classifiers give the score after the last token alone."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    scores = read_object(directory / "config.json")["architectures"][0].endswith("ForSequenceClassification")
    with _no_progress_bar():
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    if not scores:
        return torch.as_tensor(model(tokens).logits)
    hidden = model.base_model(tokens).last_hidden_state
    return torch.as_tensor(model.score(hidden))


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides transformers' progress bar, whose carriage returns would be escaped."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
