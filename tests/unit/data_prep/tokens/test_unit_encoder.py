"""Units as documents of shards: every answer has its end, and one without anything to learn is refused."""

from __future__ import annotations

import random

import pytest

from configs.schema.data import Tokenizer as Settings
from data_prep.chat.messages import Conversation, Message, Pair
from data_prep.tokens.chat_template import ChatTemplate, Kind
from data_prep.tokens.unit_encoder import NOTHING_TO_LEARN, TOO_LONG, Refused, UnitEncoder
from data_prep.tokens.vocab_training import train_vocab

VOCAB = train_vocab(Settings(kind="byte", special_tokens="chat"), [])


def spoken(*lengths: int) -> tuple[Message, ...]:
    return tuple(Message.of("assistant" if n % 2 else "user", "x" * length) for n, length in enumerate(lengths))


def test_no_document_is_longer_than_the_room_or_lacks_the_end_of_an_answer() -> None:
    """Pitfalls 3 and 12: nothing is cut, and what is too long loses whole turns or goes."""
    draw, template = random.Random(0), ChatTemplate(VOCAB)
    encoder = UnitEncoder(VOCAB, "conversation", 48)
    kept = refused = 0
    for _ in range(300):
        messages = spoken(*(draw.randrange(1, 40) for _ in range(2 * draw.randrange(1, 5))))
        if draw.random() < 0.3:
            messages = (Message.of("system", "be kind"), *messages)
        try:
            (document,), stored = encoder(Conversation(messages))
        except Refused as reason:
            refused += str(reason) == TOO_LONG
            continue
        kept += 1
        ids, kinds = document.rendered.ids, document.rendered.kinds
        assert len(ids) == len(kinds) <= 48
        assert (ids[-2:], kinds[-2:]) == ([template.end, template.bos], [Kind.END, Kind.GIVEN])
        assert isinstance(stored, Conversation)
        answers = [message for message in stored.messages if message.role == "assistant"]
        assert kinds.count(Kind.END) == len(answers) >= 1
        assert stored.messages[-2:] == messages[-2:], "turns go from the front"
        assert (stored.messages[0].role == "system") == (messages[0].role == "system")
    assert kept > 50 and refused > 20


def test_the_longest_that_fits_and_the_shortest_that_does_not() -> None:
    """bos, user, 4, end, assistant, 4, end: 13 ids; as stored, the end of the document stands for the bos."""
    exact = Conversation(spoken(4, 4))
    (document,), _ = UnitEncoder(VOCAB, "conversation", 13)(exact)
    assert len(document.rendered.ids) == 13
    with pytest.raises(Refused, match=TOO_LONG):
        UnitEncoder(VOCAB, "conversation", 12)(exact)
    with pytest.raises(Refused, match=TOO_LONG):
        UnitEncoder(VOCAB, "pair", 13)(Pair(spoken(4), *spoken(0, 4)[1:], *spoken(0, 5)[1:]))


def test_a_unit_without_a_learnt_token_is_refused() -> None:
    with pytest.raises(Refused, match=NOTHING_TO_LEARN):
        UnitEncoder(VOCAB, "conversation", 48)(Conversation(spoken(4)))
