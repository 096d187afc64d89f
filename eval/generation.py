"""Text completion for scores and samples, on top of the model's own generation."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.vocab import Vocab
from eval.scoring import Report
from pretrain.generate import generate, generate_batch
from pretrain.model import Transformer


def stop_ids(vocab: Vocab, stops: Sequence[str]) -> set[int]:
    """Ids after which a completion is over: the end of text, and every token in which a whole stop string stands."""
    pieces = ((token, vocab.decode([token])) for token in range(vocab.size)) if stops else ()
    return {vocab.eod_id} | {token for token, text in pieces if any(stop in text for stop in stops)}


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


def complete(
    model: Transformer,
    vocab: Vocab,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
    batch_size: int,
    report: Report | None = None,
) -> list[str]:
    """Greedy completions of prompts (token ids), each cut at the end of text or the first stop string.

    A stop string that no single token contains does not end generation early, only the text.
    """
    ends = stop_ids(vocab, [stop for stop in stops if stop])
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        chosen = [prompts[index] for index in indices]
        outputs = generate_batch(model, chosen, max_new_tokens, stop=ends, vocab_size=vocab.size)
        for index, output in zip(indices, outputs, strict=True):
            texts[index] = cut_at(vocab.decode(output), stops)
        if report is not None:
            report(start + len(indices), total=len(prompts))
    return texts


def sample(
    model: Transformer,
    vocab: Vocab,
    prompt: list[int],
    max_new_tokens: int,
    stops: Sequence[str],
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """One random continuation of a prompt (token ids), cut at the end of text or the first stop string."""
    ends = stop_ids(vocab, stops)
    tokens = generate(
        model, prompt, max_new_tokens, temperature, top_k, top_p, stop=ends, seed=seed, vocab_size=vocab.size
    )
    return cut_at(vocab.decode(tokens), stops)
