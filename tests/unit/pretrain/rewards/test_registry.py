"""The sum of rewards, and functions of the user."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.safety.trust import trusting
from configs.schema.objectives import Rewards
from pretrain.rewards.answers import Reward
from pretrain.rewards.completion import Completion
from pretrain.rewards.registry import make_rewards, rewards_identity

FUNCTIONS = """
import time
from pretrain.rewards.answers import Reward

def shout(text, reference, factor=1.0):
    return factor * text.isupper()

def told(text, reference):
    return Reward(0.5, text[:2], ("odd",))

def raises(text, reference):
    return 1 / 0

def nan(text, reference):
    return float("nan")

def word(text, reference):
    return "1.0"

def sleeps(text, reference):
    try:
        time.sleep(600)
    except Exception:
        return 0.0

def spins(text, reference):
    while True:
        try:
            sum(range(1000))
        except Exception:
            pass

def exits(text, reference):
    raise KeyError("x")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def completion(text: str, reference: str | None = "42", finished: bool = True, tokens: int = 4) -> Completion:
    return Completion(text, reference, [0, 1], list(range(tokens)), finished)


def section(**values: Any) -> Rewards:
    return Rewards.model_validate(values)


def test_the_sum_is_weighted_and_each_is_kept() -> None:
    def model(rows: Sequence[Sequence[int]]) -> list[float]:
        return [float(len(row)) for row in rows]

    settings = section(
        exact_answer=1.0, format=0.25, length={"weight": 0.5, "tokens": 8}, model={"stage": "reward", "weight": -0.1}
    )
    scorer = make_rewards(settings, model)
    assert scorer.names == ("exact_answer", "format", "length", "model")
    right, wrong = scorer([completion("#### 42"), completion("#### 41\nx", tokens=8)])
    assert {name: reward.value for name, reward in right.rewards.items()} == {
        "exact_answer": 1.0, "format": 1.0, "length": 0.5, "model": 6.0,
    }  # fmt: skip
    assert right.total == pytest.approx(1 + 0.25 + 0.25 - 0.6)
    assert wrong.total == pytest.approx(-1.0)


def test_an_answer_that_was_cut_is_worth_nothing() -> None:
    scorer = make_rewards(section(exact_answer=1.0, format=1.0))
    (scores,) = scorer([completion("#### 42", finished=False)])
    assert scores.total == 0 and scores.rewards["exact_answer"] == Reward(0.0, "42", ("unfinished",))


def test_a_prompt_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="has no reference"):
        make_rewards(section(exact_answer=1.0))([completion("#### 42", None)])
    with pytest.raises(ValueError, match="no reward model was given"):
        make_rewards(section(model={"stage": "reward"}))


def test_a_function_of_the_user(file: Path) -> None:
    settings = section(
        custom=[
            {"code": f"{file}:shout", "options": {"factor": 3.0}, "weight": 2.0},
            {"code": f"{file}:told"},
        ]
    )
    with pytest.raises(ValueError, match=r"rewards\.custom\.0.*--trust"):
        make_rewards(settings)
    with trusting([file.parent]):
        (scores,) = make_rewards(settings)([completion("HELLO", None)])
    assert scores.rewards == {"shout": Reward(3.0), "told": Reward(0.5, "HE", ("odd",))} and scores.total == 6.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ZeroDivisionError: division by zero"),
        ("exits", "raised KeyError"),
        ("nan", "gave nan; a reward is a finite number"),
        ("word", "gave a str; give a number or a Reward"),
        ("sleeps", r"took more than 0\.05 s"),
        ("spins", r"took more than 0\.05 s"),
    ],
)
def test_a_function_that_misbehaves_is_one_clear_error(file: Path, name: str, message: str) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with trusting([file.parent]):
        scorer = make_rewards(section(custom=[{"code": f"{file}:{name}", "seconds": 0.05}]))
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        scorer([completion("#### 42")])
    assert "mine.py:" + name in str(caught.value) and "#### 42" in str(caught.value)
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGALRM) == handler


def test_an_outer_timer_goes_on(file: Path) -> None:
    rung = threading.Event()
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    left = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with trusting([file.parent]):
            scorer = make_rewards(section(custom=[{"code": f"{file}:shout"}]))
        scorer([completion("A")] * 3)
        assert rung.wait(30)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *left)


def test_two_rewards_of_one_name_and_unknown_arguments_are_refused(file: Path) -> None:
    with trusting([file.parent]):
        with pytest.raises(ValueError, match="two are called `shout`"):
            make_rewards(section(custom=[{"code": f"{file}:shout"}] * 2))
        with pytest.raises(ValueError, match="is called with"):
            make_rewards(section(custom=[{"code": f"{file}:told", "options": {"x": 1}}]))


def test_the_identity_is_the_text_not_the_place(file: Path, tmp_path: Path) -> None:
    def of(path: Path) -> dict[str, Any]:
        return rewards_identity(section(format=1.0, custom=[{"code": f"{path}:told"}]))

    (other := tmp_path / "moved" / "mine.py").parent.mkdir()
    other.write_text(FUNCTIONS)
    first = of(file)
    assert first == of(other)
    other.write_text(FUNCTIONS.replace("0.5", "0.6"))
    assert first != of(other)
