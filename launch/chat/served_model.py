"""Opens the model of a run or a stage, and says what it reads for a conversation or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.files import read_object
from configs.schema.objectives import RewardModelling, Supervised, unit_of
from configs.schema.reading_direction import needs_causal
from configs.schema.recipe import Recipe
from data_prep.chat.messages import Message
from data_prep.tokens.chat_template import JINJA, ChatTemplate
from data_prep.tokens.vocab import CONFIG_NAME, Vocab
from launch.chat.answers import AnswerText
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.manifest import IMPORTED, CheckpointInfo

if TYPE_CHECKING:
    from pretrain.model.transformer import Transformer


class TooLong(ValueError):
    """A prompt that leaves no room for an answer."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens, and your messages have {tokens}. "
            "Shorten them, so that room is left for the answer."
        )
        self.tokens = tokens


@dataclass(frozen=True)
class Draws:
    """How the tokens of answers are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k, top_p: only the most likely tokens: so many, or until their probabilities sum to `top_p`.
        max_new_tokens: longest answer.
        seed: equal seeds give equal answers, whatever else is being decoded.
        slot: number of the prompt among those of a request.
        top_log_probs: how many of the most likely tokens to report at each place; None: no log-probabilities at all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 1
    seed: int = 0
    slot: int = 0
    top_log_probs: int | None = None


@dataclass(frozen=True)
class ServedModel:
    """A model with what is needed to talk to it.

    Attributes:
        name: of the recipe, and of the stage after a point.
        template: how conversations are written; None: the model continues text, and was not taught to answer.
        system: text of the system message for conversations that have none.
        tools: names of tools that the model may call.
        fingerprint: of the checkpoint.
    """

    name: str
    vocab: Vocab
    template: ChatTemplate | None
    model: Transformer
    context_length: int
    system: str | None = None
    tools: Sequence[str] = ()
    fingerprint: str = ""
    step: int = 0

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of a text to be continued, as `replica sample` gives them.

        Raises:
            TooLong: when it leaves no room.
        """
        return self.checked(self.vocab.prompt(text))

    def checked(self, ids: list[int]) -> list[int]:
        """Returns the ids of a prompt; raises `TooLong` when they leave no room for a token."""
        if len(ids) >= self.context_length:
            raise TooLong(len(ids), self.context_length)
        return ids

    def chat_prompt(self, messages: Sequence[Message], room: int | None = None) -> tuple[list[int], int]:
        """Token ids that the answer to a conversation follows, and the number of messages that were left out.

        Args:
            messages: perhaps a system message, then questions and answers by turns, a question last.
            room: None: leave nothing out. Else the oldest turns, each a question with its answer, are left out until so
                many tokens are free for the answer, or the last question is left.

        Raises:
            TooLong: when what is left has no room for an answer.
        """
        assert self.template is not None
        first = 1 if messages and messages[0].role == "system" else 0
        head, turns, dropped = messages[:first], messages[first:], 0
        if room is not None:
            # Each message is encoded once: a client may send a thousand. The ids of the parts are those of the whole.
            lengths = [len(self.template.render([turn]).ids) - 1 for turn in turns]
            total = len(self.template.prompt(head)) + sum(lengths)
            while total + room > self.context_length and dropped + 1 < len(turns):
                total -= sum(lengths[dropped : dropped + 2])
                dropped += 2
        return self.checked(self.template.prompt([*head, *turns[dropped:]])), dropped

    @property
    def answer_room(self) -> int:
        """Tokens that are kept free for an answer when old turns have to leave."""
        return max(1, self.context_length // 4)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer. Nobody's turn but the assistant's is written: a role's marker ends it too."""
        if self.template is None:
            return frozenset({self.vocab.eod_id, *self.vocab.end_ids})
        return self.template.end_ids | frozenset(self.template.role_ids.values())

    def player(self, compiled_rows: int | None = None) -> Any:
        """Returns a new engine that decodes answers of this model; with a compiled step, at most so many at a time."""
        from pretrain.generation import decode
        from pretrain.generation.player import Player

        if compiled_rows is None:
            return Player(self.model)
        return Player(self.model, compiled_rows, decode.compiled)

    def request(self, prompt: Sequence[int], draws: Draws, samples: int = 1) -> Any:
        """Returns what the player is asked for: `samples` answers to a prompt."""
        from pretrain.generation.noise import noise_keys
        from pretrain.generation.player import Request
        from pretrain.generation.sampling import Sampling
        from pretrain.generation.tools import forced_by

        sampling = Sampling(draws.temperature, draws.top_k, draws.top_p, 0, self.stop_ids, self.vocab.size)
        keys = noise_keys(draws.seed, "chat", [draws.slot] * samples, range(samples))
        return Request(
            prompt,
            draws.max_new_tokens,
            sampling,
            samples,
            keys.tolist(),
            forced=forced_by(self.tools, self.template) if self.template else None,
            top_log_probs=draws.top_log_probs,
        )

    def answer_text(self, stops: Sequence[str] = (), sample: int = 0, context: Sequence[int] = ()) -> AnswerText:
        """Returns what turns the tokens of one answer into text."""
        return AnswerText(self.vocab, self.template, stops, sample, context)


def answering_checkpoint(run: Path, choice: Choice) -> CheckpointInfo:
    """Returns a checkpoint whose model can write answers.

    Raises:
        ValueError: when there is none, it is a reward model, which scores answers and writes none, or not causal.
    """
    checkpoint = choose_checkpoint(run, choice)
    recipe = checkpoint.recipe
    if isinstance(recipe.train.objective, RewardModelling):
        raise ValueError(
            f"{recipe.name} is a reward model: it scores answers and writes none; name another stage, as in RUN:sft"
        )
    needs_causal(recipe.model, "writing answers token by token")
    return checkpoint


def open_served_model(run: Path, choice: Choice) -> ServedModel:
    """Loads the model of a checkpoint; raises `ValueError` as `answering_checkpoint`."""
    checkpoint = answering_checkpoint(run, choice)
    recipe = checkpoint.recipe
    vocab = Vocab.load(checkpoint.tokenizer)
    template = ChatTemplate(vocab) if answers(recipe, checkpoint) and ChatTemplate.fits(vocab) else None
    import torch  # takes seconds

    from pretrain.checkpoint.load_weights import load_weights

    model = load_weights(checkpoint)
    return ServedModel(
        recipe.name,
        vocab,
        template,
        model.to("cuda") if torch.cuda.is_available() else model,
        recipe.model.context_length,
        recipe.chat.system,
        tuple(recipe.chat.tools),
        checkpoint.fingerprint,
        checkpoint.step,
    )


def answers(recipe: Recipe, checkpoint: CheckpointInfo) -> bool:
    """Tells whether a model was taught to answer: by a stage here, or before it was exported and imported again."""
    objective = recipe.train.objective
    if isinstance(objective, Supervised) or unit_of(objective) != "document":
        return True
    config = checkpoint.tokenizer / CONFIG_NAME
    imported = checkpoint.data_fingerprint.startswith(IMPORTED) and config.is_file()
    return imported and read_object(config).get("chat_template") == JINJA
