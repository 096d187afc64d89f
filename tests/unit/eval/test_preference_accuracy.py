"""Agreement of a reward model with preference pairs, beside baselines that read no meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.schema.chat import Chat
from configs.schema.data import Tokenizer
from configs.schema.evaluation import PreferenceSet
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab_training import train_vocab
from eval.chat_setting import ChatSetting
from eval.preference_accuracy import preference_results
from eval.reading.windows import Score
from eval.statistics import wilson
from pretrain.generation.player import Answer
from tests.parts.items_check import without_items


@dataclass
class Rewarding:
    """Stands for a reader of a reward model."""

    reward: Callable[[Sequence[int]], float]
    context_length: int
    vocab_size: int = 0
    precision: str = "fp32"

    def rewards(self, rows: Sequence[Sequence[int]], report: object = None) -> list[float]:
        return [self.reward(row) for row in rows]

    def score(self, windows: object, report: object = None) -> list[Score]:
        raise AssertionError("pairs are scored by rewards")

    def generate(self, requests: object, report: object = None) -> list[Answer]:
        raise AssertionError("pairs are scored by rewards")


PAIRS = [
    ("good and long", "bad"),
    ("good", "bad and long"),
    ("good day", "bad bad bad"),
    ("bad", "good"),
    ("same", "other"),
]


@pytest.fixture(scope="module")
def setting() -> ChatSetting:
    template = ChatTemplate(train_vocab(Tokenizer(kind="byte", special_tokens="chat"), []))
    return ChatSetting(template, Chat(), 1, 200)


def written(path: Path, pairs: Sequence[tuple[str, str]]) -> PreferenceSet:
    rows = [
        {"chosen": f"\n\nHuman: Hi\n\nAssistant: {chosen}", "rejected": f"\n\nHuman: Hi\n\nAssistant: {rejected}"}
        for chosen, rejected in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PreferenceSet(name="hh", path=str(path))


def test_agreement_beside_the_baselines(setting: ChatSetting, tmp_path: Path) -> None:
    vocab, rows = setting.template.vocab, list[Sequence[int]]()

    def reward(ids: Sequence[int]) -> float:
        rows.append(ids)
        return float("good" in vocab.decode(list(ids)))

    section = written(tmp_path / "a.jsonl", [*PAIRS, ("x" * 300, "y"), ("twin", "twin")])
    scored = preference_results(section, Rewarding(reward, 100), setting)
    accuracy, longer, less_repeated = scored.results
    assert accuracy.n == 5 and accuracy.value == pytest.approx(3.5 / 5), "a tie counts as a half"
    assert (accuracy.low, accuracy.high) == wilson(3.5, 5) and accuracy.chance == 0.5
    assert longer.value == pytest.approx(1 / 5) and less_repeated.value == pytest.approx((0.5 * 4 + 1) / 5)
    note = accuracy.note or ""
    assert "1 record left out: same_answers 1" in note and "1 pairs longer than the context left out" in note
    assert "1 ties count as a half" in note and "no different from `less_repeated`" in note
    assert (
        "no different from `longer` (approximate randomisation (all 8 ways to swap 3), paired bootstrap, p = 0.25)"
        in note
    )
    ends = {ids[-1] for ids in rows}
    assert ends == {setting.template.end} and {ids[0] for ids in rows} == {setting.template.bos}
    assert [item.measures["accuracy"][0] for item in scored.items] == [1, 1, 1, 0, 0.5]
    assert without_items(scored, "preference/hh", tmp_path) == set()
    first, last = scored.items[0], scored.items[-1]
    assert first.answer == first.reference == first.choices[0] and first.notes["reward of the chosen answer"] == "1"
    assert last.answer is None, "none is preferred"
    assert len({item.id for item in scored.items}) == 5


def test_a_difference_from_a_baseline_is_said(setting: ChatSetting, tmp_path: Path) -> None:
    section = written(tmp_path / "a.jsonl", [(f"short {number}", f"rather long {number}") for number in range(20)])
    accuracy, longer, _ = preference_results(section, Rewarding(lambda ids: -float(len(ids)), 100), setting).results
    assert (accuracy.value, longer.value) == (1, 0)
    assert "above `longer` (McNemar's exact test: 20 gained, 0 lost, p = 1.9e-06)" in (accuracy.note or "")


def test_no_pair_that_fits_is_an_error(setting: ChatSetting, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pair fits"):
        preference_results(written(tmp_path / "a.jsonl", PAIRS), Rewarding(lambda ids: 0.0, 4), setting)
