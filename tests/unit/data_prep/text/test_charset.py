"""Which encoding: what is declared, what the bytes say, and what comes later in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.text.charset import decode, utf8_evidence
from tests.parts.reading import read, texts
from tests.unit.data_prep.readers.test_reader_warc import answer, warc

FRENCH = "Le café était fermé quand nous sommes arrivés, et un élève regardait par la fenêtre. "
JAPANESE = "今日はとても良い天気です。公園へ散歩に行きました。"


def page(meta: str, body: bytes) -> bytes:
    return f"<html><head>{meta}</head><body><p>".encode() + body + b"</p></body></html>"


# ---------------------------------------------------------------------------------------------------------------- UTF-8
@pytest.mark.parametrize("meta", ["", '<meta charset="utf-8">', '<meta charset="windows-1250">'])
def test_utf8_with_a_few_bad_bytes_is_utf8(meta: str) -> None:
    good = "<p>He says “hello” and it’s about things that we know.</p>" * 4
    text, encoding = decode(page(meta, good.encode() + "José Núñez, Málaga".encode("latin-1")))
    assert encoding == "utf-8"
    assert text.count("“hello” and it’s") == 4
    assert "Jos\ufffd N\ufffd\ufffdez, M\ufffdlaga" in text


@pytest.mark.parametrize(("bytes_", "text"), [(b"caf\xe9", "café"), (b"It\x92s", "It’s"), (b"\x80 5", "€ 5")])
@pytest.mark.parametrize("meta", ["", '<meta charset="utf-8">', '<meta charset="euc-jp">', '<meta charset="us-ascii">'])
def test_one_byte_that_is_no_utf8(bytes_: bytes, text: str, meta: str) -> None:
    data = page(meta, b"We met at the " + bytes_ + b" on the corner of the street, and talked.")
    assert text in decode(data)[0]


def test_evidence() -> None:
    assert utf8_evidence("é中😀\ufffd".encode()) == (4, 0)
    assert utf8_evidence("é".encode() + b"\xff\xe4" + "中".encode()[:2]) == (1, 2)  # a cut at the end says nothing
    assert utf8_evidence(b"plain") == (0, 0)


# --------------------------------------------------------------------------------------------------------- declarations
@pytest.mark.parametrize("label", ["utf-16", "UTF-16LE", "utf-16be", "unicode", "csunicode", "x-user-defined", "none"])
def test_a_meta_that_cannot_be_true(label: str) -> None:
    for data in (page(f'<meta charset="{label}">', (FRENCH * 6).encode("cp1252")), (FRENCH * 6).encode("cp1252")):
        assert "nous sommes arrivés" in decode(data, f"text/html; charset={label}")[0] or label == "x-user-defined"
    assert "nous sommes arrivés" in decode(page(f'<meta charset="{label}">', FRENCH.encode("cp1252")))[0]
    assert "nous sommes arrivés" in decode(page(f'<meta charset="{label}">', FRENCH.encode()))[0]


def test_utf16_by_its_declaration() -> None:
    text = "在很久以前，有一个小村庄，人们过着平静的生活。" * 3
    assert decode(text.encode("utf-16-be"), "text/plain; charset=utf-16be") == (text, "utf-16be")
    assert decode(text.encode("utf-16-le"), 'text/plain; charset="UTF-16"') == (text, "utf-16le")


SHORT = "Жук".encode("cp1251")


@pytest.mark.parametrize(
    "meta",
    [
        b"<meta charset=windows-1251>",
        b"<META\nCHARSET = 'cp1251' >",
        b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">',
        b"<meta content='text/html;charset=\"windows-1251\"' http-equiv=content-type>",
        b"<meta charset=nonsense><meta charset=windows-1251>",
        b"<!-- <meta charset=koi8-r> --><meta charset=windows-1251>",
        b'<meta name="d" content="charset=koi8-r"><meta charset=windows-1251>',
        b'<a title="<meta charset=koi8-r>"><meta charset=windows-1251>',
        b"<meta data-charset=koi8-r charset=windows-1251 charset=koi8-r>",
        b'<?xml version="1.0" encoding="windows-1251"?><meta charset=koi8-r>',
        b"\n<?xml version='1.0' encoding='Windows-1251' ?>",
    ],
)
def test_the_prescan_of_the_html_standard(meta: bytes) -> None:
    assert decode(meta + b"<p>" + SHORT) == (meta.decode() + "<p>Жук", "windows-1251")


@pytest.mark.parametrize(
    "charset", ["windows-1251", '"windows-1251"', "'windows-1251", "windows-1251; q=1", " cp1251 "]
)
def test_the_header(charset: str) -> None:
    assert decode(SHORT, f"text/plain; Charset={charset}") == ("Жук", "windows-1251")


def test_encodings_that_hide_markup_are_replaced() -> None:
    for label, data in (("hz-gb-2312", b"~{1>~}"), ("iso-2022-kr", b"\x1b$)C\x0e0!"), ("iso-2022-cn", b"\x1b$A1>")):
        assert decode(data, f"text/html; charset={label}") == ("\ufffd", "replacement")
        assert decode(b"plain", f"text/html; charset={label}") == ("plain", "utf-8")


@pytest.mark.parametrize("label", ["euc-jp", "shift_jis", "iso-2022-jp"])
def test_japanese_as_a_browser_shows_it(label: str) -> None:
    python = {"shift_jis": "cp932"}.get(label, label)
    row = {"euc-jp": b"\xad\xa1", "shift_jis": b"\x87\x40", "iso-2022-jp": b"\x2d\x21"}[label]
    whole = (JAPANESE * 10 + "〓番のバス" + JAPANESE * 10).encode(python)
    body = whole.replace("〓".encode(python).removeprefix(b"\x1b$B").removesuffix(b"\x1b(B"), row)
    text, encoding = decode(page(f'<meta charset="{label}">', body))
    assert JAPANESE * 10 + "①番のバス" + JAPANESE * 10 in text
    assert encoding == label
    assert decode(body)[0] == JAPANESE * 10 + "①番のバス" + JAPANESE * 10


def test_the_domain_tells_a_language() -> None:
    data = "hétfő".encode("cp1250")
    assert decode(data, None, "https://example.hu/x")[0] == "hétfő"
    assert decode(data, None, "https://example.fr:80")[0] == "hétfõ"


# ---------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("unit", ["file", "line", "paragraph"])
def test_a_book_whose_letters_come_late(tmp_path: Path, unit: str) -> None:
    head = "".join(f"Line {n} of the plain beginning of this book, all of it in ASCII.\n" for n in range(9000))
    tail = "\nLe café était fermé.\nUn élève à la fenêtre.\n"
    for encoding in ("latin-1", "gbk", "iso-2022-jp", "utf-8"):
        end = "\n我们在街角的咖啡馆见面，谈了一个小时。\n" if encoding == "gbk" else tail
        end = f"\n{JAPANESE}\n" if encoding == "iso-2022-jp" else end
        (tmp_path / "a.txt").write_bytes((head + end).encode(encoding))
        assert end.split() == "\n".join(texts(tmp_path / "a.txt", text_documents=unit)).split()[-len(end.split()) :]


def test_a_decision_on_one_letter_is_open(tmp_path: Path) -> None:
    head = "Kraków is the first word here with a letter beyond ASCII.\n" + "plain line of the book\n" * 30_000
    tail = "Zażółć gęślą jaźń, mówił wąż do świętego źrebięcia.\n" * 20
    (tmp_path / "a.txt").write_bytes((head + tail).encode("iso-8859-2"))
    lines = texts(tmp_path / "a.txt", text_documents="line")
    assert lines[0].startswith("Kraków")
    assert lines[-1] == tail.splitlines()[0]


def test_files_of_two_encodings_put_together(tmp_path: Path) -> None:
    latin, utf8 = (
        FRENCH.strip() + "\n",
        "Çà et là, des élèves – déjà grands – s’ennuyaient à l’école près de la forêt.\n",
    )
    filler = "plain line of the book\n" * 15_000
    for first, second in (((latin * 9).encode("cp1252"), (utf8 * 20).encode()), ((utf8 * 20).encode(), latin.encode())):
        (tmp_path / "a.txt").write_bytes(first + filler.encode() + second)
        documents, rejected = read(tmp_path / "a.txt", text_documents="line")
        found = {d.text for d in documents}
        assert utf8.strip() in found
        assert FRENCH.strip() in found or [r.reason for r in rejected] == ["invalid_utf8"]


# ------------------------------------------------------------------------------------------------------- bytes are lost
TEXT = "Ça va très bien ici, à la maison.\n" * 20


def test_one_bad_byte_costs_one_character(tmp_path: Path) -> None:
    data = TEXT.encode() + b"bad \xff byte\n"
    (tmp_path / "a.txt").write_bytes(data + TEXT.encode())
    (tmp_path / "b.md").write_bytes(b"# MD\n\n" + data)
    (tmp_path / "c.warc").write_bytes(
        warc("response", answer(data, "Content-Type: text/plain; charset=utf-8\r\n"))
        + warc("conversion", b"WET " + data, "text/plain")
    )
    (tmp_path / "d.html").write_bytes(b"<html><body><pre>" + data + b"</pre></body></html>")
    documents, rejected = read(str(tmp_path / "*"))
    assert not rejected
    assert [d.text.count("Ça va très bien") for d in documents] == [40, 20, 20, 20, 20]
    assert all("bad \ufffd byte" in d.text for d in documents)
    assert [d.metadata["replaced_characters"] for d in documents[:4]] == [1] * 4
    documents, rejected = read(tmp_path / "a.txt", text_documents="line")
    assert len(documents) == 40
    assert [(r.reason, r.bytes) for r in rejected] == [("invalid_utf8", 10)]  # of that line it is too much


def test_what_was_replaced_before_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufffd\ufffd somebody else’s damage")
    (document,), _ = read(tmp_path / "a.txt")
    assert document.text.startswith("\ufffd\ufffd")
    assert not document.metadata
