"""Defines `train.objective`: what a stage of training makes better, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from configs.schema.chat import Unit
from configs.schema.section import Custom, Section


class Supervised(Section):
    """Supervised fine-tuning: the next token of the assistant's answers (Ouyang et al., arXiv:2203.02155)."""

    kind: Literal["sft"]
    train_on: Literal["all", "last"] = Field(
        "all", description="Turns of the assistant that are learnt: all, or the last of each conversation."
    )


class MaskedDiffusion(Section):
    """Masked diffusion: text predicted in any order (MDLM, arXiv:2406.07524). It implies `model.causal: false`."""

    kind: Literal["masked_diffusion"]
    validation_draws: int = Field(
        4, ge=1, description="Draws of hidden tokens for each window of validation; the bound is their mean."
    )


class RewardModelling(Section):
    """A reward model, trained on preference pairs (Bradley and Terry 1952; arXiv:2203.02155)."""

    kind: Literal["reward"]
    center: float = Field(
        0.0, ge=0, description="Weight of the squared sum of both rewards, which keeps them near 0 (arXiv:2312.09244)."
    )
    margin: bool = Field(
        False, description="Subtract the pair's `margin` from the difference of rewards (arXiv:2307.09288)."
    )


class Preference(Section):
    """Preference optimisation without a reward model: DPO (arXiv:2305.18290) and its kin."""

    kind: Literal["dpo"]
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "simpo", "orpo"] = Field(
        "sigmoid",
        description="sigmoid: DPO. ipo: arXiv:2310.12036. hinge: SLiC, arXiv:2305.10425. robust: arXiv:2403.00409. "
        "apo_zero: arXiv:2408.06266. simpo: arXiv:2405.14734. orpo: arXiv:2403.07691. simpo and orpo need no "
        "reference.",
    )
    beta: float = Field(
        0.1, gt=0, description="Strength of the pull towards the reference; of simpo and orpo the scale."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Probability that a pair is the wrong way round (sigmoid and robust)."
    )
    gamma: float = Field(0.5, ge=0, description="Target margin of simpo, as a multiple of beta.")
    sft_weight: float = Field(0.0, ge=0, description="Weight of the mean nats of the chosen answer, added to the loss.")

    @property
    def needs_reference(self) -> bool:
        """Tells whether the loss compares with the model that training started from."""
        return self.loss not in ("simpo", "orpo")


class LengthReward(Section):
    """A reward for short answers."""

    weight: float = Field(description="Weight in the sum of rewards.")
    tokens: int = Field(ge=1, description="Answers of this length or longer get 0, an empty one 1, linear between.")


class ModelReward(Section):
    """The score of a reward model."""

    stage: str = Field(description="Name of the stage that trained it.")
    weight: float = Field(1.0, description="Weight in the sum of rewards.")


class CustomReward(Custom):
    """A function `(text, reference) -> float | Reward` in a file (docs/custom-code.md)."""

    weight: float = Field(1.0, description="Weight in the sum of rewards.")
    seconds: float = Field(10.0, gt=0, description="Longest time for one answer; longer stops the run.")


class Rewards(Section):
    """What an answer is worth: the weighted sum of these."""

    exact_answer: float = Field(
        0.0,
        description="Weight of 1 for an answer whose last `#### x` equals the reference as a number or text, else 0.",
    )
    format: float = Field(0.0, description="Weight of 1 for exactly one `####`, in the last line, else 0.")
    length: LengthReward | None = Field(None, description="A reward for short answers.")
    model: ModelReward | None = Field(None, description="The score of a reward model.")
    custom: list[CustomReward] = Field([], description="Functions of the user.")

    @model_validator(mode="after")
    def _some(self) -> Rewards:
        if not (self.exact_answer or self.format or self.length or self.model or self.custom):
            raise ValueError("name at least one reward, such as {exact_answer: 1.0}")
        return self


class Rollout(Section):
    """How answers are drawn in training."""

    prompts: int = Field(32, ge=1, description="Prompts per rollout, over all ranks.")
    samples: int = Field(8, ge=1, description="Answers per prompt: a group.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens; the context may end it earlier.")
    temperature: float = Field(1.0, gt=0, description="Logits are divided by it, in sampling and in the loss.")
    updates: int = Field(1, ge=1, description="Optimizer steps per rollout; `checkpoint.every` must be a multiple.")
    passes: int = Field(
        1, ge=1, description="How often an answer is trained on; `updates` must be a multiple, and divides the answers."
    )
    truncated: Literal["mask", "keep"] = Field(
        "mask", description="Answers without an end. mask: leave them out of loss and count. keep: they count."
    )
    rows: int | None = Field(None, ge=1, description="Answers decoded at a time on a rank; null: up to 64.")

    @property
    def rows_per_step(self) -> int:
        """Answers that each optimizer step trains on."""
        return self.prompts * self.samples * self.passes // self.updates

    @model_validator(mode="after")
    def _steps_share_answers(self) -> Rollout:
        if self.updates % self.passes:
            raise ValueError(
                f"updates {self.updates} is no multiple of passes {self.passes}: each pass is a whole number of steps"
            )
        steps, answers = self.updates // self.passes, self.prompts * self.samples
        if answers % steps:
            raise ValueError(
                f"{answers} answers (prompts x samples) cannot be shared by the {steps} steps of a pass; make it a "
                f"multiple of {steps}"
            )
        return self


class Divergence(Section):
    """The penalty for leaving the model that training started from (Kullback-Leibler)."""

    coefficient: float = Field(0.0, ge=0, description="Strength; 0: none, and no reference is kept.")
    measure: bool = Field(
        False,
        description="Measure it at strength 0 too, as `train/kl`: one pass of the reference over each rollout.",
    )
    where: Literal["reward", "loss"] = Field(
        "reward",
        description="reward: subtract it from the reward, unbiased. loss: add it to the loss (arXiv:2402.03300).",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Estimator of a token's divergence (Schulman 2020). `reward` takes k1."
    )

    @property
    def compares(self) -> bool:
        """Tells whether the model that training started from is kept beside the policy."""
        return self.measure or self.coefficient > 0

    @model_validator(mode="after")
    def _unbiased_in_reward(self) -> Divergence:
        if self.where == "reward" and self.estimator != "k1":
            raise ValueError(f"where: reward takes estimator k1, not {self.estimator}; use k1, or where: loss")
        return self


Clip = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class _Reinforcement(Section):
    rewards: Rewards
    rollout: Rollout = Rollout()
    clip: Clip = Field([0.2, 0.28], description="How far the probability ratio may fall and rise (arXiv:2503.14476).")
    kl: Divergence = Divergence()


class GroupPolicy(_Reinforcement):
    """Policy gradient with a baseline from other answers: GRPO (arXiv:2402.03300), RLOO (arXiv:2402.14740)."""

    kind: Literal["grpo", "rloo", "reinforce"]
    normalise: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo",
        description="What the loss is a mean over. dapo: tokens (arXiv:2503.14476). grpo: answers, each over its own "
        "tokens. dr_grpo: answers times `max_new_tokens` (arXiv:2503.20783).",
    )
    scale: Literal["none", "group", "batch"] = Field(
        "none", description="Standard deviation that advantages are divided by."
    )

    @model_validator(mode="after")
    def _others_to_compare_with(self) -> GroupPolicy:
        if self.kind != "reinforce" and self.rollout.samples < 2:
            raise ValueError(
                f"kind {self.kind} compares the answers to one prompt, so rollout.samples must be 2 or more; raise it, "
                "or use kind reinforce"
            )
        if self.kind == "reinforce" and self.scale == "group":
            raise ValueError(
                "kind reinforce compares with all answers, so equal answers of a group would be divided "
                "by a deviation of 0; use scale batch or none, or kind grpo"
            )
        return self


class ProximalPolicy(_Reinforcement):
    """PPO with a critic and generalised advantage estimation (arXiv:1707.06347, arXiv:1506.02438)."""

    kind: Literal["ppo"]
    critic: Literal["separate", "shared"] = Field(
        "separate", description="A model of its own, or a head on the policy."
    )
    critic_from: str | None = Field(None, description="Stage whose weights the critic starts from; null: the policy's.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of the advantage estimate.")
    value_coefficient: float = Field(0.5, ge=0, description="Weight of the critic's loss.")
    value_clip: float | None = Field(0.2, gt=0, description="How far a value may move per rollout; null: no limit.")
    whiten: bool = Field(True, description="Give advantages mean 0 and deviation 1 over the whole batch.")


def _tag(value: Any) -> str:
    kind = value.get("kind", "custom") if isinstance(value, dict) else getattr(value, "kind", "custom")
    return {"rloo": "grpo", "reinforce": "grpo"}.get(kind, kind) if isinstance(kind, str) else "custom"


Objective = Annotated[
    Annotated[Custom, Tag("custom")]
    | Annotated[Supervised, Tag("sft")]
    | Annotated[MaskedDiffusion, Tag("masked_diffusion")]
    | Annotated[RewardModelling, Tag("reward")]
    | Annotated[Preference, Tag("dpo")]
    | Annotated[GroupPolicy, Tag("grpo")]
    | Annotated[ProximalPolicy, Tag("ppo")],
    Discriminator(_tag),
]
Reinforcement = GroupPolicy | ProximalPolicy


def unit_of(objective: Objective | None) -> Unit:
    """What an objective reads, and data preparation must have made."""
    if isinstance(objective, Supervised):
        return "conversation"
    if isinstance(objective, RewardModelling | Preference):
        return "pair"
    return "prompt" if isinstance(objective, GroupPolicy | ProximalPolicy) else "document"


def rows_per_unit(objective: Objective | None) -> int:
    """Rows of batches that one unit gives: two of a pair; of a prompt its samples, in each pass over them."""
    if isinstance(objective, GroupPolicy | ProximalPolicy):
        return objective.rollout.samples * objective.rollout.passes
    return 2 if unit_of(objective) == "pair" else 1
