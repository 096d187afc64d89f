"""The templates for CI in a clean checkout: a green run on main, a pull request that fails a gate, its comment.

All steps run as they stand in the files, in an empty environment. One run is trained here; the jobs find it finished.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from data_prep.stages import pipeline
from launch.cli import main
from tests.end_to_end.conftest import TINY_RECIPE, write_corpus
from tests.parts.ci_runner import Api, Runner, serving

ROOT = Path(__file__).resolve().parents[2]
EVALUATE = ROOT / ".github" / "workflows" / "evaluate.yml"
COMMENT = ROOT / ".github" / "workflows" / "evaluate-comment.yml"
GITLAB = ROOT / ".gitlab" / "evaluate.yml"
BIN = Path(sys.executable).parent
HEAD = "a" * 40
MAIN, PULL_REQUEST = 11, 12


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A stranger's repository with a recipe, and a runner on which its run was trained before."""
    root = tmp_path_factory.mktemp("ci")
    repository = root / "repository"
    repository.mkdir()
    write_corpus(repository / "corpus.jsonl", documents=100, seed=1)
    write_corpus(repository / "heldout.jsonl", documents=4, seed=2)
    gates = '< 8.5", "perplexity/heldout/bits_per_byte not worse than baseline"]'
    (repository / "tiny.yaml").write_text(TINY_RECIPE.replace('< 8.5"]', gates), encoding="utf-8")
    commit(repository, "a recipe")
    with serving() as api:
        runner = Runner(root, repository, api.address)
        runner.check_out()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "prepare", pipeline.prepare_inline)
            command = ["run", str(runner.workspace / "tiny.yaml"), "--out", str(runner.temp / "run")]
            assert main(command) == 1, "a gate has no baseline yet"
        runner.api_server = api  # type: ignore[attr-defined]
        yield runner


@pytest.fixture
def api(runner: Runner) -> Api:
    server: Api = runner.api_server  # type: ignore[attr-defined]
    server.answers.clear()
    server.requests.clear()
    return server


def commit(repository: Path, message: str) -> None:
    git = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    if not (repository / ".git").exists():
        subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", message], check=True)


def of_runs(*runs: tuple[int, str]) -> dict[str, Any]:
    return {"workflow_runs": [{"id": number, "event": event} for number, event in runs]}


def evaluate(runner: Runner, number: int, **inputs: str) -> Any:
    for left in ("baseline", "results", "junit.xml", "summary.md"):  # a runner's temporary folder begins empty
        path = runner.temp / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    runner.event = {"repository": {"default_branch": "main"}}
    runner.event_name = "pull_request" if number == PULL_REQUEST else "push"
    install = f'echo {shlex.quote(str(BIN))} >> "$GITHUB_PATH"'
    return runner.github(EVALUATE, number, **{"recipe": "tiny.yaml", "install": install, **inputs})


def kept(runner: Runner, number: int, name: str = "replica-results") -> Path:
    return runner.root / "artifacts" / str(number) / name


@pytest.mark.slow
def test_github_green_then_a_gate_that_fails_then_its_comment(runner: Runner, api: Api) -> None:
    place = "/repos/owner/name/actions"
    api.answers[f"{place}/workflows/quality.yml/runs"] = of_runs()
    job = evaluate(runner, MAIN)
    assert job.code == 0, job.output
    assert "no green run of main has kept its results" in job.output and "[4/4] report" in job.output
    assert job.summary.startswith("## tiny") and "Against" not in job.summary
    assert "gate not decided: perplexity/heldout/bits_per_byte not worse than baseline" in job.output
    assert (kept(runner, MAIN) / "results.json").is_file() and list(kept(runner, MAIN).rglob("recipe.yaml")) == []

    # A pull request of a fork may have a branch `main` and a run that ended well; older results may be gone.
    api.answers[f"{place}/workflows/quality.yml/runs"] = of_runs((8, "pull_request"), (9, "push"), (MAIN, "push"))
    api.answers[f"{place}/runs/9/artifacts"] = {"artifacts": [{"expired": True}]}
    api.answers[f"{place}/runs/{MAIN}/artifacts"] = {"artifacts": [{"expired": False}]}
    recipe = runner.repository / "tiny.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("< 8.5", "< 0.1"), encoding="utf-8")
    commit(runner.repository, "a gate that cannot pass")
    job = evaluate(runner, PULL_REQUEST)
    assert job.code == 1, job.output
    assert f"baseline: run {MAIN}" in job.output and "gate FAILED" in job.output
    assert "❌" in job.summary and "Against `baseline`" in job.summary
    report = ElementTree.parse(kept(runner, PULL_REQUEST, "replica-summary") / "junit.xml")
    (failure,) = report.iter("failure")
    assert "perplexity/heldout/bits_per_byte < 0.1" in failure.attrib["message"]
    assert "gate passed: perplexity/heldout/bits_per_byte not worse than baseline" in job.output
    assert api.tokens == {"Bearer T0KEN"} and not api.requests, "the evaluation reads alone"

    # The comment: written, then updated; that of somebody else is left alone.
    summary = kept(runner, PULL_REQUEST, "replica-summary") / "summary.md"
    summary.write_text(summary.read_text(encoding="utf-8") + "\n@everybody " + "x" * 100_000, encoding="utf-8")
    api.answers["/repos/owner/name/pulls"] = [
        {"number": 5, "head": {"sha": HEAD}},
        {"number": 6, "head": {"sha": "b" * 40}},
    ]
    ours = "<!-- replica evaluation: replica -->"
    theirs = {"id": 1, "user": {"login": "somebody"}, "body": ours}
    api.answers["/repos/owner/name/issues/5/comments"] = [theirs]
    assert comment(runner).code == 0
    ((method, path, body),) = api.requests
    assert (method, path) == ("POST", "/repos/owner/name/issues/5/comments")
    assert body["body"].startswith(f"{ours}\n## tiny") and "❌" in body["body"] and len(body["body"]) < 65_536
    assert "@everybody" not in body["body"] and "https://example.org/run" in body["body"]
    assert any("head=me:topic/1" in query for query in api.queries)
    mine = {"id": 2, "user": {"login": "github-actions[bot]"}, "body": f"{ours}\nearlier"}
    api.answers["/repos/owner/name/issues/5/comments"] = [theirs, mine]
    assert comment(runner).code == 0
    assert [request[:2] for request in api.requests[1:]] == [("PATCH", "/repos/owner/name/issues/comments/2")]


def comment(runner: Runner, number: int = PULL_REQUEST) -> Any:
    shutil.rmtree(runner.temp / "evaluated", ignore_errors=True)
    run = {"id": number, "head_sha": HEAD, "head_branch": "topic/1", "html_url": "https://example.org/run"}
    runner.event = {"workflow_run": {**run, "head_repository": {"owner": {"login": "me"}}}}
    return runner.github(COMMENT, 99)


@pytest.mark.slow
def test_github_a_mistake_is_said_and_leaves_no_results(runner: Runner, api: Api) -> None:
    """Arguments come one a line; those with spaces stay whole. The baseline may be a directory."""
    job = evaluate(runner, 13, baseline="nowhere", arguments="\n  train.stepz=1\n  report.title=two  words\n")
    assert job.code == 2 and "train.stepz" in job.output and "title" not in job.output and job.summary == ""
    assert not kept(runner, 13).exists() and not api.queries.count("actions/runs/13")
    api.answers["/repos/owner/name/pulls"] = [{"number": 5, "head": {"sha": HEAD}}]
    api.answers["/repos/owner/name/issues/5/comments"] = []
    assert comment(runner, 13).code == 0
    assert "ended before there was a report" in api.requests[0][2]["body"]


@pytest.mark.slow
def test_gitlab_compares_fails_and_comments(runner: Runner, api: Api) -> None:
    """Here with a run on the runner's disk, whose recipe the test before gave a gate that fails."""
    run = runner.temp / "run"
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("< 8.5", "< 0.1"), encoding="utf-8")
    runner.check_out()
    earlier = runner.root / "evaluated"
    shutil.copytree(kept(runner, MAIN), earlier / "results")
    api.answers["/projects/7/jobs/artifacts/main/download"] = earlier
    variables = {"REPLICA_RUN": str(run), "REPLICA_INSTALL": "true"}
    job = runner.gitlab(GITLAB, "evaluate", added=str(BIN), **variables)
    assert job.code == 1, job.output
    evaluated = runner.workspace / "evaluated"
    assert "Against `results`" in (evaluated / "summary.md").read_text(encoding="utf-8")
    assert len(list(ElementTree.parse(evaluated / "junit.xml").iter("failure"))) == 1
    assert (evaluated / "results" / "results.json").is_file() and "T0KEN" in api.tokens

    with (evaluated / "summary.md").open("a", encoding="utf-8") as stream:
        stream.write("\n/merge\n  /close\n@everybody\n")
    notes = "/projects/7/merge_requests/3/notes"
    api.answers |= {"/user": {"id": 4}, notes: []}
    token = {"REPLICA_TOKEN": "pr1vate", "CI_MERGE_REQUEST_IID": "3"}
    assert runner.gitlab(GITLAB, "evaluate-comment", **token).code == 0
    body = api.requests[0][2]["body"]
    assert api.requests[0][:2] == ("POST", notes) and "❌" in body
    assert "@everybody" not in body and not [line for line in body.splitlines() if line.strip().startswith("/")]
    others = {"id": 1, "author": {"id": 5}, "body": body}
    api.answers[notes] = [others, {**others, "id": 2, "author": {"id": 4}}]
    assert runner.gitlab(GITLAB, "evaluate-comment", **token).code == 0
    assert api.requests[1][:2] == ("PUT", f"{notes}/2")


def test_no_step_of_the_templates_puts_an_expression_into_a_program() -> None:
    """A branch's name is a stranger's text: it comes to programs as a variable, never as their code."""
    for file in (EVALUATE, COMMENT):
        for line in file.read_text(encoding="utf-8").split("run: |")[1:]:
            program = line.split("\n      - ")[0]
            assert "${{" not in program
