"""Quality rules: every rule drops just beyond its threshold and keeps just within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter

from configs.schema.quality_rules import Rule
from data_prep.quality import Drop, TextFacts, build_rules, judge
from data_prep.quality import word_table as tables
from data_prep.quality.english_words import english
from data_prep.quality.judgement import above

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(number: int, size: int = 5) -> str:
    """A word of its own for every number."""
    text = ""
    for _ in range(size):
        number, digit = divmod(number, 26)
        text = LETTERS[digit] + text
    return text


def words(count: int, size: int = 5, start: int = 0) -> list[str]:
    """Different words, with stop words first."""
    return ["the", "and", *(word(start + number, size) for number in range(count - 2))]


def verdict(text: str, rule: str, **settings: Any) -> str:
    """The reason, or `keep`."""
    parsed = TypeAdapter(list[Rule]).validate_python([{"rule": rule, **settings}])
    result = judge(build_rules(parsed), text)
    return result.reason if isinstance(result, Drop) else "keep"


def lines(count: int, ended: int, size: int = 8) -> str:
    """Different lines, the first ones with a full stop."""
    return "\n".join(
        " ".join(words(size, start=number * size)[2:]) + ("." if number < ended else "") for number in range(count)
    )


def with_share(text: str, share: int, total: int) -> str:
    """`text` and enough further different words for it to be `share` characters of `total`."""
    assert len(text) == share
    rest = " " + " ".join(word(number, 7) for number in range(total // 8 + 1))
    return (text + rest)[:total]


GOPHER: dict[str, Callable[[bool], str]] = {
    "gopher_too_few_words": lambda over: " ".join(words(49 if over else 50)),
    "gopher_too_many_words": lambda over: " ".join(words(2001 if over else 2000)),
    "gopher_short_mean_word": lambda over: " ".join(["the", "and", *["ab" if over else "abc"] * 60]),
    "gopher_long_mean_word": lambda over: " ".join(["the", "and", *["a" * (11 if over else 10)] * 60]),
    "gopher_hashes_per_word": lambda over: " ".join(words(90)) + " #" * (11 if over else 10),
    "gopher_ellipses_per_word": lambda over: " ".join(words(90)) + " ..." * (11 if over else 10) + " " + word(9),
    "gopher_bullet_lines": lambda over: (
        "\n".join("- " + " ".join(words(9, start=number)) for number in range(9))
        + ("\n- and" if over else "\nthe end of it")
    ),
    "gopher_ellipsis_lines": lambda over: "\n".join(
        " ".join(words(9, start=number)) + ("..." if number < (4 if over else 3) else ".") for number in range(10)
    ),
    "gopher_alphabetic_words": lambda over: " ".join(words(80)) + " 1234" * (21 if over else 20),
    "gopher_stop_words": lambda over: " ".join(words(60)[1 if over else 0 :]),
}


@pytest.mark.parametrize("reason", GOPHER)
def test_gopher_quality(reason: str) -> None:
    assert verdict(GOPHER[reason](True), "gopher_quality", max_words=2000) == reason
    assert verdict(GOPHER[reason](False), "gopher_quality", max_words=2000) == "keep"


@pytest.mark.parametrize("size", [30, 300])  # without and with numpy
@pytest.mark.parametrize(
    ("reason", "join"), [("gopher_dup_para_frac", "\n\n"), ("gopher_dup_line_frac", "\n")], ids=["paragraphs", "lines"]
)
def test_repeated_parts(reason: str, join: str, size: int) -> None:
    distinct = [" ".join(words(size, start=number * size)[2:]) for number in range(6)]
    some = [*distinct, "same", "same", "same", "same"]
    assert verdict(join.join(some), "gopher_repetition") == "keep"  # 3 of 10
    assert verdict(join.join([*some, "same"]), "gopher_repetition") == reason  # 4 of 11
    longer = join.join([*distinct, distinct[0], distinct[1]])
    assert verdict(longer, "gopher_repetition") == reason.replace("_frac", "_char_frac")  # 2 of 8, a quarter


@pytest.mark.parametrize("total", [1000, 8000])  # without and with numpy
@pytest.mark.parametrize(("n", "percent"), [(2, 20), (3, 18), (4, 16)])
def test_top_ngrams(n: int, percent: int, total: int) -> None:
    gram = " ".join(word(500_000 + number, 4) for number in range(n))  # 5n - 1 characters
    parts = [word(10_000 + number, 3) for number in range(total // 4)]
    times = percent * total // 100 // len(gram)

    def text(count: int) -> str:
        mixed = " ".join(f"{gram} {parts[number]}" for number in range(count))
        return with_share(mixed, len(mixed), total)

    settings = {"max_top_ngram": {n: percent / 100}, "max_dup_ngram": {}}
    assert verdict(text(times), "gopher_repetition", **settings) == "keep"
    assert verdict(text(times + 1), "gopher_repetition", **settings) == f"gopher_top_{n}_gram"


@pytest.mark.parametrize("total", [900, 9000])
@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_ngrams(n: int, total: int) -> None:
    percent = 20 - n
    times = percent * total // 100 // 20 + 1  # 20 characters in each n-gram
    sizes = [20 // n + (number < 20 % n) for number in range(n)]
    gram = " ".join(word(7 + number, size) for number, size in enumerate(sizes))

    def text(count: int) -> str:
        mixed = " ".join(f"{gram} {word(20_000 + number, 4)}" for number in range(count))
        return with_share(mixed, len(mixed), total)

    settings = {"max_top_ngram": {}, "max_dup_ngram": {n: percent / 100}}
    assert verdict(text(times), "gopher_repetition", **settings) == "keep"  # the first one does not count
    assert verdict(text(times + 1), "gopher_repetition", **settings) == f"gopher_dup_{n}_gram"


def test_equal_ngrams_may_be_cut_into_words_differently() -> None:
    for filler in (10, 400):  # without and with numpy
        text = "ab cd ef gh ij " + " ".join(words(filler)) + " a bcd efg hi j"
        facts = TextFacts(text)
        assert facts.ngram_hashes(5)[0] == facts.ngram_hashes(5)[-1]
        settings = {"max_top_ngram": {}, "max_dup_ngram": {5: 9.5 / len(text)}}
        assert verdict(text, "gopher_repetition", **settings) == "gopher_dup_5_gram"


FINEWEB: dict[str, Callable[[bool], str]] = {
    "fineweb_line_punct_ratio": lambda over: lines(100, 11 if over else 12),
    "fineweb_short_line_ratio": lambda over: lines(32 if over else 33, 32) + "\n"
    + "\n".join(word(number, 29) + "." for number in range(68 if over else 67)),
    "fineweb_char_dup_ratio": lambda over: lines(100, 100, 9) + "\n" + lines(1, 1, 9)[: 41 if over else 40] + ".\n"
    + lines(1, 1, 9)[: 41 if over else 40] + ".",
    "fineweb_list_ratio": lambda over: "\n".join(
        " ".join([word(7 * number + other, 16) for other in range(2)]) + "." for number in range(60)
    )
    + " more" * (16 if over else 17),
}  # fmt: skip


@pytest.mark.parametrize("reason", FINEWEB)
def test_fineweb(reason: str) -> None:
    assert verdict(FINEWEB[reason](True), "fineweb") == reason
    assert verdict(FINEWEB[reason](False), "fineweb") == "keep"
    assert verdict("\n \n", "fineweb") == "fineweb_empty"


def test_c4_takes_out_lines() -> None:
    kept = [f"This is line {word(number)} of it." for number in range(5)]
    out = ["no full stop here", "An ellipsis ends this...", "Two words.", "You need JavaScript for this.",
           "See our privacy policy for more.", "w" * 1001 + " is a long word."]  # fmt: skip
    (rule,) = build_rules(TypeAdapter(list[Rule]).validate_python([{"rule": "c4"}]))
    text = "\n".join(line for pair in zip(out, [*kept, ""], strict=True) for line in pair)
    assert rule(TextFacts(text)) == "\n".join(kept)
    assert rule(TextFacts("\n".join(["  A note[12] on it[edit].  ", *kept]))) == "\n".join(["A note on it.", *kept])
    every = "\n".join([*out[:2], *kept])
    assert verdict(every, "c4", terminal_punctuation=False) == "keep"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("Lorem Ipsum is dull.", "c4_lorem_ipsum"),
        ("lorem ipsum without an end", "keep"),  # the line goes before it is read
        ("Some { code here.", "c4_curly_bracket"),
        ("Nothing much to see.", "keep"),
    ],
)
def test_c4_drops(extra: str, reason: str) -> None:
    text = "\n".join(f"This is line {word(number)} of it." for number in range(5))
    assert verdict(f"{text}\n{extra}", "c4") == reason
    assert verdict(text[: text.rindex("\n")], "c4") == "c4_too_few_sentences"
    assert verdict("one two", "c4", min_sentences=0) == "c4_no_line_left"


def han(count: int, start: int = 0) -> str:
    """Different Chinese characters."""
    return "".join(chr(0x4E00 + start + number) for number in range(count))


ZH: dict[str, Callable[[bool], str]] = {
    "zh_too_few_characters": lambda over: han(199 if over else 200) + ("" if over else "。"),
    "zh_too_many_characters": lambda over: (han(19_000) * 11)[: 200_000 if over else 199_999] + "。",
    "zh_short_lines": lambda over: "\n".join(han(8 if over else 9, number * 9) + "。" for number in range(30)),
    "zh_han_frac": lambda over: han(299 if over else 300) + "x" * (700 if over else 699) + "。",
    "zh_hashes": lambda over: han(300) + "#" * (16 if over else 15) + "。",
    "zh_ellipses": lambda over: "。".join([han(300), *["……x"] * (19 if over else 16), ""]),
    "zh_bullet_lines": lambda over: (
        "\n".join("· " + han(30, number * 30) + "。" for number in range(9)) + ("\n· " if over else "\n") + han(9, 900)
    ),
    "zh_ellipsis_lines": lambda over: "\n".join(
        han(30, number * 30) + ("……" if number < (4 if over else 3) else "。") for number in range(10)
    ),
    "zh_line_punct_ratio": lambda over: "\n".join(
        han(30, number * 30) + ("。”" if number < (2 if over else 3) else "") for number in range(25)
    ),
    "zh_dup_line_frac": lambda over: "\n".join(
        [*(han(99, number * 99) + "。" for number in range(6)), *[han(9, 9000) + "。"] * (5 if over else 4)]
    ),
    "zh_top_4_gram": lambda over: "".join(
        han(4, 9000) + han(11, number * 11) for number in range(30)
    ) + "。" if over else "".join(han(4, 9000) + han(17, number * 17) for number in range(30)) + "。",
    "zh_dup_10_gram": lambda over: "".join(
        [han(20, 9000) + han(40 if over else 150, number * 150) for number in range(5)]
    ) + "。",
}  # fmt: skip


@pytest.mark.parametrize("reason", ZH)
def test_chinese(reason: str) -> None:
    settings: dict[str, Any] = {} if reason == "zh_dup_10_gram" else {"max_dup_ngram": {}}
    if reason == "zh_too_many_characters":
        settings["max_top_ngram"] = {}
    assert verdict(ZH[reason](True), "massivetext_zh", **settings) == reason
    assert verdict(ZH[reason](False), "massivetext_zh", **settings) == "keep"


@pytest.mark.parametrize(
    ("value", "threshold", "said"),
    [(185_859, 100_000, "185859 > 100000"), (2e6, 1e6, "2000000 > 1000000"), (0.40625, 0.3, "0.4062 > 0.3")],
)
def test_what_a_drop_says(value: float, threshold: float, said: str) -> None:
    assert above("reason", value, threshold) == Drop("reason", said)


def test_null_switches_a_rule_off() -> None:
    assert verdict("two words", "gopher_quality", min_words=None, min_stop_words=None) == "keep"
    assert verdict("x\nx\nx", "gopher_repetition", max_dup_paragraphs=None) == "gopher_dup_line_frac"


def test_the_word_table_starts_anew_without_changing_results(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(words(60, start=60 * number)) for number in range(20)]
    before = [TextFacts(text).ngram_hashes(5).tolist() for text in texts]
    monkeypatch.setattr(tables, "_MOST_CHUNKS", 50)
    facts = TextFacts(texts[0])
    assert [TextFacts(text).ngram_hashes(5).tolist() for text in texts] == before
    assert facts.words == texts[0].split()


def test_long_chunks_take_linear_time() -> None:
    for chunk in ("=" * 40_000, "." * 40_000, "a:" * 20_000 + "@b.c", "x" * 300_000):
        assert "".join(english().words(chunk)[0]) == chunk
