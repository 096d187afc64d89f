"""Tells what a run is in a chain of stages: which stage, of which parent, and what an evaluation of it scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.schema.chat import CHAT_TOKENS
from configs.schema.compression import Compression
from configs.schema.evaluation import Benchmarks, Core, Evaluation
from configs.schema.objectives import Objective, RewardModelling, unit_of
from configs.schema.recipe import RESOLVED_NAME, Recipe, load_run
from configs.schema.section import Custom
from data_prep.tokens.gaps import has_gaps


@dataclass(frozen=True)
class StageFacts:
    """A stage: its name, the kind of its objective, and the run that its weights started from.

    Attributes:
        parent: name of the other stage, or `base`.
        parent_run: its run directory.
    """

    name: str
    kind: str
    parent: str
    parent_run: Path


def stage_of(recipe: Recipe) -> StageFacts | None:
    """Returns the facts of a stage; None for the run of a recipe itself."""
    if not recipe.parents:
        return None
    parent, run = next(iter(recipe.parents.items()))
    return StageFacts(recipe.name.rpartition(".")[2], kind_of(recipe.train.objective), parent, Path(run))


def tuned_of(recipe: Recipe) -> Recipe | None:
    """Returns the stage nearest above (or this one) that was fine-tuned on conversations; None without any."""
    while kind_of(recipe.train.objective) != "sft":
        stage = stage_of(recipe)
        if stage is None or not (stage.parent_run / RESOLVED_NAME).is_file():
            return None
        recipe = load_run(stage.parent_run)
    return recipe


def kind_of(objective: Objective | None) -> str:
    """Returns the kind of an objective, such as `sft`; `pretraining` for the next token, `custom` for the user's."""
    if objective is None:
        return "pretraining"
    return "custom" if isinstance(objective, Custom) else objective.kind


Role = Literal["text", "assistant", "reward"]


def role_of(objective: Objective | None) -> Role:
    """Returns what a model of this objective gives: a score, an answer, or the text that follows."""
    if isinstance(objective, RewardModelling):
        return "reward"
    return "text" if unit_of(objective) == "document" else "assistant"


def is_assistant(recipe: Recipe) -> bool:
    """Tells whether a run is a stage that answers: its objective reads conversations, pairs or prompts."""
    return role_of(recipe.train.objective) == "assistant"


def is_reward_model(recipe: Recipe) -> bool:
    """Tells whether a run trains a reward model, which gives scores instead of text."""
    return role_of(recipe.train.objective) == "reward"


def asks_base(recipe: Recipe) -> bool:
    """Tells whether a run is the base of a chain that can be asked in the chat template, for its stages to compare."""
    return bool(recipe.stages) and set(CHAT_TOKENS) <= set(recipe.data.tokenizer.special_tokens)


def applicable(section: Evaluation, role: Role, asked: bool = False) -> Evaluation:
    """Returns an evaluation without the sets that say nothing about such a model.

    Prompts are for assistants, pairs for reward models. All other sets are for models that give text.

    Args:
        section: the whole evaluation.
        role: what the model gives.
        asked: keep the prompts for a model that is no assistant, see `asks_base`.
    """
    if role == "reward":
        kinds = ("perplexity", "translation", "summarization", "information", "chat")
        sets: dict[str, Any] = {kind: [] for kind in kinds}
        nothing = {**sets, "compression": Compression(), "benchmarks": Benchmarks(), "core": Core()}
        return section.model_copy(update={**nothing, "samples": section.samples.model_copy(update={"prompts": []})})
    chat: dict[str, Any] = {} if role == "assistant" or asked else {"chat": []}
    return section.model_copy(update={"preference": [], **chat})


def fitting(section: Evaluation, causal: bool, role: Role) -> Evaluation:
    """Returns an evaluation of a chain that has causal and masked models, without what this one cannot do.

    Causal models code files, and masked ones fill in the gaps of prompts. To an assistant a prompt is text.
    """
    if not causal:
        return section.model_copy(update={"compression": section.compression.model_copy(update={"codec": []})})
    if role != "text":
        return section
    prompts = [prompt for prompt in section.samples.prompts if not has_gaps(prompt)]
    return section.model_copy(update={"samples": section.samples.model_copy(update={"prompts": prompts})})
