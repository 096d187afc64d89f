"""Makes the objective that a recipe names: the one place that knows all kinds."""

from __future__ import annotations

from configs.safety.user_code import UserCode
from configs.schema.recipe import Recipe
from configs.schema.section import Custom
from pretrain.objectives.language_modelling import language_modelling, of_user
from pretrain.objectives.objective import Objective


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
    raise ValueError(f"train.objective of kind {chosen.kind} is not built yet")
