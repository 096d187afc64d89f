"""Names the scores of an information set, without reading it."""

from __future__ import annotations

from configs.schema.pair_sets import InformationSet

# metric -> unit, whether higher is better, what it is
METRICS: dict[str, tuple[str, bool, str]] = {
    "saved_bits": ("bits per target", True, "alone minus given: what the source saves of its target"),
    "saved_share": ("share of the bits alone", True, "saved bits over bits alone"),
    "alone_bits": ("bits per target", False, "baseline: targets without a source"),
    "given_bits": ("bits per target", False, "targets behind their sources"),
    "other_bits": ("bits per target", False, "control: targets behind the source of another pair"),
    "other_saved_bits": ("bits per target", True, "control: what the source of another pair saves"),
    "beyond_other_bits": ("bits per target", True, "other minus given: what the own source saves beyond another one"),
    "matching_accuracy": ("accuracy", True, "the candidate of which the source saves most bits is its own target"),
}


def score_names(section: InformationSet) -> list[str]:
    """Names the scores of a set, without what decontamination tells apart: `information/SET/METRIC/K-shot`."""
    metrics = [name for name in METRICS if name != "matching_accuracy" or section.candidates is not None]
    return [f"information/{section.name}/{metric}/{shots}-shot" for shots in section.shots for metric in metrics]
