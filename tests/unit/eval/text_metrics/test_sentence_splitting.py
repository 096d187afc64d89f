"""Sentences in English and Chinese, and the turns of dialogues."""

from __future__ import annotations

import pytest

from eval.text_metrics.sentences import split_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('"Stop," he said. "Why?" she asked. He left.', ['"Stop," he said.', '"Why?" she asked.', "He left."]),
        ("Mr. H. G. Wells met Dr. Kemp, e.g. in St. John's. They talked.", 2),
        ("It cost $3.5 bn in the U.S. Army budget. Nobody knew.", 2),
        ("Chapter\n\nA sentence over\ntwo lines. Another.", ["Chapter", "A sentence over two lines.", "Another."]),
        ("He waited... and left. She stayed.", ["He waited... and left.", "She stayed."]),
        ("今天天气很好。我们去吧！“好吗？”他说。", ["今天天气很好。", "我们去吧！", "“好吗？”", "他说。"]),
        ("GPT-3模型很大。It was big.", ["GPT-3模型很大。", "It was big."]),
        ("", []),
        (" \n\n ", []),
        ("no mark at the end", ["no mark at the end"]),
    ],
)
def test_sentences(text: str, expected: list[str] | int) -> None:
    found = split_text(text)
    assert found == expected if isinstance(expected, list) else len(found) == expected
    assert "".join("".join(found).split()) == "".join(text.split()), "every character lies in one sentence"


def test_turns_are_lines() -> None:
    assert split_text("#Person1#: Hi. You?\n\n#Person2#: Fine.\r\n", "lines") == [
        "#Person1#: Hi. You?",
        "#Person2#: Fine.",
    ]
