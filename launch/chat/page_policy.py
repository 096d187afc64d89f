"""Says what a page may do, as a Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import re


def page_policy(page: str) -> str:
    """What the page may do: run its own script, use its own style, and talk to the server that it came from."""
    script, style = (_hashes(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hashes(page: str, tag: str) -> str:
    """The hashes of what stands between these tags, as a Content-Security-Policy names them."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in contents
    )
