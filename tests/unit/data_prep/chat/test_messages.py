"""Messages hold what is said, and go to JSON and back."""

from __future__ import annotations

import pytest

from data_prep.chat.messages import Conversation, Message, MessagePart, Pair, Prompt, Unusable

SUM = Message(
    "assistant",
    (
        MessagePart("text", "12*4 = "),
        MessagePart("call", "12*4"),
        MessagePart("result", "48"),
        MessagePart("text", "48"),
    ),
)
ASKED = (Message.of("system", "Be brief."), Message.of("user", "12 times 4?"))


def test_everything_comes_back_from_json() -> None:
    pair = Pair(ASKED, SUM, Message.of("assistant", "50"), 0.5)
    prompt = Prompt(ASKED, "48", {"level": 1})
    conversation = Conversation((*ASKED, SUM))
    assert Pair.from_json(pair.to_json()) == pair
    assert Prompt.from_json(prompt.to_json()) == prompt
    assert Conversation.from_json(conversation.to_json()) == conversation
    assert conversation.to_json()["messages"][0] == {"role": "system", "content": "Be brief."}


def test_text_shows_calls_between_their_markers() -> None:
    assert SUM.text == "12*4 = <|call|>12*4<|/call|><|result|>48<|/result|>48"
    assert Conversation((*ASKED, SUM)).text == f"Be brief.\n\n12 times 4?\n\n{SUM.text}"


def test_neighbouring_texts_are_one_part_and_empty_ones_none() -> None:
    parts = (
        MessagePart("text", ""),
        MessagePart("text", "a"),
        MessagePart("text", "b"),
        MessagePart("call", ""),
        MessagePart("text", ""),
    )
    assert Message("assistant", parts).parts == (MessagePart("text", "ab"), MessagePart("call", ""))
    assert Message.of("user", "").parts == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"role": "tool", "content": "48"}, "unknown_role"),
        ({"content": "48"}, "unknown_role"),
        ({"role": "assistant", "content": "So", "tool_calls": [{"id": "1"}]}, "unread_tool_call"),
        ({"role": "user"}, "missing_content"),
        ({"role": "user", "content": [{"type": "text"}]}, "missing_content"),
        ({"role": "user", "content": [{"type": "image_url", "text": "x"}]}, "unknown_part"),
        ({"role": "user", "content": [{"type": "call", "text": "1+1"}]}, "tool_part_outside_answer"),
    ],
)
def test_what_is_no_message_says_why(value: dict[str, object], reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        Message.from_json(value)
    assert raised.value.reason == reason
