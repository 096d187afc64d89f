"""`replica run` where some scores could not be made: the report is written all the same, the exit code says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.common.exit_codes import BUG, USER_ERROR, run_command
from eval.results import Failure, ScoresBroken, ScoresFailed
from launch import run_stages
from tests.parts.fake_run import fake_recipe, write_fake_run


@pytest.mark.parametrize(("kind", "code"), [(ScoresFailed, USER_ERROR), (ScoresBroken, BUG)])
@pytest.mark.parametrize("saved", [True, False])
def test_the_report_comes_before_the_exit_code(
    kind: type[ScoresFailed] | type[ScoresBroken],
    code: int,
    saved: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_fake_run(tmp_path / "run", failures=[Failure("translation/wmt", "no such file")])

    def fail(*_: object) -> Path:
        raise kind("no such file (not scored: translation/wmt)", saved)

    for name in ("_data_is_current", "_training_is_done"):
        monkeypatch.setattr(run_stages, name, lambda _: True)
    monkeypatch.setattr(run_stages, "_results_are_current", lambda _: False)
    monkeypatch.setattr(run_stages, "eval_stage", fail)
    assert run_command(lambda: run_stages.run_all(fake_recipe(run))) == code
    said = capsys.readouterr()
    assert "not scored: translation/wmt" in said.err
    assert (run / "report" / "index.html").is_file() == saved
    assert ("report: " in said.out) == saved, "headlines and gates come first"
    if saved:
        assert "2.168 – 2.260" in said.out and "2.562" in said.out and "2.562 – 2.562" not in said.out, (
            "exact: no interval"
        )
        assert "no such file" in (run / "report" / "index.html").read_text()
