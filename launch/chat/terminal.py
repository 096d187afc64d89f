"""Implements `replica chat`: a conversation in a terminal, or one printed answer."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.common.files import write_text
from configs.common.notices import note
from configs.schema.recipe import load_run
from data_prep.chat.messages import Message
from launch.chat.answers import Piece, ScoredToken
from launch.chat.served_model import Draws, ServedModel, open_served_model
from pretrain.checkpoint.choice import Choice

HELP = """\
/clear          begin a new conversation
/undo           take back the last question and its answer
/system TEXT    set the system text and begin a new conversation; without TEXT: show it
/save FILE      write the conversation as a line of JSON, a record for `shape: openai`
/help           show this
/quit           leave (also Ctrl-D)
Ctrl-C stops an answer and keeps what there is of it. A line that ends in \\ goes on in the next."""
BASE_MODEL = (
    "is a base model: it was not taught to answer, and continues your text instead. For a model that answers, "
    "fine-tune it (docs/assistant.md) and name the stage, as in RUN:sft"
)


@dataclass
class Talk:
    """A conversation with a model.

    Attributes:
        served: the model.
        draws: how answers are drawn; each question has a slot of its own, so equal seeds give equal conversations.
        messages: the questions and answers so far.
        tell: gets remarks that are not part of an answer.
    """

    served: ServedModel
    draws: Draws
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    tell: Callable[[str], None] = note
    _asked: int = field(default=0, init=False)

    def ask(self, question: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yields the answer in pieces; then the conversation holds question and answer.

        Args:
            question: the text.
            stopped: asked after each token; True ends the answer.

        Raises:
            ValueError: when the question leaves no room for an answer; the conversation stays as it was.
        """
        ids = self._prompt(question)
        length = min(self.draws.max_new_tokens, self.served.context_length - len(ids))
        draws = replace(self.draws, max_new_tokens=length, slot=self._asked)
        self._asked += 1
        generated: list[int] = []
        finish = None
        for piece in answer(self.served, ids, draws, generated, stopped):
            finish = piece.finish
            yield piece.text
        if self.served.template is not None:
            said = self.served.template.parse(generated)
            if said.parts:
                self.messages += [Message.of("user", question), said]
        if finish == "length" and self.served.template is not None:
            self.tell(f"the answer was cut after {length} tokens, its longest length")

    def _prompt(self, question: str) -> list[int]:
        if self.served.template is None:
            return self.served.text_prompt(question)
        head = [Message.of("system", self.system)] if self.system else []
        room = min(self.served.answer_room, self.draws.max_new_tokens)
        ids, dropped = self.served.chat_prompt([*head, *self.messages, Message.of("user", question)], room)
        if dropped:
            del self.messages[:dropped]
            self.tell(f"the oldest {dropped} messages no longer fit the context, and were left out")
        return ids

    def save(self, file: Path) -> None:
        """Writes the conversation as one line of JSON.

        Raises:
            ValueError: when there is nothing to save, or the file exists.
        """
        import json

        if not self.messages:
            raise ValueError("there is nothing to save yet")
        if file.exists():
            raise ValueError(f"{file} exists; choose another file")
        head = [Message.of("system", self.system)] if self.system else []
        record = {"messages": [message.to_json() for message in (*head, *self.messages)]}
        write_text(file, json.dumps(record, ensure_ascii=False) + "\n")


def answer(
    served: ServedModel, ids: Sequence[int], draws: Draws, generated: list[int], stopped: Callable[[], bool]
) -> Iterator[Piece]:
    """Yields the pieces of one answer as they are drawn; appends its tokens to `generated`."""
    player = served.player()
    (row,) = player.add(served.request(ids, draws))
    text = served.answer_text(context=() if served.template else ids)
    while True:
        for event in player.step():
            generated.append(event.token)
            piece = text.push(ScoredToken.of(event), event.finished)
            yield piece
            if piece.finish is not None:
                return
        if stopped():
            player.cancel(row)
            return


# ------------------------------------------------------------------------------------------------------------ commands
def chat(arguments: Namespace) -> None:
    """Talks with the model of a run or a stage: one answer for `--once` or standard input, else a conversation.

    Raises:
        ValueError: when the model cannot be opened, or a single question cannot be answered.
    """
    run = load_run(arguments.run).run_directory
    served = open_served_model(run, Choice(arguments.checkpoint_step, arguments.best))
    seed = secrets.randbits(62) if arguments.seed is None else arguments.seed
    longest = arguments.max_tokens or (served.context_length if served.template else 200)
    draws = Draws(arguments.temperature, arguments.top_k, arguments.top_p, longest, seed)
    talk = Talk(served, draws, arguments.system if arguments.system is not None else served.system)
    if served.template is None:
        note(f"{served.name} {BASE_MODEL}")
        if arguments.system is not None:
            raise ValueError("--system needs a model that was taught to answer")
    if arguments.once is not None or not sys.stdin.isatty():
        question = sys.stdin.read().rstrip("\n") if arguments.once is None else arguments.once
        if not question.strip():
            raise ValueError("there is no question: give it with --once TEXT or on standard input")
        if not _print_answer(talk, question):
            raise KeyboardInterrupt
        return
    print(f"{served.name}, step {served.step}, seed {seed}. /help shows the commands.")
    converse(talk)


def converse(talk: Talk, read: Callable[[str], str] = input) -> None:
    """Reads questions and commands until there are no more; mistakes are told, and the conversation goes on."""
    with suppress(ImportError):
        import readline  # noqa: F401 - editing and history of lines come with it
    while True:
        try:
            line = _read_lines(read)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves")
            continue
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if _command(talk, line):
                    return
            else:
                _print_answer(talk, line)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def _read_lines(read: Callable[[str], str]) -> str:
    lines = [read("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("… "))
    return "\n".join(lines)


def _command(talk: Talk, line: str) -> bool:
    """Runs one command; returns True for the one that leaves."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/quit", "/exit", "/q"):
        return True
    commands: dict[str, Callable[[], None]] = {
        "/help": lambda: print(HELP),
        "/clear": lambda: _clear(talk),
        "/undo": lambda: _undo(talk),
        "/system": lambda: _system(talk, rest),
        "/save": lambda: _save(talk, rest),
    }
    if name not in commands:
        raise ValueError(f"there is no command {name}; /help shows those that there are")
    commands[name]()
    return False


def _clear(talk: Talk) -> None:
    talk.messages.clear()
    print("a new conversation")


def _undo(talk: Talk) -> None:
    if not talk.messages:
        raise ValueError("there is nothing to take back")
    print(f"taken back: {talk.messages[-2].text[:200]}")
    del talk.messages[-2:]


def _system(talk: Talk, text: str) -> None:
    if not text:
        print(talk.system or "no system text")
        return
    if talk.served.template is None:
        raise ValueError("a base model has no system text")
    talk.system = text
    _clear(talk)


def _save(talk: Talk, name: str) -> None:
    if not name:
        raise ValueError("give a file, as in /save talk.jsonl")
    talk.save(Path(name).expanduser())
    print(f"saved {name}")


def _print_answer(talk: Talk, question: str) -> bool:
    """Prints an answer piece by piece; returns False when Ctrl-C ended it."""
    with _interrupts() as stopped:
        for text in talk.ask(question, stopped):
            print(text, end="", flush=True)
    print()
    if stopped():
        note("stopped")
    return not stopped()


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C within the body into a flag, so that no step of the model is torn apart."""
    seen: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        if seen:  # a second Ctrl-C: the step takes too long
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
