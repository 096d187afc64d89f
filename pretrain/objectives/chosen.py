"""Makes the objective that a recipe names: the one place that knows all kinds."""

from __future__ import annotations

from configs.safety.user_code import UserCode
from configs.schema.objectives import MaskedDiffusion, Preference, RewardModelling, Supervised
from configs.schema.recipe import Recipe
from configs.schema.section import Custom
from pretrain.objectives.language_modelling import language_modelling, of_user
from pretrain.objectives.masked_diffusion import MaskedDiffusionTraining
from pretrain.objectives.objective import Objective
from pretrain.objectives.of_pairs import PreferenceTuning, RewardTraining
from pretrain.objectives.reinforcement import PolicyOptimisation
from pretrain.objectives.supervised import SupervisedTuning


def make_objective(recipe: Recipe) -> Objective:
    """The objective of `train.objective`.

    Raises:
        ValueError: for code that may not run or cannot be called, and for settings that the objective cannot do.
    """
    chosen = recipe.train.objective
    if chosen is None:
        return language_modelling(recipe)
    if isinstance(chosen, Custom):
        code = UserCode.read(chosen.code, chosen.options).allowed("train.objective")
        code.check_call("model", "chunk")
        return of_user(recipe, code)
    if isinstance(chosen, Supervised):
        return SupervisedTuning(recipe, chosen)
    if isinstance(chosen, MaskedDiffusion):
        return MaskedDiffusionTraining(recipe, chosen)
    if isinstance(chosen, RewardModelling):
        return RewardTraining(recipe, chosen)
    if isinstance(chosen, Preference):
        return PreferenceTuning(recipe, chosen)
    return PolicyOptimisation(recipe, chosen)
