"""The page, the summary and the gates, on a made-up run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from configs.common.rendering import duration, score, short, size
from data_prep.funnel.table import funnel_rows
from eval.__main__ import main
from eval.report.charts import Axes, Series, line_chart, nice_ticks, thin
from eval.report.gates import check_gates
from eval.report.history import read_history
from eval.report.page import write_report
from eval.results import Sample
from tests.parts.fake_run import fake_results, write_fake_run, write_metrics

VOID = {"meta", "link", "br", "line", "circle", "polyline"}


class Checker(HTMLParser):
    """Collects what a page loads and complains about tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in VOID and tag != "wbr":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if not {"script", "style", "desc"} & set(self.open):
            self.text.append(data)


def check_page(page: Path) -> Checker:
    checker = Checker()
    text = page.read_text(encoding="utf-8")
    checker.feed(text)
    assert not checker.open, f"never closed: {checker.open}"
    assert [load for load in checker.loads if load != "data:,"] == [], "the page loads something from outside"
    assert "@import" not in text and "url(" not in text and not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    assert "undefined" not in " ".join(checker.text).lower() and "None" not in checker.text
    return checker


def test_whole_page(tmp_path: Path) -> None:
    run, before = write_fake_run(tmp_path / "run"), write_fake_run(tmp_path / "before", scale=1.1)
    page = check_page(write_report(run, before))
    assert page.headings == [
        "Held-out text, compressed", "Training", "Benchmarks", "Translation", "In its own words", "Where the text went",
        "Gates", "Beside the baseline", "All scores", "Lineage",
    ]  # fmt: skip
    text = " ".join(" ".join(page.text).split())
    for expected in (
        "2.214",
        "−14%",
        "All 3 gates pass",
        "dropped: duplicate",
        "cdcdcdcdcdcd",
        "hidden_size: 256",
        "tok:zh",
    ):
        assert expected in text, expected
    html = (run / "report" / "index.html").read_text()
    assert "<b>king</b>" not in html and "&lt;b&gt;king&lt;/b&gt;" in html, "model text must be escaped"
    assert html.count("<svg") == 4


def test_several_held_out_sets_share_a_section(tmp_path: Path) -> None:
    results = fake_results().results
    second = [replace(one, name=one.name.replace("/heldout/", "/plays/")) for one in results if "/heldout/" in one.name]
    page = check_page(write_report(write_fake_run(tmp_path / "run", gates=[], results=[*results, *second])))
    assert page.headings.count("Held-out text, compressed") == 1
    assert len(re.findall(r"gzip -9", " ".join(page.text))) == 2 and "plays" in " ".join(page.text)


def test_without_a_held_out_text_other_scores_stand_at_the_top(tmp_path: Path) -> None:
    results = fake_results().results
    kept = [one for one in results if one.named.kind not in ("perplexity", "compression")]
    summary = replace(results[10], name="summarization/news/rougeL", value=21.6, low=19.5, high=23.9)
    lead = replace(summary, name="summarization/news/lead_rougeL", value=16.7, low=15.0, high=18.0)
    for given, cards in (
        ([*kept, summary, lead], ["ROUGE-L 21.60 news [19.50, 23.90]; lead 16.70", "BLEU 3.100 classical-zh"]),
        (kept, ["BLEU 3.100 classical-zh [2.200, 4.000]; the source itself 24.90", "Accuracy 57.0% replica_copa"]),
        (results, ["Bits per byte 2.214"]),
    ):
        page = check_page(write_report(write_fake_run(tmp_path, gates=[], results=given)))
        text = " ".join(" ".join(page.text).split())
        places = [text.find(card) for card in cards]
        assert min(places) >= 0 and places == sorted(places) and places[-1] < text.find("Parameters"), (
            cards,
            text[:900],
        )


def test_a_bound_and_a_gap_are_shown_as_such(tmp_path: Path) -> None:
    results = [replace(one, note=f"upper bound, 16 draws; {one.note}") for one in fake_results().results]
    gap = Sample("infill", "Prompt 1", "a<|mask|>*2 b", "a c d b", "temperature 0.8")
    run = write_fake_run(tmp_path / "run", results=[*results[:2], *fake_results().results[2:]], samples=[gap])
    text = " ".join(" ".join(check_page(write_report(run)).text).split())
    assert "It needs at most 2.21 bits per byte for text it has never seen" in text and "It stores" not in text
    assert "Perplexity ≤ 214.3" in text and "this model, at most" in text and "(upper bound, 16 draws;" in text
    assert "a<|mask|>*2 b → a c d b" in text


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"results": []}, {"Held-out text, compressed", "Benchmarks", "Translation"}),
        ({"samples": []}, {"In its own words"}),
        ({"funnel": []}, {"Where the text went"}),
        ({"lineage": [], "versions": {}}, set()),
    ],
)
def test_missing_parts_leave_their_section_out(tmp_path: Path, changes: dict[str, Any], gone: set[str]) -> None:
    run = write_fake_run(tmp_path, gates=[], **changes)
    headings = set(check_page(write_report(run)).headings)
    assert not headings & (gone | {"Gates", "Beside the baseline"})
    assert {"All scores", "Lineage"} <= headings


def test_the_mixture_is_shown_by_phase(tmp_path: Path) -> None:
    def row(phase: int, source: str, planned: float, realised: float | None) -> dict[str, Any]:
        counts = {"tokens": 1000, "realised_tokens": 500, "epochs": 1.5, "realised_epochs": 0.75}
        shares = {"asked": 0.5, "planned": planned, "realised": realised}
        return {"phase": phase, "first_step": 90 * phase, "steps": 90, "source": source, **shares, **counts}

    table = [row(1, "web", 0.75, 0.7512), row(1, "wiki", 0.25, None)]
    data = {**fake_results().data, "mixture": table}
    page = check_page(write_report(write_fake_run(tmp_path / "a", data=data)))
    text = " ".join(" ".join(page.text).split())
    assert "What it was trained on" in page.headings
    assert "Phase 1: steps 91 to 180 web 50.00% 75.00% 75.12%" in text and "wiki 50.00% 25.00% –" in text
    page = check_page(write_report(write_fake_run(tmp_path / "b", data={**data, "mixture": table[:1]})))
    assert "What it was trained on" not in page.headings


def test_without_metrics_or_compressors(tmp_path: Path) -> None:
    results = fake_results()
    run = write_fake_run(
        tmp_path, gates=[], results=[item for item in results.results if "compression" not in item.name]
    )
    (run / "metrics.jsonl").unlink()
    page = check_page(write_report(run))
    assert "Training" not in page.headings and "Held-out text, compressed" in page.headings
    assert "xz" not in " ".join(page.text)


def test_summary(tmp_path: Path) -> None:
    run, before = write_fake_run(tmp_path / "run"), write_fake_run(tmp_path / "before", scale=1.5)
    write_report(run, before)
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "| ✅ | `perplexity/heldout/bits_per_byte < 2.4` | 2.214 | 2.400 |" in text
    assert "| benchmark/replica_copa/acc | 0.5700 | 0.4730 – 0.6670 | 0.5000 | 100 |" in text
    assert "| perplexity/heldout/bits_per_byte | 3.321 | 2.214 | -1.107 | \\[-1.19, -1.024\\] | – | ▲ better: p" in text
    assert "not paired, from the two intervals (run: it has no items; before: it has no items)" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


# --------------------------------------------------------------------------------------------------------------- gates
@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ("perplexity/heldout/bits_per_byte < 2.4", True),
        ("perplexity/heldout/bits_per_byte < 2.2", False),
        ("perplexity/heldout/bits_per_byte<=2.214", True),
        ("perplexity/heldout/bits_per_byte > compression/heldout/xz_bits_per_byte", False),
        ("benchmark/replica_copa/acc >= 5.7e-1", True),
        ("benchmark/replica_copa/acc == 0.57", True),
    ],
)
def test_gate(tmp_path: Path, gate: str, passed: bool) -> None:
    (outcome,) = check_gates(write_fake_run(tmp_path, gates=[gate]))
    assert outcome.passed is passed and outcome.text == gate


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("perplexity/heldout/bits_per_bite < 2", "near: perplexity/heldout/bits_per_byte"),
        ("perplexity/heldout/perplexity < perplexity/heldout/perplex", "near: perplexity/heldout/perplexity"),
        ("perplexity/heldout/bits_per_byte", "metric op value"),
        ("a = 2", "metric op value"),
    ],
)
def test_gate_that_cannot_be_read(tmp_path: Path, gate: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_gates(write_fake_run(tmp_path, gates=[gate]))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_fake_run(tmp_path / "good"), write_fake_run(tmp_path / "bad", scale=2.0)
    assert main(["report", str(good), "--gate", "--baseline", str(bad)]) == 0
    assert main(["report", str(bad)]) == 0
    assert main(["report", str(bad), "--gate"]) == 1
    assert "FAILS" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "is not a run directory" in error and "Traceback" not in error


# --------------------------------------------------------------------------------------------------------------- parts
def test_history_keeps_the_last_of_repeated_steps(tmp_path: Path) -> None:
    lines = [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 9.0}, {"step": 2, "train/loss": 2.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 3, "train/lo')
    assert read_history(tmp_path).get("train/loss") == [(1.0, 3.0), (2.0, 2.0)]
    (tmp_path / "metrics.jsonl").write_text('{"step\n' + text)
    with pytest.raises(ValueError, match="line 1"):
        read_history(tmp_path)


def test_funnel_must_add_up() -> None:
    funnel = fake_results().funnel
    rows = funnel_rows(funnel)
    assert [row["kind"] for row in rows] == ["total", *["dropped"] * 4, "kept", "kept"]
    assert sum(row["share"] for row in rows[1:]) == pytest.approx(100)
    several = funnel_rows(funnel + [{**row, "source": "other"} for row in funnel])
    assert [row["source"] for row in several if row["source"]] == ["all 2 sources", "gutenberg", "other"]
    with pytest.raises(ValueError, match="add up"):
        funnel_rows(funnel[:-1])


def test_charts() -> None:
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.07, 0.32, 4) == [0.1, 0.2, 0.3]
    assert nice_ticks(3, 3, 4) == [3]
    assert thin([(float(x), 2.0 * x) for x in range(10)], 5) == [
        (0.5, 1.0),
        (2.5, 5.0),
        (4.5, 9.0),
        (6.5, 13.0),
        (8.5, 17.0),
    ]
    chart = line_chart(
        [Series("<a>", [(1.0, 5.0)], "series-1")], Axes(x_label="step", x_format=short, y_format=short), title='"t"'
    )
    assert "<a>" not in chart and "nan" not in chart and "circle" in chart


def test_numbers() -> None:
    assert [score(v) for v in (2.2142, 214.34, 0.5, 0.0)] == ["2.214", "214.3", "0.5000", "0.000"]
    assert [score(v) for v in (1e-6, 6.03e8, None)] == ["1e-06", "6.03e+08", "–"]
    assert [short(v) for v in (999, 1234, 10_912_000, 2e9)] == ["999", "1.23k", "10.9M", "2B"]
    assert [size(v) for v in (300, 12_345, 6.5e6)] == ["300 bytes", "12.3 kB", "6.5 MB"]
    assert [duration(v) for v in (5, 206, 3725, 3600)] == ["5 s", "3 min 26 s", "1 h 2 min", "1 h 0 min"]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    first = write_report(run).read_bytes()
    write_metrics(run)
    assert write_report(run).read_bytes() == first


def test_the_report_says_what_the_numbers_are_worth(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    said = {"text": "compiled code agrees with plain code", "repeats": "repeats bit for bit with 1 rank of 2 threads"}
    (run / "numerics.json").write_text(json.dumps(said))
    page = check_page(write_report(run))
    sentences = "Numbers. Compiled code agrees with plain code. Repeats bit for bit with 1 rank of 2 threads."
    assert sentences in " ".join(" ".join(page.text).split())
    assert "Repeats bit for bit with 1 rank of 2 threads." in (run / "report" / "report.md").read_text()
