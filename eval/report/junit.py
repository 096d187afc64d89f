"""Writes gates and scores as JUnit XML, which GitLab, Jenkins and GitHub's test reporters show beside the change.

There is no standard of JUnit XML. What is written is valid in both schemas in use: Ant's, the stricter one, and that of
Jenkins' xUnit plugin. A gate that fails is a `failure`; a score that could not be made is an `error`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from configs.common.files import write_text
from configs.common.layout import RESULTS
from configs.common.versions import own_version
from configs.safety.hide_secrets import mask_urls
from configs.safety.terminal import printable
from configs.schema.recipe import load_run
from eval.report.gates import Gate, results_of_stages
from eval.results import Results, load_results

# What XML 1.0 has no way to write; `printable` has already replaced control characters.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    """One line of a reporter: `kind` is `failure`, `error`, `skipped`, or empty for what passed."""

    name: str
    kind: str = ""
    reason: str = ""


def write_junit(path: Path, run: Path, gates: Sequence[Gate], first: bool = False) -> None:
    """Writes the gates of a run, and which parts of its evaluation (and of its stages') could be scored.

    Args:
        path: the file to write.
        run: an evaluated run directory.
        gates: its gates, as `check_gates` returns them.
        first: gates without their baseline are skipped; else they are failures.
    """
    recipe, results = load_run(run), load_results(run)
    judged = [_Case(gate.text, _outcome(gate, first), str(gate)) for gate in gates]
    scored = _scored("", results)
    for stage, of_stage in results_of_stages(recipe).items():
        scored += _scored(f"{stage}:", of_stage) if of_stage is not None else []
    made = datetime.fromtimestamp((run / RESULTS).stat().st_mtime, UTC)
    about = {
        "checkpoint": f"{results.checkpoint['name']} ({results.checkpoint['fingerprint'][:12]})",
        "results": results.fingerprint,
        "replica": own_version(),
    }
    suites = [(f"{recipe.name} gates", judged, 0.0), (f"{recipe.name} scores", scored, results.seconds)]
    _write(path, suites, made, about)


def write_junit_of_error(path: Path, run: Path, error: Exception) -> None:
    """Writes that there is no report, and why; so a file of an earlier report is never read as this one's."""
    case = _Case("report", "error", str(error) or type(error).__name__)
    _write(path, [(f"{run.resolve().name} report", [case], 0.0)], datetime.now(UTC), {"replica": own_version()})


def _outcome(gate: Gate, first: bool) -> str:
    if gate.passed:
        return ""
    return "skipped" if first and gate.undecided else "failure"


def _scored(prefix: str, results: Results) -> list[_Case]:
    parts = dict.fromkeys(f"{result.named.kind}/{result.named.subject}" for result in results.results)
    failed = {failure.name: failure.reason for failure in results.failures}
    cases = [_Case(prefix + part) for part in parts if part not in failed]
    return cases + [_Case(prefix + name, "error", reason) for name, reason in failed.items()]


def _write(path: Path, suites: list[tuple[str, list[_Case], float]], made: datetime, about: dict[str, str]) -> None:
    root = ElementTree.Element("testsuites")
    for number, (name, cases, seconds) in enumerate(suites):
        root.append(_suite(number, name, cases, seconds, made, about))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _suite(
    number: int, name: str, cases: list[_Case], seconds: float, made: datetime, about: dict[str, str]
) -> ElementTree.Element:
    counts = {kind: str(sum(case.kind == kind for case in cases)) for kind in ("failure", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        {
            "id": str(number),
            "package": "replica",
            "name": _line(name),
            "hostname": "localhost",
            "timestamp": made.strftime("%Y-%m-%dT%H:%M:%S"),
            "time": f"{seconds:.3f}",
            "tests": str(len(cases)),
            "failures": counts["failure"],
            "errors": counts["error"],
            "skipped": counts["skipped"],
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in about.items():
        ElementTree.SubElement(properties, "property", name=key, value=_line(value))
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", name=_line(case.name), classname=_line(name), time="0")
        if case.kind == "skipped":
            ElementTree.SubElement(element, "skipped", message=_line(case.reason))
        elif case.kind:
            found = ElementTree.SubElement(element, case.kind, message=_line(case.reason), type=case.kind)
            found.text = _text(case.reason)
    ElementTree.SubElement(suite, "system-out")
    ElementTree.SubElement(suite, "system-err")
    return suite


def _text(text: str) -> str:
    """Makes text that XML can contain, without the secrets of URLs."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", printable(mask_urls(text)))


def _line(text: str) -> str:
    """Makes one line of it, as attributes of type `token` must be."""
    return " ".join(_text(text).split()) or "–"
