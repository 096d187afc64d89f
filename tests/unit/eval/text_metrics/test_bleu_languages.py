"""BLEU is refused where its tokenizer would take clauses for words."""

from __future__ import annotations

import pytest

from configs.schema.pair_sets import SummarySet, TranslationSet
from eval.text_metrics.bleu import check_language
from eval.text_metrics.sentences import unspaced_share
from eval.text_metrics.text_scores import check_metrics

CHINESE = [["今天下雨，明天也会下雨。"], ["GPT 模型在 2024 年学会了翻译。", "模型会翻译。"]]


@pytest.mark.parametrize("tokenize", ["13a", "intl"])
def test_references_without_blanks_need_another_tokenizer(tokenize: str) -> None:
    with pytest.raises(ValueError, match=rf"set `t`: \d\d% of the letters .*`{tokenize}` takes .*set `tokenize: zh`"):
        check_language(tokenize, CHINESE, "set `t`")
    for other in ("zh", "char", "ja-mecab", "none"):
        check_language(other, CHINESE, "set `t`")
    check_language(tokenize, [["Er sagte 今天."], ["안녕하세요 여러분", "Привет"]], "set `t`")
    check_language(tokenize, [["?!"]], "set `t`")


def test_sets_are_asked_before_anything_is_generated() -> None:
    for kind in (TranslationSet, SummarySet):
        section = kind(name="t", path="x", score=["bleu"])
        with pytest.raises(ValueError, match=rf"{kind.kind} set `t`: .*tokenize: zh"):
            check_metrics(section, CHINESE)
        check_metrics(section.model_copy(update={"tokenize": "zh"}), CHINESE)
        check_metrics(section.model_copy(update={"score": ["chrf"]}), CHINESE)


def test_the_share_is_of_letters_and_digits() -> None:
    assert unspaced_share(["今天 ab！", "，。"]) == 0.5 and unspaced_share(["……"]) == unspaced_share([]) == 0
