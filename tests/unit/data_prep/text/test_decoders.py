"""Decoders: the whole of the Encoding standard's tables, and how it goes on after what is wrong.

The digests are of what a decoder gives that follows the standard's text word by word and reads its index files as of
2026-05-21 (https://encoding.spec.whatwg.org/#indexes); Python's codecs differ from it in some 1,100 places. The
sequences of ISO-2022-JP are those of web-platform-tests.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import pytest

from data_prep.text.charset import encoding_of
from data_prep.text.decoders import Decoder, decode_as

SINGLE_BYTE = {
    "ibm866": "3c8cc5cb485f93d2",
    "iso-8859-2": "a5871b0f978b840b",
    "iso-8859-3": "e83895f2b7d7b82b",
    "iso-8859-4": "449076e20ebf45eb",
    "iso-8859-5": "9f31ddc0f7444afa",
    "iso-8859-6": "beba4e6cf97dce83",
    "iso-8859-7": "71069977a6798ab7",
    "iso-8859-8": "b43535e7aaeb7bcf",
    "iso-8859-8-i": "b43535e7aaeb7bcf",
    "iso-8859-10": "282514fbd01219c4",
    "iso-8859-13": "4426f6d2f1b025cd",
    "iso-8859-14": "f03afb7e01e66cac",
    "iso-8859-15": "9b58b26dbd8fbff2",
    "iso-8859-16": "2de1faef4dc524c9",
    "koi8-r": "fb0243455e64ef70",
    "koi8-u": "896c218aaf12ca1b",
    "macintosh": "54112bce885d7b1a",
    "windows-874": "6a2c7940c3d68216",
    "windows-1250": "03772ed2e875bd12",
    "windows-1251": "b16600cf4e6d1a2d",
    "windows-1252": "cc916e51644a12e8",
    "windows-1253": "e4570135cbc6e3d5",
    "windows-1254": "4a8e99647c3e28e6",
    "windows-1255": "870c5c5e687fabcd",
    "windows-1256": "6f6e8626197b1b6b",
    "windows-1257": "d19a4e888879e36a",
    "windows-1258": "e79b48db126bc71d",
    "x-mac-cyrillic": "784db55e1c90195e",
}
PAIRS = [bytes([lead, trail]) for lead in range(0x80, 256) for trail in range(256)]
TABLES: dict[str, tuple[str, Iterable[bytes], str]] = {
    "big5": ("big5", PAIRS),
    "euc-jp": ("euc-jp", PAIRS),
    "euc-kr": ("euc-kr", PAIRS),
    "gb18030": ("gb18030", PAIRS),
    "shift_jis": ("shift_jis", PAIRS),
    "euc-jp 3": ("euc-jp", (b"\x8f" + pair for pair in PAIRS)),
    "gb18030 4": ("gb18030", (
        bytes([a, 0x30 + b, c, 0x30 + d])
        for a in (0x81, 0x82, 0x83, 0x84, 0x85, 0x90, 0xE3, 0xFE)
        for b in range(10) for c in range(0x81, 0xFF) for d in range(10)
    )),
    "iso-2022-jp": ("iso-2022-jp", (
        b"\x1b$B" + bytes([a, b]) + b"\x1b(B" for a in range(0x21, 0x7F) for b in range(0x21, 0x7F)
    )),
}  # fmt: skip
DIGESTS = {
    "big5": "708b047dd842085a",
    "euc-jp": "284328afc1c27205",
    "euc-kr": "a70cb0db6c6f738b",
    "gb18030": "ee552985d349aaa6",
    "shift_jis": "dc41c920ca79b540",
    "euc-jp 3": "ada1813099ceef9b",
    "gb18030 4": "7aeaba8578aca369",
    "iso-2022-jp": "740f3c368feb6fae",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@pytest.mark.parametrize("name", SINGLE_BYTE)
def test_single_bytes(name: str) -> None:
    assert digest(decode_as(bytes(range(256)), name)) == SINGLE_BYTE[name]


@pytest.mark.parametrize("table", TABLES)
def test_sequences(table: str) -> None:
    name, sequences = TABLES[table]
    assert digest("\n".join(decode_as(sequence, name) for sequence in sequences)) == DIGESTS[table]


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("euc-jp", b"\xad\xa1\xc8\xd6\xf9\xfe", "①番德"),  # NEC row 13, IBM's rows
        ("euc-jp", b"\xa1\xc1\xa1\xdd\x8f\xa2\xb7~", "～－～~"),
        ("euc-jp", b"\xa9\xa1\xb4\xc1\x8f\xa1\xa1\xb4\xc1", "\ufffd漢\ufffd漢"),
        ("euc-jp", b"\xb4<p>\x8e\x8f\x80\xff", "\ufffd<p>\ufffd\ufffd\ufffd"),
        ("shift_jis", b"\x87@\xfb\xfc\xf0@\xa0\xfd\x80", "①髙\ue000\ufffd\ufffd\x80"),
        ("shift_jis", b"\x81<\x81\xff<", "\ufffd<\ufffd<"),
        ("euc-kr", b"\xb0\xa1\x81A\xc9<\xc9\xa1", "가갂\ufffd<\ufffd"),
        ("big5", b"\x87z\x88b\x88\xa3\xa3\xe1\xa1E\xa2A\xa1\xfe", "㡵Ê̄ê̄€‧∕／"),
        ("big5", b"\x80\x81<\xa1\x80\xff", "\ufffd\ufffd<\ufffd\ufffd"),
        ("gb18030", b"\x80\x81\x35\xf4\x37\xa8\xbc\xa3\xa0\xa6\xd9\xfeY", "€\ue7c7\u1e3f\u3000︐龴"),
        ("gbk", b"\x95\x32\x82\x36\x810\x81<\xe3\x32\x9a\x36\xff", "\U00020000\ufffd0\ufffd<\ufffd\ufffd"),
        ("gbk", b"\x810\x81", "\ufffd"),
        ("windows-1252", b"\x80\x81\x92\xe9", "€\x81’é"),
        ("koi8-u", b"\xae\xbe", "ўЎ"),
        ("x-user-defined", b"A\x80\xff", "A\uf780\uf7ff"),
        ("replacement", b"\x1b$)C<p>", "\ufffd"),
        ("utf-16le", b"a\0\0\xd8b\0\0\xdc\xff", "a\ufffdb\ufffd\ufffd"),
        ("utf-8", b"\xf0\x90\x80|\xed\xa0\x80|\xc0\xaf", "\ufffd|\ufffd\ufffd\ufffd|\ufffd\ufffd"),
        ("iso-2022-jp", b"\x1b$", "\ufffd$"),
        ("iso-2022-jp", b"\x1b(B\x1b(BP", "\ufffdP"),
        ("iso-2022-jp", b"\x1b(J\x1b\x1b(IP", "\ufffdﾐ"),
        ("iso-2022-jp", b"\x1b(I\x1b$P", "\ufffd､ﾐ"),
        ("iso-2022-jp", b"\x1b(J\\]~\x0d\x0e\x10", "¥]‾\x0d\ufffd\x10"),
        ("iso-2022-jp", b"\x1b$@\x1b$PP", "\ufffdば\ufffd"),
        ("iso-2022-jp", b"\x1b$@P\x1b$@PP", "\ufffd佩"),
        ("iso-2022-jp", b"\x1b$@ P", "\ufffd\ufffd"),
        ("iso-2022-jp", b"\x1b$@P ", "\ufffd"),
        ("iso-2022-jp", b"P\x1b(I", "P"),
    ],
)  # fmt: skip
def test_what_a_browser_shows(name: str, data: bytes, text: str) -> None:
    assert decode_as(data, name) == text


@pytest.mark.parametrize(
    "name", ["big5", "euc-jp", "euc-kr", "gb18030", "iso-2022-jp", "shift_jis", "koi8-r", "utf-16le"]
)
def test_pieces_give_the_same(name: str) -> None:
    text = "今日は 散歩\n" if name != "koi8-r" else "Привет мир\n"
    chance = random.Random(name)
    data = text.encode("johab" if name == "euc-kr" else name.replace("gb18030", "gbk"), "ignore") * 30
    data += bytes(chance.randrange(256) for _ in range(200)) + b"\x1b$B\x46\x7c" * 3
    for _ in range(20):
        decoder, pieces, at = Decoder(name), [], 0
        while at < len(data):
            size = chance.randrange(1, 90)
            pieces.append(decoder.decode(data[at : at + size]))
            at += size
        assert "".join([*pieces, decoder.decode(b"", final=True)]) == decode_as(data, name)
    one_line = "汉字".encode("gbk") * 300_000 + b"\xba"  # nothing in it that tells where a character begins
    decoder = Decoder("gbk")
    assert len(decoder.decode(one_line[:1_200_001])) == 600_000
    assert decoder.decode(b"\xd7", final=True) == decode_as(one_line[1_200_000:] + b"\xd7", "gbk")


def test_labels() -> None:
    assert encoding_of(" UTF8\n") == "utf-8"
    assert encoding_of("latin1") == encoding_of("ascii") == encoding_of("ISO-8859-1") == "windows-1252"
    assert encoding_of("hz-gb-2312") == encoding_of("iso-2022-kr") == "replacement"
    assert encoding_of("unicode") == encoding_of("utf-16") == "utf-16le"
    for label, name in (
        ("x-sjis", "shift_jis"),
        ("ks_c_5601-1987", "euc-kr"),
        ("gb2312", "gbk"),
        ("big5-hkscs", "big5"),
    ):
        assert encoding_of(label) == name
    for label, name in (("dos-874", "windows-874"), ("logical", "iso-8859-8-i"), ("x-mac-ukrainian", "x-mac-cyrillic")):
        assert encoding_of(label) == name
    assert encoding_of("cp850") == "cp850"  # no encoding of the standard, but somebody declared it
    assert [encoding_of(name) for name in ("utf-7", "none", "cp99999", "zip", "")] == [None] * 5
