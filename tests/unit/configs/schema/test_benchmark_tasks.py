"""Tasks of `evaluation.benchmarks`: names, or objects with settings of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.evaluation import Benchmarks, BenchmarkTask
from configs.schema.recipe import Recipe, RecipeError, load
from eval.report.gates import gate_problems, gates_on_other_tasks
from tests.parts.training_run import write_recipe


def recipe(directory: Path, *overrides: str) -> Recipe:
    return load(write_recipe(directory / "recipe.yaml", directory / "data"), list(overrides))


def test_a_name_has_the_settings_of_the_section() -> None:
    section = Benchmarks(
        tasks=[
            "a",
            BenchmarkTask(task="b", num_fewshot=0, limit=7),
            BenchmarkTask(task="a", name="a-5", num_fewshot=5),
        ],
        num_fewshot=3,
        chat_template=True,
    )
    found = [
        (entry.shown, entry.task, entry.num_fewshot, entry.limit, entry.chat_template) for entry in section.entries
    ]
    assert found == [("a", "a", 3, None, True), ("b", "b", 0, 7, True), ("a-5", "a", 5, None, True)]
    assert section.names == ["a", "b"] and {entry.seed for entry in section.entries} == {1234}


def test_objects_are_read_from_a_recipe(tmp_path: Path) -> None:
    given = "evaluation.benchmarks.tasks=[x, {task: y, seed: 3, gen_kwargs: {until: [A], temperature: 0.0}}]"
    first, second = recipe(tmp_path, given).evaluation.benchmarks.entries
    assert (first.task, second.task, second.seed) == ("x", "y", 3)
    assert second.gen_kwargs is not None and second.gen_kwargs.until == ["A"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (
            "[{task: x, gen_kwargs: {num_beams: 4}}]",
            r"tasks\.0\.gen_kwargs\.num_beams: unknown key; known keys: until, max",
        ),
        (
            "[{task: x, gen_kwargs: {max_gen_tok: 4}}]",
            r"did you mean `evaluation\.benchmarks\.tasks\.0\.gen_kwargs\.max_gen",
        ),
        ("[{task: x, num_shots: 5}]", r"tasks\.0\.num_shots: unknown key; did you mean `.*tasks\.0\.num_fewshot`"),
        ("[{name: x}]", r"tasks\.0\.task: missing"),
        ("[3]", r"tasks\.0: Input should be"),
        ("[x, {task: x, num_fewshot: 5}]", "tasks must differ; repeated: x"),
        ("[{task: x, name: 'a/b'}]", r"tasks\.0\.name: String should match"),
        ("[{task: x, gen_kwargs: {top_p: 0.0}}]", r"gen_kwargs\.top_p: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, tasks: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(tmp_path, f"evaluation.benchmarks.tasks={tasks}")


def test_gates_know_the_names_of_tasks(tmp_path: Path) -> None:
    gates = "report.gates=['benchmark/x-5/acc > 0.1', 'benchmark/x/acc > 0.1']"
    loaded = recipe(tmp_path, "evaluation.benchmarks.tasks=[{task: x, name: x-5}]", gates)
    assert not gate_problems(loaded)
    (warning,) = gates_on_other_tasks(loaded)
    assert "lists no `x`" in warning and "x-5" in warning


def test_gates_know_the_scores_of_a_perplexity_set(tmp_path: Path) -> None:
    perplexity = "evaluation.perplexity=[{name: p, path: x, by: lang, words: whitespace}, {name: q, path: x}]"

    def problems(*gates: str) -> list[str]:
        return gate_problems(recipe(tmp_path, perplexity, f"report.gates={list(gates)}"))

    assert not problems(
        "perplexity/p/word_perplexity < 9",
        "perplexity/p/bits_per_byte/lang=zh < compression/p/xz_bits_per_byte/lang=zh",
    )
    for gate in (
        "perplexity/q/word_perplexity < 9",
        "perplexity/q/bits_per_byte/lang=zh < 2",
        "perplexity/p/bits_per_byte/language=zh < 2",
        "perplexity/p/bits/lang=zh < 2",
        "perplexity/p/nats_per_token/lang=zh < 2",
    ):
        assert problems(gate), gate
