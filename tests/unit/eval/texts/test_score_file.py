"""Scores of documents: equal to the model's own probabilities and to perplexity sets, whole or not there, resumed."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import yaml

from configs.schema.data import Tokenizer
from configs.schema.evaluation import PerplexitySet
from configs.schema.model import Model
from configs.schema.recipe import Recipe, load
from data_prep.decontamination.evaluation_sets import SetText
from data_prep.selection.score_files import ScoredBy, hash_of_text, read_scored_by
from data_prep.stages.pipeline import parts_to_score, prepare_inline
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from data_prep.workers.cluster import Cluster
from eval.likelihood.perplexity_set import perplexity_set_results
from eval.reading.reader import LocalReader
from eval.texts import documents
from eval.texts.documents import Text, prepared_texts, texts_at
from eval.texts.score_file import score_to_file
from eval.texts.score_sums import summary_rows
from launch.cli import parse
from launch.models.score_texts import score_texts
from pretrain.model.transformer import Transformer
from tests.parts.counting_reader import CountingReader

BY = ScoredBy("c", "t", {"context": 64}, "1", "runs/a, step 3")
TEXTS = [Text(f"d{number}", "so " * number + f"ends {number}.", "f", "s") for number in range(1, 30)]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def model(vocab: Vocab) -> Transformer:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=16, num_heads=1, context_length=32)
    return Transformer(config, config.padded_vocab(vocab.size)).eval()


def rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return found


def test_as_the_models_own_probabilities(vocab: Vocab, model: Transformer, tmp_path: Path) -> None:
    """Of documents that fit the context: one forward pass over begin token and text."""
    texts = [Text("a", "Short.", "f"), Text("b", "Zürich, 5 °C", "f")]
    score_to_file(iter(texts), tmp_path / "s.parquet", LocalReader(model, vocab.size), vocab, BY)
    for text, row in zip(texts, rows(tmp_path / "s.parquet"), strict=True):
        ids = torch.tensor([[vocab.begin_id, *vocab.encode(text.text)]])
        with torch.inference_mode():
            logits = model(ids[:, :-1])[0, :, : vocab.size].double()
        nats = -logits.log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item()
        size = len(text.text.encode())
        assert row["nats"] == pytest.approx(nats, rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
        assert (row["tokens"], row["bytes"], row["characters"]) == (size, size, len(text.text))
        assert (row["id"], row["file"], row["source"], row["hash"]) == (text.id, "f", None, hash_of_text(text.text))


def test_as_a_perplexity_set(vocab: Vocab, model: Transformer, tmp_path: Path) -> None:
    """Of documents of several windows, over batches."""
    reader = LocalReader(model, vocab.size)
    score_to_file(iter(TEXTS), tmp_path / "s.parquet", reader, vocab, BY)
    item = PerplexitySet(name="p", path="x")
    scored = perplexity_set_results(item, [SetText(text.id, text.text) for text in TEXTS], reader, vocab, 10)
    value = next(result.value for result in scored.results if result.name.endswith("bits_per_byte"))
    (row,) = summary_rows(tmp_path / "s.parquet")
    assert row.bits_per_byte == pytest.approx(value, rel=1e-6)
    assert (row.name, row.documents, row.bytes) == ("s", 29, sum(len(text.text) for text in TEXTS))
    assert [one["tokens"] for one in rows(tmp_path / "s.parquet")] == [item.tokens for item in scored.items]


def test_an_interrupted_command_goes_on(vocab: Vocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BATCH_CHARACTERS", 300)
    whole = CountingReader()
    score_to_file(iter(TEXTS), tmp_path / "whole.parquet", whole, vocab, BY)
    file = tmp_path / "s.parquet"
    stopped = CountingReader(dies_after=len(whole.asked) // 2)
    with pytest.raises(KeyboardInterrupt):
        score_to_file(iter(TEXTS), file, stopped, vocab, BY)
    assert not file.exists()
    after = CountingReader()
    reported: list[float] = []
    score_to_file(iter(TEXTS), file, after, vocab, BY, lambda done, note="", total=None: reported.append(done))
    assert rows(file) == rows(tmp_path / "whole.parquet")
    assert 0 < len(after.asked) < len(whole.asked)
    assert reported == sorted(reported) and reported[-1] == sum(len(text.text) for text in TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.parquet", "whole.parquet"]


@pytest.mark.parametrize("change", ["model", "texts"])
def test_batches_of_others_are_not_used(
    vocab: Vocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(documents, "BATCH_CHARACTERS", 300)
    file = tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_to_file(iter(TEXTS), file, CountingReader(dies_after=30), vocab, BY)
    other = ScoredBy("another", "t", {"context": 64}, "1", "runs/b, step 3") if change == "model" else BY
    texts = [Text(text.id, f"{text.text}!", text.file) for text in TEXTS] if change == "texts" else TEXTS
    again, whole = CountingReader(), CountingReader()
    score_to_file(iter(texts), file, again, vocab, other)
    score_to_file(iter(texts), tmp_path / "whole.parquet", whole, vocab, other)
    assert again.asked == whole.asked and rows(file) == rows(tmp_path / "whole.parquet")
    assert read_scored_by(file) == other


def test_a_document_that_the_tokenizer_lacks_characters_of_is_named(tmp_path: Path) -> None:
    found = tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2, "c": 3}, []))
    found.save(str(tmp_path / "tokenizer.json"))
    letters = Vocab.load(tmp_path / "tokenizer.json", "<|endoftext|>")
    texts = [Text("one", "abc", "x.txt"), Text("two", "abz", "x.txt")]
    with pytest.raises(ValueError, match=r"x\.txt: the tokenizer lacks characters of document two"):
        score_to_file(iter(texts), tmp_path / "s.parquet", CountingReader(), letters, BY)
    assert not (tmp_path / "s.parquet").exists()


def test_targets_that_are_refused(vocab: Vocab, tmp_path: Path) -> None:
    def scored(name: str, texts: Iterator[Text]) -> None:
        score_to_file(texts, tmp_path / name, CountingReader(), vocab, BY)

    (tmp_path / "mine.parquet").write_bytes(b"something")
    for name, texts, words in (
        ("s.csv", TEXTS, "ends in .parquet"),
        ("mine.parquet", TEXTS, "holds something else"),
        ("s.parquet", [], "no document to score"),
    ):
        with pytest.raises(ValueError, match=words):
            scored(name, iter(texts))
    assert (tmp_path / "mine.parquet").read_bytes() == b"something"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.parquet"], "nothing is left of what was not begun"
    scored("s.parquet", iter(TEXTS[:2]))
    scored("s.parquet", iter(TEXTS))  # scores may be replaced
    assert len(rows(tmp_path / "s.parquet")) == len(TEXTS)


# ------------------------------------------------------------------------------------------------------------ selection
@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe whose normalisation and deduplication change what its files say."""
    lines = [json.dumps({"id": f"{n}", "text": f"document  {n % 30} \n\n\n says {'so ' * n}"}) for n in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "name": "t",
        "data": {"sources": [{"name": "s", "path": str(tmp_path / "corpus.jsonl")}], "tokenizer": {"kind": "byte"}},
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"steps": 3, "global_batch_size": 2},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    return lambda run, *overrides: load(tmp_path / "t.yaml", overrides, {"out": str(tmp_path / "runs" / run)})


def scored_parts(recipe: Recipe, file: Path, vocab: Vocab) -> None:
    parts = parts_to_score(recipe, Cluster(workers=0, directory=recipe.data_directory))
    score_to_file(prepared_texts(parts), file, CountingReader(), vocab, BY)


def test_from_scores_to_selected_shards(make: Callable[..., Recipe], vocab: Vocab, tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    select = json.dumps({"scores": [str(file)], "keep": 0.4})
    recipe = make("a", f"data.select={select}")
    scored_parts(recipe, file, vocab)  # its own scores are not there yet
    before = (recipe.data_directory / "documents" / "manifest.json").stat().st_mtime_ns
    data = prepare_inline(recipe)
    assert (recipe.data_directory / "documents" / "manifest.json").stat().st_mtime_ns == before
    out = {row["reason"]: row for row in data.funnel}["selected_out"]
    assert out["stage"] == "select" and out["documents"] > 10
    scores = sorted(rows(file), key=lambda row: row["bits_per_byte"])
    kept = [row["id"] for row in scores][: len(scores) - out["documents"]]
    sidecars = [row for path in recipe.data_directory.glob("shards/**/*.parquet") for row in rows(path)]
    assert {row["id"] for row in sidecars} == set(kept)
    assert 0.3 < sum(row["bytes"] for row in sidecars) / sum(row["bytes"] for row in scores) <= 0.4
    page = (recipe.data_directory / "funnel.html").read_text()
    assert "selected out" in page and "bits per byte; kept: up to" in page


def test_other_scores_select_anew_and_raw_files_do_not_fit(
    make: Callable[..., Recipe], vocab: Vocab, tmp_path: Path
) -> None:
    scored_parts(make("a"), tmp_path / "all.parquet", vocab)
    assert prepare_inline(
        make("a", f"data.select={json.dumps({'scores': [str(tmp_path / 'all.parquet')], 'keep': 1.0})}")
    )
    score_to_file(texts_at([str(tmp_path / "corpus.jsonl")]), tmp_path / "raw.parquet", CountingReader(), vocab, BY)
    with pytest.raises(ValueError, match="none of 40 documents has a score: these are scores of another corpus"):
        prepare_inline(make("a", f"data.select={json.dumps({'scores': [str(tmp_path / 'raw.parquet')], 'keep': 1.0})}"))


# -------------------------------------------------------------------------------------------------------------- command
def test_paths_and_settings_may_stand_anywhere() -> None:
    def parsed(line: str) -> Namespace:
        return parse(["score", *line.replace("RUN", "/").split()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("configs.schema.recipe.find_run", Path)
        assert parsed("RUN a.txt b.txt --out f").paths == parsed("RUN --out f a.txt b.txt").paths == ["a.txt", "b.txt"]
        found = parsed("RUN --data r --out f data.workers=2")
        assert (found.data, found.paths, found.overrides) == ("r", [], ["data.workers=2"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--out f.parquet", "give PATHS, or --data RECIPE"),
        ("a.txt --data demo --out f.parquet", "give PATHS, or --data RECIPE"),
        ("a.txt data.workers=2 --out f.parquet", "data.workers=2 is a setting of a recipe"),
        ("a.txt --out /dev/null", "/dev/null exists; give --force to replace it"),
    ],
)
def test_arguments_that_exclude_each_other(line: str, words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("configs.schema.recipe.find_run", Path)
        arguments = parse(["score", "/", *line.split()])
    with pytest.raises(ValueError, match=words):
        score_texts(arguments)
