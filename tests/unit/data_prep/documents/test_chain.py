"""One document through all steps: their order, what they count, and that every byte is accounted for."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.data import Data
from data_prep.documents.chain import Chain, Dropped
from data_prep.documents.document import Document
from data_prep.funnel.tally import Tally

ENGLISH = (
    "The old captain had been at sea for forty years, and he told us that he would not leave the ship to anyone. "
    "We believed him, for he was a man of few words, and those that he said were to be trusted in all things. "
    "When the storm came over the hills we went below, and there we heard the wind and the rain with the sea. "
)
CHINESE = (
    "昔者庄周梦为胡蝶，栩栩然胡蝶也。自喻适志与，不知周也。俄然觉，则蘧蘧然周也。不知周之梦为胡蝶与，胡蝶之梦为周与。"
    * 2
)


def run(text: str, url: str | None = None, source: dict[str, Any] | None = None, **data: Any) -> tuple[Any, Tally]:
    """The chain's result for one text, and what it counted; checks that the bytes add up."""
    settings = Data.model_validate({"sources": [{"name": "s", "path": "x", **(source or {})}], **data})
    tally = Tally()
    document = Document("d", text, "s", url, {}, 0, None, len(text.encode()))
    result = Chain(settings, settings.sources[0], tally)(document)
    left = 0 if isinstance(result, Dropped) else len(result[1])
    counts = {key: entry for key, entry in tally.counts.items() if key != "read/read"}
    assert sum(entry[1] for entry in counts.values()) + left == len(text.encode())
    assert sum(entry[0] for entry in counts.values()) == isinstance(result, Dropped)
    return result, tally


def test_steps_in_their_order_and_what_they_take() -> None:
    text = f"  {ENGLISH}\r\nRead more\r\nWrite to jane.doe@hill-and-sea.net, please.\n\n\n\n"
    (document, encoded), tally = run(
        text, lines={"boilerplate": True}, language={"identify": True}, privacy={"emails": True}
    )
    assert "Read more" not in document.text
    assert "jane.doe" not in document.text
    assert document.metadata["language"] == "en"
    assert encoded == document.text.encode()
    assert [key for key in tally.counts if key != "read/read"] == [
        "normalize/normalized",
        "lines/boilerplate",
        "privacy/redacted",
    ]
    assert tally.marks == {"privacy/emails": 1}
    assert {example["key"] for example in tally.examples} == set(tally.counts) - {"read/read"}


@pytest.mark.parametrize(
    ("text", "settings", "key"),
    [
        (" \n ", {}, "quality/empty"),
        (ENGLISH, {"language": {"keep": ["zh"]}}, "language/en"),
        (ENGLISH, {"language": {"keep": ["en"], "confidence": {"en": 1.0}}}, "language/uncertain"),
        (
            ENGLISH,
            {"quality": {"rules": [{"rule": "gopher_quality", "min_words": 100}]}},
            "quality/gopher_too_few_words",
        ),
        ("Read more", {"lines": {"boilerplate": True}}, "lines/only_boilerplate"),
        (ENGLISH, {"quality": {"blocked_words": ["casino"]}}, "quality/blocked_url"),
    ],
)
def test_reasons(text: str, settings: dict[str, Any], key: str) -> None:
    result, tally = run(text, "https://example.org/casino/1", **settings)
    assert isinstance(result, Dropped)
    assert result.key == key
    assert tally.counts[key] == (1, result.size)


def test_rules_of_a_language_leave_others_alone() -> None:
    rules = {"rules": [{"rule": "gopher_quality", "languages": ["en"]}]}
    kept, _ = run(CHINESE, language={"identify": True}, quality=rules)
    assert not isinstance(kept, Dropped)
    dropped, _ = run("Only the few words.", source={"language": "en"}, quality=rules)
    assert dropped.key == "quality/gopher_too_few_words"
    with pytest.raises(ValueError, match=r"set language\.identify"):
        run(ENGLISH, quality=rules)


def test_a_source_may_leave_out_steps() -> None:
    rules = {"rules": [{"rule": "gopher_quality"}]}
    result, _ = run("a@hill-and-sea.net x", quality=rules, privacy={"emails": True}, source={"skip": ["quality"]})
    assert not isinstance(result, Dropped)
    assert "a@hill-and-sea.net" not in result[0].text
    result, _ = run("a@hill-and-sea.net x", privacy={"emails": True}, source={"skip": ["privacy"]})
    assert result[0].text == "a@hill-and-sea.net x"
