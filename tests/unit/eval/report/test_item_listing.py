"""`replica eval RUN --items`: the table, the files, and what is said when there are no items."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.items.store import items_file
from eval.report.item_listing import export_items, print_items
from eval.results import load_results
from launch.cli import main
from tests.parts.fake_items import COPA, HELDOUT, ZH, fake_items, run_with_items, store_items
from tests.parts.fake_run import write_fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_items(tmp_path_factory.mktemp("items") / "run")


def test_parts_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--items"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [COPA, "40", "acc"] in rows and [HELDOUT, "28", "bits_per_byte,", "nats_per_token"] in rows
    assert [ZH, "12", "bleu,", "chrf"] in rows


def test_the_worst_come_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of wrong answers the surest; of documents the one with the most bits per byte."""
    assert main(["eval", str(run), "--items", COPA]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "benchmark/replica_copa: 40 items by acc (higher is better), the worst first"
    assert [line.split()[0] for line in lines if line.lstrip()[:1].isdigit()][:2] == ["9", "24"]
    assert "and 26 more" in lines[-1]
    print_items(run, HELDOUT)
    lines = capsys.readouterr().out.splitlines()
    worst = [line.split()[:2] for line in lines if line.lstrip()[:1].isdigit()]
    assert "lower is better" in lines[0] and worst[0] == ["7", "2.600"]
    print_items(run, ZH)
    assert "by chrf" in capsys.readouterr().out


def test_text_of_a_model_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    items = [replace(item, asked="a\x1b]0;x\x07\r\nb", answer="[red]c[/red]") for item in fake_items()[COPA][:2]]
    print_items(store_items(run, {COPA: items}), COPA)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "a\\x1b]0;x\\x07 b" in shown and "[red]c[/red]" in shown


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_items_are_written(run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"items{suffix}"
    assert main(["eval", str(run), "--items", COPA, "--to", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 40 items\n"
    if suffix == ".parquet":
        rows = pq.read_table(file).to_pylist()
    elif suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    else:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    expected = fake_items()[COPA]
    assert [row["id"] for row in rows] == [item.id for item in expected]
    assert {row["part"] for row in rows} == {COPA}
    row, item = rows[3], expected[3]
    choices, nats = row["choices"], row["log_likelihoods"]
    if suffix == ".csv":
        choices, nats = json.loads(choices), json.loads(nats)
    assert tuple(choices) == item.choices and tuple(nats) == item.log_likelihoods
    assert float(row["numerator/acc"]) == item.measures["acc"][0] and row["asked"] == item.asked


def test_all_parts_in_one_file(run: Path, tmp_path: Path) -> None:
    assert export_items(run, "", tmp_path / "all.jsonl") == 80
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["part"] for row in rows].count(ZH) == 12 and "numerator/acc" not in rows[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "benchmark/copa"], "has no items of `benchmark/copa`; it has those of benchmark/replica_copa"),
        (["--items", COPA, "--to", "items.xlsx"], r"--to items.xlsx: its name must end in .parquet, .csv or .jsonl"),
        (["--to", "items.csv"], "--to writes items; give --items too"),
        (["--items", COPA, "--again"], "scores nothing: leave out --again"),
        (["--items", COPA, "--step", "3"], "scores nothing: leave out --step"),
        (["evaluation.bootstrap_samples=7", "--items"], "leave out evaluation.bootstrap_samples=7"),
    ],
)
def test_bad_requests_are_one_message(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_scores_without_items_say_how_to_make_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    assert main(["eval", str(run), "--items"]) == 2
    assert "its scores have no items" in (said := capsys.readouterr().err) and f"replica eval {run}" in said
    store_items(run, fake_items())
    file = items_file(run / "scores", COPA)
    whole = file.read_bytes()
    for damage, message in ((whole[:-9], "cannot be read"), (None, "is missing")):
        file.write_bytes(damage) if damage is not None else file.unlink()
        assert main(["eval", str(run), "--items", COPA]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and f"replica eval {run}" in said
        assert main(["eval", str(run), "--items", "--to", str(tmp_path / "all.csv")]) == 2
        assert not (tmp_path / "all.csv").exists() and capsys.readouterr()
    file.write_bytes(whole)
    replace(load_results(run), items={COPA: "0" * 32}).save(run)
    assert main(["eval", str(run), "--items", COPA]) == 2
    assert "items of other scores than results.json" in capsys.readouterr().err
