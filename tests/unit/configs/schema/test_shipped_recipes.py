"""Every recipe in configs/: loads, has the shape it claims, and what is generated from the schema is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.batch_plan import solve_batch
from configs.schema.recipe import json_schema, load
from launch.docs import REFERENCE, SCHEMA, reference
from launch.planning.show import facts, meta_model
from pretrain.sizes.embedding_rows import embedding_rows

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))

# Name -> (rows of the embedding as padded, all parameters, ranks the recipe is written for). The parameters are counted
# by hand from the shapes, with no help from the model's code.
EXPECTED: dict[str, tuple[int, int, int]] = {
    "assistant": (2048, 2048 * 96 + 3 * (4 * 96**2 + 3 * 96 * 256 + 2 * 96 + 2 * 32) + 96, 1),
    "demo": (2048, 2048 * 160 + 4 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "diffusion": (2048, 2048 * 160 + 4 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "meta": (4096, 4096 * 160 + 4 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "summaries": (2048, 2048 * 160 + 4 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "own-text": (1024, 1024 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128 + 2 * 32) + 128, 1),
    "shakespeare-char": (322, 322 * 128 + 4 * (4 * 128**2 + 3 * 128 * 320 + 2 * 128 + 2 * 32) + 128, 1),
    # vocabularies of the end of text, 256 bytes and 4 bases, or 23 letters of proteins
    "dna": (261, 261 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128 + 2 * 32) + 128, 1),
    "protein": (280, 280 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128 + 2 * 32) + 128, 1),
    "zh-en-small": (6144, 6144 * 160 + 4 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "zh-translate": (6144, 6144 * 160 + 3 * (4 * 160**2 + 3 * 160 * 448 + 2 * 160 + 2 * 32) + 160, 1),
    "gpt2-124m": (50304, 124_439_808 + 47 * 768, 8),  # as published by OpenAI, and 47 rows of padding
    "web": (50304, 124_439_808 + 47 * 768, 8),
    "gpt3-1.3b": (50304, 1_315_723_264 + 47 * 2048, 8),  # 24 layers of 2048: 12 d^2 + 13 d each, and 2,048 positions
    "llama-8b": (128256, 8_030_261_248, 64),  # as published by Meta
    "zh-en": (
        64000,
        64000 * 1024 + 16 * (2 * 1024**2 + 2 * 1024 * 512 + 3 * 1024 * 2752 + 2 * 1024 + 2 * 64) + 1024,
        8,
    ),
}


def test_every_recipe_has_an_expectation() -> None:
    assert {path.stem for path in RECIPES} == set(EXPECTED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_loads_and_has_its_shape(path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem
    rows, parameters, ranks = EXPECTED[path.stem]
    assert embedding_rows(recipe) in (rows, None)
    model = meta_model(recipe, rows)
    assert model is not None
    assert model.parameter_count().total == parameters
    for name in ("base", *recipe.stage_names):
        assert solve_batch(recipe.stage(name).train, ranks).accumulation >= 1
    assert facts(recipe, ranks)["batch"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_knows_its_schema_and_licences(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    recipe = load(path)
    for name in ("base", *recipe.stage_names):
        assert all(source.licence for source in recipe.stage(name).data.sources), "say how the text may be used"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_files_it_names_are_shipped(path: Path) -> None:
    recipe = load(path)
    named = [item.path for item in (*recipe.evaluation.perplexity, *recipe.evaluation.translation)]
    named += [item.path for item in (*recipe.evaluation.chat, *recipe.evaluation.preference)]
    for name in ("base", *recipe.stage_names):
        named += [source.path for source in recipe.stage(name).data.sources if isinstance(source.path, str)]
    shipped = [Path(item) for item in named if Path(item).is_relative_to(CONFIGS)]
    assert all(file.exists() for file in shipped), shipped


def test_rows_of_kmers() -> None:
    recipe = load(CONFIGS / "dna.yaml", ["data.tokenizer={kind: kmer, kmer: 4, alphabet: ACGT}"])
    assert embedding_rows(recipe) == 1 + 256 + 4**4


def test_generated_files_are_current() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `make docs`"
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), "run `make docs`"


def test_sections_of_the_reference_have_headings_of_their_own_and_links_from_the_index() -> None:
    text = reference()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)) > 40
    anchors = ["".join(c for c in title.lower() if c.isalnum() or c in "_- ").replace(" ", "-") for title in headings]
    linked = [part.partition(")")[0] for part in text.split("](#")[1:]]
    assert linked[: len(anchors) - 1] == [one for one in anchors if one != "sections"] and set(linked) < set(anchors)


def test_reference_has_every_setting() -> None:
    text = reference()
    for key in (
        "`data.sources.N.hub.revision`",
        "`model.qk_norm`",
        "`train.zero.stage`",
        "`evaluation.perplexity.N.stride`",
    ):
        assert f"\n| {key} |" in text
    assert text.count("*required*") > 5
