"""Decodes bytes: by byte order mark, as UTF-8, as the document declares, then by the look of its bytes.

The order of the HTML standard (https://html.spec.whatwg.org/#determining-the-character-encoding) and the encodings of
the Encoding standard (https://encoding.spec.whatwg.org), but for two things: bytes that are UTF-8 are UTF-8 whatever
is declared, as other encodings hardly ever look like it; and a declaration that the bytes do not bear out is none.
"""

from __future__ import annotations

import codecs
import re

from data_prep.text.decoders import decode_as, python_name

UTF8_MARK = b"\xef\xbb\xbf"
_BOMS = (
    (UTF8_MARK, "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16le"),
    (b"\xfe\xff", "utf-16be"),
)
_WIDE = ("utf-16le", "utf-16be", "utf-32-le", "utf-32-be")
_IN_MEDIA_TYPE = re.compile(r"charset\s*=\s*(?:\"([^\"]*)\"?|'([^']*)'?|([^;,\s\"']+))", re.IGNORECASE)
_CODE_PAGE = re.compile(r"cp\d{3,5}", re.IGNORECASE)
_DECLARATION_BYTES = 4096  # the standard looks at 1024, pages put scripts before it
_DETECTION_BYTES = 65_536
# Declared by servers that were never told, named by detectors that know no better: only Western text is believed.
_WESTERN = "windows-1252"
_WESTERN_SHARE = 0.33  # of its letters that are not ASCII; a French text has some 0.1
_CENTRAL = ("iso-8859-2", "windows-1250")
_MAX_BAD = 0.05  # of the characters beyond ASCII, that no text has
_MAX_JUNK = 0.02  # of all characters of a text
_SAMPLE_CHARACTERS = 16_384
_BAD = re.compile("[\x80-\x9f\ufffd]")
_JUNK = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffd]")
_BEYOND = re.compile("[^\x00-\x7f]")
_LETTER = re.compile(r"[^\W\d_]")
_LETTER_BEYOND = re.compile(r"(?![a-zA-Z])[^\W\d_]")
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
ISO_2022_JP = re.compile(rb"\x1b\$[@B]")  # its bytes are all ASCII
# What the encodings of seven bits look like that the standard does not decode, as they hide markup.
_REPLACED = (b"\x1b$", b"\x0e", b"~{")  # their first bytes are looked for first, ten times as fast
_PLAIN_PAIR = re.compile(rb"[\x20-\x7e]{2}")


def without_marks(text: str) -> str:
    """The text without byte order marks at its beginning and at that of its lines, where files were put together.

    The one place where marks go: what becomes a document passes through here, before anything looks at its beginning.
    """
    return _MARKS.sub("", text) if "\ufeff" in text else text


def decode(data: bytes, media_type: str | None = None, url: str | None = None) -> tuple[str, str]:
    """Text of bytes in an unknown encoding; never fails, what cannot be decoded becomes U+FFFD.

    Args:
        data: The whole document.
        media_type: Its `Content-Type`, with or without a charset.
        url: Its address: the domain tells something about the language.

    Returns:
        The text, without byte order mark, and the standard's name of its encoding, in lower case.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return decode_as(data[len(mark) :], name), name
    name = wide(data) or ""
    if not name and b"\x1b" in data and data.isascii() and ISO_2022_JP.search(data):
        name = "iso-2022-jp"
    if name:
        return decode_as(data, name), name
    try:
        text, name = data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        name = _legacy(data, _declared(data, media_type), url)
        return decode_as(data, name), name
    if (
        text.isascii()
        and any(sign[:1] in data and sign in data for sign in _REPLACED)
        and "replacement" in _declared(data, media_type)
    ):
        return decode_as(data, "replacement"), "replacement"
    return text, name


def decide(data: bytes) -> str:
    """The encoding of a text of which these are some lines, none of them all ASCII; `utf-8` if they are no text."""
    name = _legacy(data, [], None)
    return name if is_text(decode_as(data[:_DETECTION_BYTES], name)) else "utf-8"


def is_text(text: str) -> bool:
    """Tells whether a decoded string is text: hardly any of its characters is one that no text has."""
    return len(_JUNK.findall(text)) <= _MAX_JUNK * len(text)


def wide(data: bytes) -> str | None:
    """UTF-16 without a mark shows by zeros at every other byte of its Latin characters, spaces and line ends."""
    head = data[:4096]
    half = len(head) // 2
    if half < 2 or b"\x00" not in head:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > half * 0.3 and even < half * 0.01:
        return "utf-16le"
    return "utf-16be" if even > half * 0.3 and odd < half * 0.01 else None


def is_wide(name: str) -> bool:
    """Tells whether it is UTF-16 or UTF-32."""
    return name in _WIDE


# ------------------------------------------------------------------------------------------------------------- evidence
def utf8_evidence(data: bytes) -> tuple[int, int]:
    """Sequences of more than one byte that are UTF-8, and places that are not; a cut at the end is neither."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    bad = text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
    return len(_BEYOND.findall(text)) - bad, bad


def _legacy(data: bytes, declared: list[str], url: str | None) -> str:
    """The encoding of bytes that are not all UTF-8."""
    good, bad = utf8_evidence(data)
    if good > 2 * bad or (good > bad and "utf-8" in declared):
        return "utf-8"
    strong = [name for name in declared if name not in (_WESTERN, "utf-8", "replacement")]
    ordered = [*strong, *(name for name in declared if name == _WESTERN)]
    for name in dict.fromkeys(ordered):
        if _plausible(data, name):
            return name
    name = _detected(data, url)
    return name if _plausible(data, name) else _WESTERN


def _plausible(data: bytes, name: str) -> bool:
    """Tells whether bytes look like text in an encoding: few impossible characters, and Western ones if claimed."""
    # Single bytes taken by two are letters of nowhere; most of their pairs are of ASCII.
    if name in _WIDE and 4 * len(_PLAIN_PAIR.findall(data[:4096])) > len(data[:4096]):
        return False
    sample = decode_as(data[: 4 * _SAMPLE_CHARACTERS], name)[:_SAMPLE_CHARACTERS]
    beyond = len(_BEYOND.findall(sample))
    if len(_BAD.findall(sample)) > max(_MAX_BAD * beyond, 1 if beyond > 4 else 0):
        return False
    letters = max(len(_LETTER.findall(sample)), 4)
    return name != _WESTERN or len(_LETTER_BEYOND.findall(sample)) <= _WESTERN_SHARE * letters


def _detected(data: bytes, url: str | None) -> str:
    """What the bytes look like: to the detector of Firefox, and to an older one that knows Hungarian better."""
    from chardetng_py import detect
    from resiliparse.parse.encoding import detect_encoding

    telling = _telling(data)
    name = detect(telling, tld=_top_domain(url)).lower()
    if name == _WESTERN and len(telling) > 40:
        other = encoding_of(detect_encoding(telling) or "")
        name = other if other in _CENTRAL else name
    return encoding_of(name) or _WESTERN


def _telling(data: bytes) -> bytes:
    """Lines with bytes beyond ASCII, as far as a detector needs them: a book's first 100 pages may have none."""
    if len(data) <= _DETECTION_BYTES:
        return data
    found = re.search(rb"[\x80-\xff]", data)
    if found and found.start() < _DETECTION_BYTES // 2:
        return data[:_DETECTION_BYTES]
    return b"\n".join(line for line in data.splitlines() if not line.isascii())[:_DETECTION_BYTES]


def _top_domain(url: str | None) -> bytes | None:
    host = re.match(r"https?://[^/?#:]*\.([a-z]{2,24})(?=[/?#:]|$)", url or "")
    return host.group(1).encode() if host else None


# ---------------------------------------------------------------------------------------------------------- declaration
def encoding_of(label: str) -> str | None:
    """The standard's name for a label, in lower case; of others only code pages that Python knows, such as cp850."""
    from webencodings.labels import LABELS

    label = label.strip("\t\n\f\r ").lower()
    if label in LABELS:
        return str(LABELS[label])
    if _CODE_PAGE.fullmatch(label):
        try:
            return python_name(label)
        except LookupError:
            pass
    return None


def _declared(data: bytes, media_type: str | None) -> list[str]:
    """Encodings that are declared, the most trusted first."""
    found = []
    in_header = _IN_MEDIA_TYPE.search(media_type or "")
    if in_header:
        found.append(encoding_of(next(group for group in in_header.groups() if group is not None)))
    in_markup = encoding_of(_prescan(data[:_DECLARATION_BYTES]) or "")
    # Who could read the declaration by single bytes has no two to a character.
    found.append({"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": _WESTERN}.get(in_markup or "", in_markup))
    return [name for name in found if name]


_XML = re.compile(rb"\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']\s*([^\"'>]*)", re.IGNORECASE)
_TAGS = re.compile(
    rb"<!--.*?(?:-->|(?<=<!--)>|\Z)|<(/?[a-z][^\s/>]*)((?:\"[^\"]*\"|'[^']*'|[^>\"'])*)>?|<[!/?][^>]*",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTES = re.compile(rb"([^\s/>=\"'][^\s/>=]*)(?:\s*=\s*(?:\"([^\"]*)\"?|'([^']*)'?|([^\s>\"']*)))?", re.DOTALL)
_IN_CONTENT = re.compile(rb"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^;\s\"']+))", re.IGNORECASE)


def _prescan(head: bytes) -> str | None:
    """The label in a page's `<meta>` or an XML declaration, as the HTML standard looks for it."""
    xml = _XML.match(head)
    if xml:
        return xml.group(1).decode("latin-1")
    for tag in _TAGS.finditer(head):
        if (tag.group(1) or b"").lower() != b"meta":
            continue
        label = _label_of_meta(tag.group(2))
        if label is not None and encoding_of(label):
            return label
    return None


def _label_of_meta(attributes: bytes) -> str | None:
    values: dict[bytes, bytes] = {}
    for found in _ATTRIBUTES.finditer(attributes):
        values.setdefault(found.group(1).lower(), found.group(2) or found.group(3) or found.group(4) or b"")
    label = values.get(b"charset")
    if label is None and values.get(b"http-equiv", b"").lower() == b"content-type":
        content = _IN_CONTENT.search(values.get(b"content", b""))
        label = next(group for group in content.groups() if group is not None) if content else None
    return None if label is None else label.decode("latin-1")
