"""Vectors of documents: what they are the mean of, fewer dimensions, and the file that holds them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.objectives import RewardModelling
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.embedding.mean_states import mean_states
from eval.embedding.projection import Projection
from eval.embedding.vector_file import MadeBy, check_target, read_projection, read_vectors, write_vectors
from launch.models import embed_texts
from pretrain.model.transformer import Transformer

TEXTS = ["a", "some words here", "x" * 40, "你好", "and another text, of nearly thirty", "some words here"]
MADE_BY = MadeBy("checkpoint", "tokenizer", "fp32", "runs/a, step 1", "0.1")


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


def model_of(vocab: Vocab, **settings: Any) -> Transformer:
    torch.manual_seed(1)
    config = Model(num_layers=2, hidden_size=16, num_heads=2, context_length=12, init_std=0.4, **settings)
    return Transformer(config, config.padded_vocab(vocab.size)).eval()


@pytest.mark.parametrize("causal", [True, False])
def test_a_vector_is_the_mean_over_tokens_of_all_pieces(vocab: Vocab, causal: bool) -> None:
    """One document at a time, without padding and batches; 40 bytes are pieces of 11, 11, 11 and 7."""
    model = model_of(vocab, causal=causal)
    vectors, counts = mean_states(model, vocab, TEXTS)
    assert counts.tolist() == [len(text.encode()) for text in TEXTS]
    for vector, text in zip(vectors, TEXTS, strict=True):
        ids = vocab.encode(text)
        states = []
        for at in range(0, len(ids), 11):
            row = torch.tensor([[vocab.begin_id, *ids[at : at + 11]]])
            with torch.inference_mode():
                states.append(model.backbone(row)[0, 1:])
        np.testing.assert_allclose(vector, torch.cat(states).double().mean(dim=0).numpy(), atol=1e-6)
    np.testing.assert_array_equal(vectors[1], vectors[5])


def test_states_that_are_no_numbers_are_said(vocab: Vocab) -> None:
    model = model_of(vocab)
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="Did training diverge"):
        mean_states(model, vocab, TEXTS)


def test_principal_components_have_signs_of_their_own_and_are_kept_without_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(3)
    vectors = draw.normal(size=(50, 8)) * np.array([5, 4, 3, 2, 1, 1, 1, 1]) + 7
    made = Projection.of(vectors, 3)
    # An independent way: eigenvectors of the covariance.
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    for number, component in enumerate(made.components):
        assert abs(component @ directions[:, -1 - number]) == pytest.approx(1)
        assert component[np.abs(component).argmax()] > 0
    np.testing.assert_allclose(made.explained, values[::-1][:3] / values.sum())
    mirrored = Projection.of(vectors[::-1], 3)
    np.testing.assert_allclose(mirrored.components, made.components, atol=1e-9)
    svd = np.linalg.svd

    def other_signs(values: Any, full_matrices: bool) -> Any:
        left, scales, right = svd(values, full_matrices=full_matrices)
        return -left, scales, -right

    monkeypatch.setattr(np.linalg, "svd", other_signs)
    np.testing.assert_array_equal(Projection.of(vectors, 3).components, made.components)
    again = Projection.from_json(json.loads(json.dumps(made.as_json())))
    np.testing.assert_array_equal(again.apply(vectors), made.apply(vectors))


@pytest.mark.parametrize(("n", "dims", "most"), [(4, 4, 3), (30, 9, 8)])
def test_more_dimensions_than_there_are(n: int, dims: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"span at most {most}"):
        Projection.of(np.random.default_rng(1).normal(size=(n, 8)), dims)


def arguments(out: Path, paths: list[Path], **given: Any) -> Namespace:
    facts = {"dims": None, "like": None, "text_field": "text", "lines": False, "checkpoint_step": None, "best": False}
    return Namespace(run="a", out=out, paths=list(map(str, paths)), **{**facts, "force": False, **given})


@pytest.fixture
def run(vocab: Vocab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A run with one checkpoint, whose fingerprint a test may change."""
    model, recipe = model_of(vocab), SimpleNamespace(train=SimpleNamespace(objective=None))
    vocab.save(tmp_path / "tokenizer")
    checkpoint = SimpleNamespace(step=3, fingerprint="one", recipe=recipe, tokenizer=tmp_path / "tokenizer")
    monkeypatch.setattr(embed_texts, "load_run", lambda name: SimpleNamespace(run_directory=name))
    monkeypatch.setattr(embed_texts, "choose_checkpoint", lambda run, choice: checkpoint)
    monkeypatch.setattr(embed_texts, "scored_recipe", lambda run, checkpoint: recipe)
    monkeypatch.setattr("eval.reading.opening.reading_precision", lambda recipe, device: "fp32")
    monkeypatch.setattr("pretrain.checkpoint.load_weights.load_weights", lambda checkpoint: model)
    return checkpoint


def texts_file(directory: Path, texts: list[str]) -> Path:
    file = directory / f"{len(texts)}.jsonl"
    file.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return file


def test_the_command_writes_a_row_for_each_document_and_projects_others_alike(
    run: SimpleNamespace, vocab: Vocab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, other = texts_file(tmp_path, TEXTS), tmp_path / "v.parquet", tmp_path / "w.parquet"
    embed_texts.embed_texts(arguments(tmp_path / "all.parquet", [file]))
    embed_texts.embed_texts(arguments(out, [file], dims=2))
    ids, whole = read_vectors(tmp_path / "all.parquet")
    _, vectors = read_vectors(out)
    assert ids == [f"d{n}" for n in range(len(TEXTS))] and whole.shape == (6, 16) and vectors.shape == (6, 2)
    table = pq.read_table(out)
    assert table.schema.names == ["id", "file", "tokens", "vector"] and table["file"][0].as_py() == "6.jsonl"
    said = capsys.readouterr()
    assert "6 vectors of 2 dimensions" in said.out + said.err
    # A document alone, with others' projection, has the vector that it had among them.
    embed_texts.embed_texts(arguments(other, [texts_file(tmp_path, TEXTS[:1])], like=out))
    np.testing.assert_allclose(read_vectors(other)[1][0], vectors[0], atol=1e-5)
    before = other.read_bytes()
    run.fingerprint = "two"
    with pytest.raises(ValueError, match="vectors are of another model"):
        embed_texts.embed_texts(arguments(other, [file], like=out, force=True))
    assert other.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dims": 2, "like": Path("x.parquet")}, "not both"),
        ({"name": "v.csv"}, r"ends in .parquet"),
        ({"dims": 6}, "span at most 5"),
    ],
)
def test_what_cannot_be_writes_nothing(run: SimpleNamespace, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    made = arguments(tmp_path / given.pop("name", "v.parquet"), [texts_file(tmp_path, TEXTS)], **given)
    with pytest.raises(ValueError, match=said):
        embed_texts.embed_texts(made)
    assert not made.out.exists() and not list(tmp_path.glob(".*"))


def test_a_reward_model_and_too_many_dimensions_are_refused_before_a_document_is_read(
    run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_texts, "texts_at", lambda *given: pytest.fail("documents were read"))
    with pytest.raises(ValueError, match="have 16 dimensions"):
        embed_texts.embed_texts(arguments(tmp_path / "v.parquet", [tmp_path], dims=17))
    run.recipe.train.objective = RewardModelling(kind="reward", center=0.0, margin=False)
    with pytest.raises(ValueError, match="states serve its reward"):
        embed_texts.embed_texts(arguments(tmp_path / "v.parquet", [tmp_path]))


def test_other_files_are_neither_overwritten_nor_taken_for_vectors(run: SimpleNamespace, tmp_path: Path) -> None:
    foreign, empty = tmp_path / "foreign.parquet", tmp_path / "empty.txt"
    foreign.write_bytes(b"PAR1 not really")
    empty.write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        check_target(foreign)
    with pytest.raises(ValueError, match="holds no vectors"):
        read_vectors(foreign)
    out = write_vectors(tmp_path / "v.parquet", [("a", "f", 1)], np.ones((1, 3)), MADE_BY, None)
    with pytest.raises(ValueError, match=r"v\.parquet exists; give --force"):
        embed_texts.embed_texts(arguments(out, [texts_file(tmp_path, TEXTS)]))
    embed_texts.embed_texts(arguments(out, [texts_file(tmp_path, TEXTS)], force=True))
    assert len(read_vectors(out)[0]) > 1
    out = write_vectors(tmp_path / "v.parquet", [("a", "f", 1)], np.ones((1, 3)), MADE_BY, None)
    with pytest.raises(ValueError, match="all dimensions"):
        read_projection(out, MADE_BY)
    with pytest.raises(ValueError, match="file of --like"):
        check_target(out, [out])
    with pytest.raises(ValueError, match="no document to embed"):
        embed_texts.embed_texts(arguments(tmp_path / "n.parquet", [empty]))
