"""The judging part of the critic's benchmark: entropy, comparison at equal entropy, and one tiny measurement."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.denoising import Denoising
from configs.schema.model import Model
from eval.reading.reader import LocalReader
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import MaskedPredictor
from pretrain.model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[3]
_SPEC = importlib.util.spec_from_file_location("critic", ROOT / "benchmarks" / "critic.py")
assert _SPEC is not None and _SPEC.loader is not None
critic: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["critic"] = critic  # its dataclasses look themselves up
_SPEC.loader.exec_module(critic)


def texts(temperature: float, kinds: int, nats: float, samples: int = 20) -> Any:
    ids = np.random.default_rng(0).integers(0, kinds, (samples, 50))
    return critic.Texts(temperature, ids, np.full(samples, 50 * nats))


def test_what_is_compared_has_the_same_entropy() -> None:
    even = critic.Texts(1.0, np.tile(np.arange(8), (4, 3)), np.full(4, 24.0))
    assert even.entropy == pytest.approx(math.log(8)) and even.nats_per_token == pytest.approx(1.0)
    alone = [texts(0.5, 4, 1.0), texts(1.0, 16, 3.0)]
    same = critic.gain(texts(0.9, 16, 2.4), alone)
    assert same.alone == pytest.approx(3.0) and same.change == pytest.approx(-0.2)
    assert same.low <= same.change <= same.high
    between = critic.gain(texts(0.9, 8, 1.0), alone)
    assert 1.8 < between.alone < 2.2, "dull text is compared with text as dull"
    beyond = critic.gain(texts(0.9, 40, 2.0), alone)
    assert math.isnan(beyond.change) and "nan" in critic.table(alone, [], [beyond])


def test_texts_are_written_and_judged() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 24}
    masked = Transformer(Model(**sizes, causal=False), 64).eval()
    judge = LocalReader(Transformer(Model(**sizes), 64).eval(), 50)
    denoiser = Denoiser(MaskedPredictor(masked, 50, 1), 50, Denoising(steps=2, order="random", block=8))
    found = critic.written(denoiser, judge, np.arange(2, 14).reshape(3, 4), 8, 1.0)
    assert found.ids.shape == (3, 8) and 1 < found.nats_per_token < 6
