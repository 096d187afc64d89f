"""Scores of a masked model: bounds beside what others score, with notes that say so; texts by filling in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from configs.schema.evaluation import Evaluation, PerplexitySet, Samples
from configs.schema.model import Model
from data_prep.decontamination.evaluation_sets import SetText
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.generation.completions import Stops, complete
from eval.in_training.evaluator import PartsEvaluator
from eval.likelihood.bound_notes import bound_inputs, bound_noted
from eval.parts import Scored
from eval.reading.bound import BoundReader
from eval.reading.opening import reader_of
from eval.reading.windows import Window
from eval.results import Result
from eval.scorer import Scorer
from pretrain.denoising.predictor import predictor_of
from pretrain.model.transformer import Transformer
from tests.parts.fake_run import fake_recipe

TEXTS = ["some text that is longer than a window of the model", "and more", "x"]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte", special_tokens=[END_OF_TEXT, MASK]), [])


def scorer(vocab: Vocab, causal: bool = False, **evaluation: Any) -> Scorer:
    torch.manual_seed(1)
    config = Model(num_layers=1, hidden_size=8, num_heads=1, context_length=16, causal=causal, init_std=0.5)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    section = Evaluation(perplexity=[PerplexitySet(name="p", path="x")], **evaluation)
    recipe = fake_recipe(Path("/nowhere")).model_copy(update={"evaluation": section, "model": config})
    made = Scorer(recipe, reader_of(model, vocab, recipe), vocab, None, {"checkpoint": "c"}, {}, progress=False)
    made._texts["p"] = [SetText(str(number), text) for number, text in enumerate(TEXTS)]
    return made


def scored(made: Scorer, name: str) -> Scored:
    return next(part for part in made.parts() if part.name == name).work()


def test_perplexity_is_a_bound_and_says_so_with_the_error_of_its_draws(vocab: Vocab) -> None:
    """Its name, unit and set are those of other models' scores, so that they stand in one table."""
    ours, theirs = (scored(scorer(vocab, causal), "perplexity/p").results for causal in (False, True))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.unit, one.set, one.settings, one.n) == (
            other.name, other.unit, other.set, other.settings, other.n)  # fmt: skip
        assert one.note is not None and one.note.startswith("upper bound, 16 draws; ") and one.low is not None
        assert "standard error of the draws 0." in one.note or one.name.endswith("/perplexity")
        assert other.note is not None and "bound" not in other.note and "draws" not in other.note
    assert ours[0].is_bound and not theirs[0].is_bound
    few, many = (scored(scorer(vocab, bound_draws=draws), "perplexity/p").results[0] for draws in (2, 400))
    errors = [float(one.note.rpartition("standard error of the draws ")[2]) for one in (few, many) if one.note]
    assert errors[1] < errors[0] / 5 and few.value == pytest.approx(many.value, abs=4 * errors[0])


def test_what_decides_the_scores_of_a_masked_model(vocab: Vocab) -> None:
    usual, other = scorer(vocab), scorer(vocab, bound_draws=7)
    before, after = ({part.name: part.inputs for part in one.parts()} for one in (usual, other))
    assert all(before[name] != after[name] for name in before)
    assert bound_inputs(scorer(vocab, causal=True).recipe) == {}
    result = Result("benchmark/a/acc", 0.5, None, None, 2, "accuracy", True, "none", note="the first 2 of 3 items")
    (noted,) = bound_noted(usual.recipe, [result])
    assert noted.note == (
        "log-likelihoods, if the task takes any, are upper bounds of nats, 16 draws; the first 2 of 3 items"
    )
    difference = Result("information/a/saved_bits/0-shot", 0.5, None, None, 2, "bits", True, "none")
    assert bound_noted(usual.recipe, [difference])[0].note == "made of upper bounds of nats, 16 draws"
    kept = Result("summarization/a/lead_kept_information", 0.5, None, None, 2, "share", True, "none")
    assert bound_noted(usual.recipe, [kept])[0].note == "made of upper bounds of nats, 16 draws"
    rouge = Result("summarization/a/rougeL", 0.5, None, None, 2, "ROUGE", True, "none")
    assert bound_noted(usual.recipe, [rouge]) == [rouge]
    made_of_text = Result("translation/a/bleu", 0.5, None, None, 2, "BLEU", True, "none")
    assert bound_noted(usual.recipe, [made_of_text]) == [made_of_text]


def test_samples_fill_in_the_gaps_of_prompts_and_continue_others(vocab: Vocab) -> None:
    prompts = ["ab<|mask|>*5 cd", r"\<|mask|>", "ab"]
    made = scorer(vocab, samples=Samples(prompts=prompts, max_new_tokens=20, temperature=1.0))
    infilled, escaped, plain = scored(made, "samples/prompts").samples
    assert infilled.kind == "infill" and infilled.prompt == prompts[0]
    assert infilled.text.startswith("ab") and infilled.text.endswith(" cd") and MASK not in infilled.text
    assert (escaped.kind, escaped.prompt, plain.kind) == ("prompt", "<|mask|>", "prompt")
    with pytest.raises(ValueError, match="reads from left to right"):
        scored(scorer(vocab, causal=True, samples=Samples(prompts=prompts)), "samples/prompts")
    assert len(scored(made, "samples/document").samples) == 1
    (text,) = complete(made.reader, Stops(vocab, ["e"]), [vocab.prompt("ab")], 30)
    assert "e" not in text, "generate serves tasks that generate, with their stop strings"


def test_the_reader_of_a_model_is_that_of_its_kind_in_training_too(vocab: Vocab) -> None:
    made = scorer(vocab)
    assert isinstance(made.reader, BoundReader)
    model = made.reader._predictor._model  # type: ignore[attr-defined]
    evaluator: Any = SimpleNamespace(_vocab=vocab, _recipe=made.recipe)
    engine: Any = SimpleNamespace(precision_of_autocast=torch.bfloat16)
    reader = PartsEvaluator._reader(evaluator, engine, model)
    assert isinstance(reader, BoundReader) and reader.precision == "bf16"
    windows = [Window(np.array(vocab.encode(text))[:16], 2) for text in TEXTS[:2]]
    assert reader.score(windows) == made.reader.score(windows)
    with pytest.raises(ValueError, match=r"has no special token <\|mask\|>"):
        predictor_of(model, train_vocab(Tokenizer(kind="byte"), []))
