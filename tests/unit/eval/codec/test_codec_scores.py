"""Sizes of coded files as scores: the real file, shared out over its documents, and compared between runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.schema.compression import Compression
from configs.schema.evaluation import Evaluation, PerplexitySet
from data_prep.decontamination.evaluation_sets import SetText
from eval.codec import scores
from eval.codec.codec import Coder, compress
from eval.codec.scores import codec_results, prequential_results, weights_size
from eval.comparison.comparable import difference_within
from eval.comparison.paired import Scores, adjusted, compare_scores
from eval.likelihood.perplexity_set import compressed_set_results
from eval.parts import Scored
from eval.report.gates import CODED, PREQUENTIAL, evaluate_gates, gate_problems
from eval.report.size_table import size_rows
from eval.results import Failure, Result
from tests.parts.chat_model import chat_vocab
from tests.parts.coding_model import coding_model, coding_text
from tests.parts.fake_run import fake_recipe, fake_results
from tests.parts.scored_run import write_scores

ITEM = PerplexitySet(name="letters", path="x")
TEXT = coding_text(3000)
DOCUMENTS = [SetText(str(start), TEXT[start : start + 600] + "é") for start in range(0, 3000, 600)] + [SetText("e", "")]


@pytest.fixture(scope="module")
def coder() -> Coder:
    return Coder(coding_model(), chat_vocab(), "f" * 32)


@pytest.fixture(scope="module")
def scored(coder: Coder) -> Scored:
    return codec_results(ITEM, DOCUMENTS, coder, (1000, "under xz -9e"), 100)


def test_the_score_is_the_size_of_the_file(coder: Coder, scored: Scored) -> None:
    data = "".join(one.text for one in DOCUMENTS).encode()
    size = len(compress(lambda: coder, data).file)
    codec, with_model = scored.results
    assert (codec.name, with_model.name) == tuple(f"compression/letters/{metric}" for metric in CODED)
    assert codec.value == 8 * size / len(data) and with_model.value == 8 * (size + 1000) / len(data)
    assert codec.note is not None and "decoded again and equal" in codec.note and codec.n == 5
    for one in scored.results:
        assert one.low is not None and one.high is not None and one.low < one.value < one.high
    xz = next(one for one in compressed_set_results(ITEM, DOCUMENTS) if "xz" in one.name)
    assert difference_within(codec, xz) is None and codec.value < xz.value


def test_items_add_up_to_the_score(scored: Scored) -> None:
    for result, metric in zip(scored.results, CODED, strict=True):
        above, below = (sum(item.measures[metric][side] for item in scored.items) for side in (0, 1))
        assert above / below == pytest.approx(result.value, rel=1e-9)
        assert below == len("".join(one.text for one in DOCUMENTS).encode())
        units = [value for item in scored.items for value in item.units[metric]]
        assert sum(units[::2]) / sum(units[1::2]) == pytest.approx(result.value, rel=1e-9)
    assert [item.id for item in scored.items] == ["0", "600", "1200", "1800", "2400"]


def test_two_models_are_compared_on_the_same_text(scored: Scored, tmp_path: Path) -> None:
    other = codec_results(ITEM, DOCUMENTS, Coder(coding_model(5), chat_vocab(), "e" * 32), (1000, ""), 100)
    runs = [
        write_scores(tmp_path / name, {"compression/letters/codec": one.items}, one.results)
        for name, one in (("a", scored), ("b", other))
    ]
    changes = compare_scores(Scores.read(runs[0]), Scores.read(runs[1]))
    assert [change.name for change in changes] == [result.name for result in scored.results]
    assert all(change.p is not None for change in changes)
    assert all("are windows of few documents" in (change.reason or "") for change in changes)


def test_a_set_that_no_model_codes_has_a_size_without_an_interval(
    coder: Coder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(coder.vocab), "decode", lambda *_: "otherwise")
    made = codec_results(ITEM, DOCUMENTS, coder, (1000, ""), 100)
    (codec, _), items = made.results, made.items
    assert codec.low == codec.value == codec.high and codec.interval.startswith("exact") and not items
    assert codec.note is not None and "because the tokenizer does not give it back" in codec.note


def test_a_file_that_does_not_come_back_is_no_score(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "decompress", lambda *_, **__: b"other")
    with pytest.raises(ValueError, match="the coded file of letters does not come back"):
        codec_results(ITEM, DOCUMENTS, coder, (1000, ""), 100)
    codec_results(ITEM, DOCUMENTS, coder, (1000, ""), 100, verify=False)


def test_weights_are_counted_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = coding_model()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    size, how = weights_size(model)
    assert how == "under xz -9e" and 1.2 * numbers < size < 2 * numbers
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights_size(model)[0] < 1000
    monkeypatch.setattr(scores, "_MOST_XZ_BYTES", 10)
    assert weights_size(model)[0] == 2 * numbers


# -------------------------------------------------------------------------------------------------------- training text
def learnt(nats: float, size: float, data: str = "d") -> Any:
    meter = {"code_nats": nats, "code_bytes": size} if size else {}
    return SimpleNamespace(state={"meter": meter}, data_fingerprint=data)


def test_the_code_length_of_the_training_text() -> None:
    (result,) = prequential_results(learnt(1000 * math.log(2), 500.0))
    assert (result.name, result.low, result.high) == (PREQUENTIAL, result.value, result.value)
    assert result.value == pytest.approx(2.0)
    assert prequential_results(learnt(1.0, 0.0)) == [] and prequential_results(SimpleNamespace(state={})) == []
    assert prequential_results(learnt(math.nan, 5.0)) == []


@pytest.mark.parametrize(("nats", "size", "data", "verdict"), [
    (900.0, 500.0, "d", "worse"), (1100.0, 500.0, "d", "better"), (1000.0, 500.0, "d", "no difference"),
    (900.0, 501.0, "d", "incomparable"), (900.0, 500.0, "other", "incomparable"),
])  # fmt: skip
def test_it_is_compared_with_a_baseline_of_the_same_text(
    tmp_path: Path, nats: float, size: float, data: str, verdict: str
) -> None:
    """A size is counted, not estimated: it needs no interval, but the same text."""
    runs = [
        write_scores(tmp_path / name, {}, prequential_results(one))
        for name, one in (("after", learnt(1000.0, 500.0)), ("before", learnt(nats, size, data)))
    ]
    after, before = map(Scores.read, runs)
    (change,) = adjusted(compare_scores(after, before), after.results.by_name())
    assert change.verdict == verdict


# --------------------------------------------------------------------------------------------------- gates and settings
def test_gates_know_the_scores(tmp_path: Path) -> None:
    sections = Evaluation(perplexity=[ITEM], compression=Compression(codec=["letters"]))
    gates = [f"compression/letters/{metric} < 3" for metric in CODED] + [f"{PREQUENTIAL} < 3"]
    recipe = fake_recipe(tmp_path, gates).model_copy(update={"evaluation": sections})
    assert gate_problems(recipe) == []
    without = recipe.model_copy(update={"evaluation": Evaluation(perplexity=[ITEM])})
    assert len(gate_problems(without)) == 2
    failed = replace(fake_results(), failures=[Failure("compression/letters/codec", "the disk is full")])
    found = evaluate_gates(gates[:2], failed)
    assert [gate.reason for gate in found] == ["no score: the disk is full"] * 2


@pytest.mark.parametrize("names", [["other"], ["letters", "letters"]])
def test_names_are_those_of_perplexity_sets(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"are no perplexity sets: other|compression\.codec must differ"):
        Evaluation(perplexity=[ITEM], compression=Compression(codec=names))


def test_the_table_of_the_report(scored: Scored) -> None:
    xz = Result("compression/letters/xz_bits_per_byte", 2.0, 2.0, 2.0, 5, "bits per byte", False, "exact")
    results = replace(fake_results(), results=[*scored.results, xz, *prequential_results(learnt(1000.0, 500.0))])
    coded, training = size_rows(results)
    assert (coded["score"], coded["with_model"], coded["xz"]) == (*scored.results, xz)
    assert training["name"].startswith("training text") and training["xz"] is None
