"""Scores of touched and clean items: both together are the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configs.common.files import write_json
from configs.safety.trust import trusting
from configs.schema.data import Tokenizer
from configs.schema.evaluation import Benchmarks
from configs.schema.model import Model
from configs.schema.pair_sets import TranslationSet
from configs.schema.recipe import Recipe, load
from data_prep.decontamination.decontaminate import Touched
from data_prep.decontamination.evaluation_sets import contents_of, item_key
from data_prep.sources.places import place_identity
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.contamination import facts, identity, is_known, labelled, split
from eval.contamination import load as load_touched
from eval.generation.translation import translation_results
from eval.harness.benchmarks import benchmark_results
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import perplexity_results, score_texts
from eval.reading.reader import LocalReader
from eval.results import Result
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.model.transformer import Transformer
from tests.parts.fake_run import fake_results, write_fake_run
from tests.parts.items_check import without_items
from tests.parts.training_run import write_recipe


@pytest.fixture(autouse=True)
def trusted(tmp_path: Path) -> Iterator[None]:
    """The tasks of these tests are their own."""
    with trusting([tmp_path]):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=32, num_heads=2, context_length=64, init_std=0.3)
    return Transformer(config, config.padded_vocab(260)).eval()


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


def touched(name: str, *keys: str) -> Touched:
    return Touched({name: {"items": 6, "compared": 6, "touched": len(keys)}}, {name: frozenset(keys)}, "mark", "f")


def parts(results: list[Result], name: str) -> tuple[Result, Result, Result]:
    by_name = {result.name: result for result in results}
    return by_name[name], by_name[f"{name}/clean"], by_name[f"{name}/touched"]


def test_splitting() -> None:
    items = [["a"], ["b", "c"], ["d"]]
    known = touched("s", item_key(["b", "c"]))
    assert {part: mask.tolist() for part, mask in split(known, "s", items).items()} == {
        "clean": [True, False, True],
        "touched": [False, True, False],
    }
    assert split(known, "s", [["a"], ["b"]]) == {}, "the borders of passages count"
    assert split(known, "another", items) == {} and split(None, "s", items) == {}
    assert split(known, "s", [["b", "c"]]) == {}, "nothing to tell apart"


def test_benchmark_items(model: Transformer, vocab: Vocab, tmp_path: Path) -> None:
    docs = [{"question": f"How many is {n}?", "choices": [f"as many as {n}", "none"], "gold": n % 2} for n in range(6)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "quiz.yaml").write_text(
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: quiz.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    )
    section = Benchmarks(tasks=["quiz"], include_path=str(tmp_path))
    keys = [item_key([f"How many is {n}?", f"as many as {n}", "none"]) for n in (1, 4)]
    scored = benchmark_results(
        section, LocalReader(model, vocab.size), vocab, 100, False, touched("benchmark/quiz", *keys)
    )
    results = scored.results
    assert without_items(scored, "benchmark/quiz", tmp_path / "run") == set()
    assert [item.tags for item in scored.items].count(("touched",)) == 2
    for metric in ("acc", "acc_norm"):
        whole, clean, met = parts(results, f"benchmark/quiz/{metric}")
        assert (whole.n, clean.n, met.n) == (6, 4, 2)
        assert 4 * clean.value + 2 * met.value == pytest.approx(6 * whole.value)
        assert met.low is not None and met.chance == 0.5 and met.note and "share an n-gram" in met.note
    alone = benchmark_results(section, LocalReader(model, vocab.size, 1), vocab, 100, False)
    assert len(alone.results) == 2
    for one, other in zip(alone.items, scored.items, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-6)
        same = {"seconds": 0, "tags": (), "log_likelihoods": ()}
        assert replace(one, **same) == replace(other, **same), "whatever the batch"  # type: ignore[arg-type]


def test_translated_pairs(model: Transformer, vocab: Vocab, tmp_path: Path) -> None:
    rows = [{"source": f"uno  {n} dos", "target": f"one {n} two"} for n in range(7)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = TranslationSet(
        name="set", path=str(tmp_path / "pairs.jsonl"), shots=1, max_new_tokens=8, normalize="spaces"
    )
    known = touched("translation/set", *(item_key([f"uno {n} dos", f"one {n} two"]) for n in (2, 3)))
    scored = translation_results(section, LocalReader(model, vocab.size, 4), vocab, 100, None, known)
    results = scored.results
    assert without_items(scored, "translation/set", tmp_path / "run") == {"translation/set/copy_bleu"}
    for metric in ("bleu", "chrf"):
        whole, clean, met = parts(results, f"translation/set/{metric}")
        assert (whole.n, clean.n, met.n) == (6, 4, 2) and clean.signature == whole.signature
    names = {result.name for result in results}
    assert names == {f"translation/set/{m}{p}" for m in ("bleu", "chrf") for p in ("", "/clean", "/touched")} | {
        "translation/set/copy_bleu"
    }


def test_documents_of_a_perplexity_set(model: Transformer, vocab: Vocab) -> None:
    texts = ["first document " * 9, "second", "third one " * 20, "fourth"]
    scores = score_texts(LocalReader(model, vocab.size, 4), vocab, texts, Convention(model.config.context_length, 32))
    masks = split(touched("p", item_key([texts[1]]), item_key([texts[2]])), "p", [[text] for text in texts])
    whole = perplexity_results("p", scores, 32, 50)
    sums = {}
    for part, mask in masks.items():
        own = scores.of(mask)
        alone = score_texts(
            LocalReader(model, vocab.size, 4),
            vocab,
            [text for text, inside in zip(texts, mask, strict=True) if inside],
            Convention(model.config.context_length, 32),
        )
        assert own.document.tolist() == alone.document.tolist()
        assert own.nats == pytest.approx(alone.nats, rel=1e-4)
        results = labelled(perplexity_results("p", own, 32, 50), part)
        assert [result.name for result in results] == [f"{result.name}/{part}" for result in whole]
        assert results[0].n == 2
        sums[part] = results[2].value * own.tokens.sum()
    assert sums["clean"] + sums["touched"] == pytest.approx(whole[2].value * scores.tokens.sum())


def test_only_what_was_trained_on_is_believed(tmp_path: Path) -> None:
    recipe: Recipe = load(write_recipe(tmp_path / "recipe.yaml", tmp_path / "data"))
    info = CheckpointInfo(Path("c"), 1, 1, "", "trained-on", "", {}, {}, {})
    assert not is_known(recipe, info) and load_touched(recipe, info) is None and identity(recipe, info) is None
    write_json(tmp_path / "data/decontaminate/manifest.json", {"fingerprint": "x", "sets": {}, "action": "drop"})
    manifest = {"fingerprint": "trained-on", "stages": ["documents", "decontaminate"]}
    write_json(tmp_path / "data/manifest.json", manifest)
    assert identity(recipe, info) == "x"
    for other in ({"fingerprint": "of others"}, {"stages": ["documents"]}):
        write_json(tmp_path / "data/manifest.json", {**manifest, **other})
        assert not is_known(recipe, info)
    assert facts(None) == {}


def test_items_that_were_not_compared_do_not_pass_for_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sets that grew after the training data was compared with them."""
    held, tasks = tmp_path / "held.jsonl", tmp_path / "tasks"
    held.write_text('{"text": "one"}\n{"text": "two"}\n')
    tasks.mkdir()
    (tasks / "quiz.yaml").write_text("task: quiz\n")
    own = [f"evaluation.perplexity=[{{name: held, path: {held}}}]", "data.decontaminate={}"]
    own.append(f"evaluation.benchmarks={{tasks: [quiz], include_path: {tasks}}}")
    recipe = load(write_recipe(tmp_path / "recipe.yaml", tmp_path / "data"), own)
    info = CheckpointInfo(Path("c"), 1, 1, "", "trained-on", "", {}, {}, {})
    names = ["perplexity/held", "benchmark/quiz"]
    stage = tmp_path / "data" / "decontaminate"
    made = {"fingerprint": "x", "sets": {name: {} for name in names}, "action": "drop"}
    write_json(stage / "manifest.json", {**made, "inputs": {"sets": contents_of(recipe, place_identity)}})
    write_json(tmp_path / "data/manifest.json", {"fingerprint": "trained-on", "stages": ["decontaminate"]})
    pq.write_table(pa.table({"set": names, "item": [item_key(["one"]), "key"]}), stage / "touched.parquet")

    def known(recipe: Recipe) -> set[str]:
        found = load_touched(recipe, info)
        assert found is not None and set(found.sets) == set(names)
        return set(found.keys)

    assert known(recipe) == set(names) and capsys.readouterr().err == ""
    held.write_text(held.read_text() + '{"text": "three"}\n')
    assert known(recipe) == {"benchmark/quiz"}
    assert "note: perplexity/held has changed since the training data was compared with it" in capsys.readouterr().err
    (tasks / "quiz.yaml").write_text("task: quiz\ntest_split: another\n")
    assert known(recipe) == set()
    held.unlink()
    assert known(recipe) == {"perplexity/held"}, "scoring says that it is missing"


def test_the_report_shows_the_sets(tmp_path: Path) -> None:
    from eval.report.page import write_report

    data = {**fake_results().data, **facts(touched("benchmark/quiz", "k"))}
    page = write_report(write_fake_run(tmp_path, data=data)).read_text()
    assert "Evaluation items met in the training text" in page and "These documents were trained on." in page
