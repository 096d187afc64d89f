"""A source's prefix: every document of the shards begins with it, and no step before the tokens sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from configs.schema.recipe import Recipe, RecipeError, load
from data_prep.funnel.tally import check
from data_prep.stages.graph import Plan
from data_prep.stages.pipeline import prepare_inline
from data_prep.stages.verify import verify
from data_prep.tokens.shards import DataManifest, ShardIndex, TokenStream, beside

TEXTS = ["你好，世界。", "e\u0301tude", "the same text", " begins with a blank"]


def recipe_of(directory: Path, *overrides: str) -> Recipe:
    """Two sources with the same texts; the second is what duplicates are dropped from."""
    for name, texts in (("a", TEXTS), ("b", ["only here", TEXTS[2]])):
        (directory / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{name}{n}", "text": text}) + "\n" for n, text in enumerate(texts))
        )
    sources = [{"name": name, "path": str(directory / f"{name}.jsonl")} for name in ("a", "b")]
    content = {
        "name": "t",
        "data": {
            "sources": sources,
            "tokenizer": {"kind": "byte"},
            "validation_fraction": 0.0,
            "keep_dropped": True,  # so that their tokens are counted
        },
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"steps": 1, "global_batch_size": 1},
    }
    (directory / "t.yaml").write_text(yaml.safe_dump(content))
    return load(directory / "t.yaml", overrides, {"out": str(directory / "run")})


def texts_of(manifest: DataManifest) -> dict[str, str]:
    """Document id -> its text as the tokens have it, without the end of document."""
    found = {}
    for source in manifest.train:
        stream = TokenStream(source.prefixes, source.name, manifest.vocab_size)
        start = 0
        for prefix in source.prefixes:
            names = pq.read_table(beside(prefix, ".parquet"))["id"].to_pylist()
            for name, length in zip(names, ShardIndex.open(prefix).lengths.tolist(), strict=True):
                *ids, end = stream.read(start, length).tolist()
                assert end == manifest.eod_id
                found[name], start = manifest.vocab.decode(ids), start + length
    return found


def test_documents_begin_with_the_prefix_and_the_steps_before_do_not_see_it(tmp_path: Path) -> None:
    plain = prepare_inline(recipe_of(tmp_path))
    bare, before = texts_of(plain), Plan(recipe_of(tmp_path)).last
    tags = ["data.sources.a.prefix=<zh> ", "data.sources.b.prefix=<b>"]
    recipe = recipe_of(tmp_path, *(tag.replace("=", '="') + '"' for tag in tags))
    tagged = prepare_inline(recipe)
    assert texts_of(tagged) == {name: ("<zh> " if name[0] == "a" else "<b>") + text for name, text in bare.items()}
    assert Plan(recipe).last == before, "documents, duplicates and decontamination are not made again"
    assert "b1" not in bare, "a duplicate of another source stays one, whatever stands before it"
    # Tokens count the tags, bytes are those of the text: so the funnel adds up as before.
    check(tagged.funnel)
    dropped = [[row["tokens"] for row in one.funnel if row["stage"] == "exact"] for one in (plain, tagged)]
    assert dropped[0] and dropped[1] == [tokens + len("<b>") for tokens in dropped[0]], (
        "a dropped text would have had it"
    )
    for one, other, tag in zip(tagged.train, plain.train, ("<zh> ", "<b>"), strict=True):
        assert (one.bytes, one.documents) == (other.bytes, other.documents)
        assert one.tokens == other.tokens + len(tag) * one.documents
    verify(recipe.data_directory)


def test_spans_of_a_document_count_its_prefix(tmp_path: Path) -> None:
    manifest = prepare_inline(recipe_of(tmp_path, 'data.sources.a.prefix="<zh> "'))
    source = next(one for one in manifest.train if one.name == "a")
    stream = TokenStream(source.prefixes, source.name, manifest.vocab_size)
    spans = list(stream.documents(0, len(stream)))
    assert [span.tokens for span in spans] == [len(("<zh> " + text).encode()) + 1 for text in sorted_texts(manifest)]


def sorted_texts(manifest: DataManifest) -> list[str]:
    """Texts of source `a` as normalised, in the order of the shard."""
    return [text.removeprefix("<zh> ") for name, text in texts_of(manifest).items() if name[0] == "a"]


def test_a_vocabulary_learns_the_prefix(tmp_path: Path) -> None:
    """Its characters are no bytes of last resort, and BPE counts it with each document."""
    manifest = prepare_inline(recipe_of(tmp_path, 'data.sources.a.prefix="☯"', "data.tokenizer.kind=char"))
    assert "☯" in manifest.vocab.vocabulary
    assert len(manifest.vocab.encode("☯")) == 1


def test_data_without_a_prefix_is_what_it_was(tmp_path: Path) -> None:
    """The setting alone makes no prepared data stale."""
    plan = Plan(recipe_of(tmp_path))
    assert "prefixes" not in plan.tokenizer.inputs
    assert "prefix" not in plan.documents.inputs["sources"][0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.sources.a.shape=alpaca", "chat template"),
        (r'data.sources.a.prefix="\ud800"', "unicode"),
        (f"data.sources.a.prefix={'x' * 201}", "200"),
    ],
)
def test_a_prefix_that_cannot_be(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_of(tmp_path, "data.sources.a.prefix=<x>", override)
