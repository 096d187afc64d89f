"""Main text of pages: no words out of the middle of a sentence, none run together, no column of a table lost."""

from __future__ import annotations

import time

import pytest

from configs.schema.data import Extract
from data_prep.extraction.extract import NotExtracted, extract
from data_prep.extraction.nesting import MarkupShape
from data_prep.extraction.neutral_html import blocks_apart, marked, words_kept

FILLER = "".join(
    f"<p>Paragraph {n} of this article has quite enough words to be taken for main text by anybody.</p>"
    for n in range(6)
)
MODES = ("trafilatura", "resiliparse", "text")


def text_of(inside: str, mode: str = "trafilatura") -> str:
    page = f"<html><body><article>{FILLER}{inside}{FILLER}</article></body></html>"
    return extract(page.encode(), "text/html", Extract.model_validate({"html": mode})).text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["time", "output", "meter", "blink", "marquee", "button", "label", "span", "data"])
def test_words_inside_a_sentence_stay(name: str, mode: str) -> None:
    sentence = f"<p>The council met on <{name} class='x'>5 March 2024</{name}> and voted.</p>"
    assert "met on 5 March 2024 and voted." in text_of(sentence, mode)


@pytest.mark.parametrize("mode", MODES[:2])
def test_what_stands_alone_is_the_extractors_choice(mode: str) -> None:
    assert "alone" not in text_of("<p><button>alone</button></p><div><time>alone</time></div>", mode)
    bold = "<p>It was on <time><b>5</b> March</time>.</p>"
    assert "It was on 5 March." in text_of(bold, mode).replace(" .", ".")


def test_formulas_stay() -> None:
    math = "<math><mfrac><mi>a</mi><mi>b</mi></mfrac><annotation>\\frac ab</annotation></math>"
    assert "value of a/b is &lt;".replace("&lt;", "<") in text_of(f"<p>The value of {math} is &lt; 1.</p>")
    assert "The value of" in text_of("<p>The value of <math><mi>x</math> is 1.</p>")


BLOCKS = ["div", "section", "article", "blockquote", "center", "details", "address", "pre", "table", "ul", "p", "h3"]


@pytest.mark.parametrize("outer", ["div", "td", "li", "dd", "blockquote", "details"])
def test_blocks_inside_blocks_stand_apart(outer: str) -> None:
    for inner in BLOCKS:
        words = {"table": "<tr><td>second</td></tr>", "ul": "<li>second</li>"}.get(inner, "second")
        block = f"First block is long <b>enough</b><{inner}>{words}</{inner}><i>third</i> text of it"
        held = {"td": f"<table><tr><td>{block}</td><td>x</td></tr></table>", "li": f"<ul><li>{block}</li></ul>"}
        text = text_of(held.get(outer, f"<{outer}>{block}</{outer}>"))
        assert "enoughsecond" not in text and "secondthird" not in text, inner


def test_code_is_no_place_for_borders() -> None:
    code = "<pre>one\n  <div>two</div>three\n</pre>"
    assert "one\n  twothree" in text_of(code)
    assert "\ue002" not in text_of("<pre>one line</pre>" + code)


TABLE = (
    "<table><tr><th>a</th><th>b</th><th>c</th></tr><tr><td></td><td>2</td><td></td></tr>"
    "<tr><td>1</td><td>&nbsp;</td><td>3</td></tr><tr><td></td><td></td><td></td></tr><tr><td>7</td><td>8</td><td></td></tr></table>"
)


@pytest.mark.parametrize("mode", MODES)
def test_columns_of_a_table_stay(mode: str) -> None:
    rows = text_of(TABLE, mode)
    begin = rows.index("a | b | c")
    table = [line.rstrip() for line in rows[begin:].split("\n\n")[0].split("\n")]
    assert table == ["a | b | c", "| 2", "1 |  | 3", "7 | 8"]
    assert "\t\t" not in rows and "\x7f" not in rows


@pytest.mark.parametrize("mode", MODES)
def test_characters_alone_in_an_element_stay(mode: str) -> None:
    """resiliparse's main text left out every element that holds a single character of Chinese."""
    for name in ("b", "span", "a", "em"):
        assert "这是中国" in text_of(f"<p>这是<{name}>中</{name}>国 abc.</p>", mode).replace(" ", "")
    cells = text_of("<table><tr><td>中</td><td>—</td><td>x</td></tr></table>", mode)
    assert "中 | — | x" in cells and "\x7f" not in cells


def test_layout_tables_stay_paragraphs() -> None:
    layout = "<table><tr><td></td><td><p>One long paragraph of text.</p><p>Another one.</p></td></tr></table>"
    assert "One long paragraph of text.\nAnother one." in text_of(layout).replace("\n\n", "\n")
    assert "| One" not in text_of(layout)
    image = "<table><tr><td><img src=x></td><td>Words alone.</td></tr><tr><td><img src=x></td><td></td></tr></table>"
    for mode in MODES:
        text = text_of(image, mode)
        assert "\nWords alone.\n" in text and "\t\t" not in text and "|" not in text


@pytest.mark.parametrize(
    "evasion",
    ["<p x='>' {0}>", "<p x='<' {0}>", "<p x=< {0}>", "<p ' {0}>", '<p a="<b>" {0}>', "<p/{1}>", "<p {2}>", "<p a<{0}"],
)
def test_attributes_are_counted_as_a_parser_does(evasion: str) -> None:
    """Parsers compare each attribute with all before it: 200,000 took minutes."""
    names = [f"a{number}" for number in range(3000)]
    for count, many in ((3000, True), (1500, False)):
        own = names[:count]
        tag = evasion.format(" ".join(own), "/".join(own), "".join(f"{name}='<b>'" for name in own))
        assert MarkupShape(FILLER + tag + "x</p>" + FILLER).too_many_attributes() is many, count


@pytest.mark.parametrize("tag", ["<div>", "<div/>", "<div a=<>", "<div a='>'>", "<div<>", "<DIV\n>"])
def test_depth_is_counted_as_a_parser_does(tag: str) -> None:
    """resiliparse's time grows with the square of the depth: 100,000 of these took minutes."""
    with pytest.raises(NotExtracted, match="too_deep"):
        extract((f"<html><body>{FILLER}" + tag * 3000 + "text").encode(), "text/html", Extract())
    assert "any" in text_of(tag * 300 + "text" + "</div>" * 300)


BOMBS = ["<a", "<a ", "<a b='", "<pre>", "<math>", "<script>", "<!--", "<title>", "<td>&nbsp;", "<time>x", "<button>x"]
BOMBS += ["<div>   ", "x<div>", "</div>   ", ">中", "<b>     ", "<a b='x' ", "<", "<td><p>", "<table><td>"]


@pytest.mark.parametrize("bomb", BOMBS)
def test_looking_at_a_page_takes_no_longer_than_its_length(bomb: str) -> None:
    """`<a<a<a …` took hours."""
    started = time.process_time()
    text = FILLER + bomb * 30_000
    shape = MarkupShape(text)
    shape.depth_beyond(250)
    shape.xml_depth_beyond(250)
    shape.too_many_attributes()
    marked(blocks_apart(words_kept(text)), tables=True)
    assert time.process_time() - started < 3
