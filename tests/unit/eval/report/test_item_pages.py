"""The items pages of a report: what they show, that text stays text, and that they stay small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.items.item import Item
from eval.items.store import items_file, stem
from eval.items.table import ItemTable, to_table
from eval.report.item_view import Metric, item_view
from eval.report.page import write_report
from eval.report.stamp import page_is_current, write_stamp
from eval.results import load_results
from launch.cli import main
from tests.parts import browser
from tests.parts.fake_chain import write_fake_chain
from tests.parts.fake_items import COPA, HELDOUT, ZH, document, fake_items, question, run_with_items, store_items
from tests.parts.fake_run import write_fake_run

ACC = Metric("acc", True)
SHIFTS = [("sft", 0), ("grpo", 1)]


def page_of(run: Path, part: str) -> Path:
    return run / "report" / "items" / f"{stem(part)}.html"


def table(items: list[Item], part: str = COPA) -> ItemTable:
    return ItemTable(part, "f" * 32, to_table(items))


# ---------------------------------------------------------------------------------------------------------------- views
def test_wrong_answers_come_first_and_the_surest_of_them_at_the_top() -> None:
    items = [question(0, True), question(1, False, 0.5), question(2, False, 3.0), question(3, True)]
    assert [one.item.id for one in item_view(table(items), ACC).worst] == ["2", "1"]
    alone = [replace(question(n, False), choices=(), log_likelihoods=(-float(n),)) for n in (3, 5, 4)]
    assert [one.item.id for one in item_view(table(alone), ACC).worst] == ["5", "4", "3"]
    bits = Metric("bits_per_byte", False)
    view = item_view(table([document(0, 2.0), document(1, 2.5), document(2, 1.5)], HELDOUT), bits, most=2)
    assert [one.item.id for one in view.worst] == ["2", "1"] and view.change is None


def test_items_of_two_runs_meet_by_their_hashes() -> None:
    """Whatever their order; equal questions meet in turn; what only one run has is counted."""
    before = [question(0, True), question(1, True), question(2, False), question(2, True), question(9, True)]
    after = [question(2, True), question(1, False), question(0, True), question(2, True), question(7, True)]
    renumbered = [replace(item, id=str(number)) for number, item in enumerate(before)]
    change = item_view(table(after), ACC, table(renumbered)).change
    assert change is not None
    assert (change.common, change.better, change.worse, change.only_here, change.only_there) == (4, 1, 1, 1, 1)
    assert [one.item.id for one in change.most_worse] == ["1"] and [one.item.id for one in change.most_better] == ["2"]


def test_scores_by_length_add_up_to_the_whole() -> None:
    items = fake_items(questions=103)[COPA]
    view = item_view(table(items), ACC, table(fake_items(1, questions=103)[COPA]))
    assert sum(band.n for band in view.lengths) == 103
    right = sum(item.measures["acc"][0] for item in items)
    assert sum(band.n * band.score for band in view.lengths) == pytest.approx(right)
    assert all(one.high < other.low for one, other in zip(view.lengths, view.lengths[1:], strict=False))
    assert all(band.before is not None for band in view.lengths) and "asked" in view.length_of


def test_tasks_of_a_group_have_their_scores() -> None:
    items = [replace(question(n, n % 2 == 0), subject=f"task_{n % 3}") for n in range(12)]
    view = item_view(table(items, "benchmark/group"), ACC)
    assert view.subjects == [(f"task_{n}", 4, 0.5) for n in range(3)]


# ---------------------------------------------------------------------------------------------------------------- pages
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    run = run_with_items(directory / "run")
    write_report(run, run_with_items(directory / "other", shift=1))
    return run


def test_each_part_has_a_page_and_the_report_links_to_it(run: Path) -> None:
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    for part, count in ((COPA, 40), (HELDOUT, 28), (ZH, 12)):
        assert f'href="items/{stem(part)}.html"' in text and page_of(run, part).is_file()
        assert f"{count} items of step_00001200" in page_of(run, part).read_text(encoding="utf-8")


def test_a_page_has_what_changed_with_both_answers(run: Path) -> None:
    text = page_of(run, COPA).read_text(encoding="utf-8")
    assert "What changed since other" in text and "13 became better, 14 worse, 13 stayed equal" in text
    assert "the second end of 9" in text and "chosen by other" in text and "-1.000 nats" in text
    text = page_of(run, ZH).read_text(encoding="utf-8")
    assert "Answer of other" in text and "the translation of sentence nothing" in text and "<code>chrf</code>" in text


class Elements(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "b2") or any(name.startswith("on") for name, _ in attrs):
            self.found.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href") and "://" in (value or "")]


def test_text_of_items_stays_text(tmp_path: Path) -> None:
    hostile = "</p><script>alert(1)</script><img src=http://evil/x onerror=x> {{ 7 * 7 }} \x1b[31m \u202e"
    item = replace(
        question(0, False), id=hostile, asked=hostile, reference=hostile, choices=(hostile, "b"), tags=(hostile,),
        notes={hostile: hostile},
    )  # fmt: skip
    pair = replace(fake_items()[ZH][0], answer=hostile, asked=hostile, reference=hostile, notes={"finish": hostile})
    run = store_items(write_fake_run(tmp_path / "run"), {COPA: [item], ZH: [pair]})
    write_report(run)
    for part in (COPA, ZH):
        text = page_of(run, part).read_text(encoding="utf-8")
        elements = Elements()
        elements.feed(text)
        assert elements.found == [] and "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text and "<script" not in text


def test_a_page_stays_small_for_many_items_and_long_texts(tmp_path: Path) -> None:
    """30,000 items: the page shows the worst of them, and the beginnings of their texts."""
    long = "word " * 790
    items = [
        Item(str(n), f"{n:016x}", long if n % 977 > 900 else "short", measures={"bits_per_byte": (float(n % 977), 1.0)})
        for n in range(30_000)
    ]
    run = store_items(write_fake_run(tmp_path / "run"), {HELDOUT: items})
    write_report(run)
    text = page_of(run, HELDOUT).read_text(encoding="utf-8")
    assert len(text) < 400_000 and text.count('<details class="item">') == 100 and "30,000 items" in text


def test_damaged_and_foreign_items_are_named_and_do_not_stop_the_report(tmp_path: Path) -> None:
    run, other = run_with_items(tmp_path / "run"), run_with_items(tmp_path / "other", shift=1)
    items_file(run / "scores", COPA).write_bytes(b"PAR1")
    items_file(other / "scores", ZH).unlink()
    known = load_results(other)
    results = [
        replace(result, unit="bits per byte of raw text") if result.name == f"{HELDOUT}/bits_per_byte" else result
        for result in known.results
    ]
    replace(known, results=results).save(other)
    write_report(run, other)
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "cannot be read" in text and not page_of(run, COPA).exists()
    assert "is missing; make it again" in page_of(run, ZH).read_text(encoding="utf-8")
    held = re.sub("&#3[49];", "", page_of(run, HELDOUT).read_text(encoding="utf-8"))
    assert "Not compared with other: unit `bits per byte of normalised text` against" in held
    rounded = [replace(one, settings={**one.settings, "precision": "bf16"}) for one in known.results]
    replace(known, results=rounded).save(other)
    write_report(run, other)
    assert "Not compared with other: precision fp32 against bf16" in page_of(run, HELDOUT).read_text(encoding="utf-8")


def test_pages_of_earlier_items_go_and_missing_ones_come_back(tmp_path: Path) -> None:
    run = run_with_items(tmp_path / "run")
    write_report(run)
    write_stamp(run, None)
    assert page_is_current(run)
    page_of(run, COPA).unlink()
    assert not page_is_current(run)
    store_items(run, {HELDOUT: fake_items()[HELDOUT]})
    write_report(run)
    assert [file.name for file in (run / "report" / "items").iterdir()] == [page_of(run, HELDOUT).name]


def test_a_stage_is_compared_with_the_one_it_started_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_chain(tmp_path / "run")
    stages = {name: run / "stages" / name for name in ("sft", "grpo")}
    answers = {name: [replace(item, subject="sums") for item in fake_items(shift)[COPA]] for name, shift in SHIFTS}
    for name, stage in stages.items():
        store_items(stage, {"chat/sums": answers[name]})
    write_report(stages["grpo"])
    text = page_of(stages["grpo"], "chat/sums").read_text(encoding="utf-8")
    assert "What changed since sft" in text and "14 became better, 13 worse, 13 stayed equal" in text
    assert main(["eval", f"{run}:grpo", "--items", "chat/sums"]) == 0
    assert capsys.readouterr().out.startswith("chat/sums: 40 items by acc")
    items_file(stages["sft"] / "scores", "chat/sums").unlink()
    write_report(stages["grpo"])
    text = page_of(stages["grpo"], "chat/sums").read_text(encoding="utf-8")
    assert "What changed" not in text and "Not compared with sft:" in text and "is missing" in text


@pytest.mark.skipif(browser.find() is None, reason="needs a Chromium")
def test_the_pages_in_a_browser(run: Path) -> None:
    """From disk: items open without a script, nothing is wider than the window, links lead back."""
    path = browser.find()
    assert path is not None
    with browser.running(path) as running:
        tab = running.tab()
        for part in (COPA, ZH):
            for width in (1280, 360):
                tab.show(page_of(run, part).as_uri(), width, phone=width < 500)
                assert tab.run("document.documentElement.scrollWidth") <= width
                assert not tab.run("document.querySelector('details .body').checkVisibility()")
                tab.run("document.querySelector('summary').click()")
                assert tab.run("document.querySelector('details .body').checkVisibility()")
        assert tab.errors == []
        tab.run("document.querySelector('.brand a').click()")
        tab.wait("location.href.endsWith('report/index.html') && document.readyState === 'complete'")
