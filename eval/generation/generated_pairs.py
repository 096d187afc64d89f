"""Generates the targets of pair sets greedily, after labels or in the chat template."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from configs.schema.pair_sets import GeneratedPairSet
from data_prep.decontamination.evaluation_sets import set_key
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from eval.generation.completions import Stops, complete
from eval.items.item import shared_seconds
from eval.reading.reader import Reader
from eval.reading.windows import Report


def prompt_room(section: GeneratedPairSet, reader: Reader) -> int:
    """Returns the most tokens of a prompt.

    Raises:
        ValueError: when `max_new_tokens` leaves no room.
    """
    room = reader.context_length - section.max_new_tokens
    if room < 2:
        raise ValueError(
            f"{section.called}: max_new_tokens {section.max_new_tokens} leaves no room for a prompt in "
            f"model.context_length {reader.context_length}; lower it"
        )
    return room


def generated_texts(
    section: GeneratedPairSet, reader: Reader, vocab: Vocab, prompts: Sequence[list[int]], report: Report | None
) -> tuple[list[str], list[float]]:
    """Generates a text for each prompt (token ids); returns the texts and the seconds of each.

    A text ends at a line end after labels, and with the message in the chat template.
    """
    chat = section.template == "chat"
    stops = Stops(vocab, [], ChatTemplate(vocab).end_ids) if chat else Stops(vocab, ["\n"])
    began = time.perf_counter()
    texts = complete(reader, stops, prompts, section.max_new_tokens, report)
    took = shared_seconds(time.perf_counter() - began, [1 + len(text) for text in texts])
    return [text.strip() for text in texts], took


def generation_settings(section: GeneratedPairSet, shots: Sequence[TextPair]) -> dict[str, Any]:
    """Returns the settings that results name, so that scores of other settings are not compared."""
    chat = section.template == "chat"
    return {
        "normalize": section.normalize,
        "shots": section.shots,
        "new tokens": section.max_new_tokens,
        "labels": "chat template" if chat else f"{section.source_label}, {section.target_label}",
        "examples": set_key((pair.source, pair.target) for pair in shots)[:8],
    }
