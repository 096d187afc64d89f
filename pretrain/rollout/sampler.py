"""Draws answers to prompts from the policy, the same ones at any number of ranks and after any interruption.

The token at a place of an answer is a function of the weights and of (seed, slot of the prompt, sample, place):
`pretrain.generation.noise`. Answers are decoded in blocks that depend on no rank, and a rank decodes whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from configs.schema.objectives import Rollout
from data_prep.tokens.chat_template import ChatTemplate
from pretrain.batches.prompt_batches import PromptUnit
from pretrain.generation.noise import noise_keys
from pretrain.generation.player import Player, Request
from pretrain.generation.sampling import Sampling
from pretrain.model.transformer import Transformer
from pretrain.rollout.drawn import Drawn, blocks

MOST_ROWS = 64  # decoded at a time, where the recipe does not say
Tool = Callable[[list[int]], Sequence[int] | None]


class RolloutSampler:
    """Draws the answers of rollouts, by the settings of a recipe."""

    def __init__(
        self, template: ChatTemplate, settings: Rollout, seed: int, tool: Tool | None = None, greedy: bool = False
    ) -> None:
        """`tool`: told the ids of an answer so far, gives those that must follow; see `Request.forced`.

        The policy's own distribution is drawn from: nothing is cut off it, because the loss knows of no cut.
        """
        self._settings, self._seed, self._tool = settings, seed, tool
        temperature = 0.0 if greedy else settings.temperature
        self._sampling = Sampling(temperature, stop=template.end_ids, vocab_size=template.vocab.size)

    def draw(
        self, model: Transformer, prompts: Sequence[PromptUnit], rank: int = 0, ranks: int = 1
    ) -> dict[int, Drawn]:
        """This rank's answers by their number, which is prompt x samples + sample.

        Raises:
            ValueError: for a prompt that leaves no room for an answer, or a model without finite probabilities.
        """
        settings = self._settings
        cut = blocks([len(prompt.ids) for prompt in prompts], settings.samples, settings.rows or MOST_ROWS)
        drawn: dict[int, Drawn] = {}
        for block in cut[rank::ranks]:
            samples = {
                prompt: [sample for _, sample in pairs] for prompt, pairs in groupby(block, key=lambda pair: pair[0])
            }
            requests = [self._request(model, prompts[prompt], own) for prompt, own in samples.items()]
            answers = Player(model).run(requests)
            for (prompt, sample), answer in zip(block, answers, strict=True):
                drawn[prompt * settings.samples + sample] = Drawn(
                    prompt, sample, answer.ids, answer.log_probs, answer.forced, answer.finish
                )
        return drawn

    def _request(self, model: Transformer, prompt: PromptUnit, samples: Sequence[int]) -> Request:
        keys = noise_keys(self._seed, "rollout", [prompt.slot] * len(samples), samples)
        longest = longest_answer(model.config.context_length, prompt, self._settings.max_new_tokens)
        return Request(prompt.ids, longest, self._sampling, len(samples), keys.tolist(), forced=self._tool)


def longest_answer(context: int, prompt: PromptUnit, max_new_tokens: int) -> int:
    """Tokens that an answer may have: the model reads prompt and answer within one context, and not the last token.

    Raises:
        ValueError: when the prompt leaves no room.
    """
    room = context - len(prompt.ids) + 1
    if room < 1:
        raise ValueError(
            f"prompt {prompt.id} of source `{prompt.source}` has {len(prompt.ids)} tokens, which leaves no room for an "
            f"answer in model.context_length {context}; raise it, or drop long prompts"
        )
    return min(max_new_tokens, room)
