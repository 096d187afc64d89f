"""Defines the recipe's `chat` section, and the special tokens and shapes of conversations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.schema.section import Section

END_OF_TEXT = "<|endoftext|>"
PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
MASK = "<|mask|>"  # stands for a hidden token in masked diffusion; no template writes it
CALL, CALL_END, RESULT, RESULT_END = "<|call|>", "<|/call|>", "<|result|>", "<|/result|>"
# All that a chat template writes beside the end of a document, which may be another token in an imported vocabulary.
TEMPLATE_TOKENS = (PAD, *(f"<|{role}|>" for role in ROLES), END, CALL, CALL_END, RESULT, RESULT_END)
# With six for later: a vocabulary made once serves every stage.
CHAT_TOKENS = (END_OF_TEXT, *TEMPLATE_TOKENS, *(f"<|reserved_{number}|>" for number in range(6)))
# How a record becomes a conversation, a preference pair or a prompt; `text`: it is a document.
Shape = Literal["text", "openai", "sharegpt", "alpaca", "hh", "gsm8k", "pairs"]
# What is read together: a stretch of documents, a conversation, a preference pair, or a prompt with its reference.
Unit = Literal["document", "conversation", "pair", "prompt"]
# Which units a shape serves: a question with its answer is a conversation, or a prompt with its reference.
SERVES: dict[Shape, tuple[Unit, ...]] = {
    "text": ("document",),
    "openai": ("conversation", "prompt"),
    "sharegpt": ("conversation", "prompt"),
    "alpaca": ("conversation", "prompt"),
    "gsm8k": ("conversation", "prompt"),
    "hh": ("pair", "conversation", "prompt"),
    "pairs": ("pair", "conversation", "prompt"),
}
# Fields that a record of a shape has, by which a table's first row is known for names of columns.
FIELDS: dict[Shape, tuple[str, ...]] = {
    "openai": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
    "gsm8k": ("question", "answer"),
    "hh": ("chosen", "rejected"),
    "pairs": ("prompt", "chosen", "rejected"),
}


class Chat(Section):
    """Conversations: what stands before them, and tools that the assistant may use; see docs/assistant.md."""

    system: str | None = Field(
        None, min_length=1, description="Text of a system message for conversations that have none; null: no message."
    )
    tools: list[Literal["calculator"]] = Field(
        [], description="Tools that the assistant may call while it answers. Their results are given, not learnt."
    )
