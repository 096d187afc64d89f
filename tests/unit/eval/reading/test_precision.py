"""In which precision a model is read: chosen by recipe and device, taken from the weights, named in every result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema.evaluation import Evaluation
from configs.schema.model import Model
from configs.schema.objectives import RewardModelling
from eval.comparison.comparable import difference
from eval.reading.opening import reading_precision
from eval.reading.reader import LocalReader
from eval.reading.windows import Window
from eval.results import Result
from pretrain.model.transformer import Transformer
from tests.parts.fake_run import fake_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("wanted", "trained", "device", "chosen"),
    [
        ("auto", "bf16", CPU, "fp32"),
        ("auto", "bf16", GPU, "bf16"),
        ("auto", "auto", GPU, "bf16"),
        ("auto", "fp32", GPU, "fp32"),
        ("bf16", "fp32", CPU, "bf16"),
        ("fp32", "bf16", GPU, "fp32"),
    ],
)
def test_the_choice(
    wanted: str, trained: str, device: torch.device, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    recipe = fake_recipe(Path("/nowhere"))
    train = recipe.train.model_copy(update={"precision": trained})
    own = recipe.model_copy(update={"train": train, "evaluation": Evaluation(precision=wanted)})  # type: ignore[arg-type]
    assert reading_precision(own, device) == chosen
    rewarding = train.model_copy(update={"objective": RewardModelling(kind="reward")})
    assert reading_precision(own.model_copy(update={"train": rewarding}), device) == "fp32"


def test_both_precisions_read_the_same_model() -> None:
    torch.manual_seed(0)
    config = Model(family="llama", num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, context_length=40)
    model = Transformer(config, 128).eval()
    draw = np.random.default_rng(0)
    shared = draw.integers(0, 120, 20)
    windows = [Window(np.append(shared, draw.integers(0, 120, 8)), 8) for _ in range(3)]
    exact = LocalReader(model, 120)
    assert exact.precision == "fp32"
    expected = [score.nats for score in exact.score(windows)]
    rounded = LocalReader(model.to(torch.bfloat16), 120)
    assert rounded.precision == "bf16"
    found = [score.nats for score in rounded.score(windows)]
    assert found == pytest.approx(expected, rel=5e-3) and found != pytest.approx(expected, rel=1e-7)


def scored(**settings: str) -> Result:
    return Result("perplexity/p/bits_per_byte", 1.0, None, None, 9, "bits", False, "", settings=settings)


def test_scores_of_another_precision_are_not_compared() -> None:
    assert difference(scored(precision="bf16"), scored(precision="fp32")) == "precision bf16 against fp32"
    assert difference(scored(), scored(precision="fp32")) is None, "earlier versions read in fp32, and did not say so"
    assert difference(scored(), scored(precision="bf16")) == "precision fp32 against bf16"
