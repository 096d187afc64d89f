"""Records of every shape become units, or say why not."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.chat import Shape, Unit
from data_prep.chat.messages import Conversation, Message, MessagePart, Pair, Prompt, Unusable
from data_prep.chat.shapes import Wanted, to_unit

ASK, TELL = Message.of("user", "Why?"), Message.of("assistant", "Because.")
OTHER = Message.of("assistant", "No idea.")
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No idea."}
RECORDS: list[tuple[Shape, dict[str, Any]]] = [
    ("openai", {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}),
    ("alpaca", {"instruction": "Why?", "input": "", "output": "Because."}),
    ("gsm8k", {"question": "Why?", "answer": "Because."}),
    ("hh", HH),
    ("pairs", {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."}),
]
PAIRS: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
    {"prompt": [ASK.to_json()], "chosen": [TELL.to_json()], "rejected": [OTHER.to_json()]},
    {"chosen": [ASK.to_json(), TELL.to_json()], "rejected": [ASK.to_json(), OTHER.to_json()]},
    {"prompt": "Why?", "chosen": [ASK.to_json(), TELL.to_json()], "rejected": [ASK.to_json(), OTHER.to_json()]},
    {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No idea."},
    },
]


@pytest.mark.parametrize(("shape", "record"), RECORDS)
def test_every_shape_gives_a_conversation(shape: Shape, record: dict[str, Any]) -> None:
    assert to_unit(record, shape, "conversation", None) == Conversation((ASK, TELL))
    with_system = to_unit(record, shape, "conversation", "Be kind.")
    assert with_system == Conversation((Message.of("system", "Be kind."), ASK, TELL))


@pytest.mark.parametrize(("shape", "record"), RECORDS)
def test_every_shape_gives_a_prompt(shape: Shape, record: dict[str, Any]) -> None:
    prompt = to_unit({**record, "level": 3}, shape, "prompt", None)
    assert isinstance(prompt, Prompt)
    assert (prompt.messages, prompt.metadata) == ((ASK,), {"level": 3})


@pytest.mark.parametrize("record", PAIRS)
def test_pairs_are_read_in_every_way_of_writing_them(record: dict[str, Any]) -> None:
    assert to_unit({**record, "margin": 2}, "pairs", "pair", None) == Pair((ASK,), TELL, OTHER, 2.0)


def test_transcripts_are_cut_at_their_speakers() -> None:
    record = {side: f"\n\nHuman: Hi\n\nAssistant: Human: as if\n\nHuman: Why?\n\nAssistant: {side}\n" for side in HH}
    pair = to_unit(record, "hh", "pair", None)
    assert isinstance(pair, Pair)
    assert [message.text for message in pair.prompt] == ["Hi", "Human: as if", "Why?"]
    assert (pair.chosen.text, pair.rejected.text) == ("chosen", "rejected")


def test_calculations_become_calls_of_the_tool() -> None:
    record = {"question": "Clips?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,024"}
    conversation = to_unit(record, "gsm8k", "conversation", None)
    assert isinstance(conversation, Conversation)
    assert conversation.messages[-1].parts == (
        MessagePart("text", "48/2 = "),
        MessagePart("call", "48/2"),
        MessagePart("result", "24"),
        MessagePart("text", "24 clips.\n#### 1,024"),
    )
    prompt = to_unit(record, "gsm8k", "prompt", None)
    assert isinstance(prompt, Prompt)
    assert (prompt.reference, len(prompt.messages)) == ("1,024", 1)


def test_without_a_calculator_calls_are_left_out_of_every_shape() -> None:
    """A model that was taught to call it would wait for results that do not come."""
    parts = [{"type": "text", "text": "It is "}, {"type": "call", "text": "6*7"}, {"type": "result", "text": "42"}]
    used = {"role": "assistant", "content": [*parts, {"type": "text", "text": "42."}]}
    plain = {"role": "assistant", "content": "It is 42."}
    bare = Wanted("conversation", calls=False)
    ask = ASK.to_json()
    assert bare.of({"messages": [ask, used]}, "openai") == Conversation((ASK, Message.from_json(plain)))
    with pytest.raises(Unusable, match="empty_answer"):
        bare.of({"messages": [ask, {**used, "content": parts[1:]}]}, "openai")
    pair = {"prompt": [ask, used, ask], "chosen": [used], "rejected": [OTHER.to_json()]}
    made = Wanted("pair", calls=False).of(pair, "pairs")
    assert isinstance(made, Pair) and made.prompt[1] == made.chosen == Message.from_json(plain)
    with pytest.raises(Unusable, match="same_answers"):
        Wanted("pair", calls=False).of({**pair, "rejected": [plain]}, "pairs")
    asked = Wanted("prompt", calls=False).of({"messages": [ask, used, ask]}, "openai")
    assert isinstance(asked, Prompt) and asked.messages[1] == Message.from_json(plain)
    kept = Wanted("prompt").of({"messages": [ask, used, ask]}, "openai")
    assert isinstance(kept, Prompt) and kept.messages[1] == Message.from_json(used)


@pytest.mark.parametrize("answer", ["12\n#### ", "#### **", "####\n."])
def test_a_prompt_without_a_right_answer_is_unusable_where_answers_are_compared(answer: str) -> None:
    record = {"question": "Why?", "answer": answer}
    assert isinstance(Wanted("prompt").of(record, "gsm8k"), Prompt)
    with pytest.raises(Unusable, match="no_reference"):
        Wanted("prompt", reference=True).of(record, "gsm8k")
    with pytest.raises(Unusable, match="no_reference"):
        Wanted("prompt", reference=True).of({"messages": [ASK.to_json()]}, "openai")
    right = Wanted("prompt", reference=True).of({"question": "Why?", "answer": "#### -1."}, "gsm8k")
    assert isinstance(right, Prompt) and right.reference == "-1."


def openai(*roles: str, content: str = "x") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role in roles]}


@pytest.mark.parametrize(
    ("shape", "unit", "record", "reason"),
    [
        ("openai", "conversation", openai("user", "user", "assistant"), "roles_do_not_alternate"),
        ("openai", "conversation", openai("assistant", "user", "assistant"), "roles_do_not_alternate"),
        ("openai", "conversation", openai("user", "system", "assistant"), "roles_do_not_alternate"),
        ("openai", "conversation", openai("user"), "no_assistant_message"),
        ("openai", "conversation", openai(), "no_assistant_message"),
        ("openai", "conversation", openai("user", "assistant", "user"), "ends_without_answer"),
        ("openai", "conversation", openai("user", "critic"), "unknown_role"),
        ("openai", "conversation", openai("user", "assistant", content=" \n"), "empty_question"),
        ("openai", "conversation", {"messages": "hello"}, "missing_messages"),
        ("openai", "conversation", {"text": "hello"}, "missing_field"),
        ("openai", "prompt", openai("system"), "no_question"),
        ("sharegpt", "conversation", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown_role"),
        ("sharegpt", "conversation", {"conversations": None}, "missing_field"),
        ("alpaca", "conversation", {"instruction": "Why?", "input": "", "output": ""}, "empty_answer"),
        ("alpaca", "conversation", {"instruction": "Why?", "output": None}, "missing_field"),
        ("gsm8k", "prompt", {"question": "", "answer": "#### 1"}, "empty_question"),
        ("hh", "pair", {**HH, "rejected": HH["chosen"]}, "same_answers"),
        ("hh", "pair", {**HH, "rejected": "\n\nHuman: Who?\n\nAssistant: No idea."}, "prompts_differ"),
        ("hh", "pair", {**HH, "chosen": "\n\nHuman: Why?\n\nAssistant:"}, "empty_answer"),
        ("hh", "pair", {"chosen": "Well", "rejected": "Well"}, "roles_do_not_alternate"),
        ("hh", "pair", {"chosen": "\n\nHuman: Why?", "rejected": "\n\nHuman: Why?"}, "ends_without_answer"),
        ("pairs", "pair", {"prompt": "Why?", "chosen": "x"}, "missing_field"),
        ("pairs", "pair", {"prompt": "Why?", "chosen": "x", "rejected": "y", "margin": "much"}, "bad_margin"),
        ("pairs", "pair", {"chosen": "x", "rejected": "y"}, "no_question"),
    ],
)  # fmt: skip
def test_an_unusable_record_says_why(shape: Shape, unit: Unit, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        to_unit(record, shape, unit, None)
    assert raised.value.reason == reason


def test_a_shape_that_cannot_serve_is_an_error_of_the_recipe() -> None:
    with pytest.raises(ValueError, match="alpaca serve for conversation, prompt, not for pair"):
        to_unit({}, "alpaca", "pair", None)
