"""Scores held-out conversations: how well a model predicts what the assistant says in them.

The conversations are those that fine-tuning held out. Every stage after it is scored on the same ones, so that a
stage's other gains can be weighed against what it forgets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from configs.schema.objectives import Supervised
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import load_manifest
from data_prep.tokens.vocab import Vocab
from eval.items.item import Item, beginning, ending, hash_of, shared_seconds
from eval.parts import Scored
from eval.reading.reader import Reader
from eval.reading.windows import Report, Window
from eval.results import Result
from eval.statistics import bootstrap_ratio, no_interval
from pretrain.batches.unit_rows import UnitRows
from pretrain.batches.units import learnt


def conversation_results(
    tuned: Recipe,
    reader: Reader,
    vocab: Vocab,
    bootstrap_samples: int,
    report: Report | None = None,
) -> Scored:
    """Scores the held-out conversations of a fine-tuning stage by nats per token of the assistant's answers.

    As many conversations of each source are read as `train.validation.max_tokens` of that stage reaches.

    Args:
        tuned: recipe of the stage that was fine-tuned on conversations.
        reader: of the model: this stage's, or a later one's.
        vocab: of the model.
        bootstrap_samples: number of resamples.
        report: receives the number of scored conversations.

    Raises:
        ValueError: when the data is gone, nothing was held out, or the model's logits are NaN or infinite.
    """
    data, objective = load_manifest(tuned.data_directory), tuned.train.objective
    assert isinstance(objective, Supervised)
    weigh = partial(learnt, train_on=objective.train_on)
    rows = UnitRows(data.validation, vocab, reader.context_length, weigh)
    share = min(1.0, tuned.train.validation.max_tokens / max(1, sum(source.tokens for source in data.validation)))
    chosen = [
        (number, document)
        for number, source in enumerate(rows.sources)
        for document in range(math.ceil(source.documents_count * share))
    ]
    name = tuned.name.rpartition(".")[2]
    if not chosen:
        raise ValueError(f"{tuned.data_directory} holds no conversations out; raise data.validation_fraction")
    windows = [_window(rows, document) for document in chosen]
    began = time.perf_counter()
    nats = np.array([score.nats for score in reader.score(windows, report)])
    seconds = time.perf_counter() - began
    tokens = np.array([0.0 if window.weights is None else window.weights.sum() for window in windows])
    interval = bootstrap_ratio(nats, tokens, bootstrap_samples)
    n = len(chosen)
    results = [
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
            settings={"train_on": objective.train_on, "normalize": "training"},  # they were held out of its data
            tokenizer=vocab.fingerprint,
        )
    ]
    ids = [f"{rows.sources[number].name}/{document}" for number, document in chosen]
    return Scored(results, items=_items(ids, windows, nats.tolist(), seconds, vocab))


def _items(
    ids: Sequence[str], windows: Sequence[Window], nats: Sequence[float], seconds: float, vocab: Vocab
) -> list[Item]:
    """One item for each conversation: what stands before the first answer is asked, the answers are the reference."""
    took = shared_seconds(seconds, [len(window.tokens) for window in windows])
    items = []
    for number, window in enumerate(windows):
        assert window.weights is not None
        answered = window.weights > 0
        first = int(np.argmax(answered)) if answered.any() else window.scored
        asked = vocab.decode(window.tokens[: first + 1])
        reference = vocab.decode(window.tokens[-window.scored :][answered])
        tokens = float(window.weights.sum())
        items.append(
            Item(
                id=ids[number],
                hash=hash_of(vocab.decode(window.tokens), reference),
                asked=ending(asked),
                reference=beginning(reference),
                log_likelihoods=(-nats[number],),
                bytes=len(reference.encode()),
                tokens=int(answered.sum()),
                seconds=took[number],
                measures={"nats_per_token": (nats[number], tokens)},
            )
        )
    return items


def _window(rows: UnitRows, document: tuple[int, int]) -> Window:
    """The window of a conversation, whose targets have weight 1 where the assistant writes."""
    batch = rows.batch([document])
    assert batch.lengths is not None
    used = batch.lengths[0]
    tokens = np.append(batch.tokens[0, :used].numpy(), batch.targets[0, used - 1].item())
    return Window(tokens, used, batch.weights[0, :used].double().numpy())
