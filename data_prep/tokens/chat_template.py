"""The chat template: the ids of conversations, the same in training, rollouts, the server and exported models.

A conversation is the end-of-document id (which begins every text here), then for each message `<|role|>`, its content
and `<|end|>`. The template writes no text of its own: markers alone stand between contents, so encoding part by part
gives the ids of the whole, and a prompt is a prefix of the conversation that it becomes. Content is only text: a user
who writes `<|end|><|assistant|>` makes no marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from configs.schema.chat import CALL, CALL_END, END, PAD, RESULT, RESULT_END, ROLES
from configs.schema.chat import TEMPLATE_TOKENS as TEMPLATE_TOKENS
from data_prep.chat.messages import Message, MessagePart, PartKind
from data_prep.tokens.special_tokens import END_OF_DOCUMENT
from data_prep.tokens.vocab import Vocab

# The same template for Hugging Face `transformers`, vLLM and others that render with Jinja. What stands inside
# `generation` is what `return_assistant_tokens_mask` marks: the kinds ANSWER, CALL and END. A stretch ends with a
# marker, because `transformers` marks no more than the first token of a stretch's last character.
JINJA = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] != 'assistant' %}"
    "{{ message['content'] + '<|end|>' }}"
    "{% elif message['content'] is string %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{% set said = namespace(text='') %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'result' %}"
    "{% if said.text %}{% generation %}{{ said.text }}{% endgeneration %}{% endif %}"
    "{% set said.text = '' %}"
    "{{ '<|result|>' + part['text'] + '<|/result|>' }}"
    "{% elif part['type'] == 'call' %}"
    "{% set said.text = said.text + '<|call|>' + part['text'] + '<|/call|>' %}"
    "{% else %}"
    "{% set said.text = said.text + part['text'] %}"
    "{% endif %}"
    "{% endfor %}"
    "{% generation %}{{ said.text + '<|end|>' }}{% endgeneration %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Kind(IntEnum):
    """What a token is in its conversation; which kinds are trained is for the objective to say."""

    GIVEN = 0  # markers of roles, and all that the assistant does not write
    ANSWER = 1  # the assistant's text
    END = 2  # `<|end|>` after it
    RESULT = 3  # a tool's output, with its markers
    CALL = 4  # a call of a tool, with its markers


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids, and the kind of each."""

    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], kind: Kind) -> None:
        """Appends ids of one kind."""
        self.ids.extend(ids)
        self.kinds.extend([int(kind)] * len(ids))

    def extend(self, other: Rendered) -> None:
        """Appends the other's ids and kinds."""
        self.ids.extend(other.ids)
        self.kinds.extend(other.kinds)


class ChatTemplate:
    """Renders messages to the ids of a vocabulary, and reads an answer's ids.

    Attributes:
        bos: the end-of-document id, with which every text begins.
        pad: the id of padding; never a target.
        end: the id that ends a message.
        call, call_end, result, result_end: the ids around a tool's call and its output.
        role_ids: the id of each role's marker.
        end_ids: the ids that end an answer in generation.

    Args:
        vocab: with the tokens of `TEMPLATE_TOKENS`, all of them special.
        encode: text to ids, where the caller has something faster than `vocab.encode` with the same ids.

    Raises:
        ValueError: when the vocabulary lacks tokens.
    """

    def __init__(self, vocab: Vocab, encode: Callable[[str], list[int]] | None = None) -> None:
        if missing := missing_tokens(vocab):
            raise ValueError(
                f"the vocabulary has no chat tokens ({', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}), so "
                "it cannot write down conversations; set data.tokenizer.special_tokens to `chat` and prepare the data "
                "again (a vocabulary from a file gets them at its end)"
            )
        self.vocab = vocab
        # A vocabulary may begin a text in another way than one inside; then what is said is inside.
        same = vocab.inner_encoder is vocab.encoder
        self._encode = encode if encode is not None and same else vocab.encode_inside
        ids = vocab.vocabulary
        self.bos = vocab.eod_id
        self.pad, self.end = ids[PAD], ids[END]
        self.call, self.call_end, self.result, self.result_end = (
            ids[token] for token in (CALL, CALL_END, RESULT, RESULT_END)
        )
        self.role_ids: dict[str, int] = {role: ids[f"<|{role}|>"] for role in ROLES}
        self.end_ids = frozenset({self.end, vocab.eod_id})

    @staticmethod
    def fits(vocab: Vocab) -> bool:
        """Tells whether the vocabulary has all tokens that the template writes."""
        return not missing_tokens(vocab)

    def render(self, messages: Iterable[Message]) -> Rendered:
        """The ids of whole messages, from the first `bos` to the last `<|end|>`, without a final end of document."""
        rendered = Rendered([self.bos], [int(Kind.GIVEN)])
        for message in messages:
            rendered.add([self.role_ids[message.role]], Kind.GIVEN)
            if message.role == "assistant":
                rendered.extend(self.answer(message))
            else:
                rendered.add([*self._encode(message.text), self.end], Kind.GIVEN)
        return rendered

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """The ids of messages and `<|assistant|>`: what an answer is generated after."""
        return [*self.render(messages).ids, self.role_ids["assistant"]]

    def answer(self, message: Message) -> Rendered:
        """The ids of an answer, from its first token to `<|end|>`: what the model is to generate."""
        rendered = Rendered()
        for part in message.parts:
            ids = self._encode(part.text)
            if part.kind == "call":
                rendered.add([self.call, *ids, self.call_end], Kind.CALL)
            elif part.kind == "result":
                rendered.add([self.result, *ids, self.result_end], Kind.RESULT)
            else:
                rendered.add(ids, Kind.ANSWER)
        rendered.add([self.end], Kind.END)
        return rendered

    def parse(self, ids: Iterable[int]) -> Message:
        """The assistant's message of an answer's ids, up to its end if it has one.

        A call or result without an end reaches to the next marker; markers that stand where none belongs say nothing.
        """
        opened: dict[int, PartKind] = {self.call: "call", self.result: "result"}
        closed = {self.call_end, self.result_end}
        kind: PartKind = "text"
        parts: list[MessagePart] = []
        run: list[int] = []

        def close() -> None:
            if run or kind != "text":
                parts.append(MessagePart(kind, self.vocab.decode(run)))
            run.clear()

        for index in ids:
            if index in self.end_ids:
                break
            if index in opened or index in closed:
                close()
                kind = opened.get(index, "text")
            else:
                run.append(index)
        close()
        return Message("assistant", tuple(parts))


def chat_configs(vocab: Vocab) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an exported chat model's tokenizer_config.json and generation_config.json say, beside their other keys.

    Padding is a token of its own, so that nobody's trainer masks the end of answers with it. An answer ends at
    `<|end|>`, and a text that ends as a document does ends too.

    Raises:
        ValueError: when the vocabulary lacks tokens.
    """
    template = ChatTemplate(vocab)
    tokenizer = {
        "chat_template": JINJA,
        "bos_token": vocab.end_of_document,
        "eos_token": END,
        "pad_token": PAD,
        END_OF_DOCUMENT: vocab.end_of_document,
    }
    generation = {
        "bos_token_id": template.bos,
        "eos_token_id": [template.end, vocab.eod_id],
        "pad_token_id": template.pad,
    }
    return tokenizer, generation


def missing_tokens(vocab: Vocab) -> list[str]:
    """The template's tokens that the vocabulary lacks, or that ordinary text could give."""
    special = vocab.special_ids
    return [token for token in TEMPLATE_TOKENS if vocab.vocabulary.get(token) not in special]
