"""Samples of documents that begin or end awkwardly, and what decides a part."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.evaluation import Benchmarks, Evaluation, PerplexitySet, Samples
from configs.schema.model import Model
from configs.schema.pair_sets import InformationSet
from configs.schema.recipe import Recipe
from data_prep.decontamination.evaluation_sets import SetText
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.comparison.comparable import difference_within
from eval.currency import set_identities
from eval.harness import benchmarks
from eval.parts import Part, Scored
from eval.reading.reader import LocalReader
from eval.results import Result
from eval.scorer import Scorer, _is_local, passage
from pretrain.model.transformer import Transformer
from pretrain.parallel.lockstep import Lockstep
from pretrain.parallel.ranks import Ranks
from tests.parts.evaluation_run import TASKS
from tests.parts.fake_run import fake_recipe
from tests.parts.training_run import as_ranks


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("first\n\nsecond\n\nthird", "third"),
        ("a long first half without a break\n\nend", "end"),
        ("ends with an empty line.\n\n", "ends with"),
        ("\n\nbegins with one", "\n\nbegins"),
        ("one line", "one line"),
        ("\n\n", "\n\n"),
    ],
)
def test_a_passage_is_never_empty(text: str, begins: str) -> None:
    assert passage(text).startswith(begins)


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


def scorer(vocab: Vocab, evaluation: Evaluation, context: int = 8, **changes: object) -> Scorer:
    torch.manual_seed(1)
    config = Model(num_layers=1, hidden_size=8, num_heads=1, context_length=context)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    recipe: Recipe = fake_recipe(Path("/nowhere")).model_copy(update={"evaluation": evaluation, **changes})
    return Scorer(recipe, LocalReader(model, vocab.size), vocab, None, {"checkpoint": "c"}, {}, progress=False)


@pytest.mark.parametrize("text", ["ends.\n\n", "\n\n", "🦊 begins", "🦊"])
@pytest.mark.parametrize("context", [2, 8])
def test_documents_with_nothing_to_continue(vocab: Vocab, tmp_path: Path, text: str, context: int) -> None:
    """An empty passage, or one whose first character has more tokens than are read: from a document's beginning."""
    (tmp_path / "set.txt").write_text(text)
    item = PerplexitySet(name="p", path=str(tmp_path / "set.txt"))
    parts = scorer(vocab, Evaluation(perplexity=[item], samples=Samples(prompts=[""], max_new_tokens=4)), context)
    parts._texts["p"] = [SetText("1", text)]  # as normalisation leaves it with `whitespace: false`
    (sample,) = parts._sample_document(item).samples
    assert text.startswith(sample.prompt) or text.endswith(sample.prompt)
    (prompt,) = parts._sample_prompts().samples
    assert prompt.prompt == ""


def test_what_decides_a_part(vocab: Vocab) -> None:
    """Its own settings and files; not those of other parts, places, or how large batches are."""

    def inputs(**changes: object) -> dict[str, object]:
        item = PerplexitySet(name="p", path=str(changes.pop("path", "x")), stride=changes.pop("stride", None))  # type: ignore[arg-type]
        own = Evaluation(perplexity=[item], **changes)  # type: ignore[arg-type]
        return {part.name: part.inputs for part in scorer(vocab, own).parts()}

    usual = inputs()
    assert usual.keys() == {"samples/prompts", "perplexity/p", "compression/p", "samples/document"}
    assert inputs(path="y", batch_size=3, batch_tokens=99) == usual
    assert all(value["precision"] == "fp32" for value in usual.values())  # type: ignore[index]
    changed = {name for name, value in inputs(stride=3).items() if value != usual[name]}
    assert changed == {"perplexity/p", "samples/document"}
    changed = {name for name, value in inputs(samples=Samples(prompts=["x"])).items() if value != usual[name]}
    assert changed == {"samples/prompts"}
    assert all(inputs(bootstrap_samples=101)[name] != value for name, value in usual.items())


def test_what_decides_a_part_of_information(vocab: Vocab, tmp_path: Path) -> None:
    """Its settings and files, not its place; its scores name the precision, as all that a model reads do."""
    lines = [json.dumps({"source": f"s{n}", "target": f"t{n}"}) for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    section = InformationSet(name="i", path=str(tmp_path / "pairs.jsonl"), candidates=2)

    def part(**changes: object) -> Part:
        own = Evaluation(information=[section.model_copy(update=changes)], samples=Samples(prompts=[]))
        (made,) = scorer(vocab, own, context=64).parts()
        return made

    assert part().name == "information/i" and part(path="elsewhere").inputs == part().inputs
    assert part(shots=[1]).inputs != part().inputs != part(candidates=3).inputs
    whole = scorer(vocab, Evaluation(information=[section], samples=Samples(prompts=[])), context=64)
    (made,) = replace(whole, sets=set_identities(whole.recipe)).parts()
    assert made.inputs["own"]["files"], "the content of its files"
    scored = part().work()
    assert len(scored.items) == 4 and all(result.settings["precision"] == "fp32" for result in scored.results)


def test_scores_say_what_they_are_of(vocab: Vocab) -> None:
    """The set, the stride, and per token the tokenizer; equal content has one fingerprint wherever it lies."""

    def scores(texts: list[str], stride: int | None = None) -> dict[str, Result]:
        item = PerplexitySet(name="p", path="x", stride=stride)
        made = scorer(vocab, Evaluation(perplexity=[item]))
        made._texts["p"] = [SetText(str(number), text) for number, text in enumerate(texts)]
        results = [*made._score_texts(item).results, *made._compress(item).results]
        return {result.name.split("/")[2]: result for result in results}

    one = scores(["some text", "and more"])
    assert {result.set for result in one.values()} == {scores(["some text", "and more"])["perplexity"].set}
    assert scores(["some textand", " more"])["perplexity"].set != one["perplexity"].set, "borders count"
    tokenizers = {name: result.tokenizer for name, result in one.items() if result.tokenizer}
    assert tokenizers == dict.fromkeys(("perplexity", "nats_per_token"), vocab.fingerprint)
    usual = {
        "normalize": "none",
        "detokenize": "none",
        "documents": "apart",
        "start token": "begin",
        "context": "the model's",
        "new tokens per window": "half the context",
    }
    assert one["perplexity"].settings == usual
    assert scores(["some text"], 4)["perplexity"].settings == usual
    assert scores(["some text"], 3)["perplexity"].settings == usual | {"new tokens per window": 3}
    assert one["xz_bits_per_byte"].settings == {"normalize": "none", "detokenize": "none"}
    assert difference_within(one["bits_per_byte"], one["xz_bits_per_byte"]) is None
    made = scorer(vocab, Evaluation(perplexity=[PerplexitySet(name="p", path="x")]))
    made._texts["p"] = [SetText("1", "some text")]
    named = {part.name: [result.settings.get("precision") for result in part.work().results] for part in made.parts()}
    assert set(named["perplexity/p"]) == {"fp32"} and set(named["compression/p"]) == {None}
    with pytest.raises(ValueError, match="stride 9 is more than"):
        scores(["some text"], 9)


@pytest.mark.parametrize(("task", "fetched"), [("hellaswag", [0, 1]), ("replica_copa", [])])
def test_one_rank_fetches_the_data_of_a_task_before_the_others(
    vocab: Vocab, monkeypatch: pytest.MonkeyPatch, task: str, fetched: list[int]
) -> None:
    """Not where the data lies beside the task's file. They load lm-eval side by side."""
    section = Benchmarks(tasks=[task], include_path=str(TASKS))
    begun: list[int] = []
    side_by_side = threading.Barrier(2)
    loaded: list[int] = []
    monkeypatch.setattr(benchmarks, "load_lm_eval", lambda: loaded.append(side_by_side.wait(20)))
    turn = threading.local()
    monkeypatch.setattr(benchmarks, "fetch_tasks", lambda section: begun.append(turn.rank))
    monkeypatch.setattr(benchmarks, "benchmark_results", lambda *_: Scored())

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> None:
        turn.rank = ranks.rank
        own = scorer(vocab, Evaluation(benchmarks=section))
        own.ranks = Lockstep(ranks.rank, ranks.count, gather)
        own._score_task(section.entries[0])

    as_ranks(2, of)
    assert begun == fetched and len(loaded) == len(fetched)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("task: own\n", True),
        ("dataset_path: json\ntask: 'own'\n", True),
        ("group: own  # all\n", True),
        ('{"task": "own", "dataset_path": "json"}', True),
        ('{"dataset_path": "json", "task": "own"}', True),
        ("task: own_other\n", False),
        ("description: the task is own\n", False),
    ],
)
def test_a_task_is_local_where_a_file_defines_it(tmp_path: Path, text: str, local: bool) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert _is_local(Benchmarks(tasks=["own"], include_path=str(tmp_path)), "own") is local
