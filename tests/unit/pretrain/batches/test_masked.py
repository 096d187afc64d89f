"""Masked batches: the bound that they estimate, by enumeration, and what they hide."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from configs.schema.model import Model
from data_prep.tokens.shards import load_manifest
from launch.trace import print_trace
from pretrain.batches.masked import MaskedBatches, evenly_apart, hidden_weights, masked, random_order
from pretrain.batches.source import Batch, BatchSource
from pretrain.batches.trace import traced
from pretrain.model.transformer import Transformer
from pretrain.objectives.masked_diffusion import mask_id_of
from pretrain.reliability.loss_guard import LossHistory
from tests.parts.training_run import prepare_data, tiny_recipe

N = 5
SUBSETS = [subset for size in range(1, N + 1) for subset in itertools.combinations(range(N), size)]
# A toy model: nats of target i where the targets of a subset are hidden, any numbers.
NATS: dict[tuple[int, ...], NDArray[np.float64]] = dict(
    zip(SUBSETS, np.random.default_rng(7).gamma(2.0, 0.5, (len(SUBSETS), N)), strict=True)
)


def hidden_nats(subset: tuple[int, ...]) -> float:
    """Nats of all that is hidden."""
    return float(NATS[subset][list(subset)].sum())


def exact_k() -> float:
    """A mean over k of n / k x the mean over all sets of k."""
    by_size = [[hidden_nats(subset) for subset in SUBSETS if len(subset) == k] for k in range(1, N + 1)]
    return float(np.mean([N / k * np.mean(values) for k, values in enumerate(by_size, 1)]))


def continuous_time() -> float:
    """MDLM's integral over t of 1 / t x the expected nats, each target hidden with probability t: a beta function."""

    def weight(k: int) -> float:
        return math.gamma(k) * math.gamma(N - k + 1) / math.gamma(N + 1)

    return sum(weight(len(subset)) * hidden_nats(subset) for subset in SUBSETS)


def mean_over_orders() -> float:
    """Predicting one target after the other, in a mean over all orders: what is left is hidden."""
    totals = [
        sum(NATS[tuple(sorted(order[place:]))][order[place]] for place in range(N))
        for order in itertools.permutations(range(N))
    ]
    return float(np.mean(totals))


def test_the_bound_is_the_same_three_ways_and_ours() -> None:
    expected = mean_over_orders()
    assert exact_k() == pytest.approx(expected, rel=1e-12) and continuous_time() == pytest.approx(expected, rel=1e-12)
    orders = np.array(list(itertools.permutations(range(N))), dtype=np.float64)
    counted = np.ones(orders.shape, dtype=bool)
    totals = []
    for k in range(N):
        for row in hidden_weights(counted, np.full(len(orders), (k + 0.5) / N), orders):
            subset = tuple(np.flatnonzero(row).tolist())
            assert len(subset) == k + 1 and row.sum() == pytest.approx(N)
            totals.append(float((row[list(subset)] * NATS[subset][list(subset)]).sum()))
    assert np.mean(totals) == pytest.approx(expected, rel=1e-6)


def test_the_same_mean_as_the_estimator_of_mdlm_with_less_noise() -> None:
    draws, expected = 10_000, mean_over_orders()
    random = np.random.default_rng(1)

    def estimates(weights: NDArray[Any]) -> NDArray[np.float64]:
        subsets = [tuple(np.flatnonzero(row).tolist()) for row in weights]
        return np.array(
            [row[list(s)] @ NATS[s][list(s)] if s else 0.0 for row, s in zip(weights, subsets, strict=True)]
        )

    t = (np.arange(draws) / draws + random.random()) % 1.0  # as evenly spread as ours
    theirs = estimates((random.random((draws, N)) < t[:, None]) / np.maximum(t, 1e-9)[:, None])
    levels = evenly_apart(3, "test", np.array([0]), draws)[0]
    ours = estimates(hidden_weights(np.ones((draws, N), bool), levels, random_order(3, "test", np.arange(draws), 0, N)))
    for found in (theirs, ours):
        assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(draws)
    assert ours.std() < 0.7 * theirs.std()


def test_the_bound_of_a_model_is_the_mean_over_orders_of_predicting_one_by_one() -> None:
    """Three targets; a causal model with permuted inputs would see the same: what came before, in any order."""
    torch.manual_seed(0)
    config = Model(num_layers=2, hidden_size=16, num_heads=2, context_length=3, causal=False, init_std=0.5)
    model, mask_id = Transformer(config, 8).double().eval(), 7
    text = torch.tensor([[1, 4, 2, 5]])
    batch = Batch(text[:, :-1], text[:, 1:], torch.ones(1, 3), 3, fresh=True)

    @torch.no_grad()
    def log_prob(target: int, known: set[int]) -> float:
        tokens = batch.tokens.clone()
        for place in range(1, 3):  # input i + 1 is target i; the last target is no input
            if place - 1 not in known:
                tokens[0, place] = mask_id
        return float(model(tokens).log_softmax(-1)[0, target, batch.targets[0, target]])

    one_by_one = [
        -sum(log_prob(target, set(order[:place])) for place, target in enumerate(order))
        for order in itertools.permutations(range(3))
    ]
    bounds = []
    for k, order in itertools.product(range(3), itertools.permutations(range(3))):
        hidden = masked(batch, mask_id, np.array([(k + 0.5) / 3]), np.array([order], dtype=np.float64))
        with torch.no_grad():
            bounds.append(float(model.loss(hidden.tokens, hidden.targets, hidden.weights.double())))
    assert np.mean(bounds) == pytest.approx(np.mean(one_by_one), rel=1e-6)
    assert max(one_by_one) - min(one_by_one) > 0.01, "orders differ"


# ------------------------------------------------------------------------------------------------------------- batches
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"), {"a": 6_000}, masked=True)


SETTINGS: dict[str, dict[str, Any]] = {
    "stream": {},
    "documents": {"document_masking": True},
    "packed": {"document_masking": True, "packing": "best_fit"},
}


def made(directory: Path, data: Path, **train: Any) -> tuple[BatchSource, MaskedBatches, int, Any]:
    recipe = tiny_recipe(directory, data, objective={"kind": "masked_diffusion"}, global_batch_size=4, **train)
    manifest = load_manifest(recipe.data_directory)
    source, mask_id = BatchSource(recipe, manifest), mask_id_of(manifest.vocab)
    return source, MaskedBatches(source, mask_id, recipe.seed), mask_id, manifest.vocab


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_hidden_is_no_input_and_all_else_stays(tmp_path: Path, data: Path, name: str) -> None:
    source, batches, mask_id, vocab = made(tmp_path, data, **SETTINGS[name])
    padded = shown_at_borders = 0
    for step in range(40):
        plain, hidden = source.batch(step), batches.batch(step)
        counted, chosen = plain.weights > 0, hidden.weights > 0
        assert torch.equal(hidden.targets, plain.targets) and not (chosen & ~counted).any() and not hidden.fresh
        torch.testing.assert_close(hidden.weights.sum(1), counted.sum(1).float())
        assert hidden.read == counted.sum() and hidden.target_bytes == plain.target_bytes
        assert torch.equal(hidden.tokens[:, 0], plain.tokens[:, 0])
        begins = torch.zeros_like(chosen) if plain.positions is None else plain.positions == 0
        expected = torch.where(chosen[:, :-1] & ~begins[:, 1:], mask_id, plain.tokens[:, 1:])
        assert torch.equal(hidden.tokens[:, 1:], expected)
        spans, same = list(traced(batches, vocab, step)), list(traced(source, vocab, step))
        assert [replace(span, counted=None) for span in spans] == [replace(span, counted=None) for span in same]
        for row in range(len(chosen)):
            assert sum(span.counted or 0 for span in spans if span.row == row) == int(chosen[row].sum())
        padded += int((~counted).sum())
        shown_at_borders += int((chosen[:, :-1] & begins[:, 1:]).sum())
    assert bool(padded) == (name == "packed") and bool(shown_at_borders) == (name != "stream")


def test_the_trace_of_a_step_says_how_much_of_each_document_was_hidden(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, data, objective={"kind": "masked_diffusion"}, global_batch_size=4)
    _, batches, _, vocab = made(tmp_path, data)
    spans = list(traced(batches, vocab, 2))
    print_trace(recipe, 3)
    title, *lines = capsys.readouterr().out.splitlines()
    assert "tokens  hidden  first words" in title
    for line, span in zip(lines, spans, strict=True):
        assert re.search(rf" {span.tokens} +{span.counted} ", line)
    assert len({span.counted for span in spans}) > 2 and all(0 <= (span.counted or 0) <= span.tokens for span in spans)


def test_a_pure_function_of_the_step_on_any_ranks(tmp_path: Path, data: Path) -> None:
    _, batches, _, _ = made(tmp_path, data)
    again = made(tmp_path, data)[1]
    assert batches.batch(3).tokens.ne(batches.batch(4).tokens).any()
    for ranks in (1, 2, 4):
        shares = [again.batch(3, rank, ranks) for rank in range(ranks)]
        for whole, parts in zip(batches.batch(3).inputs, zip(*(s.inputs for s in shares), strict=True), strict=True):
            assert torch.equal(whole, torch.cat(parts))


def test_hidden_numbers_are_uniform_for_each_row_and_evenly_apart_in_a_batch() -> None:
    levels = evenly_apart(1, "train", np.arange(4000), 8)
    assert np.allclose(np.diff(np.sort(levels, axis=1), axis=1), 1 / 8)
    assert np.abs(np.sort(levels, axis=0) - (np.arange(4000)[:, None] + 0.5) / 4000).max() < 0.03
    weights = hidden_weights(np.ones((4000, 6), bool), levels[:, 3], random_order(1, "train", np.arange(4000), 0, 6))
    assert np.abs(np.bincount((weights > 0).sum(1), minlength=7)[1:] / 4000 - 1 / 6).max() < 0.03
    assert np.abs((weights > 0).mean(0) - 3.5 / 6).max() < 0.03, "all places alike"
    assert not hidden_weights(np.zeros((1, 4), bool), np.array([0.9]), np.ones((1, 4))).any()


@pytest.mark.parametrize(("rows", "width"), [(2, 32), (8, 256), (16, 256)])
def test_quiet_steps_are_no_spikes(rows: int, width: int) -> None:
    """Rows with one hidden target make the loss noisy; the guard's median and deviation are of the same noise."""
    random, history, largest = np.random.default_rng(5), LossHistory([], 128), 0.0
    levels = evenly_apart(5, "train", np.arange(500), rows)
    for step in range(500):
        counts = 1 + (levels[step] * width).astype(int)
        means = 2.5 + 3.5 * counts / width  # more that is hidden is harder
        loss = float(np.mean([random.gamma(1.2, mean / 1.2, k).mean() for k, mean in zip(counts, means, strict=True)]))
        largest = max(largest, history.z(loss))
        history.add(loss)
    assert largest < 8, "train.faults.zscore is 10"
    assert history.z(20.0) > 10
