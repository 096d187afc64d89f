"""Recipes of masked diffusion: what the objective implies, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.schema.chat import CHAT_TOKENS, MASK
from configs.schema.model import Model
from configs.schema.reading_direction import needs_causal
from configs.schema.recipe import Recipe, RecipeError, load_with_origins

TOKENIZER: dict[str, Any] = {"kind": "byte", "special_tokens": ["<|endoftext|>", MASK]}
MASKED: dict[str, Any] = {"kind": "masked_diffusion"}
SHAPE: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}


def recipe(
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] = TOKENIZER,
    **other: Any,
) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "data": {"sources": [{"name": "a", "path": "a.txt"}], "tokenizer": tokenizer},
            "model": {**SHAPE, **(model or {})},
            "train": {"steps": 1, "objective": MASKED, **(train or {})},
            **other,
        }
    )


def test_the_objective_implies_a_model_that_reads_both_ways() -> None:
    made = recipe()
    assert not made.model.causal and not Recipe.model_validate(made.model_dump(mode="json")).model.causal
    assert recipe(train={"objective": None}).model.causal
    with pytest.raises(
        ValueError, match=r"^`replica compress` needs a model that predicts each token from those before"
    ):
        needs_causal(made.model, "`replica compress`")
    needs_causal(Model(**SHAPE), "anything")


def test_show_says_where_the_direction_comes_from() -> None:
    shipped = Path(__file__).resolve().parents[4] / "configs" / "diffusion.yaml"
    masked = load_with_origins(shipped, ["train.objective={kind: masked_diffusion}", "stages=[]", "report.gates=[]"])
    assert not masked[0].model.causal and masked[1].of(("model", "causal")) == "from train.objective"
    causal = load_with_origins(shipped)
    assert not causal[0].stage("masked").model.causal
    assert causal[0].model.causal and causal[1].of(("model", "causal")) == "default"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"causal": True}}, r"model\.causal is true; leave model\.causal out"),
        ({"model": {"causal": False}, "train": {"objective": None}}, r"would read what it is to predict; set train\."),
        ({"model": {"causal": False}, "train": {"objective": {"kind": "dpo"}}}, r"would read what it is to predict"),
        ({"tokenizer": {"kind": "byte"}}, r'set it to \["<\|endoftext\|>", "<\|mask\|>"\]'),
        ({"tokenizer": {"kind": "byte", "special_tokens": [MASK]}}, r"special_tokens lacks"),  # it would end documents
        ({"tokenizer": {"kind": "byte", "special_tokens": ["<|endoftext|>", MASK, MASK]}}, r"is listed 2 times"),
        ({"tokenizer": {"kind": "byte", "special_tokens": ["<|endoftext|>", MASK, ""]}}, r"a special token is empty"),
        ({"train": {"packing": "best_fit"}}, r"would see the padding.*set train\.document_masking: true"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"train.objective={MASKED}", r"stages\.0\.objective: the recipe's own run trains masked.*or this stage"),
        ("stages=[{name: d, objective: {kind: masked_diffusion}, data: {like: base}, train: {steps: 1}}, STAGE]",
         r"stages\.1\.from: `d` trains masked diffusion, .* say which stage it starts from, such as base"),
    ],
)  # fmt: skip
def test_no_causal_stage_starts_from_a_masked_model(tmp_path: Path, override: str, message: str) -> None:
    stage = {
        "name": "sft",
        "objective": {"kind": "sft"},
        "data": {"sources": [{"name": "t", "path": "t.jsonl", "shape": "openai"}]},
        "train": {"steps": 1},
    }
    file = tmp_path / "chain.yaml"
    values = recipe(train={"objective": None}).model_dump(mode="json", exclude={"stages", "parents"})
    file.write_text(json.dumps({**values, "model": SHAPE, "stages": [stage]}))
    with pytest.raises(RecipeError, match=message):
        load_with_origins(file, [override.replace("STAGE", json.dumps(stage))])


def test_a_stage_of_masked_diffusion_starts_from_any_base() -> None:
    base = {"tokenizer": {"kind": "byte", "special_tokens": "chat"}, "train": {"objective": None}}
    sources = {"sources": [{"name": "b", "path": "b.txt"}]}
    stage = {"name": "diffuse", "objective": MASKED, "data": sources, "train": {"steps": 2}}
    made = recipe(**base, stages=[stage]).stage("diffuse")  # type: ignore[arg-type]
    assert not made.model.causal and made.data.tokenizer.special_tokens == [*CHAT_TOKENS, MASK]
    assert recipe(stages=[{**stage, "data": {"like": "base"}}]).stage("diffuse").data.tokenizer.kind == "byte"


def chain(tmp_path: Path, *stages: dict[str, Any], special_tokens: Any = ("<|endoftext|>", MASK)) -> Path:
    """A recipe with a causal base and these stages."""
    values = recipe(train={"objective": None}).model_dump(mode="json", exclude={"stages", "parents"})
    values["data"]["tokenizer"]["special_tokens"] = special_tokens if special_tokens == "chat" else [*special_tokens]
    file = tmp_path / "chain.yaml"
    file.write_text(json.dumps({**values, "model": SHAPE, "stages": list(stages)}))
    return file


SFT: dict[str, Any] = {
    "name": "sft",
    "objective": {"kind": "sft"},
    "data": {"sources": [{"name": "t", "path": "t.jsonl", "shape": "openai"}]},
    "train": {"steps": 1},
}
OWN = {"sources": [{"name": "b", "path": "b.txt"}]}
DIFFUSE: dict[str, Any] = {"name": "diffuse", "objective": MASKED, "data": OWN, "train": {"steps": 1}}


@pytest.mark.parametrize(
    ("special_tokens", "added"),
    [
        (("<|endoftext|>",), [*CHAT_TOKENS, MASK]),
        (("<|endoftext|>", MASK), [CHAT_TOKENS[0], MASK, *CHAT_TOKENS[1:]]),
        ("chat", [*CHAT_TOKENS, MASK]),
        ((*CHAT_TOKENS, MASK), [*CHAT_TOKENS, MASK]),
    ],
)
def test_a_masked_stage_behind_a_chat_stage_has_its_tokens(
    tmp_path: Path, special_tokens: Any, added: list[str]
) -> None:
    """Else its weights would have rows for tokens that its data lacks, which only training would find out."""
    made = load_with_origins(chain(tmp_path, SFT, DIFFUSE, special_tokens=special_tokens))[0]
    tokenizer = made.stage("diffuse").data.tokenizer
    assert tokenizer.kind == "file" and tokenizer.special_tokens == added
    assert made.stage("sft").data.tokenizer.special_tokens == [*CHAT_TOKENS]


def test_data_without_the_tokens_of_the_parent_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"stages\.1\.data\.like: the data of `base` lacks tokens .* of `sft`"
    ) as said:
        load_with_origins(chain(tmp_path, SFT, {**DIFFUSE, "data": {"like": "base"}}))
    reserved = json.loads(str(said.value).rpartition("special_tokens=")[2])
    assert set(reserved) == {*CHAT_TOKENS, MASK}
    load_with_origins(chain(tmp_path, SFT, {**DIFFUSE, "data": {"like": "base"}}, special_tokens=reserved))


def test_no_critic_starts_from_a_masked_stage(tmp_path: Path) -> None:
    prompts = {"sources": [{"name": "p", "path": "p.jsonl", "shape": "gsm8k"}]}
    objective = {"kind": "ppo", "critic_from": "diffuse", "rewards": {"exact_answer": 1.0}}
    ppo = {"name": "ppo", "from": "sft", "objective": objective, "data": prompts, "train": {"steps": 1}}
    with pytest.raises(RecipeError, match=r"stages\.2\.objective\.critic_from: `diffuse` trains masked diffusion"):
        load_with_origins(chain(tmp_path, SFT, DIFFUSE, ppo))
