"""Turns prompts into a batch to train on: answers are drawn, rewarded, valued, recorded, and laid out as rows.

A rollout feeds `rollout.updates` steps. Training is saved between rollouts only, so a checkpoint needs nothing of one:
weights, step and seed draw the same answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.schema.objectives import GroupPolicy, ProximalPolicy
from configs.schema.recipe import Recipe
from data_prep.tokens.chat_template import ChatTemplate
from pretrain.batches.prompt_batches import PromptBatch, PromptUnit
from pretrain.batches.source import Batch
from pretrain.engine.engine import Engine
from pretrain.rewards.completion import Completion
from pretrain.rewards.registry import Scorer, Scores
from pretrain.rollout.drawn import Drawn, counts_in_loss, deal, loss_weights, parts, training_rows
from pretrain.rollout.rollout_record import RecordedAnswer, write_rollout
from pretrain.rollout.sampler import RolloutSampler
from pretrain.rollout.valuation import Evaluated, Valued, drawn_mask, rollout_statistics, sampler_gap, value

STEPS_WITHOUT_VARIANCE = "steps_without_variance"  # in the state: steps until now whose answers were all alike
# Columns of a batch: all (B, T) but `token_share` (B,). What stands at targets that were not drawn is not read.
ADVANTAGE = "advantage"
SAMPLED = "sampled"  # the sampler's log-probabilities
OLD = "old"  # those of the training forward with the weights that drew; without the column: with the present ones
REFERENCE = "reference"  # those of the model that training started from
RETURN, OLD_VALUE = "return", "old_value"  # of PPO's critic
TOKEN_SHARE = "token_share"  # count / tokens: what turns a sum over tokens into one that `count` divides to their mean

# (K, B, T) of a batch: log-probabilities of its targets, and the critic's values where there is one.
PerTarget = Callable[..., Tensor]
# (1, B, T) of a batch: log-probabilities under the model that training started from.
EvaluateReference = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class _RolloutState:
    """The present rollout, the same on every rank."""

    number: int
    prompts: list[PromptUnit]
    answers: list[Drawn]
    plan: list[list[int]]  # the answers of each of its steps
    known: Evaluated
    valued: Valued
    statistics: dict[str, float]


class Experience:
    """Makes the batch of each step of a run; every rank calls it at every step."""

    def __init__(
        self,
        recipe: Recipe,
        template: ChatTemplate,
        sampler: RolloutSampler,
        scorer: Scorer,
        per_target: PerTarget,
        reference: EvaluateReference | None,
    ) -> None:
        """`per_target` and `reference` are of the policy and of the model it started from."""
        objective = recipe.train.objective
        assert isinstance(objective, GroupPolicy | ProximalPolicy)
        self._recipe, self._objective, self._settings = recipe, objective, objective.rollout
        self._template, self._sampler, self._scorer = template, sampler, scorer
        self._per_target, self._reference = per_target, reference
        self._present: _RolloutState | None = None

    def __call__(self, engine: Engine, read: PromptBatch, step: int, state: dict[str, Any]) -> Batch:
        """This rank's rows of `step` (from 0). What the next steps must know is kept in `state`, for checkpoints.

        Raises:
            ValueError: on every rank, for an answer that cannot be drawn or rewarded.
        """
        number, turn = divmod(step, self._settings.updates)
        if self._present is None or self._present.number != number:
            self._present = None  # memory
            self._present = self._roll_out(engine, read, number, step, state)
        return self._batch(engine, self._present, turn, read.fresh)

    # ---------------------------------------------------------------------------------------------------- one rollout
    def _roll_out(
        self, engine: Engine, read: PromptBatch, number: int, step: int, state: dict[str, Any]
    ) -> _RolloutState:
        answers, scores = self._drawn_and_scored(engine, read.prompts)
        settings = self._settings
        plan = parts(len(answers), settings.updates, settings.passes, f"{self._recipe.seed}/updates/{number}")
        first_pass = plan[: settings.updates // settings.passes]
        known = self._evaluated(engine, read.prompts, answers, first_pass)
        rewards = torch.tensor([score.total for score in scores], dtype=torch.float64)
        valued = value(self._objective, answers, rewards, settings.samples, known)
        statistics = rollout_statistics(answers, scores, valued)
        if known.log_probs is not None:  # later steps of the rollout have other weights than the sampler had
            statistics["logp_gap"] = sampler_gap(answers, known.log_probs)
        if engine.is_main:
            self._record(step + 1, read.prompts, answers, scores, valued)
        self._count_variance(rewards, valued, state)
        return _RolloutState(number, read.prompts, answers, plan, known, valued, statistics)

    def _drawn_and_scored(self, engine: Engine, prompts: list[PromptUnit]) -> tuple[list[Drawn], list[Scores]]:
        """All answers and their rewards, in the order of their numbers. What goes wrong on a rank is raised on all."""
        own: dict[int, tuple[Drawn, Scores]] = {}
        problem = ""
        try:
            with engine.reading() as model:
                drawn = self._sampler.draw(model, prompts, engine.rows.rank, engine.rows.count)
            # Outside: a reward model must not be computed in the autocast of the policy.
            scores = self._scorer([self._completion(prompts[one.prompt], one) for one in drawn.values()])
            own = dict(zip(drawn, zip(drawn.values(), scores, strict=True), strict=True))
        except ValueError as error:
            problem = str(error)
        gathered = engine.gather((problem, own))
        for problem, _ in gathered:
            if problem:
                raise ValueError(problem)
        found = {number: pair for _, part in gathered for number, pair in part.items()}
        ordered = [found[number] for number in range(len(found))]
        return [answer for answer, _ in ordered], [score for _, score in ordered]

    def _completion(self, prompt: PromptUnit, answer: Drawn) -> Completion:
        text = self._template.parse(answer.ids).text
        return Completion(text, prompt.reference, prompt.ids, answer.ids, answer.finish == "stop")

    def _evaluated(
        self, engine: Engine, prompts: list[PromptUnit], answers: list[Drawn], plan: list[list[int]]
    ) -> Evaluated:
        """Log-probabilities, the reference's and the critic's values, where the objective needs them."""
        with_critic = isinstance(self._objective, ProximalPolicy)
        in_reward = self._objective.kl.coefficient and self._objective.kl.where == "reward"
        own_needed = with_critic or bool(in_reward) or self._settings.updates > 1
        if not own_needed and self._reference is None:
            return Evaluated()
        width = drawn_mask(answers).shape[1]
        kept: dict[int, Tensor] = {}
        for part in plan:
            mine = deal(part, self._lengths(prompts, answers), engine.rows.count)[engine.rows.rank]
            batch = self._rows(prompts, answers, mine)
            columns = [engine.evaluate(batch, self._per_target)] if own_needed else []
            if self._reference is not None:
                columns.append(self._reference(batch))
            stacked = torch.cat(columns).float().cpu()
            for row, number in enumerate(mine):
                begin = len(prompts[answers[number].prompt].ids) - 1
                kept[number] = stacked[:, row, begin : begin + len(answers[number].ids)].clone()
        whole: dict[int, Tensor] = {}
        for share in engine.gather(kept):
            whole |= share
        names = (["log_probs"] if own_needed else []) + (["values"] if own_needed and with_critic else [])
        names += ["reference"] if self._reference is not None else []
        padded = torch.zeros(len(names), len(answers), width)
        for number, found in whole.items():
            padded[:, number, : found.shape[1]] = found
        return Evaluated(**dict(zip(names, padded, strict=True)))

    def _count_variance(self, rewards: Tensor, valued: Valued, state: dict[str, Any]) -> None:
        """Counts the steps for which no answer was better than another."""
        of_groups = isinstance(self._objective, GroupPolicy) and self._objective.kind != "reinforce"
        varies = valued.informative > 0 if of_groups else bool(rewards.max() > rewards.min())
        steps = state.get(STEPS_WITHOUT_VARIANCE, 0)
        state[STEPS_WITHOUT_VARIANCE] = 0 if varies else steps + self._settings.updates

    def _record(
        self, step: int, prompts: list[PromptUnit], answers: list[Drawn], scores: list[Scores], valued: Valued
    ) -> None:
        drawn = drawn_mask(answers)
        decode = self._template.vocab.decode
        rows = [
            RecordedAnswer(
                source=prompts[answer.prompt].source,
                document=prompts[answer.prompt].id,
                slot=prompts[answer.prompt].slot,
                sample=answer.sample,
                reference=prompts[answer.prompt].reference,
                prompt=list(prompts[answer.prompt].ids),
                ids=answer.ids,
                prompt_text=decode(prompts[answer.prompt].ids),
                text=self._template.parse(answer.ids).text,
                log_probs=[None if out else p for p, out in zip(answer.log_probs, answer.forced, strict=True)],
                reward=score.total,
                advantage=valued.mean_advantage(number, drawn),
                finish=answer.finish,
                rewards={name: reward.value for name, reward in score.rewards.items()},
                matched={name: reward.matched for name, reward in score.rewards.items()},
                flags=[f"{name}:{flag}" for name, reward in score.rewards.items() for flag in reward.flags],
            )
            for number, (answer, score) in enumerate(zip(answers, scores, strict=True))
        ]
        write_rollout(self._recipe.run_directory, step, rows, self._scorer.names)

    # ----------------------------------------------------------------------------------------------------------- rows
    def _lengths(self, prompts: list[PromptUnit], answers: list[Drawn]) -> list[int]:
        """Positions of each answer's row."""
        return [len(prompts[answer.prompt].ids) + len(answer.ids) - 1 for answer in answers]

    def _rows(self, prompts: list[PromptUnit], answers: list[Drawn], mine: Sequence[int]) -> Batch:
        """The rows of some answers, without what they are worth."""
        chosen = [answers[number] for number in mine]
        rows = training_rows([prompt.ids for prompt in prompts], chosen, self._template.pad)
        lengths = tuple(self._lengths(prompts, chosen))
        return Batch(
            tokens=rows.tokens,
            targets=rows.targets,
            weights=rows.drawn.float(),
            target_bytes=0,
            fresh=False,
            columns={SAMPLED: rows.sampled},
            lengths=lengths,
        )

    def _batch(self, engine: Engine, state: _RolloutState, turn: int, fresh: bool) -> Batch:
        """This rank's rows of one of the rollout's steps."""
        prompts, answers, part = state.prompts, state.answers, state.plan[turn]
        mine = deal(part, self._lengths(prompts, answers), engine.rows.count)[engine.rows.rank]
        plain = self._rows(prompts, answers, mine)

        def placed(values: Tensor) -> Tensor:
            column = torch.zeros(plain.weights.shape)
            for row, number in enumerate(mine):
                begin, length = len(prompts[answers[number].prompt].ids) - 1, len(answers[number].ids)
                column[row, begin : begin + length] = values[number, :length].float()
            return column

        of_rollout = {
            ADVANTAGE: state.valued.advantages,
            RETURN: state.valued.returns,
            OLD_VALUE: state.known.values,
            REFERENCE: state.known.reference,
            OLD: state.known.log_probs if self._settings.updates > 1 else None,
        }
        columns = {name: placed(values) for name, values in of_rollout.items() if values is not None}
        settings = self._settings
        normalise = self._objective.normalise if isinstance(self._objective, GroupPolicy) else "dapo"
        of_rows = [loss_weights([answers[n] for n in some], normalise, settings.truncated, settings.max_new_tokens)
                   for some in (mine, part)]  # fmt: skip
        (weights, count), (_, whole) = of_rows
        tokens = sum(answers[n].drawn for n in part if counts_in_loss(answers[n], settings.truncated))
        columns[TOKEN_SHARE] = torch.full((len(mine),), whole / tokens if tokens else 0.0)
        return Batch(
            tokens=plain.tokens,
            targets=plain.targets,
            weights=plain.weights * torch.tensor(weights)[:, None],
            target_bytes=0,
            fresh=fresh,
            columns=plain.columns | columns,
            count=count,
            lengths=plain.lengths,
            statistics=state.statistics,
        )
