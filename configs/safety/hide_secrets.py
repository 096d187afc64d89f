"""Hides secrets in URLs and in file system options before they are shown."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_END = r"\s'\"<>`"
_URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^{_END}/?#]*@)?(?P<path>[^{_END}?#]*)(?P<query>[?#][^{_END}]*)?"
)


def mask_urls(text: str) -> str:
    """Replaces user information, query and fragment of every URL in a text by `***`.

    `https://me:secret@host/file?token=T` becomes `https://***@host/file?***`. Outside of web addresses, `?` is a file
    name pattern and stays, unless `=` follows.
    """
    return _URL.sub(_masked_url, text) if "://" in text else text


def _masked_url(found: re.Match[str]) -> str:
    user, query = found["user"] or "", found["query"] or ""
    if query and (found["scheme"].lower().startswith("http") or "=" in query):
        query = query[0] + MASK
    return f"{found['scheme']}://{MASK + '@' if user else ''}{found['path']}{query}"


def mask(node: Any, hidden: bool = False) -> Any:
    """Copies settings with URLs masked, and `***` for every value below a key that ends in `_options`.

    Args:
        node: nested dictionaries and lists, as a recipe's `model_dump` gives them.
        hidden: whether the node lies below such a key.
    """
    if isinstance(node, dict):
        return {key: mask(value, hidden or is_secret(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [mask(item, hidden) for item in node]
    if hidden:
        return node if node is None or isinstance(node, bool) else MASK
    return mask_urls(node) if isinstance(node, str) else node


def mask_override(override: str) -> str:
    """Masks an override `a.b=value` like the setting it sets."""
    path, separator, value = override.partition("=")
    hidden = any(is_secret(key) for key in path.split("."))
    return f"{path}{separator}{MASK if hidden else mask_urls(value)}"


def is_secret(key: object) -> bool:
    """Tells whether values below this recipe key may be secrets: it ends in `_options`."""
    return isinstance(key, str) and key.endswith("_options")
