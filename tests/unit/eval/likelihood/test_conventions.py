"""Conventions of perplexity: what is read, what is scored, what the sum is divided by, and that a result names it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from configs.schema.data import Normalize, Tokenizer
from configs.schema.evaluation import PerplexitySet
from configs.schema.model import Model
from data_prep.decontamination.evaluation_sets import SetText, read_set
from data_prep.documents.conversion import read_documents
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.comparison.comparable import difference, difference_within
from eval.comparison.scored_items import ScoredItems
from eval.likelihood.conventions import Convention, count_words, described
from eval.likelihood.perplexity import score_texts
from eval.likelihood.perplexity_set import OF_GROUPS, compressed_set_results, perplexity_set_results
from eval.reading.reader import LocalReader, Reader
from eval.reading.windows import Window
from eval.report.gates import OF_GROUPS as OF_GROUPS_OF_GATES
from eval.results import Result
from pretrain.model.transformer import Transformer
from tests.parts.items_check import without_items

CONTEXT = 8
TEXTS = ["first  text \r\n", "zweiter Text", "première\n\n\n\nphrase", "second text", "x"]
GROUPS = ["en", "de", "fr", "en", "de"]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def reader(vocab: Vocab) -> Reader:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=CONTEXT, init_std=0.3)
    return LocalReader(Transformer(config, config.padded_vocab(vocab.size)).eval(), vocab.size, 4)


def prepared(texts: list[str], **settings: Any) -> tuple[PerplexitySet, list[SetText]]:
    documents = [SetText(str(n), text, group) for n, (text, group) in enumerate(zip(texts, GROUPS, strict=False))]
    return PerplexitySet(name="p", path="x", **settings), documents


def scores(reader: Reader, vocab: Vocab, texts: list[str] = TEXTS, **settings: Any) -> dict[str, Result]:
    item, documents = prepared(texts, **settings)
    scored = perplexity_set_results(item, documents, reader, vocab, 100)
    made = [*scored.results, *compressed_set_results(item, documents)]
    assert len({result.name for result in made}) == len(made)
    return {result.name.removeprefix("perplexity/p/"): result for result in made}


@pytest.mark.parametrize(
    "settings",
    [
        {"by": "language", "words": "whitespace"},
        {"start_token": "none"},
        {"detokenize": "wikitext", "words": "lm_eval", "stride": 3},
        {"stream": "text", "words": "whitespace", "windows": "pieces"},
        {"stream": "end_of_document"},
    ],
)
def test_items_give_the_scores(reader: Reader, vocab: Vocab, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Those of each value of a field too; a document without a scored token is no item."""
    item, documents = prepared([*TEXTS[:3], "x", "s ' s , x"], **settings)
    scored = perplexity_set_results(item, documents, reader, vocab, 100)
    assert without_items(scored, "perplexity/p", tmp_path) == set()
    compared = ScoredItems(tmp_path, SimpleNamespace(items={"perplexity/p": "f" * 32}))  # type: ignore[arg-type]
    assert all(compared.of(result).ratio == pytest.approx(result.value, rel=1e-9) for result in scored.results)
    assert len(scored.items) == scored.results[0].n == {"none": 4}.get(item.start_token, len(scored.items))
    assert scored.items[0].id == ("1" if item.stream != "documents" else "0")


def test_a_set_is_scored_as_it_stands_unless_it_says_otherwise(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": TEXTS[0]}, {"text": ""}, {"text": " "}]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    item = PerplexitySet(name="p", path=str(path))
    assert [one.text for one in read_set(item, Normalize())] == [TEXTS[0], "", " "]
    trained = item.model_copy(update={"normalize": "training"})
    assert [one.text for one in read_set(trained, Normalize())] == ["first  text", "", ""]
    assert read_set(item, Normalize())[0].id == "a"


def test_a_long_text_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text("word " * 500)
    monkeypatch.setattr(
        "data_prep.decontamination.evaluation_sets.read_documents",
        lambda source, on_reject: read_documents(source, 300, on_reject),
    )
    (one,) = read_set(PerplexitySet(name="p", path=str(tmp_path / "long.txt")), Normalize())
    assert one.text == "word " * 500 and "#" not in one.id


def test_old_and_new_scores_are_incomparable(reader: Reader, vocab: Vocab) -> None:
    """Scores of earlier versions are of normalised text, and name no normalisation."""
    new = scores(reader, vocab)["bits_per_byte"]
    assert new.unit == "bits per byte"
    old = replace(new, unit="bits per byte of normalised text", settings={"new tokens per window": "half the context"})
    assert "unit" in (difference(new, old) or "") and "normalize" in (difference(new, old) or "")
    trained = scores(reader, vocab, normalize="training")
    assert trained["bits_per_byte"].unit == trained["compression/p/xz_bits_per_byte"].unit == old.unit
    assert "normalize none against training" in (difference(new, trained["bits_per_byte"]) or "")
    per_token = difference(scores(reader, vocab)["perplexity"], trained["perplexity"])
    assert per_token == "normalize none against training"


def test_every_convention_is_named(reader: Reader, vocab: Vocab) -> None:
    usual = scores(reader, vocab)["perplexity"]
    for changes in (
        {"start_token": "none"},
        {"context": 5},
        {"stride": 3},
        {"stream": "text"},
        {"stream": "text", "separator": " "},
        {"stream": "end_of_document"},
        {"windows": "pieces"},
        {"windows": "full_pieces"},
        {"detokenize": "wikitext"},
    ):
        other = scores(reader, vocab, **changes)["perplexity"]
        assert difference(usual, other) and other.settings != usual.settings, changes
        assert other.value != usual.value or changes == {"detokenize": "wikitext"}, changes
    one, two = (scores(reader, vocab, words=rule)["word_perplexity"] for rule in ("whitespace", "lm_eval"))
    assert "words whitespace against lm_eval" in (difference(one, two) or "") and one.value != two.value
    wide = PerplexitySet(name="p", path="x", stride=8)
    assert described(wide, 8) == described(wide.model_copy(update={"stride": 16}), 16), "no overlap in both"


def test_start_token_none_reads_the_first_token_only(reader: Reader, vocab: Vocab) -> None:
    """Its bytes do not count either, and a text of one token has no score."""
    with_start = score_texts(reader, vocab, TEXTS, Convention(CONTEXT, 4))
    without = score_texts(reader, vocab, TEXTS, Convention(CONTEXT, 4, start=False))
    sizes = [len(text.encode()) for text in TEXTS]
    assert with_start.tokens.sum() == sum(sizes) and with_start.documents == 5
    assert without.tokens.sum() == without.bytes.sum() == sum(sizes) - 5 and without.documents == 4
    result = scores(reader, vocab, start_token="none")["bits_per_byte"]
    assert result.n == 4
    assert result.value == pytest.approx(without.nats.sum() / math.log(2) / (sum(sizes) - 5))
    with pytest.raises(ValueError, match="no token is to be scored"):
        scores(reader, vocab, ["a", "b"], start_token="none")


def test_streams(reader: Reader, vocab: Vocab) -> None:
    """One text keeps empty documents; the end-of-document token is scored, and stands for no bytes."""
    texts = ["ab", "", "cd"]
    one = scores(reader, vocab, texts, stream="text", separator="--")
    assert one["perplexity"].note is not None and "8 bytes, 8 tokens" in one["perplexity"].note
    alone = scores(reader, vocab, ["ab----cd"])
    assert one["perplexity"].value == alone["perplexity"].value and one["perplexity"].set == alone["perplexity"].set
    assert one["compression/p/xz_bits_per_byte"].value == alone["compression/p/xz_bits_per_byte"].value
    joined = scores(reader, vocab, texts, stream="end_of_document", words="whitespace")
    note = joined["perplexity"].note or ""
    assert "4 bytes, 5 tokens, 2 words" in note and joined["perplexity"].n == 1
    ids = np.array([vocab.begin_id, *vocab.encode("ab"), vocab.eod_id, *vocab.encode("cd")])
    (direct,) = reader.score([Window(ids, 5)])
    assert joined["nats_per_token"].value == pytest.approx(direct.nats / 5, rel=1e-6)
    assert joined["byte_perplexity"].value == pytest.approx(math.exp(direct.nats / 4), rel=1e-6)


@pytest.mark.parametrize("stream", ["documents", "text", "end_of_document"])
def test_gates_can_compare_each_stream_with_compressors(reader: Reader, vocab: Vocab, stream: str) -> None:
    item, documents = prepared([*TEXTS, ""], stream=stream)
    bits = perplexity_set_results(item, documents, reader, vocab, 100).results[0]
    for compressed in compressed_set_results(item, documents, ["gzip"]):
        assert difference_within(bits, compressed) is None


def test_pieces_read_their_first_token_only(reader: Reader, vocab: Vocab) -> None:
    """Of each `context` + 1 tokens; a last piece of one token has nothing to score."""
    for length, start, expected in ((8, False, [7]), (9, False, [8]), (10, False, [8]), (20, False, [8, 8, 1])):
        how = Convention(CONTEXT, 4, start, pieces=True)
        found = score_texts(reader, vocab, ["x" * length], how)
        assert found.tokens.tolist() == found.bytes.tolist() == expected, length
        full = replace(how, full=True)
        if length < 9:
            with pytest.raises(ValueError, match="shorter than a full piece"):
                score_texts(reader, vocab, ["x" * length], full)
        else:
            assert score_texts(reader, vocab, ["x" * length], full).tokens.tolist() == [8] * (length // 9)
    with_start = score_texts(reader, vocab, ["x" * 9], Convention(CONTEXT, 4, True, pieces=True))
    assert with_start.tokens.tolist() == [8] and with_start.bytes.tolist() == [8]


def test_words_and_bytes(reader: Reader, vocab: Vocab) -> None:
    assert [count_words(" a b ", rule) for rule in ("whitespace", "lm_eval")] == [2, 4]
    assert not scores(reader, vocab).keys() & {"word_perplexity", "byte_perplexity"}
    made = scores(reader, vocab, words="whitespace")
    words, size = sum(len(text.split()) for text in TEXTS), sum(len(text.encode()) for text in TEXTS)
    nats = made["bits_per_byte"].value * math.log(2) * size
    assert made["word_perplexity"].value == pytest.approx(math.exp(nats / words))
    assert made["byte_perplexity"].value == pytest.approx(math.exp(nats / size))
    assert made["word_perplexity"].tokenizer is made["byte_perplexity"].tokenizer is None
    assert "word_perplexity" not in scores(reader, vocab, ["  ", "\n"], words="whitespace"), "no words to divide by"


def test_scores_of_each_value_of_a_field(reader: Reader, vocab: Vocab) -> None:
    """Each value has the scores of its documents alone; they add up to the whole."""
    made = scores(reader, vocab, by="language")
    assert {name for name in made if name.startswith("bits_per_byte/")} == {
        f"bits_per_byte/language={group}" for group in ("de", "en", "fr")
    }
    for group in set(GROUPS):
        own = [text for text, other in zip(TEXTS, GROUPS, strict=True) if other == group]
        alone = scores(reader, vocab, own)
        for metric in ("bits_per_byte", "perplexity", "compression/p/zstd_bits_per_byte"):
            result = made[f"{metric}/language={group}"]
            assert result.value == pytest.approx(alone[metric].value, rel=1e-6)
            assert (result.n, result.set) == (len(own), alone[metric].set)
    assert {name.rpartition("/")[0] for name in made if "=" in name and "compression" not in name} == {
        "bits_per_byte",
        "perplexity",
    }
    counted = scores(reader, vocab, by="language", words="whitespace")
    grouped = {name.partition("/")[0] for name in counted if "=" in name and "compression" not in name}
    assert grouped == set(OF_GROUPS) == set(OF_GROUPS_OF_GATES)
    whole = scores(reader, vocab)
    assert made["bits_per_byte"].value == whole["bits_per_byte"].value
    assert difference(made["bits_per_byte"], whole["bits_per_byte"]) is None


def test_fields_that_cannot_tell_documents_apart(reader: Reader, vocab: Vocab, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "a", "meta": {"lang": "zh"}}\n{"text": "b", "id": "second", "meta": {"long": "zh"}}\n')
    item = PerplexitySet(name="p", path=str(path), by="meta.lang")
    with pytest.raises(ValueError, match=r"document second has no text or number in the field `meta.lang` .*: meta"):
        read_set(item, Normalize())
    assert [one.group for one in read_set(item.model_copy(update={"max_documents": 1}), Normalize())] == ["zh"]
    many = [SetText(str(n), "x", str(n)) for n in range(201)]
    with pytest.raises(ValueError, match="201 values"):
        perplexity_set_results(item, many, reader, vocab, 100)
    alike = [SetText("1", "x", "a b"), SetText("2", "y", "a/b")]
    with pytest.raises(ValueError, match="differ only in characters"):
        perplexity_set_results(item, alike, reader, vocab, 100)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "language", "stream": "text"}, "`by` needs `stream: documents`"),
        ({"separator": " "}, "`separator` needs `stream: text`"),
        ({"stride": 4, "windows": "pieces"}, "`stride` needs `windows: sliding`"),
        ({"normalize": "no"}, "'none' or 'training'"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PerplexitySet(name="p", path="x", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 9}, "stride 9 is more than model.context_length 8"),
        ({"context": 4, "stride": 5}, "stride 5 is more than context 4"),
        ({"context": 9}, "context 9 is more than model.context_length 8"),
    ],
)
def test_windows_that_the_model_does_not_have(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Convention.of(PerplexitySet(name="p", path="x", **settings), CONTEXT)
