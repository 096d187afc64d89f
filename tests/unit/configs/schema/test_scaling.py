"""The dial: the rules, published shapes, what wins over it, where values come from, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.schema.batch_plan import total_steps
from configs.schema.recipe import Recipe, RecipeError, dump, load, load_with_origins
from configs.schema.scaling import MUON_RATE, PUBLISHED, batch_tokens, derive, learning_rate, read_size, weight_decay
from launch.planning.show import meta_model
from pretrain.sizes.embedding_rows import embedding_rows

GPT2 = {
    "name": "dialled",
    "data": {"sources": [{"name": "t", "path": "t.txt"}], "tokenizer": {"kind": "bpe", "vocab_size": 50257}},
    "model": {"family": "gpt2", "context_length": 1024},
    "train": {},
}


def recipe(model: dict[str, object], **train: object) -> Recipe:
    return Recipe.model_validate({**GPT2, "model": {"family": "gpt2", **model}, "train": train})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dial.yaml"
    path.write_text(
        yaml.safe_dump({**GPT2, "model": {"family": "gpt2", "depth": 4, "context_length": 256}}), encoding="utf-8"
    )
    return path


# Totals with tied embeddings: GPT-2's release (124M, 355M, 774M, 1558M); GPT-3's table 2.1 rounds.
@pytest.mark.parametrize(
    ("size", "shape", "total"),
    [
        ("124M", (12, 768, 12), 124.4e6),
        ("355M", (24, 1024, 16), 354.8e6),
        ("774m", (36, 1280, 20), 774e6),
        ("1558M", (48, 1600, 25), 1557.6e6),
        ("1.3B", (24, 2048, 16), 1.3e9),
        ("6.7B", (32, 4096, 32), 6.7e9),
    ],
)
def test_published_sizes_have_their_published_shapes(size: str, shape: tuple[int, int, int], total: float) -> None:
    found = recipe({"size": size})
    assert (found.model.num_layers, found.model.hidden_size, found.model.num_heads) == shape
    model = meta_model(found, embedding_rows(found) or 0)
    assert model is not None
    assert model.parameter_count().total == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("size", ["10M", "30M", "60M", "200M", "3B", 70_000_000_000])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_any_size_is_met_by_a_shape_of_usual_proportions(size: str | int, family: str) -> None:
    found = recipe({"size": size, "family": family, "tied_embeddings": True})
    model = meta_model(found, embedding_rows(found) or 0)
    assert model is not None
    assert model.parameter_count().total == pytest.approx(read_size(size), rel=0.11)  # positions come on top
    assert 21 <= found.model.hidden_size / found.model.num_layers <= 192


def test_the_dial_of_twelve_layers_is_gpt2_small() -> None:
    assert recipe({"depth": 12}).model.model_copy(update={"depth": None}) == recipe({"size": "124M"}).model.model_copy(
        update={"size": None}
    )
    assert recipe({"depth": 24}).model.hidden_size == PUBLISHED["760M"][1]


def test_rules_have_the_published_values() -> None:
    # arXiv:2401.02954: 7B on 2T tokens got 4.2e-4 and 2304 x 4096 tokens; its figure reads about 1e-3 at 1e20.
    assert learning_rate(6 * 6.9e9 * 2e12) == pytest.approx(4.2e-4, rel=0.25)
    assert batch_tokens(6 * 6.9e9 * 2e12) == pytest.approx(2304 * 4096, rel=0.25)
    assert weight_decay(1e-3, 20_000) == 0.1  # the timescale 1 / (lr x decay) is half of the run
    assert weight_decay(1e-2, 200) == 0.2  # and not 1
    assert recipe({"depth": 12}).train.tokens == 20 * (12 * 12 * 768**2 + 50304 * 768)  # Chinchilla's 20


def test_everything_is_monotone_in_the_depth() -> None:
    found = [recipe({"depth": depth}) for depth in (1, 2, 4, 8, 16, 32)]
    for key, rising in (("hidden_size", True), ("num_heads", True)):
        values = [getattr(item.model, key) for item in found]
        assert values == sorted(values) and len(set(values)) > 4, (key, rising)
    assert [item.train.tokens or 0 for item in found] == sorted(item.train.tokens or 0 for item in found)
    batches = [item.train.global_batch_size for item in found]
    assert batches == sorted(batches) and all(batch & (batch - 1) == 0 for batch in batches)
    rates = [item.train.optimizer.lr for item in found]
    assert rates == sorted(rates, reverse=True)
    assert all(item.train.schedule.warmup_steps <= total_steps(item, 0) / 10 for item in found)


def test_what_is_said_wins_and_the_rest_follows_from_it(file: Path) -> None:
    plain, wide = load(file), load(file, ["model.hidden_size=512"])
    assert (wide.model.num_layers, wide.model.hidden_size, wide.model.num_heads) == (4, 512, 8)
    assert wide.train.tokens == 20 * (12 * 4 * 512**2 + 50304 * 512) > (plain.train.tokens or 0)
    short = load(file, ["train.steps=100"])
    assert short.train.tokens is None and short.train.steps == 100
    assert short.train.optimizer.lr > plain.train.optimizer.lr  # less compute, a higher rate
    assert short.train.global_batch_size < plain.train.global_batch_size
    compute = 6 * (12 * 4 * 256**2 + 50304 * 256) * 100 * batch_tokens(6 * 16e6 * 100 * 16 * 256)
    assert short.train.optimizer.lr == pytest.approx(learning_rate(compute), rel=0.1)
    assert load(file, ["train.optimizer.lr=1e-3"]).train.optimizer.lr == 1e-3
    assert load(file, ["train.tokens_per_parameter=2"]).train.tokens == -(-(plain.train.tokens or 0) // 10)
    assert load(file, ["train.epochs=2"]).train.tokens is None
    narrow = load(file, ["model.depth=null", "model.size=30M", "model.num_layers=12"])
    assert (narrow.model.num_layers, narrow.model.hidden_size) == (12, 320)  # the size is met by the width


def test_muon_keeps_its_rate_and_gets_its_own_decay(file: Path) -> None:
    plain = load(file).train.optimizer
    muon = load(file, ["train.optimizer.name=muon"])
    assert (muon.train.optimizer.lr, muon.train.optimizer.weight_decay) == (plain.lr, plain.weight_decay)
    assert muon.train.optimizer.muon.lr == plain.muon.lr == MUON_RATE and plain.muon.weight_decay is None
    assert muon.train.optimizer.muon.weight_decay == weight_decay(0.02, total_steps(muon, 0))
    slower = load(file, ["train.optimizer.name=muon", "train.optimizer.muon.lr=0.01"]).train.optimizer.muon
    assert slower.weight_decay == pytest.approx(2 * (muon.train.optimizer.muon.weight_decay or 0), rel=0.1)
    assert (
        load(
            file, ["train.optimizer.name=muon", "train.optimizer.muon.weight_decay=0"]
        ).train.optimizer.muon.weight_decay
        == 0
    )


def test_null_says_nothing(file: Path) -> None:
    explicit = load(file, ["model.num_layers=null", "train.optimizer.lr=null", "train.tokens=null", "model.depth=6"])
    assert (explicit.model.num_layers, explicit.model.hidden_size) == (6, 384)


def test_a_resolved_recipe_stays_as_it_is(file: Path, tmp_path: Path) -> None:
    for override in ("model.depth=5", "model={size: 30M}", "model={size: 350M, family: llama}"):
        first = load(file, [override])
        (tmp_path / "again.yaml").write_text(dump(first), encoding="utf-8")
        again = load(tmp_path / "again.yaml")
        assert again.model == first.model and again.train == first.train


def test_origins_name_the_dial(file: Path) -> None:
    _, origins = load_with_origins(file, ["model.depth=6", "train.optimizer.lr=1e-3"])
    assert origins.of(("model", "depth")) == "override model.depth=6"
    assert origins.of(("model", "hidden_size")) == "from depth 6"
    assert origins.of(("train", "tokens")) == "from depth 6"
    assert origins.of(("train", "optimizer", "lr")) == "override train.optimizer.lr=1e-3"
    assert origins.of(("train", "optimizer", "eps")) == "default"
    assert origins.of(("model", "context_length")) == "dial.yaml"
    assert load_with_origins(file, ["model={size: 124M}"])[1].of(("model", "num_heads")) == "from size 124M"


def test_a_recipe_without_the_dial_gets_nothing() -> None:
    assert derive({"model": {"num_layers": 3}}) == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model={size: banana}", "model.size 'banana' is not a number of parameters; write it as 124M, 1.3B or 500k"),
        ("model={size: 0}", "is not a number of parameters"),
        ("model={size: 5M}", "model.size 5M: the nearest shape, "),
        ("model={size: 124M, num_layers: 2, hidden_size: 64}", "own settings of the shape, which win over the size"),
        ("model={size: 124M, depth: 12}", "set the same dial; set only one of them"),
        ("model.num_layers=3", "model.depth 4 and model.num_layers 3 disagree; drop one of them"),
        ("model.depth=0", "model.depth is a number of layers, at least 1 (given: 0)"),
        ("model.depth=deep", "model.depth is a number of layers"),
        ("model.num_heads=7", "model.num_heads 7 does not divide the width 256"),
        ("model.hidden_size=wide", "model.hidden_size must be a whole number above zero (given: 'wide')"),
        ("train.optimizer=3", "train.optimizer"),
    ],
)
def test_mistakes_name_the_fix(file: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(file, [override])
    assert words in str(error.value)


def test_a_tokenizer_from_a_file_needs_its_rows_for_a_size(file: Path) -> None:
    tokenizer = "data.tokenizer={kind: file, path: x}"
    assert load(file, [tokenizer]).model.num_layers == 4
    with pytest.raises(RecipeError, match=r"set model\.vocab_size"):
        load(file, [tokenizer, "model={size: 30M}"])
    assert load(file, [tokenizer, "model={size: 30M, vocab_size: 50304}"]).model.num_layers == 6
