"""Measures how often the policy answers prompts of the validation split rightly, decoding greedily."""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema.objectives import GroupPolicy, ProximalPolicy
from configs.schema.recipe import Recipe
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.shards import DataManifest
from pretrain.batches.prompt_batches import PromptUnit, validation_prompts
from pretrain.engine.engine import Engine
from pretrain.phases import Phase
from pretrain.rewards.answers import Reward
from pretrain.rewards.completion import Completion
from pretrain.rewards.registry import Scorer
from pretrain.rollout.sampler import RolloutSampler


class PromptValidator:
    """Answers the first prompts of the validation split: as many as `train.validation.max_tokens` has answers."""

    def __init__(
        self, recipe: Recipe, data: DataManifest, template: ChatTemplate, sampler: RolloutSampler, scorer: Scorer
    ) -> None:
        objective = recipe.train.objective
        assert isinstance(objective, GroupPolicy | ProximalPolicy)
        most = max(1, recipe.train.validation.max_tokens // objective.rollout.max_new_tokens)
        self._prompts: list[PromptUnit] = validation_prompts(recipe, data, most)
        self._template, self._sampler, self._scorer = template, sampler, scorer

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`val/reward`, `val/stop_rate`, `val/length`, and `val/accuracy` where answers are checked.

        Empty without prompts. Every rank must call it, and gets the same answer.

        Raises:
            ValueError: on every rank, for an answer that cannot be rewarded.
        """
        if not self._prompts:
            return {}
        engine.report_phase(Phase.VALIDATION)
        sums, problem = [0.0, 0.0, 0.0, 0.0], ""
        try:
            with engine.reading() as model:
                drawn = self._sampler.draw(model, self._prompts, engine.rows.rank, engine.rows.count).values()
            # Outside: a reward model must not be computed in the autocast of the policy.
            scores = self._scorer(
                [
                    Completion(
                        self._template.parse(one.ids).text,
                        self._prompts[one.prompt].reference,
                        self._prompts[one.prompt].ids,
                        one.ids,
                        one.finish == "stop",
                    )
                    for one in drawn
                ]
            )
            sums = [
                sum(score.total for score in scores),
                float(sum(one.finish == "stop" for one in drawn)),
                float(sum(len(one.ids) for one in drawn)),
                float(sum(_is_right(score.rewards) for score in scores)),
            ]
        except ValueError as error:
            problem = str(error)
        for said in engine.gather(problem):
            if said:
                raise ValueError(said)
        names = ["val/reward", "val/stop_rate", "val/length", "val/accuracy"]
        found = {name: value / len(self._prompts) for name, value in zip(names, engine.sum(sums), strict=True)}
        if "exact_answer" not in self._scorer.names:
            del found["val/accuracy"]
        return found


def _is_right(rewards: Mapping[str, Reward]) -> bool:
    return "exact_answer" in rewards and rewards["exact_answer"].value == 1
