"""Sentences are translated as they stand, unless the set says otherwise; what does not fit is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.pair_sets import TranslationSet
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.comparison.comparable import difference
from eval.generation.translation import translation_results
from eval.pairs.prompts import read_pairs
from eval.reading.reader import LocalReader, Reader
from pretrain.model.transformer import Transformer


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def reader(vocab: Vocab) -> Reader:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=64)
    return LocalReader(Transformer(config, config.padded_vocab(vocab.size)).eval(), vocab.size, 8)


def pairs_of(directory: Path, *sources: str, **settings: Any) -> TranslationSet:
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": source, "target": "x  y"}) + "\n" for source in sources))
    return TranslationSet(name="t", path=str(path), shots=0, max_new_tokens=4, **settings)


def test_sentences_stay_as_they_stand(tmp_path: Path) -> None:
    usual = pairs_of(tmp_path, "uno  dos ")
    assert [(pair.source, pair.target) for pair in read_pairs(usual)[1]] == [("uno  dos ", "x  y")]
    even = usual.model_copy(update={"normalize": "spaces"})
    assert [(pair.source, pair.target) for pair in read_pairs(even)[1]] == [("uno dos", "x y")]


def test_a_line_break_would_end_a_translation(tmp_path: Path) -> None:
    item = pairs_of(tmp_path, "uno", "uno\ndos")
    with pytest.raises(ValueError, match=r"item 2 of .* has a line break.*normalize: spaces"):
        read_pairs(item)
    assert len(read_pairs(item.model_copy(update={"normalize": "spaces"}))[1]) == 2


def test_results_name_the_choice_and_what_was_cut(tmp_path: Path, reader: Reader, vocab: Vocab) -> None:
    usual = pairs_of(tmp_path, "uno  dos", "x" * 80)
    one, other = (
        {result.named.metric: result for result in translation_results(item, reader, vocab, 100).results}
        for item in (usual, usual.model_copy(update={"normalize": "spaces"}))
    )
    for metric in ("bleu", "chrf", "copy_bleu"):
        assert "normalize none against spaces" in (difference(one[metric], other[metric]) or ""), metric
    assert "1 of 2 sources are longer than the context" in (one["bleu"].note or "")
