"""Texts go where there is a place for them: TensorBoard and Weights & Biases, escaped."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pretrain.metrics.meter import Meter, Tracker
from tests.parts.training_run import tiny_recipe


def test_texts_and_values_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    wandb = types.ModuleType("wandb")
    wandb.init, wandb.Html = lambda **_: run, lambda text: text  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = Tracker(tiny_recipe(tmp_path, tmp_path, tensorboard=True, wandb={"project": "p"}), 0, enabled=True)
    tracker.log(5, {"eval/benchmark/copa/acc": 0.5})
    tracker.show(5, {"eval/samples/1": "Once\n<b>upon"})
    tracker.show(6, {})
    tracker.close()
    assert logged == [(5, {"eval/benchmark/copa/acc": 0.5}), (5, {"eval/samples/1": "<pre>Once\n&lt;b&gt;upon</pre>"})]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (text,) = events.Tensors("eval/samples/1/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    Once\n    <b>upon\n" and text.step == 5


def test_what_was_measured_counts_for_these_weights_alone() -> None:
    meter = Meter(1.0, 1.0, {})
    meter.note_measured({"val/loss": 2.0, "val/length": 9.0}, {"val/loss": False}.get)
    meter.note_measured({"eval/benchmark/copa/acc": 0.5}, {"eval/benchmark/copa/acc": True}.get)
    assert meter.measured == {"val/loss": (2.0, False), "eval/benchmark/copa/acc": (0.5, True)}
    assert meter.validation_loss == 2.0
    meter.state["targets"] += 1
    assert meter.measured == {} and meter.validation_loss is None
