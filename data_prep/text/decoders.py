"""Decodes the encodings of the Encoding standard (https://encoding.spec.whatwg.org) by its names.

Python's codecs do the work where they agree with the standard; what they lack or have otherwise is put right here:
bytes without a character, Chinese and Japanese rows, and how much goes with a byte that is wrong. Each table was
compared with the whole of the standard's index (tests/unit/data_prep/text/test_decoders.py).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module

_BAD = "\ufffd"
_PYTHON_NAMES = {
    "big5": "big5hkscs", "euc-jp": "euc_jp", "euc-kr": "cp949", "gbk": "gb18030", "gb18030": "gb18030",
    "ibm866": "cp866", "iso-8859-8-i": "iso-8859-8", "macintosh": "mac-roman", "shift_jis": "cp932",
    "utf-16be": "utf-16-be", "utf-16le": "utf-16-le", "windows-874": "cp874", "x-mac-cyrillic": "mac-cyrillic",
}  # fmt: skip
_MULTIBYTE = frozenset({"big5", "euc-jp", "euc-kr", "gbk", "gb18030", "shift_jis"})
# Characters that Python's codecs give, and what the standard has in their place.
_OTHER: dict[str, dict[str, str]] = {
    "big5": dict(zip("\u2022\uff64\u203e\u223c\u2641\u2609\xa5\xa2\xa3", "\u2027\ufe51\xaf\uff5e\u2295\u2299\uffe5\uffe0\uffe1", strict=True)),  # noqa: E501
    "euc-jp": dict(zip("\u301c\u2016\u2212\xa2\xa3\xac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2", strict=True)),
    "gb18030": dict(zip(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7\u1e3f\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f\ue7c7\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
        strict=True,
    )),
    "shift_jis": dict.fromkeys("\uf8f0\uf8f1\uf8f2\uf8f3", _BAD),
}  # fmt: skip
_OTHER["gbk"] = _OTHER["gb18030"]
_OTHER_PATTERN = {name: re.compile(f"[{''.join(found)}]") for name, found in _OTHER.items()}
_SAFE = re.compile(rb"[\x00-\x2f](?=[^\x00-\x2f]*\Z)")  # the last byte that is part of no longer sequence
_TAIL_BYTES = 4096
_HELD_BYTES = 2**20
# Rows of Big5 that Python lacks: the lead and trail they begin at, and their characters.
_BIG5_ROWS = {
    0x877A: (
        "㡵𡵓𣚞𦀡㻬𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦珄"
        "𥶹瓆鿇垳䤯呌䄱𣚎堘穲𧭥讏䚮𦺈䆁𥶙箮𢒼鿈𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿拁灮鿋"
    ),
    0xA3C0: "".join(map(chr, range(0x2400, 0x2420))) + "\u2421\u20ac",
}
_BIG5_SINGLES = (
    "8e69箸8e6f簆8e7e糎8eab緒8eb4縝8ecd者8ed0耨8f57菁8f69蒨8f6e萏8fcb覦8fcc覩8ffe起906d都907a銹90dc靜90f1響91bf鼖9244蔃92af兙"
    "92b0兛92b1兝92b2兞92c8鍮92d1瑹9447浧94ca禛95d9邗9644靝96ed瀞96fc嬨9b76爁9b78矗9b7b纇9bc6駖9bde釔9bec惞9bf6澶9c42輶9c53侻"
    "9c62營9c68鄄9c6b鷰9c77菏9cbc尐9cbd秣9cd0婧9d57輋9d5a筑9dc4拐9ea9恢9eef痹9efd汊9f60鬮9f66鼗9fcb僭9fd8弌a063蠏a077拎a0d5瑨"
    "a0df煢a0e4牐c6cf廴c6d3无c6d5癶c6d7隶c6de〃c6df仝fa5f倩fa66偽fabd包fac5卄fad5卿fb48嘅fbb8婷fbf3幵fbf9廐fc4f彘fc6c悤fcb9撐"
    "fce2晴fcf1杞fdb7沜fdb8渝fdbb港fdf1煮fe52猪fe6f瑜feaa瓩fedd砉"
)
# Sequences for which Python gives a character that it gives for another one too, rightly; how to go through a text.
_DOUBLED = {
    "big5": (
        {b"\xa2\x41": "\u2215", b"\xa2\x42": "\ufe68"},
        re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xff]|.", re.DOTALL),
    ),
    "euc-jp": (
        {b"\x8f\xa2\xb7": "\uff5e"},
        re.compile(rb"\x8f[\xa1-\xfe].|[\x8e\x8f\xa1-\xfe][\x80-\xff]|.", re.DOTALL),
    ),
}

Step = tuple[str, int]  # what stands for bytes that Python does not take, and where decoding goes on


def python_name(name: str) -> str:
    """Python's name for an encoding of the standard, or for another that Python knows.

    Raises:
        LookupError: for none of them.
    """
    return codecs.lookup(_PYTHON_NAMES.get(name, name)).name


def decode_as(data: bytes, name: str) -> str:
    """The text of bytes in an encoding; what it does not have becomes U+FFFD. A mark at the beginning is kept.

    Args:
        data: whole, not the beginning of more.
        name: as the standard has it, in lower case; or one that Python knows.
    """
    if name == "replacement":
        return _BAD if data else ""
    if name == "iso-2022-jp":
        return _Iso2022Jp().decode(data, final=True)
    if name not in _MULTIBYTE:
        table = _single_byte(name)
        return codecs.charmap_decode(data, "replace", table)[0] if table else data.decode(python_name(name), "replace")
    if any(sequence in data for sequence in _DOUBLED.get(name, ((),))[0]):
        return _with_doubled(data, name)
    return _multibyte(data, name)


def _multibyte(data: bytes, name: str) -> str:
    text = data.decode(_PYTHON_NAMES[name], f"standard-{name}")
    other = _OTHER.get(name)
    return _OTHER_PATTERN[name].sub(lambda found: other[found[0]], text) if other else text


def _with_doubled(data: bytes, name: str) -> str:
    doubled, token = _DOUBLED[name]
    pieces, start = [], 0
    for found in token.finditer(data):
        if character := doubled.get(found[0]):
            pieces += [_multibyte(data[start : found.start()], name), character]
            start = found.end()
    return "".join([*pieces, _multibyte(data[start:], name)])


@cache
def _single_byte(name: str) -> str | None:
    """The 256 characters of an encoding of single bytes; None for another."""
    if name == "x-user-defined":
        return "".join(chr(byte if byte < 0x80 else 0xF700 + byte) for byte in range(256))
    python = python_name(name)
    if not hasattr(import_module(f"encodings.{python.replace('-', '_')}"), "decoding_table"):
        return None
    table = [bytes([byte]).decode(python, "replace") for byte in range(256)]
    for byte in range(0x80, 0xA0):  # control characters, where nothing else stands
        table[byte] = chr(byte) if table[byte] == _BAD else table[byte]
    if name == "koi8-u":
        table[0xAE], table[0xBE] = "\u045e", "\u040e"
    elif name == "windows-1255":
        table[0xCA] = "\u05ba"
    return "".join(table)


# ------------------------------------------------------------------------------------ what Python's codecs do not take
def _wrong(data: bytes, at: int, length: int) -> Step:
    """A sequence that is none; an ASCII byte at its end was never part of it."""
    end = min(at + length, len(data))
    return _BAD, end - (end - at > 1 and data[end - 1] < 0x80)


def _euc_jp(data: bytes, at: int) -> Step:
    lead = data[at]
    trail = data[at + 1] if at + 1 < len(data) else 0
    if lead == 0x8F and 0xA1 <= trail <= 0xFE:
        return _wrong(data, at, 3)
    if 0xA1 <= lead <= 0xFE and 0xA1 <= trail <= 0xFE and (found := _jis0208(lead - 0xA1, trail - 0xA1)):
        return found, at + 2
    return _wrong(data, at, 2 if lead in (0x8E, 0x8F) or 0xA1 <= lead <= 0xFE else 1)


def _jis0208(row: int, cell: int) -> str:
    """The standard's index has NEC's and IBM's rows beside JIS X 0208, as Shift_JIS has; empty for no character."""
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + 0x9F if row % 2 else cell + 0x40 + (cell >= 63)
    try:
        return bytes([lead, trail]).decode("cp932")
    except UnicodeDecodeError:
        return ""


def _shift_jis(data: bytes, at: int) -> Step:
    return _wrong(data, at, 2 if 0x81 <= data[at] <= 0x9F or 0xE0 <= data[at] <= 0xFC else 1)


def _euc_kr(data: bytes, at: int) -> Step:
    return _wrong(data, at, 2 if 0x81 <= data[at] <= 0xFE else 1)


def _big5(data: bytes, at: int) -> Step:
    found = _big5_pairs().get(data[at : at + 2])
    return (found, at + 2) if found else _euc_kr(data, at)


def _gb18030(data: bytes, at: int) -> Step:
    lead = data[at]
    if lead in (0x80, 0xFF):
        return "\u20ac" if lead == 0x80 else _BAD, at + 1
    rest = data[at + 1 : at + 4]
    if not (rest and 0x30 <= rest[0] <= 0x39):
        return _wrong(data, at, 2)
    fits = (len(rest) < 2 or 0x81 <= rest[1] <= 0xFE) and (len(rest) < 3 or 0x30 <= rest[2] <= 0x39)
    # Four bytes without a character go together, and so do fewer at the end; else the lead goes alone.
    return _BAD, at + (1 + len(rest) if fits else 1)


@cache
def _big5_pairs() -> dict[bytes, str]:
    pairs = {bytes.fromhex(item[:4]): item[4:] for item in re.findall(r"[0-9a-f]{4}[^0-9a-f]", _BIG5_SINGLES)}
    trails = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
    for start, characters in _BIG5_ROWS.items():
        first = trails.index(start & 0xFF)
        pairs |= {bytes([start >> 8, trails[first + n]]): character for n, character in enumerate(characters)}
    return pairs


def _register(name: str, step: Callable[[bytes, int], Step]) -> None:
    def handle(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return step(error.object, error.start)

    codecs.register_error(f"standard-{name}", handle)


for _name, _step in {
    "big5": _big5, "euc-jp": _euc_jp, "euc-kr": _euc_kr, "gbk": _gb18030, "gb18030": _gb18030, "shift_jis": _shift_jis,
}.items():  # fmt: skip
    _register(_name, _step)


# ------------------------------------------------------------------------------------------------------------ streaming
class Decoder:
    """The same for a text that comes in pieces."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = b""
        self._python: codecs.IncrementalDecoder | _Iso2022Jp | None = None
        if name == "iso-2022-jp":
            self._python = _Iso2022Jp()
        elif name not in _MULTIBYTE and name != "replacement" and _single_byte(name) is None:
            self._python = codecs.getincrementaldecoder(python_name(name))("replace")

    def decode(self, data: bytes, final: bool = False) -> str:
        """The text that is certain by now; all that is left, if this is the end."""
        if self._python:
            return self._python.decode(data, final)
        data = self._held + data
        end = len(data) if final or self._name not in _MULTIBYTE else self._end(data)
        self._held = data[end:]
        return decode_as(data[:end], self._name)

    def _end(self, data: bytes) -> int:
        found = _SAFE.search(data[-_TAIL_BYTES:])
        if found:
            return max(0, len(data) - _TAIL_BYTES) + found.end()
        if len(data) < _HELD_BYTES:
            return 0
        decoder = codecs.getincrementaldecoder(_PYTHON_NAMES[self._name])(f"standard-{self._name}")
        decoder.decode(data)
        return len(data) - len(decoder.getstate()[0])


_ISO_2022_JP_TOKEN = re.compile(rb"\x1b(?:\$[@B]|\([BJI])|\x1b|[^\x1b]+")
_ISO_2022_JP_PAIRS = re.compile(rb"(?:[\x21-\x7e]{2})+|[\x21-\x7e][^\x1b]?|[^\x1b]")
_PRINTABLE = bytes(range(0x21, 0x7F))
_TO_EUC = bytes(byte | 0x80 for byte in range(256))


class _Iso2022Jp:
    """ISO-2022-JP, which changes its alphabet by escape sequences."""

    def __init__(self) -> None:
        self._alphabet = b"(B"
        self._just_changed = False  # two changes without text between are an error of the standard
        self._held = b""

    def decode(self, data: bytes, final: bool = False) -> str:
        data = self._held + data
        end = len(data) if final or len(data) > _HELD_BYTES else data.rfind(b"\n") + 1
        self._held = data[end:]
        pieces = []
        for token in _ISO_2022_JP_TOKEN.findall(data[:end]):
            if len(token) == 3 and token[0] == 0x1B:
                pieces.append(_BAD if self._just_changed else "")
                self._alphabet, self._just_changed = token[1:], True
            else:
                pieces.append(_BAD if token[0] == 0x1B else self._run(token))
                self._just_changed = False
        return "".join(pieces)

    def _run(self, data: bytes) -> str:
        if self._alphabet.startswith(b"$"):
            return "".join(map(self._double, _ISO_2022_JP_PAIRS.findall(data)))
        return "".join(map(_iso_2022_jp_table(self._alphabet).__getitem__, data))

    @staticmethod
    def _double(token: bytes) -> str:
        if len(token) % 2 == 0 and token.translate(None, _PRINTABLE) == b"":
            return decode_as(token.translate(_TO_EUC), "euc-jp")
        return _BAD


@cache
def _iso_2022_jp_table(alphabet: bytes) -> str:
    if alphabet == b"(I":
        return "".join(chr(0xFF61 - 0x21 + byte) if 0x21 <= byte <= 0x5F else _BAD for byte in range(256))
    table = [chr(byte) if byte < 0x80 and byte not in (0x0E, 0x0F) else _BAD for byte in range(256)]
    if alphabet == b"(J":
        table[0x5C], table[0x7E] = "\u00a5", "\u203e"
    return "".join(table)
