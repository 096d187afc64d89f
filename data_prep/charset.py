"""Bytes to characters: byte order mark, valid UTF-8, what the document declares, then what its bytes look like.

The order of the HTML standard (https://html.spec.whatwg.org/#determining-the-character-encoding), but for one thing:
bytes that are valid UTF-8 are UTF-8 whatever is declared, as other encodings hardly ever look like it.
"""

from __future__ import annotations

import re

UTF8_MARK = b"\xef\xbb\xbf"
_BOMS = (
    (UTF8_MARK, "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_IN_MEDIA_TYPE = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_IN_MARKUP = re.compile(
    rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)|^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE
)
_CODE_PAGE = re.compile(r"cp\d{3,5}", re.IGNORECASE)
_DECLARATION_BYTES = 4096  # the standard looks at 1024, pages put scripts before it
_DETECTION_BYTES = 131_072
# What the standard's names are in Python, where they differ or Python has the fuller table.
_PYTHON_NAMES = {
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "euc_kr": "cp949",
    "iso-8859-1": "cp1252",
    "us-ascii": "cp1252",
    "iso-8859-8-i": "iso-8859-8",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    "macintosh": "mac-roman",
}
# Declared by servers that were never told, named by detectors that know no better: only Western text is believed.
_WESTERN = "cp1252"
_WESTERN_SHARE = 0.33  # of its letters that are not ASCII; a French text has some 0.1
_MAX_BAD = 0.05  # of the characters beyond ASCII, that no text has
_SAMPLE_CHARACTERS = 16_384
_BAD = re.compile("[\x80-\x9f\ufffd]")
_BEYOND = re.compile("[^\x00-\x7f]")
_LETTER = re.compile(r"[^\W\d_]")
_LETTER_BEYOND = re.compile(r"(?![a-zA-Z])[^\W\d_]")
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
_ESCAPES = (b"\x1b$@", b"\x1b$B", b"\x1b$A")  # of ISO-2022-JP, whose bytes are all ASCII


def without_marks(text: str) -> str:
    """The text without byte order marks at its beginning and at that of its lines, where files were put together.

    The one place where marks go: what becomes a document passes through here, before anything looks at its beginning.
    """
    return _MARKS.sub("", text) if "\ufeff" in text else text


def decode(data: bytes, media_type: str | None = None) -> tuple[str, str]:
    """Text of bytes in an unknown encoding; never fails, what cannot be decoded becomes U+FFFD.

    Args:
        data: The whole document.
        media_type: Its `Content-Type`, with or without a charset.

    Returns:
        The text, without byte order mark, and the Python name of its encoding.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, errors="replace"), name
    wide = _wide(data)
    if wide:
        return data.decode(wide, errors="replace"), wide
    if data.isascii() and any(escape in data for escape in _ESCAPES):
        return data.decode("iso2022_jp_2", errors="replace"), "iso2022_jp_2"
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    for name in _candidates(data, media_type):
        text = data.decode(name, errors="replace")
        if _plausible(text[:_SAMPLE_CHARACTERS], name):
            return text, name
    name = _guess(data) or _WESTERN
    return data.decode(name, errors="replace"), name


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark shows by zeros at every other byte of its Latin characters, spaces and line ends."""
    head = data[:4096]
    half = len(head) // 2
    if half < 2 or b"\x00" not in head:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > half * 0.3 and even < half * 0.01:
        return "utf-16-le"
    return "utf-16-be" if even > half * 0.3 and odd < half * 0.01 else None


def _candidates(data: bytes, media_type: str | None) -> list[str]:
    """Encodings to try, the most trusted first."""
    from resiliparse.parse.encoding import detect_encoding

    in_header = _IN_MEDIA_TYPE.search(media_type or "")
    in_markup = _IN_MARKUP.search(data[:_DECLARATION_BYTES])
    declared = [_python_name(in_header.group(1))] if in_header else []
    if in_markup:
        declared.append(_python_name((in_markup.group(1) or in_markup.group(2)).decode("ascii", errors="replace")))
    strong = [name for name in declared if name != _WESTERN]
    detected = _python_name(detect_encoding(data[:_DETECTION_BYTES]) or "")
    ordered = [*strong, *declared, "utf-8", detected]
    return [name for name in dict.fromkeys(ordered) if name]


def _guess(data: bytes) -> str | None:
    """A slower detector, which tries every encoding, for what the first one does not know (Korean among them)."""
    from charset_normalizer import from_bytes

    found = from_bytes(data[:_SAMPLE_CHARACTERS]).best()
    return found.encoding if found else None


def _python_name(label: str) -> str | None:
    """Python's name for a label of the web; None for one that names no encoding."""
    import codecs

    from resiliparse.parse.encoding import map_encoding_to_html5

    name = map_encoding_to_html5(label, fallback_utf8=False) or (label if _CODE_PAGE.fullmatch(label) else "")
    name = _PYTHON_NAMES.get(name.lower(), name.lower())
    if name.startswith(("utf-16", "utf-32")):  # would have shown by its mark or its zeros
        return name if name[-3:] in ("-le", "-be") else "utf-16-le"
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


def _plausible(sample: str, name: str) -> bool:
    """Whether a decoded text looks like one: few characters that no text has, and Western ones where claimed."""
    beyond = len(_BEYOND.findall(sample))
    if len(_BAD.findall(sample)) > _MAX_BAD * beyond + 1:
        return False
    letters = max(len(_LETTER.findall(sample)), 4)
    return name != _WESTERN or len(_LETTER_BEYOND.findall(sample)) <= _WESTERN_SHARE * letters
