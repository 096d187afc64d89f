"""Settings of single tasks: names, shots, seeds, generation; which task it was; and tasks that cannot be asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.safety.trust import trusting
from configs.schema.data import Tokenizer
from configs.schema.evaluation import Benchmarks, BenchmarkTask, GenerationSettings
from configs.schema.model import Model
from data_prep.decontamination.benchmark_tasks import _open_task
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.comparison.comparable import difference
from eval.harness.benchmarks import benchmark_results
from eval.lineage import _tasks
from eval.parts import Scored
from eval.reading.reader import LocalReader, Reader
from eval.results import Result
from pretrain.model.transformer import Transformer

DOCS = [{"question": f"Is {n} even?", "choices": ["yes", "no"], "gold": n % 2} for n in range(8)]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def reader(vocab: Vocab) -> Reader:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=64, init_std=0.3)
    return LocalReader(Transformer(config, config.padded_vocab(vocab.size)).eval(), vocab.size, 8)


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with two tasks and a group."""
    write_task(tmp_path, "quiz")
    write_task(
        tmp_path,
        "writes",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[gold]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 3},
        metric_list=[{"metric": "exact_match"}],
    )
    (tmp_path / "both.yaml").write_text(
        json.dumps({"group": "both", "task": ["quiz"], "aggregate_metric_list": [{"metric": "acc"}]})
    )
    with trusting([tmp_path]):
        yield tmp_path


def write_task(directory: Path, name: str, docs: list[dict[str, Any]] | None = None, **changes: Any) -> None:
    rows = DOCS if docs is None else docs
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 2.0},
        **changes,
    }
    (directory / f"{name}.yaml").write_text(
        json.dumps({key: value for key, value in task.items() if value is not None})
    )


def ask(place: Path, reader: Reader, vocab: Vocab, *tasks: str | BenchmarkTask, **settings: Any) -> Scored:
    section = Benchmarks(tasks=list(tasks), include_path=str(place), **settings)
    return benchmark_results(section, reader, vocab, 100, progress=False)


def by_name(scored: Scored) -> dict[str, Result]:
    assert len({result.name for result in scored.results}) == len(scored.results)
    return {result.name.removeprefix("benchmark/"): result for result in scored.results}


def test_one_task_twice(place: Path, reader: Reader, vocab: Vocab) -> None:
    """Each entry has its own shots, seed and limit, and its name in scores and items."""
    shots = BenchmarkTask(task="quiz", name="quiz-2", num_fewshot=2, seed=5, limit=4)
    scored = ask(place, reader, vocab, "quiz", shots)
    plain, other = by_name(scored)["quiz/acc"], by_name(scored)["quiz-2/acc"]
    assert (plain.n, plain.settings["shots"]) == (8, 0) and "seed of the shots" not in plain.settings
    assert (other.n, other.settings["shots"], other.settings["seed of the shots"]) == (4, 2, 5)
    assert "the first 4 of 8 items" in (other.note or "")
    assert [item.subject for item in scored.items].count("quiz-2") == 4
    seeds = [by_name(ask(place, reader, vocab, BenchmarkTask(task="quiz", num_fewshot=2, seed=n))) for n in (5, 5, 6)]
    one, same, drawn = (found["quiz/acc"] for found in seeds)
    assert difference(one, same) is None and one.value == same.value
    assert "seed of the shots 5 against 6" in (difference(one, drawn) or "")
    assert one.settings["prompts"] != drawn.settings["prompts"], "other examples stand in the prompts"


def test_a_group_with_a_name(place: Path, reader: Reader, vocab: Vocab) -> None:
    found = by_name(ask(place, reader, vocab, BenchmarkTask(task="both", name="mine", num_fewshot=0)))
    assert found.keys() == {"mine/acc", "mine.quiz/acc"}
    assert found["mine/acc"].value == found["mine.quiz/acc"].value and "task" not in found["mine/acc"].settings
    assert found["mine/acc"].settings["members"] == {"benchmark/mine.quiz/acc": 1.0}, "by the names of the recipe"


def test_settings_of_generation_replace_those_of_the_task(place: Path, reader: Reader, vocab: Vocab) -> None:
    longer = GenerationSettings(max_gen_toks=9)
    plain = ask(place, reader, vocab, "writes")
    changed = ask(place, reader, vocab, BenchmarkTask(task="writes", gen_kwargs=longer))
    lengths = [max(len(item.answer or "") for item in scored.items) for scored in (plain, changed)]
    assert lengths[0] <= 3 < lengths[1] <= 9
    one, other = (by_name(scored)["writes/exact_match"] for scored in (plain, changed))
    assert other.settings["generation"] == '{"max_gen_toks": 9}'
    assert "generation unknown against" in (difference(one, other) or "")
    again = ask(place, reader, vocab, "writes")
    assert by_name(again)["writes/exact_match"].settings == one.settings, "the task's own settings are as they were"


def test_templates_are_compiled_once_for_all_items(
    place: Path, reader: Reader, vocab: Vocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.utils import env

    compiled, usual = Counter[str](), env.compile

    def watched(source: str) -> object:
        compiled[source] += 1
        return usual(source)

    monkeypatch.setattr(env, "compile", watched)
    ask(place, reader, vocab, BenchmarkTask(task="writes", num_fewshot=2))
    assert compiled["{{choices[gold]}}"] == 1, compiled


def test_which_task_it_was(place: Path, reader: Reader, vocab: Vocab) -> None:
    """A change of the YAML that says something changes the fingerprint; a comment or another place does not."""

    def result() -> Result:
        return by_name(ask(place, reader, vocab, "quiz"))["quiz/acc"]

    before = result()
    file = place / "quiz.yaml"
    file.write_text("# a comment\n" + file.read_text())
    assert result().settings == before.settings
    write_task(place, "quiz", target_delimiter="  ")
    assert result().settings["task"] != before.settings["task"]
    assert "task " in (difference(before, result()) or "")
    ((name, mark, detail),) = _tasks([before, before])
    assert name == "Benchmark task quiz" and mark == f"{before.settings['task']}-{before.settings['prompts']}"
    assert detail.startswith("version 2.0 of the task, 0 shots, lm-eval ")


def test_items_that_are_longer_than_the_context_are_counted(place: Path, reader: Reader, vocab: Vocab) -> None:
    write_task(place, "long", [*DOCS[:2], {"question": "x" * 63, "choices": ["y", "zz"], "gold": 0}])
    note = by_name(ask(place, reader, vocab, "long"))["long/acc"].note or ""
    assert "1 of 3 items are longer than the context of 64 tokens" in note
    assert by_name(ask(place, reader, vocab, "quiz"))["quiz/acc"].note is None
    write_task(place, "fits", [{"question": "x" * 62, "choices": ["y", "z"], "gold": 0}] * 2)
    assert by_name(ask(place, reader, vocab, "fits"))["fits/acc"].note is None, "64 tokens of input, 1 of them a blank"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"doc_to_text": "enquiry"},
            "its doc_to_text names the field `enquiry`, which its items lack .*question, choices",
        ),
        ({"doc_to_target": "answer"}, "its doc_to_target names the field `answer`"),
        ({"docs": []}, "`bad`: its data could not be loaded|`bad` has no items"),
    ],
)
def test_tasks_that_cannot_be_asked(
    place: Path, reader: Reader, vocab: Vocab, changes: dict[str, Any], words: str
) -> None:
    write_task(place, "bad", **changes)
    with pytest.raises(ValueError, match=words):
        ask(place, reader, vocab, "bad")


def test_settings_of_generation_need_a_task_that_generates(place: Path, reader: Reader, vocab: Vocab) -> None:
    entry = BenchmarkTask(task="quiz", gen_kwargs=GenerationSettings(temperature=0.0))
    with pytest.raises(ValueError, match=r"`quiz` does not generate .*multiple_choice\); remove"):
        ask(place, reader, vocab, entry)


def test_a_task_that_needs_a_network_says_how_to_do_without(tmp_path: Path) -> None:
    def unreachable(_: list[str]) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    entry = SimpleNamespace(yaml_path=Path("/lm_eval/hellaswag.yaml"))
    manager = SimpleNamespace(task_index={"hellaswag": entry}, load=unreachable)
    words = r"ConnectionError.*HF_HOME=DIR replica eval RUN .*\"hellaswag\".*HF_HUB_OFFLINE"
    with pytest.raises(ValueError, match=words):
        _open_task(manager, "hellaswag", [str(tmp_path)], tmp_path / "cache")
