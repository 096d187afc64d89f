"""Shell scripts and the files of a run directory: text is never run, links are never written through."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("benchmarks/*.sh")])
# Slurm's commands stand in; `finish` is cut out of the script, which needs a cluster.
STUBS = """
set -euo pipefail
run=$1 cancelled="" ending="" restarts=0 began_at=same SLURM_JOB_ID=7
say() { echo "$*"; }
newest() { echo same; }
scontrol() { :; }
sleep() { :; }
"""


def finish(run: Path) -> subprocess.CompletedProcess[str]:
    """A job that ends with code 75 without a newer checkpoint."""
    script = (ROOT / "launch" / "slurm.sh").read_text(encoding="utf-8")
    functions = [
        match.group(0)
        for name in ("stalls_so_far", "note_stalls", "finish")
        if (match := re.search(rf"^{name}\(\) \{{.*?^\}}$", script, re.MULTILINE | re.DOTALL))
    ]
    program = "\n".join([STUBS, *functions, "finish 75"])
    return subprocess.run(["bash", "-c", program, "x", str(run)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("restarts[$(touch {mark})]\n", "1"),
        ("$(touch {mark})", "1"),
        ("`touch {mark}`", "1"),
        ("run[0]", "1"),
        ("2\nrestarts[$(touch {mark})]", "1"),
        ("99999999999999999999999", "1"),
        ("-5", "1"),
        ("", "1"),
        ("2\n", "3"),
        ("08", "no more"),
        (None, "1"),
    ],
)
def test_text_of_a_run_directory_is_no_arithmetic(tmp_path: Path, text: str | None, then: str) -> None:
    mark = tmp_path / "code-ran"
    if text is not None:
        (tmp_path / ".stalls").write_text(text.format(mark=mark))
    done = finish(tmp_path)
    assert not mark.exists() and done.stderr == "" and done.returncode == 75
    if then == "no more":
        assert "9 times no newer checkpoint: no more" in done.stdout
    else:
        assert (tmp_path / ".stalls").read_text() == f"{then}\n"
        assert "back to the queue" in done.stdout


def test_the_count_of_stalls_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".stalls").symlink_to(victim)
    assert finish(tmp_path / "run").returncode == 75
    assert victim.read_text() == "1"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".stalls"]
    assert not (tmp_path / "run" / ".stalls").is_symlink()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_arithmetic_takes_no_text_of_files(script: Path) -> None:
    """Bash runs `$(…)` in what a variable holds once it stands in arithmetic; so do comparisons of `[[`."""
    checked = {"stalls_so_far"}  # gives digits alone
    text = re.sub(r"(?m)^\s*#.*$", "", script.read_text(encoding="utf-8"))
    for expression in re.findall(r"\(\((.*?)\)\)(?!\))", text):
        commands = set(re.findall(r"\$\((\w*)", expression)) | set(re.findall(r"`(\w*)", expression))
        assert commands <= checked, expression
    assert not re.search(r"(?m)(^|[;&|]|\bthen|\bdo)\s*eval\b", text)
    assert not re.search(r"\[\[[^]]*\s-(eq|ne|lt|le|gt|ge)\s", text)
    assert not re.search(r"\b(let|declare -i|typeset -i|local -i)\b", text)


def test_trust_is_handed_to_the_training_and_the_evaluation_of_a_job() -> None:
    script = (ROOT / "launch" / "slurm.sh").read_text(encoding="utf-8")
    found = re.search(r"^trust=\(\).*?^done$", script, re.MULTILINE | re.DOTALL)
    assert found is not None
    program = found[0] + '\nprintf "[%s]" "${trust[@]}"'
    words = ["recipe.yaml", "--trust", "a b", "train.steps=3", "--trust=c", "--out", "--trust"]
    done = subprocess.run(["bash", "-euc", program, "x", *words], capture_output=True, text=True, check=True)
    assert done.stdout == "[--trust][a b][--trust=c]"
    for command in ("pretrain/train.py --recipe", "replica eval"):
        (line,) = [line for line in script.splitlines() if line.startswith("on_") and command in line]
        assert '"${trust[@]}"' in line
