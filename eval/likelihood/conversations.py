"""Scores held-out conversations: how well a model predicts what the assistant says in them.

The conversations are those that fine-tuning held out. Every stage after it is scored on the same ones, so that a
stage's other gains can be weighed against what it forgets.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from configs.schema.objectives import Supervised
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from data_prep.tokens.vocab import Vocab
from eval.likelihood.scoring import Report
from eval.results import Items, Result
from eval.statistics import bootstrap_ratio, no_interval
from pretrain.batches.unit_rows import UnitRows
from pretrain.batches.units import learnt
from pretrain.generation.sampling import NO_PROBABILITIES
from pretrain.model.transformer import Transformer

Floats = npt.NDArray[np.float64]


def conversation_results(
    tuned: Recipe,
    model: Transformer,
    vocab: Vocab,
    batch_size: int,
    bootstrap_samples: int,
    report: Report | None = None,
) -> list[Result]:
    """Scores the held-out conversations of a fine-tuning stage by nats per token of the assistant's answers.

    As many conversations of each source are read as `train.validation.max_tokens` of that stage reaches.

    Args:
        tuned: recipe of the stage that was fine-tuned on conversations.
        model: in evaluation mode; this stage's, or a later one's.
        vocab: of the model.
        batch_size: conversations per forward pass.
        bootstrap_samples: number of resamples.
        report: receives the number of scored conversations.

    Raises:
        ValueError: when the data is gone, nothing was held out, or the model's logits are NaN or infinite.
    """
    data, objective = load_manifest(tuned.data_directory), tuned.train.objective
    assert isinstance(objective, Supervised)
    weigh = partial(learnt, train_on=objective.train_on)
    rows = UnitRows(data.validation, vocab, model.config.context_length, weigh)
    share = min(1.0, tuned.train.validation.max_tokens / max(1, sum(source.tokens for source in data.validation)))
    chosen = [
        (number, document)
        for number, source in enumerate(rows.sources)
        for document in range(math.ceil(source.documents_count * share))
    ]
    name = tuned.name.rpartition(".")[2]
    if not chosen:
        raise ValueError(f"{tuned.data_directory} holds no conversations out; raise data.validation_fraction")
    nats, tokens = np.zeros(len(chosen)), np.zeros(len(chosen))
    for start in range(0, len(chosen), batch_size):
        part = slice(start, start + batch_size)
        nats[part], tokens[part] = _score(model, rows, chosen[part], vocab.size)
        if report is not None:
            report(min(start + batch_size, len(chosen)), total=len(chosen))
    if not np.isfinite(nats).all():
        raise ValueError(NO_PROBABILITIES)
    interval = bootstrap_ratio(nats, tokens, bootstrap_samples)
    n = len(chosen)
    return [
        Result(
            name=f"conversations/{name}/nats_per_token",
            value=float(nats.sum() / tokens.sum()),
            low=interval[0] if interval else None,
            high=interval[1] if interval else None,
            n=n,
            unit="nats per token of the answers",
            higher_is_better=False,
            interval=f"bootstrap over {n} conversations" if interval else no_interval(n, "conversation"),
            note=f"{int(tokens.sum()):,} tokens of answers that stage `{name}` held out",
            set=f"{data.fingerprint[:24]}-{n}",
            settings={"train_on": objective.train_on},
            tokenizer=vocab.fingerprint,
            items=Items(nats.tolist(), tokens.tolist()),
        )
    ]


@torch.inference_mode()
def _score(model: Transformer, rows: UnitRows, chosen: list[tuple[int, int]], vocab_size: int) -> tuple[Floats, Floats]:
    """Nats and learnt tokens of each conversation, (B,) both."""
    batch = rows.batch(chosen)
    width = max(batch.lengths or [batch.tokens.shape[1]])
    device = next(model.parameters()).device
    tokens, targets, weights = (part[:, :width].to(device) for part in (batch.tokens, batch.targets, batch.weights))
    log_probs = model.log_probs_and_entropy(tokens, targets, vocab_size=vocab_size)[0]  # (B, T)
    nats = -(log_probs.double() * weights).sum(dim=1)
    return nats.cpu().numpy(), weights.sum(dim=1).double().cpu().numpy()
