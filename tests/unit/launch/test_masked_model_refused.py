"""What needs a model that predicts each token from those before it refuses a masked one, each by its own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs.schema.model import Model
from eval.reading.scoring import BatchSize, scored_windows
from eval.reading.windows import Window
from launch.chat import served_model
from pretrain.checkpoint.choice import Choice
from pretrain.generation.decode import Decoder
from pretrain.interchange.exportable import architecture_of
from pretrain.model.transformer import Transformer

CONFIG = Model(num_layers=1, hidden_size=8, num_heads=1, context_length=8, causal=False)
SIZE = BatchSize(64, None)
DOORS: dict[str, Callable[[Transformer], object]] = {
    "an export": lambda model: architecture_of(model.config),
    "decoding with a key/value cache": lambda model: model.new_cache(1, 4),
    "decoding token by token": Decoder,
    "scoring a text token by token": lambda model: next(scored_windows(model, [Window(np.arange(4), 2)], 10, SIZE)),
    "writing answers token by token": lambda model: served_model.open_served_model(Path("run"), Choice()),
}


@pytest.mark.parametrize("what", DOORS)
def test_a_masked_model_is_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    recipe = SimpleNamespace(name="r", model=CONFIG, train=SimpleNamespace(objective=None))
    monkeypatch.setattr(served_model, "choose_checkpoint", lambda run, choice: SimpleNamespace(recipe=recipe))
    with pytest.raises(ValueError, match=f"^{what} needs a model that predicts each token from those before it"):
        DOORS[what](Transformer(CONFIG, 16).eval())
