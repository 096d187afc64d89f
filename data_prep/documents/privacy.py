"""Finds personal data in text, replaces it by placeholders and counts it.

Every search starts from a rare character or a literal, so that text without personal data costs almost nothing. What
a pattern finds is confirmed by a library or a checksum before it is replaced: `ipaddress`, `phonenumbers` (Google's
libphonenumber), Luhn's formula (ISO/IEC 7812-1), the entropy of a key.

Placeholders are values reserved for documentation where there are such, so that text stays natural: FineWeb's
`email@example.com` (RFC 2606; arXiv:2406.17557), `192.0.2.1` (RFC 5737), `2001:db8::1` (RFC 3849). FineWeb's own IP
addresses are not used: they can belong to someone. Numbers and keys become tags, as in StarCoder (arXiv:2305.06161).
No placeholder is found again, so a second pass changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

from configs.schema.data import Privacy
from data_prep.documents.secret_keys import find_keys

EMAIL = "email@example.com"
IPV4 = "192.0.2.1"
IPV6 = "2001:db8::1"
PHONE = "<PHONE_NUMBER>"
CARD = "<CARD_NUMBER>"
KEY = "<KEY>"
Found = tuple[int, int, str, str]  # start, end, kind, placeholder


class Redactor:
    """Replaces what `data.privacy` names."""

    def __init__(self, settings: Privacy) -> None:
        self._finders: list[Callable[[str], Iterable[Found]]] = []
        if settings.keys:
            self._finders.append(lambda text: ((start, end, "keys", KEY) for start, end in find_keys(text)))
        if settings.emails:
            self._finders.append(_find_emails)
        if settings.ip_addresses:
            self._finders.append(_find_addresses)
        cards, phones = settings.card_numbers, settings.phone_numbers
        if cards or phones:
            self._finders.append(lambda text: _find_numbers(text, cards, phones))

    def __call__(self, text: str) -> tuple[str, dict[str, int]]:
        """The text with placeholders, and how many of each kind (named as in the settings)."""
        counts: dict[str, int] = {}
        for find in self._finders:
            pieces: list[str] = []
            done = 0
            for start, end, kind, placeholder in find(text):
                pieces += text[done:start], placeholder
                done = end
                counts[kind] = counts.get(kind, 0) + 1
            if pieces:
                text = "".join([*pieces, text[done:]])
        return text, counts


# --------------------------------------------------------------------------------------------------------------- e-mail
_DOMAIN = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24}))(?![A-Za-z0-9@-])")
_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?\Z")
_LONGEST_LOCAL = 64
# Reserved for examples (RFC 2606): nobody's address.
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|invalid|test|localhost)$", re.IGNORECASE)
# `logo@2x.png` is the name of a picture.
_FILE_ENDINGS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "bmp",
        "ico",
        "css",
        "js",
        "json",
        "html",
        "htm",
        "xml",
        "yaml",
        "yml",
        "toml",
        "txt",
        "pdf",
        "jar",
    ]
)
# What the text around says to be a login on a machine, not somebody's mailbox. Behind it a path, as in
# `git@host:owner/project.git` and `user@host:~/file`; a word alone may be a password, as in lists of leaked logins.
_PATH_BEHIND = re.compile(r":(?:~?/|\.{1,2}/|~|[\w.+%-]+/[\w./+%~-]|[\w.+-]+\.git\b)")
# Before it the address of a server: `ssh://git@host`, `https://user:token@host`.
_SERVER_BEFORE = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/@<>\"']{0,80}\Z")
# Or a command that logs in, with options and their values alone between, and one that copies, with files too.
_LOGIN_BEFORE = re.compile(
    r"(?:^|[\s`$;&|(])(?:ssh(?:-copy-id|fs)?|sftp|mosh|git (?:clone|remote add|ls-remote|push|pull|fetch))"
    r"(?: +--?[\w-]+(?:[= ][\w./:~-]+)?| +(?:origin|upstream))* +\Z"
)
_COPY_BEFORE = re.compile(r"(?:^|[\s`$;&|(])(?:scp|rsync|sftp)(?: +[\w.,/*:~@=+'\"-]+)* +\Z")
_BEFORE_CHARACTERS = 160


def _is_login(text: str, start: int, end: int) -> bool:
    """Tells whether `text[start:end]`, which has the form of a mail address, is an account on a machine."""
    if _PATH_BEHIND.match(text, end):
        return True
    line = text[max(text.rfind("\n", 0, start) + 1, start - _BEFORE_CHARACTERS) : start]
    if line[-1:] in (":", "/", "@") or "://" in line:
        return _SERVER_BEFORE.search(line) is not None
    if not line.endswith(" "):
        return False
    return bool(_LOGIN_BEFORE.search(line) or (text.startswith(":", end) and _COPY_BEFORE.search(line)))


def _find_emails(text: str) -> Iterator[Found]:
    if "@" not in text:
        return
    for found in _DOMAIN.finditer(text):
        at = found.start()
        local = _LOCAL.search(text, max(0, at - _LONGEST_LOCAL), at)
        if not local or found[2].lower() in _FILE_ENDINGS or _RESERVED.search(found[1]):
            continue
        if not _is_login(text, local.start(), found.end()):
            yield local.start(), found.end(), "emails", EMAIL


# --------------------------------------------------------------------------------------------------------- IP addresses
# The last three numbers; the first one stands before: a search for the point is ten times faster than for a digit.
_IPV4_REST = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w+-]|\.[0-9])", re.ASCII)
_IPV4_FIRST = re.compile(r"(?:(?<![\w.:/+-])|(?<=://))[0-9]{1,3}\Z", re.ASCII)
_VERSION_WORD = re.compile(
    r"(?:\b(?:versions?|vers?|v|releases?|rel|build|rev(?:ision)?|firmware|section|sect?|chapter|clause|oid)\b|版本|§)"
    r"[\s.:=#()'\"-]{0,4}\Z",
    re.IGNORECASE | re.ASCII,
)
# Numbers of sections and versions look like addresses; one public address in 4,096 has four numbers below 32.
_SMALL = 32
_INSIDE_IPV6 = re.compile(":[0-9A-Fa-f]{0,4}:")
# 2000::/3 is all that is given out as public; this also keeps `a::b` of C++ and times apart.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])", re.ASCII)


def _find_addresses(text: str) -> Iterator[Found]:
    found = []
    for rest in _IPV4_REST.finditer(text):
        # The search stops at the end of the first number but looks back beyond where it begins.
        first = _IPV4_FIRST.search(text, max(0, rest.start() - 6), rest.start())
        if first and _is_public_ipv4(text, first.start(), rest.end()):
            found.append((first.start(), rest.end(), "ip_addresses", IPV4))
    if ":" in text and _INSIDE_IPV6.search(text):
        for match in _IPV6.finditer(text):
            end = match.end() - (match[0].endswith(":") and not match[0].endswith("::"))
            if _is_public(text[match.start() : end]):
                found.append((match.start(), end, "ip_addresses", IPV6))
    yield from sorted(found)


def _is_public_ipv4(text: str, start: int, end: int) -> bool:
    address = text[start:end]
    if not _is_public(address) or all(int(number) < _SMALL for number in address.split(".")):
        return False
    return not _VERSION_WORD.search(text, max(0, start - 24), start)


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


# -------------------------------------------------------------------------------------------------------------- numbers
# It begins with a class alone, which `re` searches for quickly; what stands before is looked at after that.
_NUMBER = re.compile(
    r"[0-9](?<![\w.,:=%$€£/-].)(?:[ ()./\u00a0\u2010-\u2013-]{0,3}[0-9]){6,18}(?![\w%]|[.,:][0-9])",
    re.ASCII,
)
_SIGN = re.compile(r"(?<![\w.,:=%$€£+/*-])(?:\+ ?\(?|\(\+?)\Z", re.ASCII)
_CARD_GROUPS = re.compile(
    r"[0-9]{12,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{5}"
)
# Ranges of the large issuers, with the lengths of their numbers.
_CARD_ISSUERS = re.compile(
    "4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    "|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}|35[2-8][0-9]{13}"
    "|62[0-9]{14,17}"
)
_CARD_WORD = re.compile(
    r"visa|master\s?card|amex|american express|card|karte|carte|cvv|信用卡|卡号|银行卡|支付", re.IGNORECASE
)
_NEIGHBOURHOOD = 16
_NOT_DIGITS = re.compile("[^0-9]+")
_TABLE_DIGITS = 4


def _find_numbers(text: str, cards: bool, phones: bool) -> Iterator[Found]:
    match = _NUMBER.search(text)
    while match:
        start, end = match.span()
        if cards and _is_card(text, start, end):
            yield start, end, "card_numbers", CARD
        elif phones:
            start = _with_sign(text, start, end)
            length = _phone_length(*_written_as(text, start, end))
            if length:
                end = start + length
                yield start, end, "phone_numbers", PHONE
        match = _NUMBER.search(text, end)


def _is_card(text: str, start: int, end: int) -> bool:
    written = text[start:end]
    number = _NOT_DIGITS.sub("", written)
    if len(number) < 12 or not _CARD_ISSUERS.fullmatch(number) or not luhn(number):
        return False
    if not _CARD_GROUPS.fullmatch(written) or len(set(number)) < 3:
        return False
    before, after = text[max(0, start - _NEIGHBOURHOOD) : start], text[end : end + _NEIGHBOURHOOD]
    # One number of sixteen digits in ten passes Luhn: in a table of digits that proves nothing.
    return sum(map(str.isdigit, before + after)) < _TABLE_DIGITS or _CARD_WORD.search(before) is not None


def luhn(number: str) -> bool:
    """Tells whether the last digit is Luhn's check digit of the others."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (sum(map(int, number[::-2])) + sum(doubled)) % 10 == 0


_PHONE_WORD = re.compile(
    r"(?:\b(?:t[eé]l(?:[eé]?(?:phone|fon|fono|fax))?|(?:tele)?phone|fon|ph|mob(?:ile|il)?|handy|cell(?:ular)?|call|"
    r"(?:tele)?fax|whats\s?app|wechat|hotline|dial|rufnummer|appelez)\b|电话|手机|热线|传真|致电|拨打|電話|微信)"
    r"[^0-9\n]{0,16}\Z",
    re.IGNORECASE | re.ASCII,
)
_NORTH_AMERICA = re.compile(
    r"(?:\([2-9][0-9]{2}\)[ -]?[2-9][0-9]{2}[ .-][0-9]{4}|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4})(?![0-9-])"
)
_CHINA = re.compile(r"1[3-9][0-9]([ -])[0-9]{4}\1[0-9]{4}(?![ -]?[0-9])")
# After a word such as `Tel.` a number may be written in the form of any of these.
_REGIONS = ("US", "CN", "DE", "FR", "GB", "IT", "ES", "NL", "CH", "AT", "JP")
_LAST_GROUP = re.compile(r"[^0-9]*[0-9]+\Z")
_FEWEST_DIGITS = 8
_DOTTED_QUAD = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_ONE_DOT = re.compile(r"\+?[0-9]+\.[0-9]+")


def _with_sign(text: str, start: int, end: int) -> int:
    """Position of the `+` or the parenthesis before the number, if there is one."""
    sign = _SIGN.search(text, max(0, start - 4), start) if text[start - 1 : start] in ("+", "(", " ") else None
    return sign.start() if sign and ("(" not in sign[0] or ")" in text[start:end]) else start


def _written_as(text: str, start: int, end: int) -> tuple[str, tuple[str | None, ...]]:
    """A possible telephone number, and the regions whose forms it may have; no region when nothing speaks for one."""
    written = text[start:end]
    told = _PHONE_WORD.search(text, max(0, start - 40), start) is not None
    if written.startswith(("+", "(+")) and (told or not _ONE_DOT.fullmatch(written)):
        return written, (None,)
    if told and not _DOTTED_QUAD.search(written):
        return (written, _REGIONS) if not written.startswith("00") else (written, (*_REGIONS, "ZZ"))
    for form, region in ((_NORTH_AMERICA, "US"), (_CHINA, "CN")):
        if found := form.match(written):
            return found[0], (region,)
    return "", ()


def _phone_length(written: str, regions: tuple[str | None, ...]) -> int:
    """Characters of `written` that are a telephone number in one of the regions; what follows is left off; else 0."""
    import phonenumbers

    while regions and sum(map(str.isdigit, written)) >= _FEWEST_DIGITS:
        for region in regions:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(written, region)):
                    return len(written)
            except phonenumbers.NumberParseException:
                continue
        # Two numbers side by side: without the last group it may be one.
        written = _LAST_GROUP.sub("", written)
    return 0
