"""OpenAI's messages of tool calls become one answer with parts, or say why not."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.chat.messages import Conversation, Message, MessagePart, Unusable
from data_prep.chat.shapes import to_unit

ASK: dict[str, Any] = {"role": "user", "content": "48/2 and 3*5?"}
DONE: dict[str, Any] = {"role": "assistant", "content": "24 and 15."}


def call(identity: str, expression: Any, name: str = "calculator") -> dict[str, Any]:
    arguments = expression if expression.startswith(("{", "[")) else f'{{"expression": "{expression}"}}'
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(identity: str | None, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": content}


def answer(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    unit = to_unit({"messages": [ASK, *messages]}, "openai", "conversation", None)
    assert isinstance(unit, Conversation) and len(unit.messages) == 2
    return [(part.kind, part.text) for part in unit.messages[-1].parts]


def test_a_call_its_result_and_what_follows_are_one_answer() -> None:
    found = answer(calls(call("a", "48/2"), content="Well: "), result("a", "24"), DONE)
    assert found == [("text", "Well: "), ("call", "48/2"), ("result", "24"), ("text", "24 and 15.")]


def test_results_stand_after_their_calls_whatever_their_order() -> None:
    two = calls(call("a", "48/2"), call("b", "3*5"))
    expected = [("call", "48/2"), ("result", "24"), ("call", "3*5"), ("result", "15"), ("text", "24 and 15.")]
    assert answer(two, result("b", "15"), result("a", [{"type": "text", "text": "24"}]), DONE) == expected
    assert answer(two, result(None, "24"), result(None, "15"), DONE) == expected
    one_by_one = calls(call("a", "48/2")), result("a", "24"), calls(call("b", "3*5")), result("b", "15"), DONE
    assert answer(*one_by_one) == expected


def test_later_turns_are_messages_of_their_own() -> None:
    messages = [ASK, calls(call("a", "48/2")), result("a", "24"), DONE, {**ASK, "content": "Sure?"}, DONE]
    unit = to_unit({"messages": messages}, "openai", "conversation", None)
    assert isinstance(unit, Conversation)
    assert [message.role for message in unit.messages] == ["user", "assistant"] * 2
    assert unit.messages[1].parts[0] == MessagePart("call", "48/2") and unit.messages[3] == Message.from_json(DONE)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([calls(call("a", "x", "get_weather")), result("a", "rain"), DONE], "unknown_tool"),
        ([calls(call("a", "{}")), result("a", "1"), DONE], "bad_tool_call"),
        ([calls(call("a", '{"a": "1", "b": "2"}')), result("a", "1"), DONE], "bad_tool_call"),
        ([calls(call("a", "[1")), result("a", "1"), DONE], "bad_tool_call"),
        ([calls(call("a", '{"a": 1}')), result("a", "1"), DONE], "bad_tool_call"),
        ([{**DONE, "tool_calls": ["x"]}, result("a", "1"), DONE], "unknown_tool"),
        ([calls(call("a", "1+1")), DONE], "call_without_result"),
        ([calls(call("a", "1+1")), ASK, DONE], "call_without_result"),
        ([calls(call("a", "1+1")), result("b", "2"), DONE], "result_without_call"),
        ([calls(call("a", "1+1")), result("a", "2"), result("a", "2"), DONE], "result_without_call"),
        ([result("a", "2"), DONE], "result_without_call"),
        ([DONE, result("a", "2")], "result_without_call"),
        ([calls(call("a", "1+1")), result("a", "2")], "ends_without_answer"),
        ([calls(call("a", "1+1")), result("a", "2"), ASK, DONE], "ends_without_answer"),
        ([calls(call("a", "1+1")), result("a", None), DONE], "missing_content"),
        ([{**DONE, "function_call": {"name": "calculator", "arguments": "{}"}}], "unread_tool_call"),
    ],
)
def test_what_is_no_call_says_why(messages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        to_unit({"messages": [ASK, *messages]}, "openai", "conversation", None)
    assert raised.value.reason == reason
