"""A critic brings back what tokens of one pass lack: that they depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.schema.denoising import Denoising
from configs.schema.model import Model
from eval.reading.reader import LocalReader
from eval.reading.windows import Window
from pretrain.denoising.candidates import CriticDenoiser, causal_critic
from pretrain.denoising.denoise import Denoiser
from pretrain.generation.player import Request
from pretrain.generation.sampling import Sampling
from pretrain.model.transformer import Transformer
from tests.parts.toy_predictors import Inconsistent, Joint, random_joint


def frequencies(denoiser: Denoiser, begin: int, samples: int) -> np.ndarray:
    counts = np.zeros((3, 3))
    answers = denoiser.run([Request([begin], 2, Sampling(), samples=samples)])
    np.add.at(counts, tuple(np.array([answer.ids for answer in answers]).T), 1 / samples)
    return counts


def test_candidates_weighed_by_the_joint_come_near_it_in_one_pass() -> None:
    toy, plan = Joint(random_joint(2, 3)), Denoising(steps=1)

    def critic(rows: list[np.ndarray]) -> np.ndarray:
        return np.array([np.log(toy.joint[tuple(row[1:])]) for row in rows])

    alone = frequencies(Denoiser(toy, toy.vocab_size, plan), toy.begin, 1000)
    judged = frequencies(CriticDenoiser(critic, 16, toy, toy.vocab_size, plan), toy.begin, 1000)
    one = frequencies(CriticDenoiser(critic, 1, toy, toy.vocab_size, plan), toy.begin, 1000)
    far, near = (np.abs(own - toy.joint).sum() / 2 for own in (alone, judged))
    assert far > 0.15 and near < far / 4
    assert np.array_equal(one, alone), "one candidate leaves no choice"


def test_a_critic_reads_no_mask_and_nothing_behind_an_end() -> None:
    toy, seen = Inconsistent(random_joint(7, 3)), []

    def critic(rows: list[np.ndarray]) -> np.ndarray:
        seen.extend(tuple(map(int, row)) for row in rows)
        return np.zeros(len(rows))

    mask = toy.mask_id
    request = Request([toy.begin, 1, mask, mask, 0, mask, mask, mask], 1, Sampling(stop=[2]), samples=20)
    answers = CriticDenoiser(critic, 4, toy, toy.vocab_size, Denoising(block=2)).run([request])
    assert len(answers) == 20 and all(mask not in row for row in seen)
    assert all(row[:2] == (toy.begin, 1) and (len(row) < 5 or row[4] == 0) for row in seen)
    assert all(2 not in row[2:-1] for row in seen) and any(row[-1] == 2 for row in seen)


def test_a_causal_model_gives_the_log_probabilities_of_whole_rows() -> None:
    torch.manual_seed(0)
    model = Transformer(Model(num_layers=1, hidden_size=16, num_heads=2, context_length=16, init_std=0.5), 64).eval()
    rows = [np.arange(3, 15), np.array([4, 9]), np.arange(20, 27)]
    scores = LocalReader(model, 50).score([Window(row, len(row) - 1) for row in rows])
    wanted = [-score.nats for score in scores]
    assert causal_critic(model, 50)(rows) == pytest.approx(wanted, rel=1e-5)
