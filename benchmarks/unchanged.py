"""Shows that a refactoring changes no number: the demo's shards, losses, scores and exported model, before and after.

    python benchmarks/unchanged.py record before.json     # on the commit before, about ten minutes on two cores
    python benchmarks/unchanged.py record after.json      # on the commit after, same machine
    python benchmarks/unchanged.py compare before.json after.json

`compare` prints one line for each kind of number and exits 1 when any differs. Compare on one machine only: another CPU
or another torch may round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEPS = 100


def run(*arguments: object) -> None:
    """Runs one command of `replica` in a process of its own; its output goes to this terminal.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    subprocess.run([sys.executable, "-m", "launch.cli", *map(str, arguments)], cwd=ROOT, check=True)


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def losses(run_directory: Path) -> dict[str, float]:
    """`train/loss` of the first steps, by step."""
    lines = [line for file in sorted(run_directory.glob("metrics*.jsonl")) for line in file.read_text().splitlines()]
    records = (json.loads(line) for line in lines)
    found = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    return {str(step): found[step] for step in sorted(found) if step <= FIRST_STEPS}


def scores(run_directory: Path) -> dict[str, Any]:
    """What was scored: every result without its fingerprints, which name the code and so change with it."""
    results = json.loads((run_directory / "results.json").read_text())["results"]
    named = ("value", "low", "high", "n", "chance", "unit")
    return {result["name"]: {key: result.get(key) for key in named} for result in results}


def record(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Runs the recipe in an empty directory and collects its numbers, each by name."""
    with tempfile.TemporaryDirectory() as temporary:
        directory, exported = Path(temporary, "run"), Path(temporary, "exported")
        run("run", recipe, "--out", directory, "train.log_every=1", *overrides)
        run("export", directory, exported)
        shards = sorted(file for kind in ("*.bin", "*.idx") for file in directory.rglob(kind))
        return {
            "shards": {file.relative_to(directory).as_posix(): sha256(file) for file in shards},
            "losses": losses(directory),
            "scores": scores(directory),
            "exported": {file.name: sha256(file) for file in sorted(exported.iterdir()) if file.is_file()},
        }


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Prints what is equal and what is not; returns the number of kinds that differ."""
    different = 0
    for kind in ("shards", "losses", "scores", "exported"):
        old, new = before[kind], after[kind]
        unequal = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        different += bool(unequal) or not old
        said = f"{len(unequal)} DIFFER: {', '.join(unequal[:5])}" if unequal else "all equal"
        print(f"{kind:10} {len(old):5} before, {len(new):5} after: {said if old else 'NOTHING was recorded'}")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--recipe", default="configs/demo.yaml")
    recording.add_argument("overrides", nargs="*", metavar="a.b=value")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return int(compare(*(json.loads(file.read_text()) for file in (arguments.before, arguments.after))) > 0)
    numbers = record(arguments.recipe, arguments.overrides)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    about = {"commit": commit, "python": platform.python_version(), "machine": platform.machine()}
    arguments.file.write_text(json.dumps({"about": about, **numbers}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
