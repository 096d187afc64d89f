"""Decontamination: planted overlaps are found, all of them; common phrases and clean text are left alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs.safety.trust import trusting
from configs.schema.recipe import Recipe, load
from data_prep.decontamination.decontaminate import TOUCHED_NAME, Decontamination, load_touched
from data_prep.decontamination.evaluation_sets import Item, item_key
from data_prep.decontamination.overlap_index import Finder, Lengths, build_index
from data_prep.sources.places import place_identity
from data_prep.text.ngrams import Rolled, word_table, words_of
from tests.parts.dedup_parts import after, contents, make_parts, make_stage, run_backwards, texts_left
from tests.parts.training_run import write_recipe

VOCABULARY = [f"w{number}" for number in range(4000)]
CHINESE = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


@pytest.fixture(autouse=True)
def trusted(tmp_path: Path) -> Iterator[None]:
    """The tasks of these tests are their own."""
    with trusting([tmp_path]):
        yield


def prose(seed: int, words: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=words)


def written(words: list[str], seed: int) -> str:
    """The same words as they stand elsewhere: other case, punctuation, line ends."""
    chance = random.Random(seed)
    return "".join(
        chance.choice((word, word.upper(), f"“{word}”", f"({word})", word + ",")) + chance.choice((" ", "\n", " -- "))
        for word in words
    )


def recipe(directory: Path, settings: dict[str, Any], **evaluation: Any) -> Recipe:
    file = write_recipe(directory / "recipe.yaml", directory / "data")
    return load(file, [f"data.decontaminate={json.dumps(settings)}", f"evaluation={json.dumps(evaluation)}"])


def files_recipe(directory: Path, items: list[str], **settings: Any) -> Recipe:
    """Against a set of lines of text."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "test.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in items))
    return recipe(directory, {"evaluation": False, "files": [str(path)], **settings})


def stage_of(settings: Recipe) -> Decontamination:
    return Decontamination(settings, place_identity)


def reference(text: str, items: list[str], n: int = 13) -> bool:
    """Whether any n words of an item stand in a text, by sets of tuples."""
    grams = {tuple(words[i : i + n]) for words in map(words_of, items) for i in range(len(words) - n + 1)}
    words = words_of(text)
    return any(tuple(words[i : i + n]) in grams for i in range(len(words) - n + 1))


# -------------------------------------------------------------------------------------------------------------- n-grams
def test_normal_form() -> None:
    assert words_of("Don't — STOP, “now”!\n3.5_x") == ["dont", "stop", "now", "35x"]
    assert words_of("我爱NLP2吧。カタ") == ["我", "爱", "nlp2", "吧", "カ", "タ"]
    assert words_of(" ... ") == []


def test_hashes_of_words_and_ngrams_are_equal_where_the_words_are() -> None:
    texts = ["a b c d e f g h", "", "x A, b; C d", "é a b"]
    words, counts = word_table().hashes(texts)
    assert counts.tolist() == [8, 0, 5, 3]
    rolled = Rolled(words, counts)
    for n in (1, 2, 3, 5, 7):
        hashes = rolled.hashes(n)
        assert len(hashes) == 16 - n + 1
    three, flat = rolled.hashes(3), [word for text in texts for word in words_of(text)]
    for i in range(14):
        for j in range(14):
            assert (three[i] == three[j]) == (flat[i : i + 3] == flat[j : j + 3])


def test_the_finder_agrees_with_sets_of_tuples() -> None:
    items = [" ".join(prose(seed, 40)) for seed in range(30)]
    chance = random.Random(3)
    texts = []
    for number in range(300):
        piece = prose(chance.randrange(30), 40)
        start, length = chance.randrange(28), chance.randrange(8, 18)
        planted = written(piece[start : start + length], number) if number % 2 else ""
        texts.append(" ".join(prose(1000 + number, 60)) + " " + planted + " " + " ".join(prose(5000 + number, 60)))
    index = build_index([Item("s", item_key([text]), (text,)) for text in items], Lengths(13, 20))
    found = {number for number, _ in Finder(index)(texts)}
    expected = {number for number, text in enumerate(texts) if reference(text, items)}
    assert found == expected and 50 < len(expected) < 150


# ------------------------------------------------------------------------------------------------------------ the stage
def test_planted_items_are_dropped_and_clean_text_stays(tmp_path: Path) -> None:
    items = [prose(seed, 30) for seed in range(20)]
    clean = [" ".join(prose(100 + number, 200)) for number in range(60)]
    dirty = [
        " ".join(prose(900 + number, 50)) + "\n" + written(words[5:18], number) + "\n" + " ".join(prose(number + 99, 9))
        for number, words in enumerate(items)
    ]
    near_misses = [" ".join([*prose(2000 + number, 50), "between", *words[5:17]]) for number, words in enumerate(items)]
    parts = make_parts(tmp_path / "documents", [clean[:30] + dirty[:10], clean[30:] + dirty[10:] + near_misses])
    stage = stage_of(files_recipe(tmp_path, [" ".join(words) for words in items]))
    directory, manifest = make_stage(tmp_path, stage, parts)
    assert [[text for _, text in part] for part in texts_left(after(parts, directory))] == [
        clean[:30],
        clean[30:] + near_misses,
    ]
    assert manifest["sets"] == {"file/test.jsonl": {"items": 20, "compared": 20, "touched": 20}}
    verdicts = pq.read_table(directory / f"{parts[0].name}.parquet").to_pylist()
    key = item_key([" ".join(items[0])])
    assert verdicts[0]["detail"] == f"file/test.jsonl {key}: {' '.join(items[0][5:18])}"
    touched = pq.read_table(directory / TOUCHED_NAME).to_pylist()
    assert touched[0] == {
        "set": "file/test.jsonl", "item": key, "ngrams": 18, "touched": 1, "documents": 1, "examples": ["0/30"],
    }  # fmt: skip


def test_chinese_goes_by_characters(tmp_path: Path) -> None:
    chance = random.Random(1)
    item = chance.choices(CHINESE, k=40)
    with_20 = "".join(chance.choices(CHINESE, k=80)) + "，" + "".join(item[3:23]) + "。"
    with_19 = "".join(chance.choices(CHINESE, k=80)) + "，" + "".join(item[3:22]) + "。"
    parts = make_parts(tmp_path / "documents", [[with_19, with_20]])
    directory, _ = make_stage(tmp_path, stage_of(files_recipe(tmp_path, ["".join(item)])), parts)
    assert texts_left(after(parts, directory)) == [[(0, with_19)]]
    detail = pq.read_table(directory / f"{parts[0].name}.parquet")["detail"][0].as_py()
    assert detail.endswith(": " + "".join(item[3:23]))


def test_short_items_count_as_a_whole_and_tiny_ones_not(tmp_path: Path) -> None:
    nine, seven = prose(1, 9), prose(2, 7)
    documents = [
        " ".join(prose(3, 30) + nine + prose(4, 30)),
        " ".join(prose(5, 30) + nine[:8] + prose(6, 30)),
        " ".join(prose(7, 30) + seven + prose(8, 30)),
    ]
    parts = make_parts(tmp_path / "documents", [documents])
    directory, manifest = make_stage(
        tmp_path, stage_of(files_recipe(tmp_path, [" ".join(nine), " ".join(seven)])), parts
    )
    assert [row for row, _ in texts_left(after(parts, directory))[0]] == [1, 2]
    assert manifest["sets"]["file/test.jsonl"] == {"items": 2, "compared": 1, "touched": 1}


def test_common_phrases_do_not_count(tmp_path: Path) -> None:
    phrase, rare = prose(1, 13), prose(2, 13)
    documents = [" ".join(prose(10 + number, 40) + phrase) for number in range(6)]
    documents[2] += " " + " ".join(rare)
    parts = make_parts(tmp_path / "documents", [documents[:3], documents[3:]])

    def left(max_documents: int) -> list[int]:
        settings = files_recipe(tmp_path, [" ".join(phrase + rare)], max_documents=max_documents)
        directory, manifest = make_stage(tmp_path, stage_of(settings), parts)
        assert manifest["common_ngrams"] == (max_documents < 6)
        return [len(part) for part in texts_left(after(parts, directory))]

    assert left(6) == [0, 0], "found in six documents: six may be"
    assert left(5) == [2, 3], "the other n-gram still counts"


def test_marked_documents_stay(tmp_path: Path) -> None:
    item = prose(1, 20)
    parts = make_parts(tmp_path / "documents", [[" ".join(prose(2, 20) + item), "clean text"]])
    settings = files_recipe(tmp_path, [" ".join(item)], action="mark")
    directory, manifest = make_stage(tmp_path, stage_of(settings), parts)
    assert [len(part) for part in texts_left(after(parts, directory))] == [2]
    assert pq.read_table(directory / f"{parts[0].name}.parquet")["action"].to_pylist() == ["mark"]
    assert manifest["sets"]["file/test.jsonl"]["touched"] == 1


def test_verdicts_do_not_depend_on_parts_or_workers(tmp_path: Path) -> None:
    items = [prose(seed, 25) for seed in range(8)]
    texts = [" ".join(prose(50 + n, 60) + (items[n % 8][n % 5 :] if n % 3 == 0 else [])) for n in range(48)]
    settings = files_recipe(tmp_path, [" ".join(words) for words in items], max_documents=3)
    whole = make_parts(tmp_path / "whole", [texts])
    parts = make_parts(tmp_path / "parts", [texts[:7], texts[7:8], texts[8:30], [], texts[30:]])
    left = []
    for place, given in (("one", whole), ("five", parts)):
        directory, _ = make_stage(tmp_path / place, stage_of(settings), given)
        left.append([text for part in texts_left(after(given, directory)) for _, text in part])
    assert left[0] == left[1] and 0 < len(left[0]) < 48
    again, _ = make_stage(tmp_path / "again", stage_of(settings), parts, run_backwards)
    assert contents(again) == contents(tmp_path / "five" / "decontaminate")


def test_all_that_the_recipe_evaluates_is_looked_at(tmp_path: Path) -> None:
    held, source, target = prose(1, 30), prose(2, 15), prose(3, 15)
    (tmp_path / "held.txt").write_text(" ".join(held))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"source": " ".join(source), "target": " ".join(target)}) + "\n")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    question, answer = prose(4, 14), prose(5, 16)
    doc = {"question": " ".join(question), "choices": ["yes", " ".join(answer)], "gold": 1}
    (tasks / "quiz.jsonl").write_text(json.dumps(doc) + "\n")
    (tasks / "quiz.yaml").write_text(
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: quiz.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    )
    asked, chosen = prose(6, 20), prose(7, 20)
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": " ".join(asked), "answer": "#### 7"}) + "\n")
    preferred = {"prompt": "why", "chosen": " ".join(chosen), "rejected": "no"}
    (tmp_path / "preferred.jsonl").write_text(json.dumps(preferred) + "\n")
    wanted, alike = prose(8, 20), prose(9, 20)
    (tmp_path / "both.jsonl").write_text(json.dumps({"source": "x", "target": " ".join(alike)}) + "\n")
    (tmp_path / "judged.txt").write_text(" ".join(wanted) + "\n")
    evaluation = {
        "people": [{"name": "judged", "path": str(tmp_path / "judged.txt")}],
        "perplexity": [{"name": "held", "path": str(tmp_path / "held.txt")}],
        "translation": [{"name": "pairs", "path": str(tmp_path / "pairs.jsonl"), "shots": 0}],
        "information": [{"name": "both", "path": str(tmp_path / "both.jsonl")}],
        "chat": [{"name": "sums", "path": str(tmp_path / "sums.jsonl")}],
        "preference": [{"name": "hh", "path": str(tmp_path / "preferred.jsonl"), "shape": "pairs"}],
        "benchmarks": {"tasks": ["quiz"], "include_path": str(tasks)},
    }
    settings = recipe(tmp_path, {"tasks": ["replica_copa", "quiz"]}, **evaluation)
    documents = [
        " ".join(prose(90 + n, 30) + words)
        for n, words in enumerate((held, source, target, question, answer, asked, chosen, wanted, alike))
    ]
    parts = make_parts(tmp_path / "documents", [[*documents, "clean text"]])
    directory, manifest = make_stage(tmp_path, stage_of(settings), parts)
    assert [text for _, text in texts_left(after(parts, directory))[0]] == ["clean text"]
    assert list(manifest["sets"]) == [
        "perplexity/held",
        "translation/pairs",
        "information/both",
        "chat/sums",
        "people/judged",
        "preference/hh",
        "benchmark/quiz",
        "benchmark/replica_copa",
    ]
    assert [entry["touched"] for entry in manifest["sets"].values()] == [1, 1, 1, 1, 1, 1, 1, 0]
    found = load_touched(tmp_path)
    assert found is not None and found.keys["benchmark/quiz"] == {
        item_key([" ".join(question), "yes", " ".join(answer)])
    }
    assert found.keys["chat/sums"] == {item_key([" ".join(asked), "7"])}, "as scores know the item"
    assert found.keys["preference/hh"] == {item_key(["why", " ".join(chosen), "no"])}
    assert found.keys["people/judged"] == {item_key([" ".join(wanted), ""])}
    assert found.keys["benchmark/replica_copa"] == frozenset() and found.action == "drop"
    assert load_touched(tmp_path / "elsewhere") is None

    before = stage_of(settings).inputs
    (tasks / "quiz.jsonl").write_text(json.dumps({**doc, "gold": 0}) + "\n")
    assert stage_of(settings).inputs != before, "another content of a set makes the stage anew"


def test_a_task_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "documents", [["clean text"]])
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: absent.jsonl}}\ntest_split: test\n"
    )
    evaluation = {"benchmarks": {"include_path": str(tasks)}}
    with pytest.raises(ValueError, match=r"task `broken`: its data could not be loaded"):
        make_stage(tmp_path, stage_of(recipe(tmp_path, {"tasks": ["broken"]}, **evaluation)), parts)
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file"):
        stage_of(recipe(tmp_path, {"files": [str(tmp_path / "absent.jsonl")]}))
