"""The trial of a learned latent: its arithmetic by enumeration on a toy, and its tables; nothing long is trained."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from configs.schema.model import Model
from configs.schema.recipe import Recipe, load
from pretrain.batches.masked import MaskedBatches
from pretrain.model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[3]


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


for needed in ("critic", "latent_model"):
    sys.modules.get(needed) or _module(needed)
latent, parts = _module("latent"), sys.modules["latent_model"]

MASK, IDS, TARGETS = 1, (0, 2, 3, 4), 3  # a toy of three targets
SETS = [chosen for size in (1, 2, 3) for chosen in itertools.combinations(range(TARGETS), size)]
TEXTS = np.array([(0, *ids) for ids in itertools.product(IDS, repeat=TARGETS)])  # all rows (64, 4)


def toy(size: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=4, causal=False, init_std=0.5)
    module = parts.LatentModel(config, 5, MASK, size).eval()
    if size:
        with torch.no_grad():
            module.condition.weight.mul_(0.4)  # smooth enough to integrate over latents
    return module


@torch.inference_mode()
def set_nats(module: Any, zs: Tensor, texts: Any = TEXTS) -> dict[tuple[int, ...], Any]:
    """For each set of hidden places: nats (texts, latents, places of the set) of its tokens, all seen but the set."""
    found = {}
    targets = torch.from_numpy(texts[:, 1:])
    for chosen in SETS:
        tokens = torch.from_numpy(texts[:, :-1]).clone()
        tokens[:, [place + 1 for place in chosen if place < TARGETS - 1]] = MASK
        rows = tokens.repeat_interleave(len(zs), dim=0)
        logits = module.model.head(module.states(rows, zs.repeat(len(texts), 1)))[:, list(chosen)]
        log_probs = module.allowed(logits.flatten(0, 1)).log_softmax(-1).view(len(rows), len(chosen), -1)
        ids = targets[:, list(chosen)].repeat_interleave(len(zs), dim=0)
        found[chosen] = -log_probs.gather(-1, ids.unsqueeze(-1)).view(len(texts), len(zs), -1).double().numpy()
    return found


def probabilities(nats: dict[tuple[int, ...], Any], passes: int) -> Any:
    """(texts, latents): the chance that so many passes in random order write a text."""
    orders, counts = list(itertools.permutations(range(TARGETS))), parts.opened(TARGETS, passes)
    total = 0.0
    for order in orders:
        done, log_prob = 0, 0.0
        for count in counts:
            hidden = tuple(sorted(order[done:]))
            log_prob = log_prob - sum(nats[hidden][..., hidden.index(p)] for p in order[done : done + count])
            done += count
        total = total + np.exp(log_prob) / len(orders)
    return total


def expected(nats: dict[tuple[int, ...], Any], passes: int) -> Any:
    """(texts, latents): the mean over all masks of the bound of a text given its latent."""
    total, hidden = 0.0, TARGETS
    for count in parts.opened(TARGETS, passes):
        means = [nats[chosen].sum(axis=-1) for chosen in SETS if len(chosen) == hidden]
        total = total + count / hidden * np.mean(means, axis=0)
        hidden -= count
    return total


def nodes(mean: float, std: float, count: int = 81) -> tuple[Tensor, Any]:
    """Latents and weights that integrate over a Gaussian, by the trapezoidal rule."""
    points = np.linspace(-6, 6, count)
    weights = np.exp(-0.5 * points**2)
    return torch.tensor(mean + std * points, dtype=torch.float32).unsqueeze(-1), weights / weights.sum()


# ----------------------------------------------------------------------------------------------------------- arithmetic
def test_a_latent_of_zero_gives_the_model_without_one_to_the_bit() -> None:
    with_one, without, tokens = toy(3), toy(0), torch.from_numpy(TEXTS[:, :-1])
    plain: Transformer = with_one.model
    assert torch.equal(plain.embed.weight, without.model.embed.weight)
    for module, z in ((with_one, torch.zeros(len(TEXTS), 3)), (without, None)):
        assert torch.equal(module.states(tokens, z), plain.backbone(tokens))
    assert not torch.equal(with_one.states(tokens, torch.ones(len(TEXTS), 3)), plain.backbone(tokens))
    assert without.posterior(tokens) is None


def test_the_divergence_is_that_of_torch_and_never_negative() -> None:
    torch.manual_seed(1)
    posterior = parts.Posterior(torch.randn(50, 4), torch.randn(50, 4))
    other = torch.distributions.Normal(torch.zeros(50, 4), torch.ones(50, 4))
    own = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    torch.testing.assert_close(posterior.divergences, torch.distributions.kl_divergence(own, other))
    assert (posterior.divergences >= 0).all()
    assert (parts.Posterior(torch.zeros(2, 4), torch.zeros(2, 4)).divergences == 0).all()
    drawn = posterior.draw(torch.randn(50, 4))
    assert torch.equal(posterior.draw(torch.zeros(50, 4)), posterior.mean) and drawn.shape == (50, 4)


def test_what_the_divergence_costs_in_training() -> None:
    divergences = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert parts.Treatment().cost(divergences, 0.0) == 4
    assert parts.Treatment(warmup=0.5).cost(divergences, 0.125) == 1
    assert parts.Treatment(0.5, warmup=0.5).cost(divergences, 0.8) == 2
    assert parts.Treatment(free=2.0).cost(divergences, 0.0) == 2 * (2 + 1), "a nat is free in each dimension"


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_bound_is_never_below_the_exact_code_length(passes: int) -> None:
    module = toy(1)
    zs, weights = nodes(0.0, 1.0)
    exact = probabilities(set_nats(module, zs), passes) @ weights
    assert exact.sum() == pytest.approx(1, abs=1e-5), "a distribution over all texts"
    finer = nodes(0.0, 1.0, 121)
    assert probabilities(set_nats(module, finer[0]), passes) @ finer[1] == pytest.approx(exact, rel=1e-3)
    with torch.inference_mode():
        posterior = module.posterior(torch.from_numpy(TEXTS))
    likeliest = zs[probabilities(set_nats(module, zs), passes).argmax(axis=1)]
    sharp = parts.Posterior(likeliest, torch.full_like(likeliest, math.log(0.05)))
    too_low = 0
    for one in (posterior, sharp):
        for number, code in list(enumerate(-np.log(exact)))[::4]:
            points, shares = nodes(float(one.mean[number]), float(one.log_std[number].exp()))
            text = expected(set_nats(module, points, TEXTS[number : number + 1]), passes)[0] @ shares
            assert text + float(one.divergences[number].sum()) >= code - 1e-5
            too_low += text < code - 0.1
    assert too_low, "without the divergence some would be"


@pytest.mark.parametrize("passes", [1, 2, None])
def test_draws_have_the_mean_of_all_masks_and_latents(passes: int | None) -> None:
    module, rows = toy(1), np.repeat(TEXTS[29:30], 2000, axis=0)
    found = parts.bound(module, rows, passes, draws=8)
    with torch.inference_mode():
        posterior = module.posterior(torch.from_numpy(TEXTS[29:30]))
    points, shares = nodes(float(posterior.mean), float(posterior.log_std.exp()))
    mean = float(expected(set_nats(module, points, TEXTS[29:30]), passes or TARGETS)[0] @ shares)
    error = found.text.std() / math.sqrt(len(rows))
    assert abs(found.text.mean() - mean) < 4 * error and error < 0.03 * mean
    assert found.latent[0] == pytest.approx(float(posterior.divergences.sum()))
    assert (found.nats == found.text + found.latent).all()
    again = parts.bound(toy(0), TEXTS, passes)
    assert (again.latent == 0).all() and (again.nats == parts.bound(toy(0), TEXTS, passes).nats).all()


@pytest.mark.parametrize("passes", [1, 2])
def test_texts_have_the_distribution_of_the_model(passes: int) -> None:
    module, count = toy(1), 20_000
    zs = torch.randn(50, 1, generator=torch.Generator().manual_seed(5))
    exact, z = probabilities(set_nats(module, zs), passes).mean(axis=1), zs.repeat(count // len(zs), 1)
    ids = parts.written(module, np.zeros((count, 1), dtype=np.int64), TARGETS, passes, 1.0, z, 3)
    counts = np.array([(ids == text).all(axis=1).sum() for text in TEXTS[:, 1:]])
    assert counts.sum() == count, "the mask is never drawn"
    often = exact * count >= 5
    both = [np.append(own[often], own[~often].sum()) for own in (counts, exact / exact.sum() * count)]
    assert stats.chisquare(*both).pvalue > 1e-3
    alone = probabilities(set_nats(module, torch.zeros(1, 1)), passes)[:, 0]
    assert stats.chisquare(counts[often], alone[often] / alone[often].sum() * counts[often].sum()).pvalue < 1e-6


def test_passes_open_as_many_as_the_denoiser() -> None:
    assert parts.opened(127, 4) == [32, 32, 32, 31] and parts.opened(3, 16) == [1, 1, 1]
    for passes in (1, 3, 16):
        shares = [share for _, share in parts.draws_of(2, 16, passes, 16)]
        assert sum(shares) == pytest.approx(1)
    levels = [level for level, _ in parts.draws_of(1, 16, 16, 16)]
    assert [1 + int(level[0] * 16) for level in levels] == list(range(16, 0, -1))


# -------------------------------------------------------------------------------------------------- training and tables
@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "configs" / "diffusion.yaml", [*latent.MASKED, *latent._SIZES, *latent._TINY])


def test_arms_differ_in_layers_latent_and_treatment_alone(recipe: Recipe) -> None:
    models = {arm.name: latent.model_of(arm, recipe.model, 300, MASK, 7) for arm in latent.ARMS}
    sizes = {name: sum(own.numel() for own in model.parameters()) for name, model in models.items()}
    assert sizes[latent.BASE] < sizes[latent.MATCHED] < min(own for name, own in sizes.items() if "latent" in name)
    for name, model in models.items():
        if name != latent.MATCHED:
            for own, base in zip(model.model.parameters(), models[latent.BASE].model.parameters(), strict=True):
                assert torch.equal(own, base)


def test_a_step_of_training_moves_the_latent(recipe: Recipe) -> None:
    phrases = latent.Phrases(8, 16, 4)
    arm = latent.Arm("x", "", size=4)
    module, start = (latent.model_of(arm, recipe.model, 34, MASK, 7) for _ in range(2))
    parts.train_masked(module, MaskedBatches(phrases, MASK, 1), recipe, 2, arm.treatment)
    moved = {
        name for (name, own), other in zip(module.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(own, other)
    }  # fmt: skip
    assert {"condition.weight", "recognition.gaussian.weight", "model.embed.weight"} <= moved
    assert "recognition.reader.blocks.0.mlp.up.weight" in moved


def test_figures_and_tables_of_untrained_models(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("TEMPERATURES", latent.COMPARED), ("PASSES", (4,)), ("BOUND_PASSES", (4, None))):
        monkeypatch.setattr(latent, name, few)
    torch.manual_seed(0)
    judge = Transformer(recipe.model.model_copy(update={"causal": True}), 320).eval()
    rows = np.random.default_rng(0).integers(2, 300, (6, recipe.model.context_length + 1))
    held = latent.Held(rows, np.full(6, 40))
    assert held.bits_per_byte(np.full(6, 40 * math.log(2))) == pytest.approx(1)
    change, low, high = held.change(np.arange(6.0), np.zeros(6))
    assert low <= change <= high
    found = [
        latent.measured(arm, latent.model_of(arm, recipe.model, 300, MASK, 7), 1.0, judge, held, 3, 1)
        for arm in (latent.ARMS[0], latent.ARMS[-1])
    ]
    base, other = found
    assert base.told == {} and set(other.told) == set(latent.PASSES)
    assert base.texts[4][0].ids.shape == (3, recipe.model.context_length)
    table = latent.bound_table(found, held)
    assert table.count("\n") == 4 and "| latent-plain |" in table
    texts = latent.text_table(found, latent.BASE)
    assert texts.count("| latent-plain |") == len(latent.COMPARED) == texts.count("z of held-out rows")
    assert latent.as_json(found, held)[1]["kl_nats_per_row"] > 0
