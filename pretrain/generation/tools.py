"""Lets an assistant use tools while it answers: the calculator.

When the model has written a call, `<|call|>12*4<|/call|>`, the player is told what must follow:
`<|result|>48<|/result|>`. These tokens are forced, not drawn. A call that the tool cannot answer has no result, and the
model goes on by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.chat.calculator import calculate
from data_prep.chat.messages import Message, MessagePart
from data_prep.chat.tool_messages import CALCULATOR
from data_prep.tokens.chat_template import ChatTemplate
from pretrain.generation.player import Forced


class CalculatorTool:
    """Answers the calls of an assistant by the calculator."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def forced(self, ids: list[int]) -> list[int] | None:
        """Returns the tokens of the result where an answer's last token ends a call; else None.

        Args:
            ids: the tokens of the answer so far.
        """
        template = self._template
        if not ids or ids[-1] != template.call_end:
            return None
        start = next((place for place in range(len(ids) - 2, -1, -1) if ids[place] == template.call), None)
        if start is None:
            return None
        result = calculate(template.vocab.decode(ids[start + 1 : -1]))
        if result is None:
            return None
        said = Message("assistant", (MessagePart("result", result),))
        return template.answer(said).ids[:-1]  # as training reads it, without the end of the answer


def forced_by(tools: Sequence[str], template: ChatTemplate) -> Forced | None:
    """Returns what a `Request` takes as `forced` for these tools of a recipe (`chat.tools`); None without any."""
    return CalculatorTool(template).forced if CALCULATOR in tools else None
