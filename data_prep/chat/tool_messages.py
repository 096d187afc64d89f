"""Reads calls of tools as OpenAI's chat format writes them: in messages of their own, where our answers hold them.

There an answer that calls a tool ends with `tool_calls`, a message of role `tool` gives the result, and another message
of the assistant goes on. Here all three are one answer with parts (`data_prep.chat.messages`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from data_prep.chat.messages import Unusable

CALCULATOR = "calculator"  # the one tool there is


@dataclass
class _Call:
    identity: Any
    expression: str
    result: str | None = None


@dataclass
class _OpenAnswer:
    """An answer whose tools were called, and that goes on after their results."""

    parts: list[dict[str, str]]
    calls: list[_Call] = field(default_factory=list)

    def close_calls(self) -> None:
        """Moves the calls into the parts, each with its result."""
        for call in self.calls:
            if call.result is None:
                raise Unusable("call_without_result", call.expression[:80])
            self.parts += [{"type": "call", "text": call.expression}, {"type": "result", "text": call.result}]
        self.calls = []


def with_tools_inside(messages: Iterable[Any]) -> list[Any]:
    """The messages, with calls of the calculator and their results as parts of the answers that made them.

    Messages without any are given back as they are; nothing else of them is checked.

    Raises:
        Unusable: `unknown_tool`; `bad_tool_call` for arguments that are not one expression; `call_without_result`;
            `result_without_call`; `ends_without_answer` where the last message is a tool's.
    """
    found: list[Any] = []
    answer: _OpenAnswer | None = None
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role == "tool":
            _give_result(answer, message)
            continue
        if answer is not None and answer.calls:
            answer.close_calls()
            if role != "assistant":
                raise Unusable("ends_without_answer", "a tool's result is followed by no answer")
        called = role == "assistant" and message.get("tool_calls")
        if answer is not None and role == "assistant":
            answer.parts += _texts(message)
        elif called:
            answer = _OpenAnswer(_texts(message))
            found.append({"role": "assistant", "content": answer.parts})
        else:
            found.append(message)
        if called and answer is not None:
            answer.calls = [_call(call) for call in message["tool_calls"]]
        else:
            answer = None
    if answer is not None:
        answer.close_calls()
        raise Unusable("ends_without_answer", "the last message is a tool's")
    return found


def _give_result(answer: _OpenAnswer | None, message: dict[str, Any]) -> None:
    identity = message.get("tool_call_id")
    waiting = [call for call in answer.calls if call.result is None] if answer is not None else []
    call = next((one for one in waiting if identity is None or one.identity == identity), None)
    if call is None:
        raise Unusable("result_without_call", repr(identity)[:80])
    call.result = "".join(part["text"] for part in _texts(message))


def _texts(message: dict[str, Any]) -> list[dict[str, str]]:
    """The content as text parts; none for a message that calls a tool and says nothing."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        raise Unusable("missing_content", f"content is {type(content).__name__}")
    return content


def _call(call: Any) -> _Call:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or function.get("name") != CALCULATOR:
        name = function.get("name") if isinstance(function, dict) else None
        raise Unusable("unknown_tool", f"{name!r:.60}; there is {CALCULATOR}")
    given = function.get("arguments")
    with suppress(ValueError, RecursionError):
        given = json.loads(given) if isinstance(given, str) else given
    expressions = list(given.values()) if isinstance(given, dict) else []
    if len(expressions) != 1 or not isinstance(expressions[0], str):
        raise Unusable("bad_tool_call", 'arguments are one expression, as in {"expression": "12*4"}')
    return _Call(call.get("id"), expressions[0])
