"""Two runs compared: by items they have in common, and what is said where they have none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.comparison.paired import Scores, adjusted, compare_scores
from eval.items.item import Item, hash_of
from eval.items.store import items_file, write_items
from eval.results import MEMBERS, Change, Result, load_results
from tests.parts.scored_run import documents, right_or_wrong, score, write_scores

PART, ACC = "benchmark/copa", "benchmark/copa/acc"


def changes(after: Path, before: Path) -> dict[str, Change]:
    ours = Scores.read(after)
    found = adjusted(compare_scores(ours, Scores.read(before), 200), ours.results.by_name())
    return {change.name: change for change in found}


def benchmark(directory: Path, right: list[float], names: list[str] | None = None, **more: Any) -> Path:
    items = right_or_wrong("copa", right, names)
    return write_scores(directory, {PART: items}, [score(ACC, items, **more)])


def test_right_and_wrong_by_mcnemar_where_two_intervals_overlap(tmp_path: Path) -> None:
    before = benchmark(tmp_path / "before", [1] * 50 + [0] * 50)
    after = benchmark(tmp_path / "after", [1] * 49 + [0] * 1 + [1] * 9 + [0] * 41)
    change = changes(after, before)[ACC]
    assert (change.verdict, change.n, change.n_before, change.n_after) == ("better", 100, 100, 100)
    assert change.method == "McNemar's exact test: 9 gained, 1 lost" and change.p == pytest.approx(22 / 1024)
    assert change.low is not None and change.high is not None and 0 < change.low < 0.08 < change.high
    assert change.against == "before" and change.adjusted == change.p and change.reason is None
    back = changes(before, after)[ACC]
    assert back.verdict == "worse" and back.p == change.p


def test_items_of_other_sets_are_compared_on_what_is_common(tmp_path: Path) -> None:
    names = [f"question {number}" for number in range(30)]
    before = benchmark(tmp_path / "before", [0] * 20, names[:20], set="s")
    after = benchmark(tmp_path / "after", [1] * 20, names[10:], set="t")
    change = changes(after, before)[ACC]
    assert (change.n, change.n_before, change.n_after, change.before, change.after) == (10, 20, 20, 0.0, 1.0)
    assert change.verdict == "better" and change.reason == "on the 10 items that both have, of 20 and 20"
    alone = benchmark(tmp_path / "alone", [1] * 20, [f"other {number}" for number in range(20)], set="u")
    change = changes(alone, before)[ACC]
    assert change.verdict == "incomparable" and change.reason == "no item is in both: 20 and 20 others"


def test_items_are_found_by_hash_in_any_order_and_as_often_as_they_stand(tmp_path: Path) -> None:
    before = benchmark(tmp_path / "before", [1, 0, 0, 0, 1, 1], ["a", "b", "twice", "twice", "c", "gone"])
    after = benchmark(tmp_path / "after", [0, 1, 0, 1, 1], ["twice", "c", "b", "a", "twice"])
    change = changes(after, before)[ACC]
    assert change.n == 5 and change.method.endswith("1 gained, 0 lost"), "the second `twice` alone is gained"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"settings": {"shots": 5}}, "shots 5 against unknown"),
        ({"task_version": "2"}, "task version 2 against None"),
        ({"tokenizer": "t"}, "another tokenizer"),
        ({"signature": "tok:zh"}, "tok zh against unknown"),
    ],
)
def test_other_rules_are_not_compared_though_items_are_equal(tmp_path: Path, more: Any, reason: str) -> None:
    before = benchmark(tmp_path / "before", [1, 0] * 20)
    change = changes(benchmark(tmp_path / "after", [1] * 40, **more), before)[ACC]
    assert change.verdict == "incomparable" and reason in (change.reason or "") and change.p is None


def texts(directory: Path, bits: Any, **more: Any) -> Path:
    items = documents(bits)
    names = {"bits_per_byte": "bits_per_byte", "nats_per_token": "nats_per_token", "perplexity": "nats_per_token"}
    results = [score(f"perplexity/h/{name}", items, metric, **more) for name, metric in names.items()]
    value = math.exp(results[2].value)
    results[2] = replace(results[2], value=value, low=value - 1, high=value + 1)
    return write_scores(directory, {"perplexity/h": items}, results)


def test_bits_per_byte_by_randomisation(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    hard = generator.normal(2.0, 0.4, 40)
    before = texts(tmp_path / "before", hard)
    found = changes(texts(tmp_path / "after", hard - generator.normal(0.03, 0.03, 40)), before)
    assert {name.rsplit("/", 1)[1]: change.verdict for name, change in found.items()} == {
        "bits_per_byte": "better", "nats_per_token": "better", "perplexity": "better",
    }  # fmt: skip
    bits, perplexity = found["perplexity/h/bits_per_byte"], found["perplexity/h/perplexity"]
    assert bits.p == perplexity.p == bits.adjusted, "one set is one question: Holm counts it once"
    assert bits.high is not None and bits.high < 0 and "10,000 trials" in bits.method
    assert perplexity.low is not None and perplexity.high is not None
    assert perplexity.low < perplexity.after - perplexity.before < perplexity.high < 0


def test_a_group_is_compared_on_the_items_of_its_tasks(tmp_path: Path) -> None:
    """Of two intervals that overlap, as before, nothing could be said."""

    def run(name: str, right: int) -> Path:
        parts = {
            task: right_or_wrong(task, [1] * count + [0] * (50 - count)) for task, count in (("a", right), ("b", 25))
        }
        members = [score(f"benchmark/{task}/acc", items) for task, items in parts.items()]
        weights = {one.name: 0.5 for one in members}
        value = sum(one.value for one in members) / 2
        group = replace(members[0], name="benchmark/g/acc", value=value, low=value - 0.1, high=value + 0.1, n=100)
        group = replace(group, settings={MEMBERS: weights})
        return write_scores(tmp_path / name, {"benchmark/g": [*parts["a"], *parts["b"]]}, [*members, group])

    change = changes(run("after", 34), run("before", 25))["benchmark/g/acc"]
    assert (change.verdict, change.n, change.method) == ("better", 100, "McNemar's exact test: 9 gained, 0 lost")
    assert change.after - change.before == pytest.approx(0.09)


def test_two_infinite_perplexities_have_no_order(tmp_path: Path) -> None:
    """e to the power of either is infinite, and neither of two infinities is below the other; their bits tell."""
    infinite = {"value": math.inf, "low": None, "high": None}
    runs = []
    for name, bits in (("before", [300.0, 310.0]), ("after", [320.0, 330.0])):
        items = documents(bits)
        one = replace(score("perplexity/h/perplexity", items, "nats_per_token"), **infinite)
        runs.append(write_scores(tmp_path / name, {"perplexity/h": items}, [one]))
    before, after = runs
    change = changes(after, before)["perplexity/h/perplexity"]
    assert change.verdict == "incomparable" and "both are infinite" in (change.reason or "")
    for run in runs:
        items_file(run / "scores", "perplexity/h").unlink()
    change = changes(after, before)["perplexity/h/perplexity"]
    assert change.verdict == "incomparable" and "both are infinite" in (change.reason or "")


def test_windows_of_few_documents_are_called_so(tmp_path: Path) -> None:
    def run(name: str, gain: float) -> Path:
        units = np.stack([np.linspace(2, 3, 30) - gain, np.ones(30)], axis=1)
        above, below = units.sum(axis=0)
        own = {"bits_per_byte": (float(above), float(below))}
        item = Item("a", hash_of("a"), "a", measures=own, units={"bits_per_byte": tuple(units.ravel())})
        return write_scores(
            tmp_path / name, {"perplexity/h": [item]}, [score("perplexity/h/bits_per_byte", [item], "bits_per_byte")]
        )

    change = changes(run("after", 0.1), run("before", 0.0))["perplexity/h/bits_per_byte"]
    assert change.verdict == "better" and change.n == 30
    assert change.reason == "the 30 items are windows of few documents, and not independent: p may be too small"


def test_what_is_learnt_within_the_context_is_a_question_of_its_own() -> None:
    """Its p must not stand for that of the bits per byte of the same set, which the units of one loss share."""
    plain = Change("", "a", 2.0, 1.9, -0.2, 0.0, 0.001, "test", "no difference")
    names = ("bits_per_byte", "perplexity", "nats_per_token", "late_minus_early_nats")
    results = {
        f"perplexity/h/{name}": score(f"perplexity/h/{name}", documents([2.0]), "bits_per_byte") for name in names
    }
    found = adjusted([replace(plain, name=name, p=0.9 if "late" in name else 0.001) for name in results], results)
    assert [change.verdict for change in found] == ["better", "better", "better", "no difference"]
    assert found[0].adjusted == pytest.approx(0.002), "two questions"


def test_a_bound_above_an_exact_score_decides_nothing_and_one_below_it_does(tmp_path: Path) -> None:
    hard = np.random.default_rng(3).normal(2.0, 0.4, 40)
    exact, bound = texts(tmp_path / "exact", hard), {"note": "upper bound, 16 draws"}
    above, below = (texts(tmp_path / name, hard + by, **bound) for name, by in (("above", 0.2), ("below", -0.2)))
    for after, before in ((above, exact), (exact, above)):
        for change in changes(after, before).values():
            assert change.verdict == "incomparable" and change.p is None and change.n == 40
            assert change.reason == "an upper bound above an exact score; what it bounds may be below"
    for after, before, verdict in ((below, exact, "better"), (exact, below, "worse")):
        found = changes(after, before)["perplexity/h/bits_per_byte"]
        assert found.verdict == verdict and (found.reason or "").startswith("an upper bound that is not above")
    two = changes(below, above)["perplexity/h/bits_per_byte"]
    assert (two.verdict, two.reason) == ("better", None), "two bounds are two numbers"


def test_differences_of_bounds_are_not_compared_with_exact_ones(tmp_path: Path) -> None:
    items, note = documents(np.linspace(1, 2, 40)), "made of upper bounds of nats, 16 draws; late targets"
    less = documents(np.linspace(0.5, 1.5, 40))
    runs = {
        (name, kind): write_scores(
            tmp_path / f"{name}{kind}",
            {"perplexity/h": own},
            [score(f"perplexity/h/{name}", own, "nats_per_token", note=kind or None, unit=unit)],
        )
        for name, unit in (("late_minus_early_nats", "nats per token"), ("matching_accuracy", "accuracy"))
        for kind, own in (("", items), (note, less))
    }
    found = {name: changes(runs[name, note], runs[name, ""])[f"perplexity/h/{name}"] for name, _ in runs}
    assert found["matching_accuracy"].verdict == "better"
    late = found["late_minus_early_nats"]
    assert late.verdict == "incomparable" and (late.reason or "").endswith("of exact scores in the other")


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    """A diverged model has no score at all; a single infinite item makes an infinite score."""
    before = texts(tmp_path / "before", [2.0, 2.1, 2.2])
    after = texts(tmp_path / "after", [2.0, math.inf, 2.2])
    change = changes(after, before)["perplexity/h/bits_per_byte"]
    assert change.verdict == "incomparable" and change.reason == "after has no finite number for item `1`"
    ours = load_results(after)
    replace(ours, changes=[change]).save(after)
    assert load_results(after).changes == [change]
    assert "Infinity" not in (after / "results.json").read_text()


def test_without_items_two_intervals_are_compared_and_it_says_so(tmp_path: Path) -> None:
    before = benchmark(tmp_path / "before", [1, 0] * 50)
    items = right_or_wrong("copa", [1] * 62 + [0] * 38)
    after = write_scores(tmp_path / "after", {}, [score(ACC, items)])
    change = changes(after, before)[ACC]
    assert change.method == "not paired, from the two intervals (after: it has no items)" and change.n == 0
    assert change.verdict == "better" and change.low == pytest.approx(0.12 - math.hypot(0.05, 0.05))
    assert change.p == pytest.approx(math.erfc(1.96 * 0.12 / math.hypot(0.05, 0.05) / math.sqrt(2)), rel=0.01)
    for other, words in (({"set": "t"}, "other content"), ({"low": None, "high": None}, "has no interval")):
        write_scores(tmp_path / "after", {}, [score(ACC, items, **other)])
        change = changes(after, before)[ACC]
        assert change.verdict == "incomparable" and words in (change.reason or "")


def test_items_of_another_evaluation_are_not_taken(tmp_path: Path) -> None:
    """Nor damaged ones, nor those that do not add up to the score."""
    before, after = (benchmark(tmp_path / name, [1, 0] * 30) for name in ("before", "after"))
    write_items(after / "scores", PART, "other", right_or_wrong("copa", [1] * 60))
    assert "of another evaluation" in changes(after, before)[ACC].method
    write_items(after / "scores", PART, "f", right_or_wrong("copa", [1] * 60))
    assert "its items give 1, not 0.5" in changes(after, before)[ACC].method
    items_file(after / "scores", PART).write_bytes(b"PAR1 and so on")
    assert changes(after, before)[ACC].method == "equal scores (after: its items are missing or damaged)"


def test_holm_counts_what_was_tested(tmp_path: Path) -> None:
    """One real difference among eleven tasks; two of them have no item that differs."""

    def run(directory: Path, gained: dict[int, int]) -> Path:
        parts, results = {}, []
        for number in range(11):
            right = [1] * (20 + gained.get(number, 0)) + [0] * (20 - gained.get(number, 0))
            items = right_or_wrong(f"t{number}", right)
            parts[f"benchmark/t{number}"] = items
            results.append(score(f"benchmark/t{number}/acc", items))
        return write_scores(directory, parts, results)

    before = run(tmp_path / "before", {})
    found = changes(run(tmp_path / "after", {0: 7, 1: 14, **dict.fromkeys(range(2, 9), 1)}), before)
    seven, fourteen, none = (found[f"benchmark/t{number}/acc"] for number in (0, 1, 10))
    assert seven.p == pytest.approx(2 / 2**7) and seven.adjusted == pytest.approx(8 * 2 / 2**7)
    assert seven.verdict == "no difference" and "p = 0.016 alone, 0.12 among the 9 scores compared" in (
        seven.reason or ""
    )
    assert fourteen.verdict == "better" and fourteen.adjusted == pytest.approx(9 * 2 / 2**14)
    assert (none.verdict, none.p, none.adjusted, none.method[:7]) == ("no difference", None, None, "McNemar")


def test_filters_tags_and_groups_find_their_items(tmp_path: Path) -> None:
    def items(values: list[float]) -> list[Item]:
        made = right_or_wrong("gsm", values)
        return [
            replace(
                item,
                measures={"exact_match/strict-match": item.measures["acc"]},
                tags=("clean" if number < 8 else "touched",),
            )
            for number, item in enumerate(made)
        ]

    def run(directory: Path, values: list[float]) -> Path:
        ours = items(values)
        name = "benchmark/gsm/exact_match/strict-match"
        parts = {"": ours, "/clean": ours[:8], "/touched": ours[8:]}
        results = [score(name + tag, own, "exact_match/strict-match", unit="share") for tag, own in parts.items()]
        return write_scores(
            directory, {"benchmark/group": ours}, [replace(one, higher_is_better=True) for one in results]
        )

    found = changes(run(tmp_path / "after", [1.0] * 8 + [0.0] * 4), run(tmp_path / "before", [0.0] * 12))
    assert [(name.rsplit("match", 1)[1], change.n, change.verdict) for name, change in found.items()] == [
        ("", 12, "better"), ("/clean", 8, "better"), ("/touched", 4, "no difference"),
    ]  # fmt: skip


def test_bleu_is_compared_by_sacrebleus_statistics(tmp_path: Path) -> None:
    from sacrebleu.metrics import BLEU

    pairs = [("the king went to the river", "a queen went to a house")] * 6 + [
        ("he never saw it", "he never saw me")
    ] * 6

    def run(directory: Path, side: int) -> Path:
        metric = BLEU()
        outputs, references = [pair[side] for pair in pairs], [pair[0] for pair in pairs]
        value = metric.corpus_score(outputs, [references]).score
        kept = metric._extract_corpus_statistics(outputs, [references])
        items = [
            Item(str(row), hash_of(str(row)), "", statistics={"bleu": tuple(map(float, numbers))})
            for row, numbers in enumerate(kept)
        ]
        own = {"low": 1.0, "high": 99.0, "set": "s", "signature": str(metric.get_signature())}
        result = Result("translation/wmt/bleu", value, n=12, unit="BLEU", higher_is_better=True, interval="b", **own)
        copied = replace(result, name="translation/wmt/copy_bleu")
        return write_scores(directory, {"translation/wmt": items}, [result, copied])

    found = changes(run(tmp_path / "after", 0), run(tmp_path / "before", 1))
    assert list(found) == ["translation/wmt/bleu"], "a copied source is no score of the model"
    change = found["translation/wmt/bleu"]
    assert change.verdict == "better" and change.after == pytest.approx(100) and change.n == 12
    assert change.low is not None and change.low > 0 and change.method.startswith("sacrebleu's approximate")


@pytest.mark.parametrize("words", [False, True])
def test_perplexities_of_lm_eval_are_compared_by_log_likelihoods(tmp_path: Path, words: bool) -> None:
    """e to the power of the mean, or of the sum over words; other functions of items are compared by intervals."""
    generator = np.random.default_rng(8)
    hard = generator.normal(-4, 1, 50)

    def run(directory: Path, gain: float) -> Path:
        kept = [(float(value) + gain, 2.0) if words else (float(value) + gain,) for value in hard]
        items = [
            Item(str(row), hash_of(str(row)), "", "lambada", statistics={"perplexity": numbers, "best": numbers})
            for row, numbers in enumerate(kept)
        ]
        value = math.exp(-(float(hard.mean()) + gain) / (2 if words else 1))
        own = {"low": value / 2, "high": value * 2, "n": 50, "unit": "p", "higher_is_better": False, "interval": "b"}
        results = [Result(f"benchmark/lambada/{metric}", value, **own) for metric in ("perplexity", "best")]  # type: ignore[arg-type]
        return write_scores(directory, {"benchmark/lambada": items}, results)

    found = changes(run(tmp_path / "after", 0.05), run(tmp_path / "before", 0.0))
    change, other = found["benchmark/lambada/perplexity"], found["benchmark/lambada/best"]
    assert change.verdict == "better" and change.n == 50 and "10,000 trials" in change.method
    assert "not paired" in other.method and other.n == 0


def test_no_score_in_common_gives_no_change(tmp_path: Path) -> None:
    before = write_scores(tmp_path / "before", {}, [])
    assert changes(benchmark(tmp_path / "after", [1, 0]), before) == {}
