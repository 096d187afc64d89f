"""What a report leaves for a later one: enough to compare with, no secrets, and nothing else is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.items.item import Item
from eval.items.store import read_file, write_items
from eval.report.keep_results import keep_results
from launch.cli import main
from tests.parts.fake_run import write_fake_run


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_later_report_compares_with_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write_fake_run(tmp_path / "before", [])
    items = [Item(id="1", hash="0" * 16, asked="What?", measures={"acc": (1.0, 1.0)})]
    written = write_items(before / "scores", "benchmark/copa", "ab", items)
    (before / "scores" / "benchmark-copa.json").write_text("{}")  # a stored score: of no use to others
    write_fake_run(before / "stages" / "sft", [])
    kept = tmp_path / "kept"
    assert main(["report", str(before), "--keep", str(kept)]) == 0
    assert written is not None
    assert files(kept) == {
        *("results.json", f"scores/{written.name}", "report/index.html", "report/report.md"),
        "stages/sft/results.json",
    }
    assert read_file(kept / "scores" / written.name).part == "benchmark/copa"

    now = write_fake_run(tmp_path / "now", ["benchmark/replica_copa/acc >= 0.9"], scale=1.1)
    capsys.readouterr()
    assert main(["report", str(now), "--gate", "--baseline", str(kept), "--keep", str(kept)]) == 1
    assert (kept / "results.json").read_bytes() == (now / "results.json").read_bytes()
    assert "Against" in (kept / "report" / "report.md").read_text(encoding="utf-8")
    assert files(kept) == {"results.json", "report/index.html", "report/report.md"}, "nothing of the earlier copy stays"


@pytest.mark.parametrize("found", ["recipe.yaml", "results.json", "notes.txt"])
def test_other_directories_are_left_alone(tmp_path: Path, found: str) -> None:
    run = write_fake_run(tmp_path / "run", [])
    there = tmp_path / "there"
    there.mkdir()
    (there / found).write_text("{}")
    (there / "recipe.yaml").touch()
    with pytest.raises(ValueError, match=r"--keep .*there: this is no earlier copy of results"):
        keep_results(run, there)
    assert (there / found).exists()
    with pytest.raises(ValueError, match="no earlier copy"):
        keep_results(run, run)
    (tmp_path / "link").symlink_to(there)
    with pytest.raises(ValueError, match="no earlier copy"):
        keep_results(run, tmp_path / "link")
