"""lm-eval asks a masked model: one token is exact, more are bounds, and greedy is filling in the surest first."""

from __future__ import annotations

import math

import numpy as np
import pytest

from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from data_prep.tokens.vocab_training import train_vocab
from eval.harness.lm_eval_adapter import ReplicaLM
from eval.reading.bound import BoundReader, Draws
from eval.reading.scoring import BatchSize
from pretrain.denoising.denoise import Denoiser
from tests.parts.toy_predictors import Joint


def test_choices_of_one_token_are_exact_and_longer_ones_bounds() -> None:
    joint = np.array([[[0.30, 0.02], [0.05, 0.20]], [[0.10, 0.08], [0.15, 0.10]]])
    toy = Joint(joint)
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens=[END_OF_TEXT, MASK]), [])
    reader = BoundReader(toy, toy.vocab_size, "fp32", Denoiser(toy, toy.vocab_size), Draws(16, 0), BatchSize(100, None))
    pairs = [([toy.begin, 1, 0], [token]) for token in (0, 1)] + [([toy.begin], [0, 0, 0])]
    (first, is_first), (second, is_second), (whole, filled) = ReplicaLM(reader, vocab, progress=False)._score(pairs)
    assert (first, second) == pytest.approx((math.log(0.10 / 0.18), math.log(0.08 / 0.18)), rel=1e-6)
    assert is_first and not is_second and filled
    assert whole < math.log(0.30), "a bound of the nats is below the log-likelihood"
