"""Bits that a source saves of its target: against tables whose information is known, and with its control."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from pydantic import ValidationError

from configs.schema.data import Tokenizer
from configs.schema.evaluation import Evaluation
from configs.schema.pair_sets import InformationSet
from configs.schema.recipe import load_run
from data_prep.decontamination.decontaminate import Touched
from data_prep.decontamination.evaluation_sets import item_key
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.comparison.paired import Scores, compare_scores
from eval.information.draws import draw
from eval.information.information_set import information_results, matched, read_information_set
from eval.information.score_names import score_names
from eval.items.store import read_items
from eval.parts import Scored
from eval.reading.windows import Report, Score, Window
from eval.report.gates import check_gates, gate_problems
from eval.report.item_view import item_view, metric_of
from eval.report.page import write_report
from eval.results import load_results
from eval.statistics import wilson
from tests.parts.counting_reader import CountingReader
from tests.parts.fake_run import write_fake_run
from tests.parts.items_check import without_items
from tests.parts.scored_run import write_scores

LETTERS = "abcd"
# p(target | source) of the channel: half of the time the same letter. Its information: 2 - H(1/2, 1/6, 1/6, 1/6).
CHANNEL = np.full((4, 4), 1 / 6) + np.eye(4) / 3
INFORMATION = 2 + 0.5 * math.log2(1 / 2) + 0.5 * math.log2(1 / 6)


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


class ChannelReader(CountingReader):
    """A model that knows the channel: a letter follows the last letter before it, or is one of four."""

    def __init__(self, vocab: Vocab, table: np.ndarray = CHANNEL, context_length: int = 64) -> None:
        super().__init__()
        self._letters = {vocab.encode(letter)[0]: number for number, letter in enumerate(LETTERS)}
        self._table, self.context_length = table, context_length

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        return [Score(self._nats([int(token) for token in window.tokens]), False) for window in windows]

    def _nats(self, tokens: list[int]) -> float:
        before = [self._letters[token] for token in tokens[:-1] if token in self._letters]
        own = self._letters[tokens[-1]]
        return -math.log(self._table[before[-1], own] if before else 1 / 4)


class NoisyReader(CountingReader):
    """A model to which every text says as little of every other, with noise that follows from both."""

    context_length = 512

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        def noise(window: Window) -> float:
            seed = int.from_bytes(hashlib.blake2b(window.tokens.tobytes(), digest_size=4).digest())
            return float(np.random.default_rng(seed).normal(20, 2))

        return [Score(noise(window), False) for window in windows]


def a_set(path: Path, pairs: Sequence[tuple[str, str]], **settings: Any) -> InformationSet:
    rows = [json.dumps({"source": source, "target": target}) + "\n" for source, target in pairs]
    path.mkdir(exist_ok=True)
    (path / "pairs.jsonl").write_text("".join(rows))
    return InformationSet(name="s", path=str(path / "pairs.jsonl"), **settings)


def channel_pairs() -> list[tuple[str, str]]:
    """Pairs as frequent as the channel makes them."""
    return [(one, other) for one in LETTERS for other in LETTERS for _ in range(6 if one == other else 2)]


def values(scored: Scored) -> dict[str, float]:
    return {result.name.removeprefix("information/s/"): result.value for result in scored.results}


def test_a_known_channel_saves_its_mutual_information(tmp_path: Path, vocab: Vocab) -> None:
    section = a_set(tmp_path, channel_pairs(), source_label="", target_label="", candidates=4)
    scored = information_results(section, ChannelReader(vocab), vocab, 200)
    found = values(scored)
    assert found["alone_bits/0-shot"] == pytest.approx(2)
    assert found["saved_bits/0-shot"] == pytest.approx(INFORMATION)
    assert found["saved_share/0-shot"] == pytest.approx(INFORMATION / 2)
    assert found["matching_accuracy/0-shot"] == pytest.approx(0.5), "of four letters, the own one is likeliest"
    assert found["beyond_other_bits/0-shot"] == pytest.approx(
        found["saved_bits/0-shot"] - found["other_saved_bits/0-shot"]
    )
    for item in scored.items:
        same = 1 / 2 if item.asked == item.reference else 1 / 6
        assert item.measures["given_bits/0-shot"] == pytest.approx((-math.log2(same), 1))
    by_name = {result.named.metric: result for result in scored.results}
    assert by_name["matching_accuracy"].chance == 0.25 and by_name["saved_bits"].unit == "bits per target"
    low, high = by_name["saved_bits"].low, by_name["saved_bits"].high
    assert low is not None and high is not None and low < INFORMATION < high
    chosen = by_name["matching_accuracy"]
    assert (chosen.low, chosen.high) == pytest.approx(wilson(24, 48)) and chosen.interval == "Wilson over 48 pairs"


def test_independent_texts_save_nothing(tmp_path: Path, vocab: Vocab) -> None:
    """Within the intervals, and exactly nothing where the model takes no notice: then matching is guessing."""
    section = a_set(tmp_path, [(f"source {n}", f"target {n}") for n in range(150)], candidates=5)
    results = {
        result.named.metric: result for result in information_results(section, NoisyReader(), vocab, 200).results
    }
    for metric, expected in (
        ("saved_bits", 0),
        ("saved_share", 0),
        ("beyond_other_bits", 0),
        ("matching_accuracy", 0.2),
    ):
        low, high = results[metric].low, results[metric].high
        assert low is not None and high is not None and low < expected < high
    # The share is of the bits of the whole set, not a mean of the pairs' shares.
    whole = results["saved_bits"].value / results["alone_bits"].value
    assert results["saved_share"].value == pytest.approx(whole, abs=1e-12) != 0
    blind = a_set(tmp_path, channel_pairs(), source_label="", target_label="", candidates=4)
    flat = information_results(blind, ChannelReader(vocab, np.full((4, 4), 1 / 4)), vocab, 100)
    assert values(flat)["saved_bits/0-shot"] == 0 and values(flat)["matching_accuracy/0-shot"] == 0.25
    assert next(iter(flat.results)).interval.startswith("none: every resample")


def test_of_candidates_that_tie_each_counts_its_share() -> None:
    saved = np.array([[3, 1, 1], [3, 3 + 1e-6, 1], [1, 1, 1], [0, 2, 1]], dtype=np.float64)
    assert matched(saved).tolist() == [1, 0.5, 1 / 3, 0]


def test_draws_are_of_other_texts_and_follow_from_the_pairs_alone() -> None:
    pairs = [TextPair(f"x{n % 9}", f"y{n % 7}") for n in range(40)]
    draws = draw(pairs, 4, "set")
    assert draw(pairs, 4, "set") == draws and draw(pairs, None, "set").other == draws.other
    for pair, other, wrong in zip(pairs, draws.other, draws.candidates, strict=True):
        assert pairs[other].source != pair.source
        assert all(pairs[one].source != pair.source for one in wrong)
        assert len({pair.target, *(pairs[one].target for one in wrong)}) == 4
    distinct = [TextPair(f"x{n}", f"y{n}") for n in range(40)]
    found = draw(distinct, None, "set").other
    assert sorted(found) == list(range(40)), "each source is the control of one pair"
    assert sum(other == (number + 1) % 40 for number, other in enumerate(found)) < 10, "neighbours may be of one text"
    turned = draw(distinct[::-1], None, "set").other
    assert [39 - other for other in turned[::-1]] == found, "the order of the file decides nothing"


def test_solved_examples_come_first_and_items_give_the_scores(tmp_path: Path, vocab: Vocab) -> None:
    section = a_set(tmp_path, [(f"s{n}", f"t{n}") for n in range(9)], shots=[0, 2], candidates=3, max_items=6)
    reader = CountingReader()
    reader.context_length = 200
    scored = information_results(section, reader, vocab, 100)
    assert [item.id for item in scored.items] == [str(n + 1) for n in range(6)] and scored.items[0].asked == "s2"
    assert without_items(scored, "information/s", tmp_path) == set()
    assert sorted(result.name for result in scored.results) == sorted(score_names(section))
    asked = {vocab.decode(tokens) for tokens in reader.asked}
    solved = "Source: s0\nTarget: t0\n\nSource: s1\nTarget: t1\n\n"
    assert {"Target: t2", "Source: s2\nTarget: t2", f"{solved}Source: s2\nTarget: t2"} <= asked
    assert "Target: t0\n\nTarget: t1\n\nTarget: t2" in asked, "alone, the examples are targets too"
    assert len(reader.asked) == len(asked), "nothing is read twice"
    # Choices are those behind most examples. The answer is the target of which most bits are saved, not the cheapest.
    alone = {item.reference: item.measures["alone_bits/2-shot"][0] for item in scored.items}
    for item in scored.items:
        assert item.log_likelihoods[0] == pytest.approx(-math.log(2) * item.measures["given_bits/2-shot"][0])
        saved = [alone[one] + nats / math.log(2) for one, nats in zip(item.choices, item.log_likelihoods, strict=True)]
        assert item.answer == item.choices[int(np.argmax(saved))]
    # Pair 3 is number 1 without examples: its shots and examples are part of the settings.
    settings = {result.named.variant: result.settings for result in scored.results}
    assert settings["0-shot"]["shots"] == 0 and settings["2-shot"]["examples"] != settings["0-shot"]["examples"]
    drawn = {result.named.metric: result.settings.get("drawn from") for result in scored.results}
    controls = {"other_bits", "other_saved_bits", "beyond_other_bits", "matching_accuracy"}
    assert {name for name, value in drawn.items() if value} == controls


def test_pairs_that_do_not_fit_are_left_out_of_all_and_counted(tmp_path: Path, vocab: Vocab) -> None:
    pairs = [(f"s{n:02}", "t" * n) for n in range(1, 13)]
    section = a_set(tmp_path, pairs, shots=[0, 1], candidates=None)
    reader = CountingReader()
    reader.context_length = 50
    scored = information_results(section, reader, vocab, 100)
    # Nothing is predicted from the last token, which needs no place.
    lengths = [len(f"Source: s01\nTarget: t\n\nSource: {source}\nTarget: {target}") for source, target in pairs[1:]]
    assert len(scored.items) == sum(length <= 51 for length in lengths) and 51 in lengths and max(lengths) > 51
    assert {result.n for result in scored.results} == {len(scored.items)}
    left = 11 - len(scored.items)
    assert all(f"{left} of 11 pairs left out" in (result.note or "") for result in scored.results)
    reader.context_length = 20
    with pytest.raises(ValueError, match=r"none of the 11 pairs fits model.context_length 20 with 1 solved examples"):
        information_results(section, reader, vocab, 100)


@pytest.mark.parametrize(
    ("pairs", "settings", "said"),
    [
        ([("a", "b"), ("c", " ")], {}, "item 2 .* has an empty `target`"),
        ([("", "b"), ("c", "d")], {}, "item 1 .* has an empty `source`"),
        ([("a", "b"), ("c", "d")], {"shots": [0, 2]}, "none left after 2 shots"),
        ([("a", "b"), ("a", "d")], {"candidates": None}, "all pairs have the source of pair"),
        ([("a", "b"), ("c", "d"), ("e", "d")], {"candidates": 3}, "only 1 targets? of other sources"),
    ],
)
def test_sets_that_cannot_be_scored(
    tmp_path: Path, vocab: Vocab, pairs: list[tuple[str, str]], settings: dict[str, Any], said: str
) -> None:
    section = a_set(tmp_path, pairs, **{"candidates": 2, **settings})
    with pytest.raises(ValueError, match=f"information set `s`.*{said}"):
        information_results(section, CountingReader(), vocab, 100)


def test_a_target_that_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    known = {
        text: number for number, text in enumerate(["<|endoftext|>", "[UNK]", *sorted(set("Source: Target\nabc"))])
    }
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    letters = Vocab(made)
    section = a_set(tmp_path, [("a", "bc"), ("b", "三国"), ("c", "ab")], candidates=None)
    with pytest.raises(ValueError, match="pair 2 has 6 bytes of its target in characters that the tokenizer lacks"):
        information_results(section, CountingReader(), letters, 100)


def test_settings_are_checked() -> None:
    for wrong in ({"shots": []}, {"shots": [1, 1]}, {"shots": [-1]}, {"candidates": 1}):
        with pytest.raises(ValidationError):
            InformationSet.model_validate({"name": "s", "path": "x", **wrong})


def test_touched_pairs_are_scored_apart(tmp_path: Path, vocab: Vocab) -> None:
    section = a_set(tmp_path, channel_pairs(), source_label="", target_label="", candidates=None)
    keys = frozenset({item_key(("a", "a"))})
    touched = Touched({}, {"information/s": keys}, "mark", "f")
    scored = information_results(section, ChannelReader(vocab), vocab, 100, touched=touched)
    found = values(scored)
    assert found["saved_bits/0-shot/touched"] == pytest.approx(1), "a behind a costs one bit of two"
    assert found["saved_bits/0-shot/clean"] < found["saved_bits/0-shot"]
    assert without_items(scored, "information/s", tmp_path) == set()


def test_two_models_are_compared_pair_by_pair(tmp_path: Path, vocab: Vocab) -> None:
    """Scores that both make are paired; what the control saves is neither better nor worse."""
    section = a_set(tmp_path, channel_pairs() * 2, source_label="", target_label="", candidates=4)
    runs = []
    for name, table in (("knows", CHANNEL), ("blind", np.full((4, 4), 1 / 4))):
        scored = information_results(section, ChannelReader(vocab, table), vocab, 100)
        write_scores(tmp_path / name, {"information/s": scored.items}, scored.results)
        runs.append(Scores.read(tmp_path / name))
    changes = {change.name.split("/")[2]: change for change in compare_scores(*runs)}
    assert changes["saved_bits"].n == 96 and changes["saved_bits"].p is not None and changes["saved_bits"].p < 0.05
    assert changes["saved_bits"].after - changes["saved_bits"].before == pytest.approx(INFORMATION)
    assert {"other_bits", "other_saved_bits"}.isdisjoint(changes) and "beyond_other_bits" in changes
    fewer = [replace(result, settings=result.settings | {"drawn from": "x"}) for result in scored.results]
    write_scores(tmp_path / "blind", {"information/s": scored.items}, fewer)
    (other,) = compare_scores(
        runs[0], Scores.read(tmp_path / "blind"), names=["information/s/beyond_other_bits/0-shot"]
    )
    assert other.verdict == "incomparable" and "drawn from" in (other.reason or "")


def test_the_file_is_read_as_it_stands(tmp_path: Path) -> None:
    section = a_set(tmp_path, [("a  b", "c\nd"), ("e", "f")], normalize="spaces")
    assert read_information_set(section)[1][0] == TextPair("a b", "c d")


def test_gates_and_page_know_the_scores(tmp_path: Path, vocab: Vocab) -> None:
    section = a_set(tmp_path, channel_pairs(), source_label="", target_label="", candidates=4)
    scored = information_results(section, ChannelReader(vocab), vocab, 100)
    gate = "information/s/saved_bits/0-shot > information/s/other_saved_bits/0-shot"
    run = write_fake_run(tmp_path / "run", gates=[gate], results=scored.results)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Beyond it" in page and ", clean" not in page
    assert "What one text says of another" in page and "<b>0.21</b>" in page and "chance 25%" in page
    assert [one.passed for one in check_gates(run)] == [True]
    known = load_run(run).model_copy(update={"evaluation": Evaluation(information=[section])})
    assert gate_problems(known) == []
    wrong = known.model_copy(update={"report": known.report.model_copy(update={"gates": [gate.replace("0-", "9-")]})})
    assert "there is no metric" in gate_problems(wrong)[0]
    assert "What one text says" not in write_report(write_fake_run(tmp_path / "without")).read_text(encoding="utf-8")


def test_items_of_bits_have_no_best(tmp_path: Path, vocab: Vocab) -> None:
    """The worst of all are shown, although each saves more than 1, which would be perfect for a share."""
    section = a_set(tmp_path, [("a", "a"), ("b", "b"), ("c", "c")], source_label="", target_label="", candidates=2)
    scored = information_results(section, ChannelReader(vocab, np.eye(4) * 0.96 + 0.01), vocab, 100)
    run = write_scores(tmp_path / "run", {"information/s": scored.items}, scored.results)
    table, results = read_items(run, "information/s"), load_results(run)
    metric = metric_of(table, results)
    assert metric is not None and metric.name == "saved_bits/0-shot"
    assert [round(one.value, 2) for one in item_view(table, metric).worst] == [1.96, 1.96, 1.96]
    assert scored.items[0].choices[0] == scored.items[0].answer == "a"
