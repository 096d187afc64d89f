"""Puts reinforcement learning together: prompts, rollouts, rewards, the policy's loss and its validation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from configs.common.layout import TOKENIZER
from configs.common.notices import say
from configs.schema.objectives import ProximalPolicy, Reinforcement
from configs.schema.recipe import Recipe
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab import Vocab
from pretrain.batches.prompt_batches import PromptBatch, PromptBatches
from pretrain.batches.source import Batch
from pretrain.batches.trace import SpansOf, TracedSpan
from pretrain.checkpoint.base_model import base_fingerprints
from pretrain.checkpoint.frozen_model import FrozenModel
from pretrain.checkpoint.manifest import newest
from pretrain.engine.engine import Engine
from pretrain.engine.loss_module import LossModule
from pretrain.generation.tools import forced_by
from pretrain.interchange.warm_start import weights_of
from pretrain.model.transformer import Transformer
from pretrain.model.weight_names import REWARD_HEAD
from pretrain.objectives.critic import CRITIC_BODY, CRITIC_HEAD, ProximalLoss
from pretrain.objectives.objective import NothingToLearn, Objective, Read, Validate
from pretrain.objectives.policy import PolicyLoss
from pretrain.objectives.reward_scorer import RewardScorer
from pretrain.rewards.registry import ModelScorer, Scorer, make_rewards
from pretrain.rollout.experience import (
    ADVANTAGE,
    OLD_VALUE,
    REFERENCE,
    RETURN,
    SAMPLED,
    STEPS_WITHOUT_VARIANCE,
    TOKEN_SHARE,
    EvaluateReference,
    Experience,
)
from pretrain.rollout.prompt_validation import PromptValidator
from pretrain.rollout.sampler import RolloutSampler

# Mean difference of log-probabilities between sampler and trainer that rounding explains. Beyond it a warning is given,
# beyond ten times it training stops.
GAP_FP32, GAP_BF16, GAP_STOPS = 1e-4, 0.02, 10.0
MOST_STEPS_WITHOUT_VARIANCE = 20
_FIRST_CHARACTERS = 60


class PolicyOptimisation(Objective):
    """GRPO, RLOO, REINFORCE and PPO: answers are drawn, rewarded, and made more or less likely."""

    watched = None  # the loss hovers round 0, whatever happens
    rolls_out = True

    def __init__(self, recipe: Recipe, settings: Reinforcement) -> None:
        super().__init__(recipe)
        self._settings = settings
        self._module: PolicyLoss | None = None
        self._reference: EvaluateReference | None = None
        self._scorer: Scorer | None = None
        self._experience: Experience | None = None
        self._warned = self._is_bf16 = self._is_main = False

    def module(self, model: Transformer) -> LossModule:
        kind = ProximalLoss if isinstance(self._settings, ProximalPolicy) else PolicyLoss
        self._module = kind(model, self.recipe.train.loss_chunk, self._settings)  # type: ignore[arg-type]
        return self._module

    def initial(self, read: Read) -> Read:
        """The critic starts from the policy's weights, or from those of the reward model that the recipe names."""
        settings = self._settings
        if not isinstance(settings, ProximalPolicy):
            return read
        body, head = read, None
        if settings.critic_from is not None:
            run = Path(self.recipe.parents[settings.critic_from])
            vocab = Vocab.load(self.recipe.data_directory / TOKENIZER)
            body = weights_of(run, self.recipe.model, vocab, read, "train.objective.critic_from")
            info = newest(run)
            head = body(REWARD_HEAD) if info is not None and REWARD_HEAD in info.shapes else None

        def with_critic(name: str) -> Tensor:
            if name == CRITIC_HEAD and head is not None:
                return head
            return body(name.removeprefix(CRITIC_BODY)) if name.startswith(CRITIC_BODY) else read(name)

        return with_critic

    def prepare(self, data: DataManifest, engine: Engine, base: str | None, set_base: Callable[[], None]) -> None:
        """Refuses to go on where `train.init_from` no longer holds the weights that answers are compared with.

        Raises:
            ValueError: on every rank.
        """
        path = self.recipe.train.init_from
        if not self._settings.kl.compares or path is None or base is None:
            return
        if base not in base_fingerprints(Path(path))[:1]:
            raise ValueError(
                f"train.init_from {path} holds other weights than this run started from, and `kl` compares "
                "with those; name the directory of that checkpoint, or start a new run with another --out"
            )

    def batches(self, data: DataManifest, engine: Engine) -> PromptBatches:
        template = ChatTemplate(data.vocab)
        assert self._module is not None
        self._is_bf16, self._is_main = engine.precision != "fp32", engine.is_main
        self._module.vocab_size = data.vocab_size
        if self._scorer is None:
            self._scorer = make_rewards(self._settings.rewards, self._reward_model(engine))
            self._reference = self._frozen_policy(data, engine)
        sampler = self._sampler(template)
        # Anew: after a rewind, answers that were drawn are not those of the weights any more.
        self._experience = Experience(
            self.recipe, template, sampler, self._scorer, self._module.per_target, self._reference
        )
        return PromptBatches(self.recipe, data)

    def made_up(self, batch: Batch) -> Batch:
        """Answers of drawn tokens, all a little better than expected."""
        assert self._module is not None
        shape, known = batch.weights.shape, self._module.vocab_size
        columns = {name: torch.zeros(shape) for name in (SAMPLED, REFERENCE, OLD_VALUE)}
        columns |= {ADVANTAGE: torch.ones(shape), RETURN: torch.ones(shape), TOKEN_SHARE: torch.ones(shape[0])}
        if known is not None:  # padding of the vocabulary is never drawn: it has no probability
            batch = replace(batch, tokens=batch.tokens % known, targets=batch.targets % known)
        return replace(batch, columns=columns)

    def experience(self, engine: Engine, read: PromptBatch, step: int) -> Batch:
        """Draws answers where a rollout begins; see `pretrain.rollout.experience`.

        Raises:
            NothingToLearn: on every rank, when no answer was better than another for 20 steps.
        """
        assert self._experience is not None
        batch = self._experience(engine, read, step, self.state)
        steps = self.state[STEPS_WITHOUT_VARIANCE]
        if steps >= MOST_STEPS_WITHOUT_VARIANCE:
            found = batch.statistics
            raise NothingToLearn(
                f"for {steps} steps all answers to each prompt were worth the same (reward {found['reward']:g} on "
                f"average; {1 - found['stop_rate']:.0%} of the answers were cut), so nothing is learnt. Look at "
                f"{self.recipe.run_directory / 'rollouts'}. Then raise rollout.max_new_tokens or rollout.temperature, "
                "take easier or harder prompts, or give a finer reward"
            )
        return batch

    def check(self, step: int, loss: float, statistics: dict[str, float]) -> None:
        """Stops training where the trainer sees other probabilities than the sampler drew from.

        Raises:
            ValueError: when they differ by more than ten times what rounding explains.
        """
        gap, allowed = statistics["logp_gap"], GAP_BF16 if self._is_bf16 else GAP_FP32
        if gap <= allowed:
            return
        text = (
            f"step {step + 1}: log-probabilities of sampler and trainer differ by {gap:.2g} on average, where rounding "
            f"explains {allowed:g}. What is trained is not what was drawn from"
        )
        if gap > allowed * GAP_STOPS:
            raise ValueError(f"{text}. Set train.precision fp32 and train.compile false, and report it")
        if not self._warned:
            if self._is_main:
                say(f"{text}; watch train/logp_gap")
            self._warned = True

    def boundary(self, done: int) -> bool:
        """Between rollouts: a checkpoint then needs nothing of one."""
        return done % self._settings.rollout.updates == 0

    def validator(self, data: DataManifest, engine: Engine) -> Validate:
        template = ChatTemplate(data.vocab)
        assert self._scorer is not None
        return PromptValidator(self.recipe, data, template, self._sampler(template, greedy=True), self._scorer)

    def spans(self, data: DataManifest, batches: PromptBatches, ranks: int) -> SpansOf:
        def of_step(step: int, ranks: Collection[int]) -> Iterator[TracedSpan]:
            """All prompts of the rollout: which rank draws for which depends on their lengths."""
            for row, prompt in enumerate(batches.batch(step).prompts):
                words = " ".join(data.vocab.decode(prompt.ids).split())[:_FIRST_CHARACTERS]
                yield TracedSpan(row, prompt.id, prompt.source, 0, len(prompt.ids), words)

        return of_step

    # ---------------------------------------------------------------------------------------------------------- parts
    def _sampler(self, template: ChatTemplate, greedy: bool = False) -> RolloutSampler:
        settings = self._settings.rollout
        if greedy:
            settings = settings.model_copy(update={"samples": 1})
        return RolloutSampler(template, settings, self.recipe.seed, forced_by(self.recipe.chat.tools, template), greedy)

    def _reward_model(self, engine: Engine) -> ModelScorer | None:
        named = self._settings.rewards.model
        return None if named is None else RewardScorer.open(Path(self.recipe.parents[named.stage]), engine.device)

    def _frozen_policy(self, data: DataManifest, engine: Engine) -> EvaluateReference | None:
        """The model that training started from, where answers are compared with it."""
        if not self._settings.kl.compares:
            return None
        if self.recipe.train.init_from is None:
            raise ValueError(
                "`kl` compares with the model that training starts from; set train.init_from, or kl.coefficient 0 "
                "and no kl.measure"
            )
        frozen = FrozenModel.beside(engine, Path(self.recipe.train.init_from))
        assert self._module is not None
        if frozen.model.vocab_size < data.vocab_size:
            raise ValueError(
                f"{self.recipe.train.init_from} has {frozen.model.vocab_size} tokens and this data's vocabulary "
                f"{data.vocab_size}, so the model that training starts from cannot judge its answers; fine-tune it on "
                "conversations first (a stage of kind sft), or set kl.coefficient 0 and no kl.measure"
            )
        # Tokens that the checkpoint was not trained on begin here as they do in training; padding is not read.
        weights = dict(frozen.model.named_parameters())
        path, like = Path(self.recipe.train.init_from), lambda name: torch.zeros(weights[name].shape)
        start = weights_of(path, self.recipe.model, data.vocab, like, "train.init_from")
        with torch.no_grad():
            for name in weights.keys() & {"embed.weight", "lm_head.weight"}:
                weights[name].copy_(start(name))
        module = PolicyLoss(frozen.model, self.recipe.train.loss_chunk, self._settings).eval()
        module.vocab_size = data.vocab_size
        return partial(frozen.evaluate, take=module.per_target)
