"""Who may reach the server, and what it takes in: hosts, origins, keys, bodies, ports."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import uvicorn

from launch.chat.batcher import Batcher
from launch.chat.serve import KEY_VARIABLE, listening, read_key, url
from launch.chat.served_model import ServedModel
from launch.chat.server import Api, Limits, make_app
from launch.cli import main
from tests.parts.chat_model import ScriptedPlayer, live, tiny_served, write_tiny_run

JSON = {"Content-Type": "application/json"}
ASK = json.dumps({"messages": [{"role": "user", "content": "Hi?"}]})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live(tiny_served(), player=ScriptedPlayer(lambda _: "yes"), hosts=["my.example"]) as (running, _):
        yield running


def send(
    address: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a POST, or of a GET without a body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.status, json.loads(content) if is_json else {"text": content.decode()}
    finally:
        connection.close()


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "LOCALHOST", "127.0.0.1:9", "[::1]:8000", "10.1.2.3", "my.example"]
)
def test_its_own_names_and_addresses_are_hosts(address: str, host: str) -> None:
    assert send(address, "/health", headers={"Host": host}) == (200, {"status": "ok", "answers": 0, "waiting": 0})


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@localhost:b"]
)
def test_a_foreign_name_that_was_pointed_here_is_refused(address: str, host: str) -> None:
    """DNS rebinding: the browser thinks that it talks to the site, and would let its page read the answers."""
    for path in ("/", "/health", "/v1/models"):
        status, body = send(address, path, headers={"Host": host})
        assert status == 403 and body["error"]["code"] == "host_not_allowed", body


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[", "127.0.0.1", ""])
def test_pages_of_other_sites_are_refused(address: str, origin: str) -> None:
    status, body = send(address, "/v1/chat/completions", ASK, {**JSON, "Origin": origin})
    assert status == 403 and body["error"]["code"] == "origin_not_allowed"
    status, _ = send(address, "/v1/chat/completions", ASK, {**JSON, "Origin": address.rstrip("/")})
    assert status == 200


def test_what_a_foreign_page_could_send_unasked_is_no_request(address: str) -> None:
    status, body = send(address, "/v1/chat/completions", ASK, {"Content-Type": "text/plain"})
    assert status == 415 and "Content-Type: application/json" in body["error"]["message"]


def test_unknown_paths_and_methods_are_errors_in_the_same_shape(address: str) -> None:
    status, body = send(address, "/v1/embeddings", "{}", JSON)
    assert status == 404 and "This server has" in body["error"]["message"]
    status, body = send(address, "/v1/chat/completions")
    assert status == 405 and body["error"]["type"] == "invalid_request_error"
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("DELETE", "/v1/chat/completions")
    assert connection.getresponse().headers["allow"] == "POST"
    connection.close()


def test_a_key_opens_everything_but_page_and_health() -> None:
    with live(tiny_served(), player=ScriptedPlayer(lambda _: "yes"), key="s3cret") as (address, _):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer é"},
        ):
            status, body = send(address, "/v1/models", headers=headers)
            assert status == 401 and body["error"]["code"] == "invalid_api_key"
            assert send(address, "/v1/chat/completions", ASK, {**JSON, **headers})[0] == 401
        assert send(address, "/v1/chat/completions", ASK, {**JSON, "Authorization": "Bearer s3cret"})[0] == 200
        assert send(address, "/")[0] == send(address, "/health")[0] == 200


# ------------------------------------------------------------------------------------------------------------- bodies
def test_a_client_that_leaves_in_mid_body_is_no_fault_of_the_server() -> None:
    told: list[Any] = []

    async def leaves() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def listens(message: Any) -> None:
        told.append(message)

    app = make_app(Api(tiny_served(), cast(Batcher, None)))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    asyncio.run(cast(Any, app)(scope, leaves, listens))  # what it raises, uvicorn would log with a traceback
    assert told[0]["status"] == 400


def test_100_megabytes_are_refused_without_being_read_into_memory(address: str) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    status, body = send(address, "/v1/chat/completions", _Zeros(100_000_000), {**JSON, "Content-Length": "100000000"})
    assert status == 413 and body["error"]["code"] == "body_too_long"
    assert "1,048,576 bytes" in body["error"]["message"]
    assert memory("VmHWM") - before < 20_000
    assert send(address, "/health")[0] == 200


def memory(name: str) -> int:
    """Kilobytes of this process."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


class _Zeros:
    """A file of zeros that exists nowhere."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int) -> bytes:
        given = min(size, self._left)
        self._left -= given
        return bytes(given)


def test_a_body_that_does_not_say_its_length_is_counted_as_it_comes(address: str) -> None:
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
        for _ in range(17):  # one more than the limit has room for, and no end
            raw.sendall(chunk)
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_limits_of_answers(address: str) -> None:
    limits = Limits(body=1000, tokens=5, rows=2, waiting=0)  # an idle server takes a request at once
    with live(tiny_served(), player=ScriptedPlayer(lambda _: "x" * 50), limits=limits) as (small, _):
        status, body = send(small, "/v1/chat/completions", ASK, JSON)
        assert status == 200 and body["choices"][0]["message"]["content"] == "xxxxx"
        assert body["choices"][0]["finish_reason"] == "length"
        long = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]})
        assert send(small, "/v1/chat/completions", long, JSON)[0] == 413
        assert send(small, "/v1/completions", json.dumps({"prompt": ["a", "b", "c"]}), JSON)[0] == 400
    many = json.dumps({"messages": [{"role": "user", "content": "x"}] * 1001})
    status, body = send(address, "/v1/chat/completions", many, JSON)
    assert status == 400 and "at most 1000" in body["error"]["message"]


# ------------------------------------------------------------------------------------------------------------ commands
def exit_code(*arguments: str) -> int:
    """The code of a command line, whether it is returned, or argparse or a signal's handler exits with it."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(str(end.code))


def test_a_port_in_use_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told before the run is even looked at."""
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {port} of 127.0.0.1 is in use; choose another one, such as --port {port + 1}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "no.such.name.invalid"], "give an address of this machine"),
        (["--host", "192.0.2.1"], "is no address of this machine"),
        (["--port", "70000"], "expected a port from 0 to 65535"),
        (["--rows", "0"], "expected a whole number of 1 or more"),
        (["--port", "0", "--key-file", "nowhere"], "nowhere: No such file"),
        (["--port", "0"], "is not a run directory"),
    ],
    ids=" ".join,
)
def test_mistakes_of_the_command_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("serve", str(tmp_path), *arguments) == 2
    assert words in capsys.readouterr().err


def test_the_key_of_a_file_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(" abc-123\n")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None and read_key(file) == "abc-123"
    monkeypatch.setenv(KEY_VARIABLE, "from-environment")
    assert read_key(None) == "from-environment" and read_key(file) == "abc-123"
    for wrong in ("", "\n", "two words", "schlüssel", "a\nb"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="expected one key of visible ASCII characters"):
            read_key(file)


def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "launch.chat.server")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["serve", "runs/none"]) == 2
    assert "pip install 'gpt-replica[chat]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_serves_a_run_until_a_signal_ends_it(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers under way end with an error at once; nothing of uvicorn's is printed."""
    run = write_tiny_run(tmp_path / "run", {"kind": "sft"})
    started, answering = threading.Event(), threading.Event()
    begin = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: Any = None) -> None:
        await begin(self, sockets)
        started.set()

    def step() -> None:
        if answering.is_set():
            time.sleep(0.01)  # an answer that takes its time

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr(ServedModel, "player", lambda *_: ScriptedPlayer(lambda _: "x" * 120, step))
    monkeypatch.setenv(KEY_VARIABLE, "k")
    seen: dict[str, Any] = {}

    def client() -> None:
        assert started.wait(120)
        seen["said"] = capsys.readouterr().err
        address = re.findall(r"http://\S+/(?= \(page\))", seen["said"])[0]
        headers = {**JSON, "Authorization": "Bearer k"}
        seen["whole"] = send(address, "/v1/chat/completions", ASK, headers)
        answering.set()
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request("POST", "/v1/chat/completions", ASK[:-1] + ', "stream": true}', headers)
        stream = connection.getresponse()
        seen["begun"] = stream.readline()
        os.kill(os.getpid(), number)
        seen["rest"] = stream.read().decode()
        connection.close()

    thread = threading.Thread(target=client)
    thread.start()
    assert exit_code("serve", str(run), "--port", "0") == code
    thread.join()
    assert "http://127.0.0.1:" in seen["said"] and "warning" not in seen["said"]
    status, body = seen["whole"]
    assert (status, body["model"]) == (200, "tiny.sft") and len(body["system_fingerprint"]) > 10
    assert seen["begun"].startswith(b"data: ") and "The server is shutting down." in seen["rest"]
    assert capsys.readouterr().err in ("", "\nstopped\n")


def test_a_server_that_others_reach_without_a_key_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    run = write_tiny_run(tmp_path / "run", None)
    assert main(["serve", str(run), "--port", "0", "--host", "0.0.0.0"]) == 0
    said = capsys.readouterr().err
    assert "warning: 0.0.0.0 is reached by other machines, and no key is asked for" in said
    assert "note: tiny is a base model: it continues text" in said


def test_the_addresses_that_are_printed() -> None:
    assert url("127.0.0.1", 8000) == "http://127.0.0.1:8000/" and url("::1", 1) == "http://[::1]:1/"
    assert url("0.0.0.0", 8000) == "http://127.0.0.1:8000/" and url("::", 1) == "http://[::1]:1/"
