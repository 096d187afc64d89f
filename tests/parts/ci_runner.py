"""Runs the jobs of a GitHub workflow or a GitLab template here: their shell and Python steps, in an empty environment.

Actions are replaced by a few lines each, and the API by a server on this machine that knows what the templates ask.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class _Nothing(str):
    """What GitHub's expressions give for a name that is not there."""

    __slots__ = ()

    def __getattr__(self, name: str) -> _Nothing:
        return self


class _Names(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        found = self.get(name, _Nothing())
        return _Names(found) if isinstance(found, dict) else found


def _value(expression: str, contexts: dict[str, Any], failed: bool) -> Any:
    """Evaluates an expression of a workflow: names, strings, comparisons, ||, &&, !, format, status functions."""
    text = re.sub(r"!(?!=)", " not ", expression.replace("&&", " and ").replace("||", " or "))
    functions = {
        "format": lambda form, *values: form.format(*values),
        "success": lambda: not failed,
        "cancelled": lambda: False,
    }
    return eval(text.strip(), {"__builtins__": {}}, {**{k: _Names(v) for k, v in contexts.items()}, **functions})


def _filled(text: Any, contexts: dict[str, Any]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(_value(found[1], contexts, False)), str(text))


@dataclass
class Job:
    """What became of a job: the exit code of the step that failed (0: none), all output, the step summary."""

    code: int = 0
    output: str = ""
    summary: str = ""


@dataclass
class Runner:
    """A runner with one workspace. `artifacts/ID/NAME` has what run ID uploaded."""

    root: Path
    repository: Path  # what `actions/checkout` clones
    api: str
    event: dict[str, Any] = field(default_factory=dict)
    event_name: str = "push"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    def environment(self, **more: str) -> dict[str, str]:
        """Nothing of this process's own environment; a `python` without packages, as runners and images have it."""
        (self.root / "home").mkdir(exist_ok=True)
        python = self.root / "python"
        if not python.exists():
            python.mkdir()
            (python / "python").symlink_to(Path(sys.executable).resolve())
        paths = f"{python}:/usr/bin:/bin"
        return {"PATH": paths, "HOME": str(self.root / "home"), "CI": "true", "LANG": "C.UTF-8", **more}

    def github(self, file: Path, number: int, **inputs: str) -> Job:
        """Runs the only job of a reusable workflow as run `number`."""
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        (steps,) = (job["steps"] for job in workflow["jobs"].values())
        declared = workflow[True]["workflow_call"]["inputs"]  # YAML 1.1 reads the key `on` as true
        assert set(inputs) <= set(declared)
        given = {name: inputs.get(name, entry.get("default", "")) for name, entry in declared.items()}
        commands = self.root / f"commands-{number}"
        shutil.rmtree(commands, ignore_errors=True)
        commands.mkdir()
        self.temp.mkdir(exist_ok=True)
        files = {name: commands / name for name in ("GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")}
        (commands / "event.json").write_text(json.dumps(self.event))
        environment = self.environment(
            **{name: str(path) for name, path in files.items()},
            GITHUB_EVENT_PATH=str(commands / "event.json"),
            RUNNER_TEMP=str(self.temp),
            GITHUB_API_URL=self.api,
            GITHUB_REPOSITORY="owner/name",
            GITHUB_WORKFLOW_REF="owner/name/.github/workflows/quality.yml@refs/heads/main",
        )
        contexts: dict[str, Any] = {
            "inputs": given,
            "github": {"token": "T0KEN", "event": self.event, "event_name": self.event_name},
            "runner": {"temp": str(self.temp)},
            "steps": {},
        }
        job = Job()
        for number_of_step, step in enumerate(steps):
            wanted = str(step.get("if", "success()")).removeprefix("${{").removesuffix("}}")
            always = "cancelled()" in wanted
            if not _value(wanted, contexts, job.code != 0) or (job.code and not always):
                continue
            for path in files.values():
                path.touch()
            files["GITHUB_OUTPUT"].write_text("")
            if "uses" in step:
                code, said = self._action(step, contexts, number), ""
            else:
                own = {key: _filled(value, contexts) for key, value in step.get("env", {}).items()}
                script = commands / f"step-{number_of_step}"
                script.write_text(_filled(step["run"], contexts), encoding="utf-8")
                shell = (
                    ["python"]
                    if step.get("shell") == "python"
                    else ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
                )
                code, said = self._shell([*shell, str(script)], {**environment, **own})
            added = files["GITHUB_PATH"].read_text().split()
            environment["PATH"] = ":".join([*added, environment["PATH"]]) if added else environment["PATH"]
            files["GITHUB_PATH"].write_text("")
            outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
            contexts["steps"][step.get("id", "")] = {"outputs": outputs}
            job.output += said
            job.code = job.code or (0 if step.get("continue-on-error") else code)
        job.summary = files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
        return job

    def _action(self, step: dict[str, Any], contexts: dict[str, Any], number: int) -> int:
        options = {key: _filled(value, contexts) for key, value in step.get("with", {}).items()}
        match step["uses"].partition("@")[0]:
            case "actions/checkout":
                self.check_out()
            case "actions/setup-python":
                pass  # there is one
            case "actions/download-artifact":
                found = self.root / "artifacts" / options["run-id"] / options["name"]
                if not found.is_dir():
                    return 1
                shutil.copytree(found, options["path"], dirs_exist_ok=True)
            case "actions/upload-artifact":
                self._upload([Path(line) for line in options["path"].splitlines()], number, options["name"])
            case other:
                raise AssertionError(f"say here what {other} does")
        return 0

    def check_out(self) -> None:
        shutil.rmtree(self.workspace, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", str(self.repository), str(self.workspace)], check=True)

    def _upload(self, paths: list[Path], number: int, name: str) -> None:
        """Directories and files, below what their paths have in common."""
        if not any(path.exists() for path in paths):
            return  # with a warning
        above = paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))
        target = self.root / "artifacts" / str(number) / name
        for path in paths:
            for file in [path] if path.is_file() else path.rglob("*"):
                if file.is_file():
                    (target / file.relative_to(above)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target / file.relative_to(above))

    def _shell(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None
        done = subprocess.run(
            [program, *command[1:]], cwd=self.workspace, env=environment, capture_output=True, text=True, timeout=200
        )
        return done.returncode, done.stdout + done.stderr

    def gitlab(self, file: Path, name: str, added: str = "", **variables: str) -> Job:
        """Runs a job of a GitLab template in the workspace, where artifacts stay; `added` comes first on the PATH."""
        template = yaml.safe_load(file.read_text(encoding="utf-8"))
        script = self.root / "script.sh"
        script.write_text("\n".join(template[name]["script"]), encoding="utf-8")
        given = {**template["variables"], "REPLICA_BRANCH": "main", "CI_JOB_NAME": name, "CI_API_V4_URL": self.api}
        given |= {"CI_PROJECT_ID": "7", "CI_JOB_TOKEN": "T0KEN", "CI_COMMIT_SHA": "c" * 40, **variables}
        environment = self.environment(**given)
        environment["PATH"] = f"{added}:{environment['PATH']}" if added else environment["PATH"]
        self.workspace.mkdir(exist_ok=True)
        code, said = self._shell(["bash", "-eo", "pipefail", str(script)], environment)
        return Job(code, said)


class Api(ThreadingHTTPServer):
    """What the templates ask of GitHub and GitLab. `requests` has (method, path, body) of all that writes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.answers: dict[str, Any] = {}  # path (without the query) -> JSON, or a directory to give as a zip
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.queries: list[str] = []
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.queries.append(urllib.parse.unquote(self.path))
        self.server.tokens |= {value for key, value in self.headers.items() if "token" in key.lower()}
        self.server.tokens |= {self.headers["Authorization"]} if "Authorization" in self.headers else set()
        answer = self.server.answers.get(path)
        if isinstance(answer, list) and "page=" in query:
            answer = answer if "page=1" in re.split(r"[&?]", query) else []
        self._send(answer)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.command, self.path.rstrip("?"), body))
        self._send({})

    do_PATCH = do_PUT = do_POST  # noqa: N815 - names of http.server

    def _send(self, answer: Any) -> None:
        data = _zipped(answer) if isinstance(answer, Path) else json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *values: Any) -> None:
        """Says nothing."""


def _zipped(directory: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in directory.rglob("*"):
            archive.write(file, file.relative_to(directory.parent))
    return content.getvalue()


@contextmanager
def serving() -> Iterator[Api]:
    """Serves an API until the body ends."""
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
