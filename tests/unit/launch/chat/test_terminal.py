"""Conversations in a terminal, and single answers without one."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.chat.messages import Conversation, Message
from data_prep.chat.shapes import to_unit
from launch.chat import terminal
from launch.chat.served_model import Draws, ServedModel
from launch.chat.terminal import Talk, converse
from launch.cli import main
from tests.parts.chat_model import ScriptedPlayer, chat_vocab, tiny_served, write_tiny_run


def talk_of(player: ScriptedPlayer, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Talk:
    monkeypatch.setattr(ServedModel, "player", lambda _: player)
    served = tiny_served(**changes)
    return Talk(served, Draws(max_new_tokens=100), served.system)


def lines(*typed: str) -> Any:
    """What reads a line: these one after the other, then the end of input."""
    left = iter(typed)

    def read(_prompt: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    return read


def test_a_conversation_has_a_history_and_reads_the_ids_of_the_template(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    player = ScriptedPlayer(lambda text: "Four." if text.endswith("2?") else "Yes.")
    talk = talk_of(player, monkeypatch)
    converse(talk, lines("2+2?", "", "^C", "Sure?", "/quit", "never read"))
    assert capsys.readouterr().out == "Four.\n\n/quit or Ctrl-D leaves\nYes.\n"
    template = talk.served.template
    assert template is not None
    first = [Message.of("user", "2+2?")]
    second = [*first, Message.of("assistant", "Four."), Message.of("user", "Sure?")]
    assert player.prompts == [template.prompt(first), template.prompt(second)]
    assert all(prompt.count(chat_vocab().eod_id) == 1 for prompt in player.prompts)
    assert talk.messages == [*second, Message.of("assistant", "Yes.")]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    player = ScriptedPlayer(lambda text: text[-3:].upper())
    talk = talk_of(player, monkeypatch, system="Be kind.", context_length=4096)
    file = tmp_path / "talk.jsonl"
    converse(
        talk,
        lines(
            "/undo", "one", "two", "/undo", "thr\\", "ee", "/system", f"/save {file}", f"/save {file}", "/save",
            "/system Be brief.", "/save", "four", "/clear", "/fly", "/help", "/quit",
        ),
    )  # fmt: skip
    said = capsys.readouterr()
    assert said.out.startswith("ONE\nTWO\ntaken back: two\n\nEE\nBe kind.\n")
    assert "error: there is nothing to take back" in said.err
    assert f"error: {file} exists; choose another file" in said.err
    assert "error: give a file, as in /save talk.jsonl" in said.err
    assert "error: there is no command /fly" in said.err
    assert all(name in said.out for name in ("/clear ", "/undo ", "/system TEXT", "/save FILE", "/quit"))
    assert [chat_vocab().decode(prompt) for prompt in player.prompts] == [
        "Be kind.one", "Be kind.oneONEtwo", "Be kind.oneONEthr\nee", "Be brief.four",
    ]  # fmt: skip
    record = json.loads(file.read_text(encoding="utf-8"))
    unit = to_unit(record, "openai", "conversation", None)
    assert isinstance(unit, Conversation)
    assert [message.text for message in unit.messages] == ["Be kind.", "one", "ONE", "thr\nee", "\nEE"]


def test_the_oldest_turns_leave_whole_and_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    player = ScriptedPlayer(lambda _: "a" * 10)
    talk = talk_of(player, monkeypatch)  # a context of 128, of which a quarter is for the answer
    told: list[str] = []
    talk.tell = told.append
    for question in "vwxyz":
        assert "".join(talk.ask(question * 20)) == "a" * 10
    assert told == ["the oldest 2 messages no longer fit the context, and were left out"] * 2
    assert [message.text[0] for message in talk.messages] == ["x", "a", "y", "a", "z", "a"]
    before = list(talk.messages)
    with pytest.raises(ValueError, match="maximum context length is 128 tokens"):
        list(talk.ask("q" * 130))
    assert talk.messages == before, "a question that does not fit changes nothing"


def test_ctrl_c_stops_the_answer_and_keeps_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = iter(range(1000))

    def interrupt() -> None:
        if next(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    player = ScriptedPlayer(lambda text: "b" * 50 if "long" in text else "short", interrupt)
    talk = talk_of(player, monkeypatch)
    before = signal.getsignal(signal.SIGINT)
    converse(talk, lines("long", "/undo", "go on"))
    said = capsys.readouterr()
    assert said.out.startswith("bbbbb\ntaken back: long\nshort\n") and "note: stopped" in said.err
    assert not player.rows and signal.getsignal(signal.SIGINT) is before


def test_an_answer_that_never_ends_is_cut_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = talk_of(ScriptedPlayer(lambda _: "c" * 500), monkeypatch)
    told: list[str] = []
    talk.tell = told.append
    assert len("".join(talk.ask("go"))) == 100
    assert told == ["the answer was cut after 100 tokens, its longest length"]
    talk.draws = Draws(max_new_tokens=1000)
    talk.messages.clear()
    assert len("".join(talk.ask("go"))) == 128 - 6, "what the context leaves after bos, markers and two bytes"


def test_the_models_own_answer_is_what_it_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tool calls are no text for people, but stay in the history: the model reads the ids that it wrote."""
    ids = chat_vocab().vocabulary

    class WithTool(ScriptedPlayer):
        def add(self, request: Any) -> list[int]:
            (row,) = super().add(request)
            call = [ids["<|call|>"], *chat_vocab().encode("1+1"), ids["<|/call|>"]]
            self.rows[row] = [*call, ids["<|result|>"], *chat_vocab().encode("2"), ids["<|/result|>"], *self.rows[row]]
            return [row]

    player = WithTool(lambda _: "2.")
    talk = talk_of(player, monkeypatch)
    assert "".join(talk.ask("?")) == "2."
    first = player.prompts[0]
    list(talk.ask("!"))
    call = [ids["<|call|>"], *chat_vocab().encode("1+1"), ids["<|/call|>"], ids["<|result|>"]]
    assert player.prompts[1][: len(first) + len(call)] == [*first, *call]


def test_a_tool_answers_only_where_the_recipe_names_it() -> None:
    ids = chat_vocab().vocabulary
    call = [ids["<|call|>"], *chat_vocab().encode("6*7"), ids["<|/call|>"]]
    forced = tiny_served(tools=["calculator"]).request([1], Draws()).forced
    assert forced(call) == [ids["<|result|>"], *chat_vocab().encode("42"), ids["<|/result|>"]]
    assert tiny_served().request([1], Draws()).forced is None
    assert tiny_served(base=True, tools=["calculator"]).request([1], Draws()).forced is None


def test_control_characters_of_the_model_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from configs.safety.terminal import guarded_output

    talk = talk_of(ScriptedPlayer(lambda _: "\x1b]52;c;aGk=\x07"), monkeypatch)
    with guarded_output():
        converse(talk, lines("hi"))
    assert "\x1b" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- command
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("chat") / "run", {"kind": "sft"})


def test_one_printed_answer_from_the_command_line_or_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["chat", str(run), "--max-tokens", "8", "--seed", "3"]
    assert main([*command, "--once", "Hi?"]) == 0
    once = capsys.readouterr()
    assert once.out and "note: the answer was cut after 8 tokens" in once.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi?\n"))
    assert main(command) == 0
    assert capsys.readouterr().out == once.out
    assert main([*command[:-1], "4", "--once", "Hi?"]) == 0
    assert capsys.readouterr().out != once.out
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert main(command) == 2
    assert "give it with --once TEXT or on standard input" in capsys.readouterr().err


def test_a_base_model_continues_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_run(tmp_path / "base", None)
    assert main(["chat", str(base), "--once", "Once upon", "--max-tokens", "5", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() and "tiny is a base model: it was not taught to answer" in said.err
    assert "docs/assistant.md" in said.err
    assert main(["chat", str(base), "--once", "x", "--system", "s"]) == 2
    assert "--system needs a model that was taught to answer" in capsys.readouterr().err


def test_a_reward_model_writes_no_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = write_tiny_run(tmp_path / "reward", {"kind": "reward"})
    assert main(["chat", str(reward), "--once", "x"]) == 2
    assert "is a reward model: it scores answers and writes none" in capsys.readouterr().err


def test_the_system_text_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_tiny_run(tmp_path / "run", {"kind": "dpo"}, {"system": "Be kind."})
    player = ScriptedPlayer(lambda _: "ok")
    monkeypatch.setattr(ServedModel, "player", lambda _: player)
    assert main(["chat", str(run), "--once", "a"]) == main(["chat", str(run), "--once", "a", "--system", "No."]) == 0
    assert main(["chat", str(run), "--once", "a", "--system", ""]) == 0
    assert [chat_vocab().decode(prompt) for prompt in player.prompts] == ["Be kind.a", "No.a", "a"]


def test_an_interrupted_single_answer_ends_the_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    player = ScriptedPlayer(lambda _: "d" * 50, lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(ServedModel, "player", lambda _: player)
    assert main(["chat", str(run), "--once", "x"]) == 130
    assert capsys.readouterr().out == "d\n"


def test_a_terminal_is_greeted(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Tty("/quit\n"))
    monkeypatch.setattr(terminal, "converse", lambda talk: converse(talk, lines("/quit")))
    assert main(["chat", str(run), "--seed", "3"]) == 0
    assert capsys.readouterr().out == "tiny.sft, step 0, seed 3. /help shows the commands.\n"
