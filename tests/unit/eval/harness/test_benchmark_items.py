"""Items of lm-eval's tasks by type of output, from samples as lm-eval logs them; the reference tests have real ones."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from eval.harness.benchmark_items import task_items


def task(output_type: str, **changes: Any) -> Any:
    own = {
        "OUTPUT_TYPE": output_type,
        "multiple_input": 0,
        "doc_to_text": lambda doc: doc["question"],
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["right"],
        "get_config": lambda key: None,
    }
    return SimpleNamespace(**{**own, **changes})


def sample(number: int, doc: dict[str, Any], arguments: Any, responses: Any, **metrics: Any) -> dict[str, Any]:
    target = doc.get("right", "")
    own = {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": arguments,
        "resps": [[one] for one in responses],
    }
    hashes = {"doc_hash": str(doc), "target_hash": str(target), "filter": "none", "filtered_resps": responses}
    return {**own, **hashes, **metrics}


def raw(samples: list[dict[str, Any]], **scores: float) -> dict[str, Any]:
    keyed = {key if "," in key else f"{key},none": value for key, value in scores.items()}
    return {"samples": {"quiz": samples}, "results": {"quiz": keyed}}


def test_choices() -> None:
    """The likeliest choice is the answer; what `acc_mutual_info` asks beside is no choice."""
    doc = {"question": "Two and two?", "choices": ["four", "five"], "right": 0}
    both = [("shots\n\nTwo and two?", " four"), ("shots\n\nTwo and two?", " five")]
    alone = [("", "four"), ("", "five")]
    samples = [
        sample(1, doc, both, [(-2.0, False), (-1.0, True)], acc=0.0, acc_norm=0.0),
        sample(
            0, doc, both + alone, [(-1.0, True), (-2.0, False), (-3.0, False), (-4.0, False)], acc=1.0, acc_norm=1.0
        ),
    ]
    right, wrong = task_items("quiz", task("multiple_choice"), raw(samples, acc=0.5, acc_norm=0.5), {("quiz", 1): 2.5})
    assert (right.id, wrong.id, right.subject) == ("0", "1", "quiz") and right.hash != wrong.hash
    assert right.asked == "Two and two?" and right.choices == wrong.choices == (" four", " five")
    assert right.answer == right.reference == " four" and wrong.answer == " five" and wrong.reference == " four"
    assert wrong.log_likelihoods == (-2, -1) and right.log_likelihoods == (-1, -2)
    assert wrong.measures == {"acc": (0, 1), "acc_norm": (0, 1)} and (right.seconds, wrong.seconds) == (None, 2.5)


def test_choices_before_the_same_end() -> None:
    """As in WinoGrande: the question is what the choices differ by."""
    doc = {"question": 1, "choices": ["The cup", "The case"], "right": "is full"}
    arguments = [("The cup", " is full"), ("The case", " is full")]
    samples = [sample(0, doc, arguments, [(-3.0, False), (-2.0, False)], acc=1.0)]
    (item,) = task_items("quiz", task("multiple_choice", multiple_input=1), raw(samples, acc=1.0))
    assert item.choices == ("The cup", "The case") and item.answer == item.reference == "The case"
    assert item.asked == "The ___ is full"


def test_generated_answers_have_a_measure_for_each_filter() -> None:
    doc = {"question": "Two and two?", "right": "4"}
    asked = [("Two and two?", {"until": ["\n"]})]
    plain = sample(0, doc, asked, ["It is 4."], exact_match=0.0)
    samples = [
        {**plain, "filter": "strict", "filtered_resps": ["It is 4."]},
        {**plain, "filter": "flexible", "filtered_resps": ["4"], "exact_match": 1.0},
    ]
    scores = {"exact_match,strict": 0.0, "exact_match,flexible": 1.0, "exact_match_stderr,strict": 0.0}
    (item,) = task_items("quiz", task("generate_until"), raw(samples, **scores))
    assert item.measures == {"exact_match/strict": (0, 1), "exact_match/flexible": (1, 1)}
    assert (item.answer, item.reference, item.bytes) == ("It is 4.", "4", 8)
    assert item.notes == {"extracted by flexible": "4"}


def test_log_likelihoods_of_whole_texts() -> None:
    """Bits per byte are a ratio of sums; a perplexity is not, and leaves its statistics."""
    texts = ["ab", "abcd"]
    values = {"bits_per_byte": [(-2.0, 2), (-4.0, 4)], "word_perplexity": [(-2.0, 1), (-4.0, 1)]}
    samples = [
        sample(n, {"question": text}, [(text,)], [value], **{name: rows[n] for name, rows in values.items()})
        for n, (text, value) in enumerate(zip(texts, (-2.0, -4.0), strict=True))
    ]
    scores = {"bits_per_byte": 1 / math.log(2), "word_perplexity": math.exp(3)}
    first, second = task_items("quiz", task("loglikelihood_rolling"), raw(samples, **scores))
    assert first.measures == {"bits_per_byte": (2 / math.log(2), 2)} and second.statistics == {
        "word_perplexity": (-4, 1)
    }
    assert first.log_likelihoods == (-2,) and second.bytes == 4 and second.asked == "abcd"


def test_what_is_no_sum_of_numbers_has_no_measure() -> None:
    samples = [sample(0, {"question": "?", "right": "a"}, [("?", {})], ["b"], bleu=("a", "b"), other=math.nan)]
    (item,) = task_items("quiz", task("generate_until"), raw(samples, bleu=3.0, other=1.0), tags={0: ["clean"]})
    assert item.measures == {} and item.statistics == {} and item.tags == ("clean",)
