"""Writes few-shot prompts of pairs: after labels, or in the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema.pair_sets import LABEL_ENDS, GeneratedPairSet, PairSet
from data_prep.chat.messages import Message
from data_prep.decontamination.pair_files import TextPair, read_all_pairs
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab


def read_pairs(section: GeneratedPairSet) -> tuple[list[TextPair], list[TextPair]]:
    """Reads the set; returns the solved examples and the pairs to score.

    Raises:
        ValueError: when the file or a field is missing, or no pair is left to score.
    """
    pairs = read_all_pairs(section)
    if section.template == "labels":
        for number, pair in enumerate(pairs, start=1):
            if "\n" in "".join(pair.targets if section.source_of_lines else pair.passages):
                raise ValueError(
                    f"{section.called}: item {number} of {section.path} has a line break, which ends a "
                    f"{section.kind} after labels; set `normalize: spaces`, or correct the item"
                )
    return without_shots(section, pairs, section.shots)


def without_shots(section: PairSet, pairs: Sequence[TextPair], shots: int) -> tuple[list[TextPair], list[TextPair]]:
    """Divides pairs into the first `shots`, which are solved examples, and the at most `max_items` to score.

    Raises:
        ValueError: when no pair is left to score.
    """
    scored = list(pairs[shots:][: section.max_items])
    if not scored:
        raise ValueError(f"{section.called}: {section.path} has {len(pairs)} pairs, none left after {shots} shots")
    return list(pairs[:shots]), scored


def build_prompt(section: PairSet, shots: Sequence[TextPair], source: str | None) -> str:
    """Builds the prompt after labels: solved examples, then the source. The target ends at a line end.

    Without a source (None), the examples are targets alone.
    """
    asked, answered = written_label(section.source_label), written_label(section.target_label)

    def question(text: str) -> str:
        return "" if source is None else f"{asked}{text}\n"

    solved = "".join(f"{question(pair.source)}{answered}{pair.target}\n\n" for pair in shots)
    return f"{solved}{question(source or '')}{answered.removesuffix(' ')}"


def target_text(section: PairSet, target: str) -> str:
    """Returns a target as it follows the prompt: with the blank that stands between it and its label."""
    return f" {target}" if written_label(section.target_label).endswith(" ") else target


def written_label(label: str) -> str:
    """Returns a label as prompts write it: with `: `, unless it is empty or has an end of its own."""
    return label if label.endswith(LABEL_ENDS) or not label else f"{label}: "


def prompt_ids(section: GeneratedPairSet, shots: Sequence[TextPair], source: str, vocab: Vocab) -> list[int]:
    """Returns the ids of the prompt: after labels, or as a conversation whose answers are the targets.

    Raises:
        ValueError: for the chat template with a vocabulary that lacks its tokens.
    """
    if section.template == "labels":
        return vocab.prompt(build_prompt(section, shots, source))
    solved = [
        Message.of(role, text) for pair in shots for role, text in (("user", pair.source), ("assistant", pair.target))
    ]
    return ChatTemplate(vocab).prompt([*solved, Message.of("user", source)])


def fit_prompt(
    section: GeneratedPairSet, shots: Sequence[TextPair], source: str, vocab: Vocab, room: int
) -> tuple[list[int], int]:
    """Returns prompt ids of at most `room` tokens with as many of the last shots as fit, and the number of shots."""
    for dropped in range(len(shots) + 1):
        ids = prompt_ids(section, shots[dropped:], source, vocab)
        if len(ids) <= room:
            return ids, len(shots) - dropped
    return ids[-room:], 0


def is_cut(section: GeneratedPairSet, pair: TextPair, vocab: Vocab, room: int) -> bool:
    """Tells whether not even a prompt without shots has room."""
    return len(prompt_ids(section, [], pair.source, vocab)) > room
