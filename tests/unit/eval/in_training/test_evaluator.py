"""Parts of the evaluation during training: curves, bounds, failures; and that training does not notice them."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.recipe import Recipe
from eval.in_training import evaluator
from eval.in_training.bounded import OutOfTime
from eval.in_training.record import read_records
from eval.parts import Part, Scored
from eval.scorer import Scorer
from pretrain import session
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.manifest import read_info, step_directories
from pretrain.engine.engine import Engine
from pretrain.metrics.evaluated import StepScores, find_evaluator, undisturbed
from pretrain.metrics.metrics_file import read_metrics
from pretrain.signals import StoppedEarly
from tests.parts.small_units import prepare_units
from tests.parts.training_run import SENTENCES, metric_lines, prepare_data, tiny_recipe

BITS = "eval/perplexity/held/bits_per_byte"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(tmp_path: Path, data: Path) -> Callable[..., Recipe]:
    """A recipe whose evaluation has a perplexity set and a prompt, of which `parts` are scored in training."""
    documents = [{"text": "".join(SENTENCES[number : number + 9])} for number in range(0, 81, 9)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))

    def make(
        directory: str = "one", parts: tuple[str, ...] = ("perplexity/*", "samples/prompts"), **train: Any
    ) -> Recipe:
        home = tmp_path / directory
        home.mkdir(exist_ok=True)
        bounds = {"every": 2, "max_items": 3, **train.pop("evaluation", {})}
        checkpoint = {"every": 2, "keep": 1, **train.pop("checkpoint", {})}
        settings = {"steps": 6, "validation": {"every": 4, "max_tokens": 500}, **train}
        plain = tiny_recipe(home, data, **settings)
        values = plain.model_dump(mode="json")
        values["evaluation"] = {
            "perplexity": [{"name": "held", "path": str(tmp_path / "held.jsonl")}],
            "samples": {"prompts": ["The old cat"], "max_new_tokens": 5},
        }
        values["train"]["validation"]["evaluation"] = {**bounds, "parts": list(parts)}
        values["train"]["checkpoint"] |= checkpoint
        return Recipe.model_validate(values)

    return make


def run(recipe: Recipe) -> Path:
    session.run(recipe, make_evaluator=find_evaluator(recipe))
    return recipe.run_directory


def weights(run: Path) -> dict[str, Any]:
    files = read_info(step_directories(run)[0]).files
    return {name: found for name, found in files.items() if name.endswith(".safetensors")}


def test_curves_texts_and_the_same_weights(recipe: Callable[..., Recipe]) -> None:
    scored, plain = run(recipe("scored")), run(recipe("plain", parts=()))
    assert weights(scored) == weights(plain)
    bits = metric_lines(scored, BITS)
    assert sorted(bits) == [2, 4, 6] and bits[6] < bits[2]
    assert metric_lines(scored, "train/loss") == metric_lines(plain, "train/loss")
    assert set(metric_lines(scored, "eval/failed_parts").values()) == {0.0}
    assert not metric_lines(plain, BITS) and not list(read_records(plain))
    records = list(read_records(scored))
    assert [one.step for one in records] == [2, 4, 6]
    (sample,) = records[-1].samples
    assert sample.prompt == "The old cat" and sample.text and not records[-1].unfinished
    found = {one.name: one for one in records[-1].results}
    assert found["perplexity/held/bits_per_byte"].n == 3, "of the nine documents"
    assert found["perplexity/held/bits_per_byte"].value == bits[6]
    assert "compression/held/gzip_bits_per_byte" in found


def test_a_resumed_run_goes_on_without_double_points(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind an evaluation that no checkpoint holds: that one is cut off, and made again."""
    unbroken = run(recipe("unbroken", checkpoint={"every": 4}))
    broken = recipe("broken", checkpoint={"every": 4})
    call = evaluator.PartsEvaluator.__call__

    def killed(self: Any, engine: Any, step: int, stop: Any) -> StepScores:
        found = call(self, engine, step, stop)
        if step == 6:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(evaluator.PartsEvaluator, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    monkeypatch.undo()
    assert [one.step for one in read_records(broken.run_directory)] == [2, 4, 6]
    resumed = run(broken)
    assert metric_lines(resumed, BITS) == metric_lines(unbroken, BITS)
    assert [one.step for one in read_records(resumed)] == [2, 4, 6]
    assert weights(resumed) == weights(unbroken)


def parts_of(monkeypatch: pytest.MonkeyPatch, **work: Callable[[], Any]) -> None:
    """Replaces the parts of an evaluation."""
    parts = [Part(f"perplexity/{name}", {}, one) for name, one in work.items()]
    monkeypatch.setattr(Scorer, "parts", lambda self: parts)


def test_a_part_that_fails_is_told_and_counted(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def user() -> Any:
        raise ValueError("the set is gone; put it back")

    def bug() -> Any:
        raise RuntimeError("a bug")

    parts = Scorer.parts
    monkeypatch.setattr(
        Scorer,
        "parts",
        lambda self: [Part("perplexity/gone", {}, user), *parts(self), Part("perplexity/broken", {}, bug)],
    )
    scored = run(recipe())
    assert set(metric_lines(scored, "eval/failed_parts").values()) == {2.0} and len(metric_lines(scored, BITS)) == 3
    failures = [(one.name, one.reason, one.bug) for one in next(iter(read_records(scored))).failures]
    assert failures == [
        ("perplexity/gone", "the set is gone; put it back", False),
        ("perplexity/broken", "RuntimeError: a bug", True),
    ]
    said = capsys.readouterr().err
    assert (
        "step 4: perplexity/gone could not be scored: the set is gone; put it back; training goes on (4 failed" in said
    )
    assert weights(scored), "training has ended as ever"


def test_a_set_that_is_not_there_ends_no_training(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe(steps=2)
    (tmp_path / "held.jsonl").unlink()
    assert set(metric_lines(run(made), "eval/failed_parts").values()) == {1.0}


def test_what_the_time_is_not_enough_for_comes_first_next_time(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock of the evaluation moves by parts, not by itself."""
    clock, made = [0.0], list[str]()
    monkeypatch.setattr("eval.in_training.bounded.time.monotonic", lambda: clock[0])

    def work(name: str) -> Callable[[], Any]:
        def score() -> Any:
            made.append(name)
            clock[0] += 4.0
            return Scored()

        return score

    parts_of(monkeypatch, a=work("a"), b=work("b"), c=work("c"))
    run(recipe(steps=4, evaluation={"every": 2, "max_seconds": 7.0}))
    assert made == ["a", "b", "c", "a"]
    assert "not scored within train.validation.evaluation.max_seconds 7: perplexity/c;" in capsys.readouterr().err


def test_a_part_that_all_the_time_is_not_enough_for_lets_others_go_first(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def long() -> Any:
        made.append("long")
        raise OutOfTime("no time left")

    def other() -> Any:
        made.append("other")
        return Scored()

    parts_of(monkeypatch, long=long, other=other)
    run(recipe(steps=4, evaluation={"every": 2}))
    assert made == ["long", "other", "long"]
    assert ": perplexity/other, perplexity/long; the next evaluation begins with the first" in capsys.readouterr().err


def test_a_signal_ends_the_evaluation_not_the_save(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return Scored()

    made: list[str] = []
    parts_of(monkeypatch, a=stopped, b=lambda: made.append("b"))
    one = recipe(checkpoint={"every": 100})
    with pytest.raises(StoppedEarly):
        run(one)
    assert not made and next(iter(read_records(one.run_directory))).unfinished == ["perplexity/b"]
    assert [read_info(path).step for path in step_directories(one.run_directory)] == [3], "one step later"


def test_the_model_that_was_read_is_let_go(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """At ZeRO stage 3 it is a whole copy of the weights on each rank."""
    read: list[weakref.ref[Any]] = []
    reading = Engine.reading

    @contextmanager
    def of_a_copy(engine: Engine, keep: bool = True) -> Iterator[Any]:
        gc.collect()
        assert not keep and not any(one() for one in read)
        with reading(engine, keep) as model:
            copied = deepcopy(model)
            read.append(weakref.ref(copied))
            yield copied

    monkeypatch.setattr(Engine, "reading", of_a_copy)
    scored = run(recipe())
    assert len(read) == 3 and set(metric_lines(scored, "eval/failed_parts").values()) == {0.0}


@pytest.mark.parametrize("keep", [True, False])
def test_a_copy_of_divided_weights_is_kept_if_it_is_to_be(keep: bool) -> None:
    module = SimpleNamespace(model="divided", training=True, eval=lambda: None, train=lambda mode: None)
    engine: Any = SimpleNamespace(module=module, stage=3, autocast=nullcontext, _copy=None)

    def refreshed() -> str:
        engine._copy = "whole"
        return "whole"

    engine._refreshed_copy = refreshed
    with Engine.reading(engine, keep) as model:
        assert model == "whole"
    assert engine._copy == ("whole" if keep else None)


def test_random_numbers_and_modes_are_put_back() -> None:
    def seeded() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    engine: Any = SimpleNamespace(module=torch.nn.Linear(1, 1).train(), device=torch.device("cpu"))
    seeded()
    expected = drawn()
    seeded()
    with pytest.raises(KeyError), undisturbed(engine):
        engine.module.eval()
        assert drawn() == expected
        raise KeyError
    assert drawn() == expected and engine.module.training


def test_an_evaluator_is_closed_with_the_session(recipe: Callable[..., Recipe]) -> None:
    said: list[str] = []

    class Closing:
        def __call__(self, engine: Any, step: int, stop: Any) -> StepScores:
            said.append(f"step {step}")
            return StepScores({})

        def close(self) -> None:
            said.append("closed")

    session.run(recipe(steps=3, evaluation={"every": 2}), make_evaluator=lambda *_: Closing())
    assert said == ["step 2", "step 3", "closed"]


def test_the_best_checkpoint_is_that_of_a_curve_whose_direction_is_known(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal losses: more accuracy, fewer bits per byte."""

    class Measured:
        def __call__(self, engine: Any, step: int, stop: Any) -> StepScores:
            values = {"eval/benchmark/t/acc": {2: 0.5, 4: 0.9, 6: 0.7}[step], BITS: float(step)}
            return StepScores(values, {"eval/benchmark/t/acc": True, BITS: False})

        def close(self) -> None:
            pass

    for curve, best in (("eval/benchmark/t/acc", 4), (BITS, 2)):
        one = recipe(f"best {best}", checkpoint={"every": 2, "keep": 1, "keep_best": 1, "best_by": curve})
        session.run(one, make_evaluator=lambda *_: Measured())
        steps = [read_info(path).step for path in step_directories(one.run_directory)]
        assert steps == [6, best] and Choice(best=True).find(one.run_directory).step == best


def test_what_decides_the_best_is_told_when_it_is_not_measured(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe(steps=2, checkpoint={"keep_best": 1, "best_by": "eval/perplexity/held/bits"}))
    assert "eval/perplexity/held/bits, which decides the best checkpoint, was not measured" in capsys.readouterr().err


def test_every_step_stands_once_and_lines_are_finite(recipe: Callable[..., Recipe]) -> None:
    scored = run(recipe(steps=2, tensorboard=True))
    assert all(np.isfinite(value) for line in read_metrics(scored) for value in line.values())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(scored / "tensorboard")).Reload()
    assert [one.step for one in events.Scalars(BITS)] == [2]
    assert any(tag.startswith("eval/samples/1 Prompt 1") for tag in events.Tags()["tensors"])


def test_a_stage_that_answers_counts_right_answers_and_held_out_conversations(tmp_path: Path) -> None:
    data = prepare_units(tmp_path / "data", "conversation")
    asked = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    plain = tiny_recipe(tmp_path, data, objective={"kind": "sft"}, steps=2, checkpoint={"every": 2})
    values = plain.model_dump(mode="json")
    values["model"]["context_length"] = 96
    values["evaluation"] = {"chat": [{"name": "sums", "path": str(tmp_path / "sums.jsonl"), "max_new_tokens": 4}]}
    values["train"]["validation"]["evaluation"] = {"parts": ["chat/*", "conversations/*"], "max_items": 3}
    run_directory = run(Recipe.model_validate(values))
    (record,) = read_records(run_directory)
    assert not record.failures, record.failures
    found = {one.name: one for one in record.results}
    assert found["chat/sums/accuracy"].n == 3 and "conversations/tiny/nats_per_token" in found
    assert metric_lines(run_directory, "eval/chat/sums/accuracy") == {2: found["chat/sums/accuracy"].value}
