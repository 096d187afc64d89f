"""Makes the objective that a recipe names."""

from __future__ import annotations

from configs.safety.user_code import UserCode
from configs.schema.section import Custom
from configs.schema.train import Train
from pretrain.model.transformer import Transformer
from pretrain.objectives.language_modelling import LanguageModelling
from pretrain.objectives.objective import LossModule


def make_objective(model: Transformer, train: Train) -> LossModule:
    """The objective of `train.objective` over this model.

    Raises:
        ValueError: for code that may not run, cannot be run, or makes no `LossModule` without weights of its own.
    """
    if train.objective is None:
        return LanguageModelling(model, train.loss_chunk)
    if not isinstance(train.objective, Custom):
        raise ValueError(f"train.objective of kind {train.objective.kind} is not built yet")
    code = UserCode.read(train.objective.code, train.objective.options).allowed("train.objective")
    code.check_call("model", "chunk")
    made = code.load()(model, train.loss_chunk, **code.options)
    if not isinstance(made, LossModule):
        raise ValueError(f"{code.file}:{code.name} made a {type(made).__name__}; an objective is a LossModule")
    if foreign := [name for name, _ in made.named_parameters() if not name.startswith("model.")]:
        raise ValueError(
            f"{code.file}:{code.name} has weights of its own ({foreign[0]}); checkpoints hold those of the model alone"
        )
    return made
