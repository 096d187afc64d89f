"""`launch/ray.sh submit`: the command reaches the cluster as it was written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Stands in for `ray job submit`, which passes its arguments on to a shell, quoted.
FAKE_RAY = """#!/usr/bin/env bash
[ "$1 $2" = "job submit" ] || exit 9
while [ "$1" != -- ]; do shift; done
shift
exec bash -c "$(printf '%q ' "$@")"
"""


def test_a_job_is_the_command_with_the_clusters_address(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "ray.sh", tmp_path / "launch")
    programs = {
        "ray": FAKE_RAY,
        "python": "#!/bin/sh\nexit 0\n",  # says that the dashboard is installed
        "replica": "#!/usr/bin/env bash\npwd; printf '[%s]\\n' \"$@\"\n",
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    place = tmp_path / "a place"
    place.mkdir()
    command = ["replica", "data", "my recipe.yaml", "a=[b, 'c']"]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", str(tmp_path / "launch" / "ray.sh"), "submit", "--", *command],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [str(place), "[data]", "[my recipe.yaml]", "[a=[b, 'c']]", "[--ray-address]", "[auto]"]
    assert done.stdout.splitlines() == expected
