"""Scores texts with a trained reward model, as they are scored in its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from configs.schema.objectives import RewardModelling
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import CheckpointInfo, newest
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import REWARD_HEAD
from pretrain.objectives.reward_modelling import RewardModel


class RewardScorer:
    """A frozen reward model. A text's score does not depend on the texts beside it, on their order or on padding."""

    def __init__(self, model: RewardModel, vocab: Vocab, rows: int = 32) -> None:
        """`rows`: texts in the model at a time."""
        self._model, self._rows = model.eval().requires_grad_(False), rows
        self._template, self.context = ChatTemplate(vocab), model.model.config.context_length

    @classmethod
    def open(cls, run: Path, device: torch.device | str = "cpu", rows: int = 32) -> RewardScorer:
        """The newest checkpoint of a run that trained a reward model, in fp32.

        Raises:
            ValueError: when there is none, it is damaged, or it is no reward model.
        """
        info = newest(run)
        if info is None:
            raise ValueError(f"{run} has no whole checkpoint of a reward model; train it first")
        return cls(load_reward_model(info).to(device), Vocab.load(info.tokenizer), rows)

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Scores of texts (ids from the first `bos` to the last `<|end|>`), read at the last id of each.

        Raises:
            ValueError: for an empty text, or one that is longer than the model's context.
        """
        if wrong := [len(text) for text in texts if not 0 < len(text) <= self.context]:
            raise ValueError(f"a text of {wrong[0]:,} tokens; the reward model reads 1 to {self.context:,}")
        scores = [0.0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(texts), self._rows):
            chosen = by_length[start : start + self._rows]
            for number, score in zip(chosen, self._scores([texts[number] for number in chosen]), strict=True):
                scores[number] = score
        return scores

    def conversation(self, messages: Sequence[Message]) -> float:
        """The score of a conversation that ends with an answer."""
        return self([self._template.render(messages).ids])[0]

    @torch.no_grad()
    def _scores(self, texts: list[Sequence[int]]) -> list[float]:
        device, width = self._model.reward_head.weight.device, max(map(len, texts))
        tokens = torch.full((len(texts), width), self._template.pad)
        places = torch.zeros(len(texts), width)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
            places[row, len(text) - 1] = 1
        found: list[float] = self._model.scores(tokens.to(device), places.to(device)).tolist()
        return found


def load_reward_model(info: CheckpointInfo) -> RewardModel:
    """The reward model of a checkpoint in evaluation mode, fp32, on the CPU.

    Raises:
        ValueError: when the checkpoint is damaged, or holds no reward model.
    """
    if REWARD_HEAD not in info.shapes:
        raise ValueError(f"{info.directory} holds no reward model; name a stage of kind `reward`")
    settings = info.recipe.train.objective
    assert isinstance(settings, RewardModelling)
    rows, weights = open_weights(info)
    with torch.device("meta"):
        transformer = Transformer(info.recipe.model, rows)
    transformer.materialize("cpu")
    model = RewardModel(transformer, settings)
    with torch.no_grad():
        for name, parameter in model.named_weights():
            parameter.copy_(weights.whole(name, parameter.shape))
    return model.eval()
