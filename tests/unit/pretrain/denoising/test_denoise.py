"""Masks are filled in by the distribution that a model has, in any order and any company; the rest stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from configs.schema.denoising import Denoising
from configs.schema.model import Model
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import LOWEST, MaskedPredictor
from pretrain.generation.player import Request
from pretrain.generation.sampling import GREEDY, Sampling
from pretrain.model import transformer
from pretrain.model.masking import document_mask
from tests.parts.toy_predictors import Inconsistent, Joint, random_joint

PLANS = [
    Denoising.model_validate({"order": order, "steps": steps, "block": block})
    for order in ("confidence", "random")
    for steps in (None, 1, 3)
    for block in (1, 3, 32)
]


def filled(
    toy: Any, prompt: list[int], plan: Denoising | None = None, new: int = 1, **settings: Any
) -> list[list[int]]:
    samples = settings.pop("samples", 1)
    request = Request(prompt, new, Sampling(**settings), samples=samples)
    return [answer.ids for answer in Denoiser(toy, toy.vocab_size, plan).run([request])]


@pytest.mark.parametrize(
    "plan", [Denoising(order="random"), Denoising(order="random", block=1)], ids=["random", "left to right"]
)
def test_one_by_one_sampling_gives_the_joint_distribution(plan: Denoising) -> None:
    toy = Joint(random_joint(2, 3))
    found = filled(toy, [toy.begin], plan, new=2, samples=1500)
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(np.array(found).T), 1)
    assert scipy.stats.chisquare(counts.flatten(), 1500 * toy.joint.flatten()).pvalue > 0.01
    firsts = {read[1:].count(toy.mask_id) for read in toy.read}
    assert firsts == {2, 1}, "one token a pass"


def test_a_random_order_is_drawn_evenly_and_tokens_of_one_pass_do_not_depend_on_each_other() -> None:
    toy = Joint(random_joint(2, 3))
    filled(toy, [toy.begin], Denoising(order="random"), new=2, samples=1000)
    left = sum(read[1] == toy.mask_id for read in toy.read if read.count(toy.mask_id) == 1)
    assert 440 < left < 560
    found = filled(toy, [toy.begin], Denoising(order="random", steps=1), new=2, samples=1500)
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(np.array(found).T), 1)
    independent = np.multiply.outer(toy.joint.sum(1), toy.joint.sum(0))
    assert scipy.stats.chisquare(counts.flatten(), 1500 * independent.flatten()).pvalue > 0.01


def test_confidence_keeps_the_surest_token_first() -> None:
    joint = np.multiply.outer([0.5, 0.3, 0.2], [0.05, 0.9, 0.05])
    toy = Joint(joint)
    assert filled(toy, [toy.begin], Denoising(), new=2, temperature=0.0) == [[0, 1]]
    assert [read[1:] for read in toy.read] == [(3, 3), (3, 1)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_fixed_tokens_stay_and_no_mask_and_no_end_before_a_fixed_token_is_drawn(plan: Denoising) -> None:
    toy = Inconsistent(random_joint(7, 3))
    mask, end = toy.mask_id, 2
    prompt = [toy.begin, 1, mask, mask, 0, mask, mask, mask]
    answers = filled(toy, prompt, plan, samples=40, stop=[end])
    for ids in answers:
        assert mask not in ids and toy.begin not in ids
        assert end not in ids[:2], "a text does not end before a fixed token"
        assert end not in ids[2:-1] and (len(ids) == 5 or ids[-1] == end)
    assert min(len(ids) for ids in answers) < 5, "some end early, behind the last fixed token"
    for read in toy.read:
        assert read[:2] == (toy.begin, 1) and read[4] == 0 and len(read) == 8
    passes = len(toy.read) / 40
    if plan.steps is not None and plan.block == 32:
        assert passes <= plan.steps


def test_continuation_ends_like_one_that_is_decoded() -> None:
    toy = Inconsistent(random_joint(6, 3))
    request = Request([toy.begin], 6, Sampling(stop=[2]), samples=60)
    answers = Denoiser(toy, toy.vocab_size).run([request])
    for answer in answers:
        assert answer.finish == ("stop" if answer.ids[-1] == 2 else "length")
        assert 2 not in answer.ids[:-1] and (answer.finish == "stop" or len(answer.ids) == 6)
        assert len(answer.log_probs) == len(answer.forced) == len(answer.ids) and max(answer.log_probs) < 0
    over = Request([toy.begin], 6, Sampling(), is_over=lambda ids: list(ids[-2:]) == [1, 0], samples=60)
    texts = Denoiser(toy, toy.vocab_size, Denoising(block=2)).run([over])
    assert any(answer.finish == "stop" for answer in texts)
    for answer in texts:
        pairs = list(zip(answer.ids, answer.ids[1:], strict=False))
        assert (1, 0) not in pairs[:-1] and (answer.finish == "stop") == (bool(pairs) and pairs[-1] == (1, 0))


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    torch.manual_seed(0)
    config = Model(num_layers=2, hidden_size=32, num_heads=2, context_length=24, causal=False)
    model = transformer.Transformer(config, 64).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from uniform
    return MaskedPredictor(model, 50, mask_id=1)


def test_a_text_does_not_depend_on_its_neighbours(predictor: MaskedPredictor) -> None:
    requests = [
        Request([5, 6, 1, 7], 3, Sampling(seed=1, vocab_size=50), samples=2),
        Request(list(range(2, 12)), 6, GREEDY),
        Request([9], 9, Sampling(0.7, top_p=0.9, seed=2)),
        Request([3, 1, 1, 1, 1, 4, 1], 1, Sampling(top_k=5, seed=3)),
    ]
    together = Denoiser(predictor, 50, Denoising(steps=4)).run(requests)
    alone = [answer for one in requests for answer in Denoiser(predictor, 50, Denoising(steps=4)).run([one])]
    narrow = Denoiser(predictor, 50, Denoising(steps=4), max_rows=2, pass_tokens=8).run(requests)
    ids = [answer.ids for answer in together]
    assert ids == [answer.ids for answer in alone] == [answer.ids for answer in narrow]
    assert ids[0] != ids[1] and all(1 not in one and max(one) < 50 for one in ids)


def test_texts_longer_than_the_context_go_on_and_padding_is_not_seen(predictor: MaskedPredictor) -> None:
    answer = Denoiser(predictor, 50, Denoising(block=100)).run([Request(list(range(2, 40)), 40, Sampling(seed=5))])[0]
    assert len(answer.ids) == 40 and 1 not in answer.ids
    assert (predictor.logits(predictor.states([np.array([4, 1])])[0])[:, 1] == LOWEST).all(), "a mask is never drawn"
    short, long = np.array([4, 1, 9]), np.arange(2, 22)
    together, alone = predictor.states([short, long])[0, :3], predictor.states([short])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_rows_of_several_lengths_compile_nothing(predictor: MaskedPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention, which a GPU prefers, would be compiled for each of the many shapes."""
    flexible: list[bool] = []

    def noted(positions: Any, dtype: Any, flex: bool, causal: bool) -> Any:
        flexible.append(flex)
        return document_mask(positions, dtype, False, causal)

    monkeypatch.setattr(transformer, "prefers_flex", lambda config, device: True)
    monkeypatch.setattr(transformer, "document_mask", noted)
    predictor.states([np.array([4, 1, 9]), np.array([4, 1])])
    assert flexible == [False]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 3), "a prompt is empty"),
        (Request([1, 3], 3), "begins with a mask"),
        (Request([2, *[1] * 30], 3), "31 tokens, which do not fit the model's context of 24"),
        (Request([99], 3), "token ids 99 to 99"),
        (Request([2], 3, forced=lambda ids: None), "takes no tokens that follow from others"),
    ],
)
def test_requests_that_cannot_be_filled_in(predictor: MaskedPredictor, request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoiser(predictor, 50).run([request_])
