"""Named defaults of the data section: what the publications did, in the order in which they did it."""

from __future__ import annotations

from typing import Any

_MINHASH = {"similarity": 0.8, "shingle": 5}

PRESETS: dict[str, dict[str, Any]] = {
    # Raffel et al., arXiv:1910.10683, section 2.2 (three-sentence spans: here repeated paragraphs).
    "c4": {
        "language": {"keep": ["en"], "min_confidence": 0.99},
        "quality": {"rules": [{"rule": "c4"}]},
        "dedup": {"exact": True, "lines": {"unit": "paragraph"}},
    },
    # Rae et al., arXiv:2112.11446, appendix A.1.1.
    "gopher": {
        "language": {"keep": ["en"]},
        "quality": {"rules": [{"rule": "gopher_quality"}, {"rule": "gopher_repetition"}]},
        "dedup": {"exact": True, "near": _MINHASH},
    },
    # Penedo et al., arXiv:2406.17557, section 3: C4's rules without the one on terminal punctuation.
    "fineweb": {
        "extract": {"html": "trafilatura"},
        "language": {"keep": ["en"], "min_confidence": 0.65},
        "quality": {
            "rules": [
                {"rule": "gopher_repetition"},
                {"rule": "gopher_quality"},
                {"rule": "c4", "terminal_punctuation": False},
                {"rule": "fineweb"},
            ]
        },
        "privacy": {"emails": True, "ip_addresses": True},
        "dedup": {"exact": True, "near": _MINHASH},
    },
    "massivetext-zh": {
        "language": {"keep": ["zh"], "min_confidence": 0.5},
        "quality": {"rules": [{"rule": "massivetext_zh"}]},
        "privacy": {"emails": True, "ip_addresses": True, "phone_numbers": True},
        "dedup": {"exact": True, "near": {**_MINHASH, "unit": "character"}},
    },
}


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `defaults`, section by section; a list replaces a list."""
    result = {**defaults, **values}
    for key, default in defaults.items():
        given = values.get(key)
        if isinstance(default, dict) and isinstance(given, dict):
            result[key] = merged(default, given)
    return result
