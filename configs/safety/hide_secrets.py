"""What must not be shown around: secrets in URLs and in the options of file systems."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_END = r"\s'\"<>`"
_URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^{_END}/?#]*@)?(?P<path>[^{_END}?#]*)(?P<query>[?#][^{_END}]*)?"
)


def mask_urls(text: str) -> str:
    """The text with `***` for user information, query and fragment of every URL in it.

    `https://me:secret@host/file?token=T` becomes `https://***@host/file?***`. A `?` outside of web addresses is a
    pattern of file names and stays, unless a `=` follows.
    """
    return _URL.sub(_masked_url, text) if "://" in text else text


def _masked_url(found: re.Match[str]) -> str:
    user, query = found["user"] or "", found["query"] or ""
    if query and (found["scheme"].lower().startswith("http") or "=" in query):
        query = query[0] + MASK
    return f"{found['scheme']}://{MASK + '@' if user else ''}{found['path']}{query}"


def mask(node: Any, hidden: bool = False) -> Any:
    """A copy of settings to be shown: URLs masked, and `***` for every value below a key that ends in `_options`.

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
    """An override `a.b=value` to be shown: masked like the setting it sets."""
    path, separator, value = override.partition("=")
    hidden = any(is_secret(key) for key in path.split("."))
    return f"{path}{separator}{MASK if hidden else mask_urls(value)}"


def is_secret(key: object) -> bool:
    """Whether values below this key of a recipe may be secrets: options of file systems."""
    return isinstance(key, str) and key.endswith("_options")
