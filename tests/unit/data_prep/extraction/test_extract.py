"""Markup to text: structure that survives, encodings, XML, and input that harms."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from configs.schema.data import Extract
from data_prep.extraction.extract import Extracted, NotExtracted, extract
from data_prep.text.charset import decode

PAGES = Path(__file__).parents[3] / "data" / "html"
ARTICLE = (PAGES / "article.html").read_bytes()
SENTENCE = "<p>This is a sentence that is long enough to be the text of a page, and there is another one.</p>"
CODE = """def sort(xs):
    exchanges = 0
    for i in range(len(xs)):
        if xs[i] < xs[i - 1]:
            exchanges += 1

    return exchanges"""
TEXTS = {
    "gb18030": "我们都是好朋友，今天天气很好。我们去公园玩吧。",
    "big5hkscs": "我們都是好朋友，今天天氣很好。大家一起去公園。",
    "cp932": "これはテストです。日本語の文章を書いています。",
    "euc_jp": "これはテストです。日本語の文章を書いています。",
    "cp949": "안녕하세요 세계 반갑습니다. 오늘은 날씨가 좋습니다. 그래서 공원에 갔습니다.",
    "cp1251": "Привет, как дела? Это проверка кодировки, которая была широко распространена.",
    "koi8-r": "Привет, как дела? Это проверка кодировки, которая была широко распространена.",
    "utf-16-le": "hello there, 你好",
    "utf-16-be": "hello there, 你好",
    "cp1252": "Ça va très bien à Paris, l’été “est” là. Naïve façade.",
}


def page(data: bytes | str, **settings: object) -> Extracted:
    return extract(data, "text/html", Extract.model_validate(settings))


def reason(data: bytes | str, media_type: str | None = "text/html", markup: str = "auto") -> str:
    with pytest.raises(NotExtracted) as caught:
        extract(data, media_type, Extract(), markup=markup)
    return caught.value.reason


# ----------------------------------------------------------------------------------------------------------- structure
def test_main_text_keeps_code_lists_and_tables() -> None:
    found = page(ARTICLE)
    assert found.title == "Sorting & searching | Example Site"
    for piece in (
        CODE,
        "first   4950\nsecond  2475\nthird      0",
        "- how many items there are\n- what is known about them\n  - their range\n  - their order\n- whether equal",
        "1. measure\n2. then decide",
        "\n\nAlgorithm | Worst case\nbubble sort | n2\nmerge sort | n log n\n\n",
        "hyphenated softly",
        "See another page for",
    ):
        assert piece in found.text
    for boilerplate in ("Log in", "Imprint", "var page", "color: red"):
        assert boilerplate not in found.text


@pytest.mark.parametrize("mode", ["resiliparse", "text"])
def test_other_extractors_keep_code_and_tables(mode: str) -> None:
    text = page(ARTICLE, html=mode).text
    assert CODE in text
    assert "merge sort | n log n" in text
    assert ("Imprint" in text) == (mode == "text")


def test_links_and_tables_are_settings() -> None:
    text = page(ARTICLE, links=True, tables=False).text
    assert "[another page](https://example.org/order)" in text
    assert "merge sort" not in text


def test_fragment_of_a_field_is_all_content() -> None:
    found = extract("<p>a<br>b</p><ul><li>c</ul><table><tr><td>1<td>2</table>", None, Extract(), markup="html")
    assert found.text.split("\n") == ["a", "b", "", "  - c", "1 | 2"]
    assert extract("no tag &amp; all", None, Extract(), markup="html").text == "no tag & all"
    assert "Imprint" not in extract(ARTICLE.decode(), None, Extract(), markup="html").text  # a whole page in a field


def test_what_is_no_markup_stays_as_it_is() -> None:
    assert extract("a <b> c", None, Extract(), markup="none").text == "a <b> c"
    assert extract(b"# Title\n\n1 < 2", "text/markdown; charset=utf-8", Extract()).text == "# Title\n\n1 < 2"
    assert extract(b"plain", None, Extract()).text == "plain"
    assert "Sorting things" in extract(ARTICLE, None, Extract()).text  # no media type: seen from its beginning
    assert reason(b"body { color: red }", "text/css") == "not_text"
    assert reason(b"\x89PNG", "image/png") == "not_text"


# ----------------------------------------------------------------------------------------------------------- encodings
@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("media_type", [None, "text/plain; charset=iso-8859-1", "text/plain; charset=utf-8"])
def test_encoding_found_without_and_against_a_declaration(encoding: str, media_type: str | None) -> None:
    text = TEXTS[encoding] * 3
    assert decode(text.encode(encoding), media_type)[0] == text


def test_declarations() -> None:
    short = "Жук".encode("cp1251")  # three letters: only a declaration can tell
    assert decode(short, "text/plain; charset=Windows-1251") == ("Жук", "windows-1251")
    assert decode(b'<meta charset="windows-1251">' + short)[0].endswith("Жук")
    assert decode(b'<?xml version="1.0" encoding="windows-1251"?>' + short)[0].endswith("Жук")
    assert decode(b"<meta http-equiv=content-type content='text/html; charset=windows-1251'>" + short)[0][-3:] == "Жук"
    assert decode("\ufeffЖук".encode("utf-16"), "text/plain; charset=windows-1251") == ("\ufeffЖук", "utf-16le")
    assert decode("\ufeffЖук".encode(), "text/plain; charset=windows-1251") == ("Жук", "utf-8")
    assert decode("Жук".encode(), "text/plain; charset=windows-1251") == ("Жук", "utf-8")
    assert decode("これはテスト".encode("iso2022_jp"))[0] == "これはテスト"
    assert decode(short, "text/plain; charset=no-such")[1] != "no-such"


def test_broken_bytes_do_not_change_the_encoding() -> None:
    text = "Привет, как дела? Это проверка. " * 20
    cut = text.encode()[:-2].replace("дела".encode(), "дела".encode()[:-1], 1)
    decoded, encoding = decode(cut)
    assert encoding == "utf-8"
    assert 0 < decoded.count("\ufffd") <= 2
    assert decode(b"") == ("", "utf-8")


def test_pages_declare_their_encoding() -> None:
    article = f'<html><head><meta charset="gbk"></head><body><article><p>{TEXTS["gb18030"] * 4}</p></article></body>'
    found = page(article.encode("gbk"))
    assert TEXTS["gb18030"] in found.text
    assert found.metadata == {"encoding": "gbk"}


# ----------------------------------------------------------------------------------------------------------------- XML
def test_cnxml() -> None:
    found = extract((PAGES / "module.cnxml").read_bytes(), "application/xml", Extract())
    assert found.title == "Falling Bodies"
    assert found.text.split("\n\n") == [
        "Falling Bodies",
        "- State the law of falling bodies",
        "The law",
        "A body falls freely when nothing but its weight acts on it. [Air is nothing here.]",
        "s = (g t^2)/2",
        "Remember",
        "Mass does not matter.",
        "1. Drop it.\n2. Measure time.",
        "t | s\n1 | 4.9\n2 | 19.6 (m)",
        "fall: what happens to what is let go",
    ]


def test_docbook_and_unknown_elements() -> None:
    docbook = """<!DOCTYPE article SYSTEM "docbookx.dtd"><article><info><title>Build&ndash;run &amp; test</title></info>
    <section><para>Type <command>make</command> now:</para><programlisting>make \\
    all\n\nmake test</programlisting><mystery>some <thing>mixed</thing> text</mystery>
    <data><first>one</first><second>two</second></data></section></article>"""
    assert extract(docbook, "application/docbook+xml", Extract()).text.split("\n\n") == [
        "Build–run & test",
        "Type make now:",
        "make \\\n    all",
        "make test",
        "some mixed text",
        "one",
        "two",
    ]


def test_entities_are_neither_expanded_nor_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "lol">{levels}]><x>before &e11; after</x>'
    assert extract(bomb, "text/xml", Extract()).text == "before after"
    outside = f'<!DOCTYPE x [<!ENTITY f SYSTEM "{secret.as_uri()}">]><x>before &f; after</x>'
    assert extract(outside, "text/xml", Extract()).text == "before after"


def test_broken_xml_is_read_as_far_as_it_goes() -> None:
    assert extract("<a><b>one</a> two <c>x", None, Extract(), markup="xml").text.split() == ["one", "two", "x"]
    assert reason("no markup at all", None, "xml") == "not_markup"
    assert reason("<a>" * 300 + "x" + "</a>" * 300, "text/xml") == "too_deep"


# ------------------------------------------------------------------------------------------------------------ bad input
def test_deep_nesting_is_refused_or_read_by_the_extractor_that_can() -> None:
    deep = "<html><body>" + "<div>" * 100_000 + SENTENCE + "</div>" * 100_000
    start = time.process_time()
    assert reason(deep.encode()) == "too_deep"
    assert time.process_time() - start < 5
    found = page(deep.replace("<div>" * 99_700, "").replace("</div>" * 99_700, "").encode())
    assert "This is a sentence" in found.text  # libxml2 would have cut it off
    assert found.metadata == {"extractor": "resiliparse"}
    assert reason("<html><body>" + "<b><i>" * 2_000 + SENTENCE) == "too_deep"  # never closed


def test_many_siblings_are_not_deep() -> None:
    rows = "<tr><td>cell<td>cell<br><img src=x>" * 1_000
    text = page(
        f"<html><body><article>{SENTENCE * 3}<table>{rows}</table>{SENTENCE * 500}</article></body></html>"
    ).text
    assert "This is a sentence" in text


def test_attributes() -> None:
    many = " ".join(f"a{number}=1" for number in range(200_000))
    assert reason(f"<html><body><div {many}>{SENTENCE}</div>") == "too_many_attributes"
    image = f'<img src="data:image/png;base64,{"A" * 3_000_000}">'
    assert "This is a sentence" in page(f"<html><body><article>{image}{SENTENCE}</article></body></html>").text


def test_nul_bytes_and_lone_surrogates() -> None:
    assert (
        "hello there" in page(b"<html><body><article><p>hel\0lo there, my friends of the NUL byte</p></article>").text
    )
    assert extract("<a>hel\0lo <b>there</b></a>", "text/xml", Extract()).text == "hello there"
    found = page("<html><body><article><p>one \ud800 two \ud83d\ude00 three four five</p></article>").text
    assert "one \ufffd two \U0001f600 three" in found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<html><head><title>only a head</title></head></html>", "no_main_text"),
        (b'<html><frameset cols="1,2"><frame src=a><frame src=b></frameset></html>', "no_main_text"),
        (b"", "no_main_text"),
        (b" \n\t ", "no_main_text"),
        (b"just text", "not_markup"),
        (b"\x89PNG\r\n\x1a\n<p>" + random.Random(0).randbytes(5_000), "not_markup"),
    ],
)
def test_pages_without_text(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_an_extractor_that_fails_loses_only_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    import trafilatura

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise RecursionError

    monkeypatch.setattr(trafilatura, "bare_extraction", fail)
    assert reason(ARTICLE) == "extractor_failed"
