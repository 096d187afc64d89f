"""Noise: a function of counts alone, distinct, even; and the draw follows the distribution exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pretrain.generation.noise import draw, key_uniforms, noise_keys, uniforms
from pretrain.generation.sampling import distribution

LOGITS = torch.randn(24, generator=torch.Generator().manual_seed(4)) * 1.5


def test_splitmix_gives_the_published_numbers() -> None:
    """The first outputs of SplitMix64 from state 1234567 (the generator's own test values, Vigna 2015)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    drawn = key_uniforms(np.array([1234567], dtype=np.uint64), np.arange(4))
    assert drawn.tolist() == [(number >> 11) * 2.0**-53 for number in expected]


def test_a_number_depends_on_its_counts_alone() -> None:
    slots, samples = np.repeat(np.arange(64), 8), np.tile(np.arange(8), 64)
    whole = torch.stack([uniforms(1, "rollout", slots, samples, position) for position in range(40)])
    assert whole.dtype == torch.float64 and whole.min() >= 0 and whole.max() < 1
    assert len(whole.unique()) == whole.numel()  # all numbers of a step are distinct
    some = np.array([500, 3, 77])
    assert torch.equal(uniforms(1, "rollout", slots[some], samples[some], 9), whole[9, some])
    assert torch.equal(uniforms(1, "rollout", [5], [3], [9]), whole[9, [43]])
    for seed, name in ((2, "rollout"), (1, "text")):
        other = torch.stack([uniforms(seed, name, slots, samples, position) for position in range(40)])
        assert len(torch.cat([whole, other]).unique()) == 2 * whole.numel()
    assert len(set(noise_keys(1, "rollout", slots, samples).tolist())) == len(slots)


def test_numbers_are_even_and_do_not_follow_one_another() -> None:
    keys = noise_keys(3, "rollout", np.arange(1000), np.zeros(1000, np.int64))
    table = key_uniforms(keys[:, None], np.arange(100)[None])
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-4
    for shifted in (table[1:].ravel()[: table.size - 100], table.ravel()[1:]):
        assert abs(np.corrcoef(table.ravel()[: len(shifted)], shifted)[0, 1]) < 5 / np.sqrt(table.size)


def counts(probabilities: torch.Tensor, draws: int = 100_000) -> np.ndarray:
    numbers = uniforms(11, "text", np.arange(draws), np.zeros(draws, np.int64), 0)
    tokens = draw(probabilities.expand(draws, -1), numbers)
    return np.bincount(tokens.numpy(), minlength=len(probabilities))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (7, None), (None, 0.8), (9, 0.7)])
def test_draws_follow_the_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Pearson's chi-square of 10^5 draws; the same draws do not fit the distribution at another temperature."""
    probabilities = distribution(LOGITS, temperature, top_k, top_p)
    seen = counts(probabilities)
    kept = (probabilities > 0).numpy()
    assert seen[~kept].sum() == 0 and kept.sum() > 2
    expected = probabilities.double().numpy()[kept]
    assert stats.chisquare(seen[kept], seen.sum() * expected / expected.sum()).pvalue > 1e-4
    other = distribution(LOGITS, temperature * 1.05, top_k, None).double().numpy()[kept]
    assert stats.chisquare(seen[kept], seen.sum() * other / other.sum()).pvalue < 1e-4


def test_draw_at_its_borders() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]]).expand(5, -1)
    edges = torch.tensor([0.0, 2 / 3 - 1e-9, 2 / 3 + 1e-9, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    assert draw(weights, edges).tolist() == [1, 1, 3, 3, 1]
    tiny = torch.full((1, 3), 1e-30)
    assert draw(tiny, torch.tensor([0.5], dtype=torch.float64)).tolist() == [1]
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2000, 50, generator=generator) * (torch.rand(2000, 50, generator=generator) < 0.3)
    rough[:, 7] += 0.1
    last = torch.full((2000,), 1 - 2.0**-53, dtype=torch.float64)
    assert (rough.gather(1, draw(rough, last).unsqueeze(1)) > 0).all()
    assert (rough.gather(1, draw(rough, torch.zeros(2000, dtype=torch.float64)).unsqueeze(1)) > 0).all()
