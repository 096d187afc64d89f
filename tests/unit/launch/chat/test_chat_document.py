"""docs/chat.md: each command and program that it shows is run, against a server of this test."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.chat.served_model import ServedModel
from launch.cli import main, parse
from tests.parts.chat_model import ScriptedPlayer, live, tiny_served, write_tiny_run

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "chat.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SHELL = [
    line for kind, text in BLOCKS if kind == "sh" for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()
]
ADDRESS = "http://127.0.0.1:8000/"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live(tiny_served(context_length=4096), player=ScriptedPlayer(lambda _: "It is 42.")) as (running, _):
        yield running


def test_the_page_has_what_the_tests_run() -> None:
    words = [shlex.split(line, comments=True) for line in SHELL]
    assert {word[0] for word in words} == {"replica", "echo", "curl"} and len(words) == 8
    assert [kind for kind, _ in BLOCKS if kind != "sh"] == ["python"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("curl")])
def test_curl(line: str, address: str) -> None:
    words = [word.replace(ADDRESS, address) for word in shlex.split(line)]
    done = subprocess.run([*words, "-sS", "--fail-with-body"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if "stream" in line:
        assert "It is 42." in "".join(
            json.loads(data)["choices"][0]["text"] for data in re.findall(r"data: (\{.*)", done.stdout)
        )
        assert done.stdout.endswith("data: [DONE]\n\n")
    elif "messages" in line:
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "It is 42."
    else:
        assert json.loads(done.stdout)["status"] == "ok"


def test_the_program(address: str) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.replace(ADDRESS, address), "docs/chat.md", "exec"), {})
    assert printed.getvalue().startswith("['It is 42.', 'It is 42.'] CompletionUsage(")
    assert printed.getvalue().endswith("It is 42.")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`serve` is only parsed here; test_serve.py runs it."""
    (tmp_path / "runs").mkdir()
    write_tiny_run(tmp_path / "runs" / "assistant" / "stages" / "sft", {"kind": "sft"})
    monkeypatch.chdir(tmp_path)
    player = ScriptedPlayer(lambda text: f"{text} 42")
    monkeypatch.setattr(ServedModel, "player", lambda _: player)
    for line in SHELL:
        words = shlex.split(line, comments=True)
        if words[:2] == ["replica", "serve"]:
            parse(words[1:])
        elif "|" in words:
            monkeypatch.setattr(sys, "stdin", io.StringIO(words[1] + "\n"))
            assert main(words[words.index("replica") + 1 :]) == 0
            assert capsys.readouterr().out == f"{words[1]} 42\n"
        elif words[:2] == ["replica", "chat"]:
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hi?"))
            assert main(words[1:]) == 0
            asked = words[words.index("--once") + 1] if "--once" in words else "Hi?"
            assert capsys.readouterr().out == f"{asked} 42\n"
