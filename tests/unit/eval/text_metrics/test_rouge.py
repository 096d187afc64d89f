"""ROUGE equals rouge-score's, in any language that its tokenizer can read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import zstandard
from rouge_score.rouge_scorer import RougeScorer

from eval.text_metrics.rouge import ROUGE, Rouge

SAMPLE = Path(__file__).parents[3] / "data" / "xsum-lead-sample.jsonl.zst"


@pytest.mark.parametrize("stem", [False, True])
def test_scores_equal_stored_ones_of_rouge_score_on_lead_sentences_of_xsum(stem: bool) -> None:
    with zstandard.open(io.BytesIO(SAMPLE.read_bytes()), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 40
    found = Rouge(stem=stem).scores([row["lead"] for row in rows], [[row["reference"]] for row in rows])
    for number, row in enumerate(rows):
        for kind, expected in row["stemmed" if stem else "plain"].items():
            assert list(found[kind][number]) == pytest.approx(expected, abs=1e-9), (row["line"], kind)


def test_the_best_reference_counts_for_each_kind() -> None:
    references = ["the cat sat on the mat", "a dog barked"]
    one = Rouge().scores(["a dog barked loudly"], [references])
    assert one["rouge1"][0].fmeasure == pytest.approx(6 / 7)
    assert Rouge().scores(["a dog barked loudly"], [references[:1]])["rouge1"][0].fmeasure == 0
    assert Rouge().scores([""], [references])["rougeLsum"][0].fmeasure == 0


def test_sentences_for_lsum_are_found_without_line_breaks() -> None:
    """rouge-score alone takes a text without line breaks for one sentence."""
    found = Rouge().scores(["It ended. The war began."], [["The war began. It ended."]])
    assert found["rougeLsum"][0].fmeasure == 1
    assert found["rougeL"][0].fmeasure == pytest.approx(0.6)


def test_a_line_is_never_joined_with_the_next_one() -> None:
    """Turns without marks, and lines that rouge-score and its users end sentences at."""
    output, reference = "no rain today\nthe war began", "the war began\nno rain today"
    library = RougeScorer(["rougeLsum"]).score(reference, output)["rougeLsum"]
    assert Rouge().scores([output], [[reference]])["rougeLsum"][0] == library and library.fmeasure == 1
    two = "It ended. The war began.\nno rain"
    lines = RougeScorer(["rougeLsum"]).score("no rain", "It ended.\nThe war began.\nno rain")["rougeLsum"]
    assert Rouge().scores([two], [["no rain"]])["rougeLsum"][0] == lines


def test_chinese_is_scored_by_characters() -> None:
    rouge = Rouge("characters")
    assert rouge.tokenizer.tokenize("孙亮，字子明；GPT-3 模型!") == [*"孙亮字子明", "gpt", "3", "模", "型"]
    assert rouge.tokenizer.tokenize("Привет, für Ærø") == ["привет", "für", "ærø"]
    found = rouge.scores(["今天下雨。"], [["今天不下雨。"]])
    assert found["rouge1"][0].recall == pytest.approx(4 / 5)
    assert found["rouge2"][0].recall == pytest.approx(2 / 4)
    words = Rouge().scores(["今天下雨。"], [["今天不下雨。"]])
    assert words["rouge1"][0].fmeasure == 0, "rouge-score's own tokenizer sees nothing: `check` says so"


def test_references_that_the_tokenizer_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"set `x`: ROUGE's tokenizer `words` drops 7\d% .*tokens: characters"):
        Rouge().check(["今天是2004年。", "A 明天也会下雨吗？我们不知道"], "set `x`")
    with pytest.raises(ValueError, match=r"reference 2 has no word .*'!!!'"):
        Rouge(stem=True).check(["a long enough reference", "!!!"], "set `x`")
    Rouge().check(["Ein Stück für Herrn Müller"], "x")
    Rouge("characters").check(["今天下雨", "Привет"], "x")


def test_signature_names_what_decides_the_scores() -> None:
    signature = Rouge().signature(2, 1000)
    assert signature.startswith("nrefs:2|case:lc|tok:words|stem:no|agg:mean|rouge_score:0.")
    assert signature.endswith("|bs:1000|seed:1234")
    assert "stem:porter" in Rouge(stem=True).signature(1) and "nltk:" in Rouge(stem=True).signature(1)
    assert set(ROUGE) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
