"""Holds what every score of an assistant or reward model needs besides its set and model."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema.chat import Chat
from data_prep.tokens.chat_template import ChatTemplate


@dataclass(frozen=True)
class ChatSetting:
    """How conversations are written down and scored.

    Attributes:
        template: of the model's vocabulary.
        chat: the recipe's section: system text and tools.
        seed: of the noise that answers are drawn by.
        bootstrap_samples: number of resamples of each interval.
    """

    template: ChatTemplate
    chat: Chat
    seed: int
    bootstrap_samples: int
