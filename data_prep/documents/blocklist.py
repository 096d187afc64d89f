"""Tells whether a URL is blocked: by its domain or a parent domain, a URL prefix, or a word in it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")


class Blocklist:
    """Says whether an address is blocked. A million domains load in two seconds and take some 200 MB.

    Args:
        path: a file with a domain (`example.com`, blocks its subdomains too) or a URL prefix (`example.com/ads/`,
            `https://example.com/x`) a line; what follows a `#` is a comment. Lists in the form of hosts files
            (`0.0.0.0 example.com`) work too. None: words only.
        words: an address is blocked where one of these stands in it as a word, in any case: `sex` blocks
            `/sex-tips` and not `sussex.ac.uk`.

    Raises:
        ValueError: for a file that is missing or not UTF-8.
    """

    def __init__(self, path: str | Path | None, words: Sequence[str] = ()) -> None:
        entries = _entries(Path(path)) if path is not None else set()
        prefixes = sorted(entry for entry in entries if "/" in entry)
        self._domains = frozenset(entries.difference(prefixes))
        self._prefixes = _without_longer(prefixes)
        lowered = sorted({word.lower() for word in words if word})
        self._words = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, lowered))})(?![^\W_])") if lowered else None

    def __call__(self, url: str | None) -> bool:
        """Tells whether the address is blocked; False for none."""
        if not url:
            return False
        url = _bare(url)
        host, slash, rest = url.partition("/")
        # Without user, port and the root's point.
        host = _ascii(host.rpartition("@")[2].partition(":")[0].rstrip("."))
        if self._domains and any(name in self._domains for name in _with_parents(host)):
            return True
        if self._prefixes and self._has_prefix(host + slash + rest):
            return True
        return self._words is not None and self._words.search(unquote(url).lower()) is not None

    def _has_prefix(self, url: str) -> bool:
        # No entry begins with another one, so what begins the address can only be the entry that sorts last before it.
        position = bisect_right(self._prefixes, url)
        return position > 0 and url.startswith(self._prefixes[position - 1])


def _entries(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.quality.blocklist: {path} cannot be read ({error}); "
            "give a UTF-8 file with a domain or URL prefix a line"
        ) from error
    entries = set()
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words:
            host, slash, rest = _bare(words[-1]).partition("/")
            host = _ascii(host.removeprefix("*.").strip("."))
            if host:
                entries.add(host + slash + rest if rest else host)
    return entries


def _bare(url: str) -> str:
    """Without scheme and `//`; the host in lower case, the path as it is."""
    host, slash, rest = _SCHEME.sub("", url.strip()).partition("/")
    return host.lower() + slash + rest


def _ascii(host: str) -> str:
    """The host as it stands in the domain name system (IDNA)."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _with_parents(host: str) -> Iterable[str]:
    while host:
        yield host
        host = host.partition(".")[2]


def _without_longer(ordered: list[str]) -> list[str]:
    """Sorted entries without those that another entry already covers."""
    kept: list[str] = []
    for entry in ordered:
        if not kept or not entry.startswith(kept[-1]):
            kept.append(entry)
    return kept
