"""XML by its own rules: depth, white space that stays, HTML that is held as text."""

from __future__ import annotations

import time

import pytest

from configs.schema.data import Extract
from data_prep.extraction.extract import NotExtracted, extract


def text_of(document: str, **settings: object) -> str:
    return extract(document.encode(), "text/xml", Extract.model_validate(settings)).text


GENERIC = "List<String> names = new ArrayList<String>();"


@pytest.mark.parametrize(
    "inside",
    [
        f"<![CDATA[{GENERIC}]]>",
        f"<!-- {GENERIC} <a><b> -->Step",
        f"<?php {GENERIC} ?>Step",
        "<para note=\"a &gt; b\" other='<![CDATA['/>Step",
        "<image ref='x'/><hr></hr>Step",
    ],
    ids=["CDATA", "comment", "instruction", "attribute", "empty"],
)
def test_what_is_no_element_makes_no_document_deep(inside: str) -> None:
    document = "<doc>" + f"<section><para>One</para><code>{inside}</code></section>" * 400 + "<para>Last.</para></doc>"
    assert text_of(document).endswith("Last.")


def test_depth_is_that_of_xml() -> None:
    """Names matter by case, no element ends by itself, and an open CDATA section hides what follows."""
    for name in ("li", "p", "Item", "x:y", "_a", "été"):
        with pytest.raises(NotExtracted, match="too_deep"):
            text_of(f"<doc>{f'<{name}>' * 300}text{f'</{name}>' * 300}</doc>")
        assert text_of(f"<doc>{f'<{name}>' * 200}text{f'</{name}>' * 200}</doc>") == "text"
    assert text_of("<doc><p>text</p>" + "<![CDATA[" + "<a>" * 1000)
    started = time.process_time()
    for document in ("<doc>" + "<a b='" * 100_000, "<doc>" + "<![CDATA[" * 100_000, "<doc>" + "<!--" * 100_000):
        assert "<a" not in text_of(f"<doc><p>x</p></doc>{document}")
    assert time.process_time() - started < 5


# ---------------------------------------------------------------------------------------------------------- white space
WIKI = "== Head ==\n* item one\n  * item two\n\nText here."


def test_white_space_is_kept_where_the_document_says_so() -> None:
    assert text_of(f'<d><t>A</t><text xml:space="preserve">{WIKI}</text><t>B</t></d>') == f"A\n\n{WIKI}\n\nB"
    # For all that is inside, until another says otherwise; blocks stay blocks.
    inside = f"<d xml:space='preserve'><t>{WIKI}</t><t>One</t><t xml:space='default'>a\n  b</t></d>"
    assert text_of(inside) == f"{WIKI}\n\nOne\n\na b"
    assert text_of("<d><t xml:space='default'>a\n  b</t></d>") == "a b"
    word = '<p><r><t xml:space="preserve">One </t></r><r><t>two</t></r><r><t xml:space="preserve"> three</t></r></p>'
    assert text_of(f"<d>{word}</d>").replace("\n\n", " ") == "One two three"
    assert text_of("<d><row><cell xml:space='preserve'>a\nb</cell><cell>c</cell></row></d>") == "a b | c"
    assert text_of("<d><list><item xml:space='preserve'>a\n b</item></list></d>") == "- a\n   b"


# --------------------------------------------------------------------------------------------------------- HTML as text
def rss(*descriptions: str, name: str = "description") -> str:
    items = "".join(f"<item><title>T</title><{name}>{text}</{name}></item>" for text in descriptions)
    return (
        f'<rss version="2.0" xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>{items}</channel></rss>'
    )


def test_feeds_hold_html() -> None:
    html = "<p>Hello <b>world</b> &amp; more</p><ul><li>one</li><li>two</li></ul><script>x()</script>"
    escaped = html.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    right = "Hello world & more\n\n- one\n- two"
    for held in (f"<![CDATA[{html}]]>", escaped):
        assert text_of(rss(held)) == f"T\n\n{right}"
        assert text_of(rss(held, name="content:encoded")) == f"T\n\n{right}"
        atom = f'<feed xmlns="http://www.w3.org/2005/Atom"><entry><content type="html">{held}</content></entry></feed>'
        assert text_of(atom) == right
    rdf = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/">'
    assert text_of(f"{rdf}<item><description>{escaped}</description></item></rdf:RDF>") == right
    assert (
        text_of(rss("fish &amp;amp; chips", "5 &lt; 6 &amp;&amp; 7 &gt; 6"))
        == "T\n\nfish & chips\n\nT\n\n5 < 6 && 7 > 6"
    )
    inline = '<content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml"><p>One</p><p>Two</p></div></content>'
    assert text_of(f'<feed xmlns="http://www.w3.org/2005/Atom"><entry>{inline}</entry></feed>') == "One\n\nTwo"


def test_text_about_markup_stays() -> None:
    about = "Write &lt;p&gt; before a paragraph and &lt;/p&gt; behind it."
    right = "Write <p> before a paragraph and </p> behind it."
    assert text_of(f"<article><para>{about}</para></article>") == right
    code = "&lt;p&gt;\n  text\n&lt;/p&gt;"
    for name in ("programlisting", "code", "pre", "screen"):
        assert text_of(f"<article><{name}>{code}</{name}></article>") == "<p>\n  text\n</p>"
    atom = "<feed xmlns='http://www.w3.org/2005/Atom'><entry><title>{}</title></entry></feed>"
    assert text_of(atom.format("The &lt;b&gt; tag")) == "The <b> tag"  # Atom: text unless it says html
    assert text_of("<article><para>if a &lt;b and b&gt; c</para></article>") == "if a <b and b> c"


def test_exports_hold_html_too() -> None:
    text = (
        "<questiontext format='html'><text><![CDATA[<p>What is <em>this</em>?</p><p>Say.</p>]]></text></questiontext>"
    )
    assert text_of(f"<quiz><question>{text}</question></quiz>") == "What is this?\n\nSay."


def test_held_html_is_no_way_around_the_limits() -> None:
    started = time.process_time()
    deep = "<b>" * 50_000 + "x"
    many = "<p " + " ".join(f"a{number}" for number in range(50_000)) + ">x</p>"
    for bomb in (deep, many):
        assert text_of(rss(f"<![CDATA[{bomb}]]>", "after")).endswith("after")
    assert time.process_time() - started < 5
    assert text_of(rss("<![CDATA[" + "<div>" * 99 + "deep" + "</div>" * 99 + "]]>")) == "T\n\ndeep"
