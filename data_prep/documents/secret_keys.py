"""Finds secret keys and tokens in text by the forms of their issuers (as gitleaks and GitHub publish them)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

_END = r"(?![A-Za-z0-9_-])"
# Each begins with a literal, which `re` finds at gigabytes a second; what stands before it is looked at afterwards.
_FORMS = tuple(
    re.compile(form + _END)
    for form in (
        "AKIA[A-Z2-7]{16}",  # AWS, long-lived
        "ASIA[A-Z2-7]{16}",  # AWS, temporary
        "AIza[0-9A-Za-z_-]{35}",  # Google API
        "glpat-[A-Za-z0-9_-]{20,64}",  # GitLab
        r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,30}",
        "xox[abeoprs]-(?=[a-z-]*[0-9])[A-Za-z0-9-]{10,250}",  # Slack
        "sk-(?=[A-Za-z0-9_-]*[0-9])(?=[A-Za-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,200}",  # OpenAI, Anthropic
        "pypi-AgEI[A-Za-z0-9_-]{50,250}",
        r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
        r"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{10,1000}",  # JSON web token (RFC 7519)
    )
)
# GitHub, Stripe, Hugging Face, npm
_UNDERSCORE = re.compile("_[A-Za-z0-9]{16}")
_UNDERSCORE_FORMS = re.compile(
    "(?:gh[opsur]_[A-Za-z0-9]{36,76}|github_pat_[A-Za-z0-9_]{82}|[rs]k_live_[A-Za-z0-9]{16,100}|hf_[A-Za-z0-9]{34}"
    "|npm_[A-Za-z0-9]{36})" + _END
)
_WORD_BEFORE = re.compile(r"[A-Za-z0-9_]\Z")
_PEM = re.compile(
    r"-----BEGIN ((?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----[^-]{40,20000}-----END \1-----"  # RFC 7468
)
# A value given to a name: found by the sign between them, which prose hardly has before a long word.
_VALUES = tuple(re.compile(sign + r">?\s{0,2}[\"'`]?([A-Za-z0-9+/_.=-]{16,200})(?![A-Za-z0-9(\[])") for sign in ":=")
_NAME = re.compile(
    r"(?:api_?key|(?:secret|access|private|auth|account|encryption|signing)_?key|secret|(?:access|auth|bearer|refresh|api)_?token|"
    r"token|passw(?:or)?d|pwd|credentials?)[\"'`\]]{0,2}\s{0,3}(?::=?|=)?\Z",
    re.IGNORECASE,
)
_BEFORE = 40
# Bits per character; gitleaks' 3.5 of its generic rule.
_MIN_ENTROPY = 3.5
_PARTS = re.compile("[/_.=-]+")
_LONGEST_PART = 12


def find_keys(text: str) -> Iterator[tuple[int, int]]:
    """Spans of secret keys in order: known forms, PEM private keys, and random-looking values of telling names."""
    matches = [found for form in _FORMS for found in form.finditer(text)]
    if _UNDERSCORE.search(text):
        matches += _UNDERSCORE_FORMS.finditer(text)
    spans = [
        found.span() for found in matches if not _WORD_BEFORE.search(text, max(0, found.start() - 1), found.start())
    ]
    if "PRIVATE KEY" in text:
        spans += [found.span() for found in _PEM.finditer(text)]
    for values in _VALUES:
        for found in values.finditer(text):
            before = text[max(0, found.start() - _BEFORE) : found.start()].replace("-", "_")
            if _NAME.search(before) and _looks_random(found[1]):
                spans.append(found.span(1))
    end = 0
    for start, stop in sorted(spans):
        if start >= end:
            yield start, stop
            end = stop


def _looks_random(value: str) -> bool:
    """Letters and digits mixed with the entropy of a key; names of functions, paths and versions have less."""
    digits = sum(map(str.isdigit, value))
    if digits < 2 or not any(map(str.isalpha, value)) or max(map(len, _PARTS.split(value))) < _LONGEST_PART:
        return False
    return entropy(value) >= _MIN_ENTROPY


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
