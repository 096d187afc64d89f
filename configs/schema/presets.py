"""Defines presets of the data section: the settings of publications."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Raffel et al., arXiv:1910.10683, section 2.2, with the numbers of the code that made the data set (c4_utils.py:
    # 5 words, 3 sentences; the first version of the paper has them the other way round, and so has datatrove).
    # Its three-sentence spans are repeated paragraphs here; its list of bad words is not part of this.
    "c4": {
        "language": {"keep": ["en"], "min_confidence": 0.99},
        "quality": {"rules": [{"rule": "c4", "min_line_words": 5, "min_sentences": 3}]},
        "dedup": {"exact": True, "lines": {"unit": "paragraph"}},
    },
    # Rae et al., arXiv:2112.11446, appendix A.1.1: quality, repetition, then exact and 13-gram near-duplicates.
    "gopher": {
        "language": {"keep": ["en"]},
        "quality": {"rules": [{"rule": "gopher_quality"}, {"rule": "gopher_repetition"}]},
        "dedup": {"exact": True, "near": {"similarity": 0.8, "shingle": 13}},
    },
    # Penedo et al., arXiv:2406.17557, section 3, and its code (datatrove, examples/fineweb.py): C4's rules without the
    # one on terminal punctuation; 14 bands of 8 hashes, pairs not verified. Its lists of URLs are the user's to give.
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
        "dedup": {
            "exact": True,
            "near": {"similarity": 0.75, "shingle": 5, "bands": 14, "rows": 8, "verify": False},
        },
    },
    # Ours, after Gopher and ChineseWebText (Chen et al., arXiv:2311.01149; its language threshold is 0.5 too).
    "massivetext-zh": {
        "language": {"keep": ["zh"], "min_confidence": 0.5},
        "quality": {"rules": [{"rule": "massivetext_zh"}]},
        "privacy": {"emails": True, "ip_addresses": True, "phone_numbers": True},
        "dedup": {"exact": True, "near": {"similarity": 0.8, "shingle": 5, "unit": "character"}},
    },
}


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Merges `values` over `defaults`, section by section. A list replaces a list."""
    result = {**defaults, **values}
    for key, default in defaults.items():
        given = values.get(key)
        if isinstance(default, dict) and isinstance(given, dict):
            result[key] = merged(default, given)
    return result
