"""Stages that another run has made are used again; data that a run was trained on is never replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.common.files import read_json, sha256_file
from configs.common.locks import locked
from configs.schema.recipe import Recipe, load
from data_prep.stages import pipeline, reuse
from data_prep.stages.graph import Plan
from data_prep.stages.pipeline import is_current, prepare_inline
from data_prep.stages.reuse import Reuse, changed_inputs
from data_prep.stages.verify import verify
from launch.run_stages import data_stage
from tests.parts.fake_checkpoint import write_fake_checkpoint


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    """Loads a recipe over a few documents for a run of some name."""
    lines = [json.dumps({"id": f"{n}", "text": f"document {n % 30} says {'so ' * n}"}) for n in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "name": "t",
        "data": {
            "sources": [{"name": "s", "path": str(tmp_path / "corpus.jsonl")}],
            "tokenizer": {"kind": "byte"},
            "validation_fraction": 0.2,
        },
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 16},
        "train": {"steps": 3, "global_batch_size": 2},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    return lambda run, *overrides: load(tmp_path / "t.yaml", overrides, {"out": str(tmp_path / "runs" / run)})


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that are made from here on."""
    names: list[str] = []
    for name in ("make_documents", "make_tokenizer", "make_shards", "_make_stage"):
        work: Callable[..., Any] = getattr(pipeline, name)

        def noted(*arguments: Any, _name: str = name, _work: Callable[..., Any] = work) -> Any:
            names.append(_name)
            return _work(*arguments)

        monkeypatch.setattr(pipeline, name, noted)
    return names


def test_a_second_run_on_the_same_data_makes_none_of_it(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("first"), make("second", "model.num_layers=2", "data.sources.0.weight=2.0", "seed=7")
    one = prepare_inline(first)
    names = made(monkeypatch)
    two = prepare_inline(second)
    assert names == [] and is_current(second)
    assert two.fingerprint == one.fingerprint and two.train[0].weight == 2.0
    shards = [manifest.train[0].prefixes[0] for manifest in (one, two)]
    files = [shard.with_name(shard.name + ".bin") for shard in shards]
    assert files[0].stat().st_ino == files[1].stat().st_ino, "on the disk once"
    shutil.rmtree(first.run_directory)
    verify(second.data_directory)
    names.clear()
    prepare_inline(make("third"))
    assert names == [], "who used it last is asked next"


def test_stages_are_shared_one_by_one(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_inline(make("first"))
    names = made(monkeypatch)
    prepare_inline(make("second", "data.tokenizer={kind: char}"))
    assert names == ["make_tokenizer", "make_shards"]
    names.clear()
    prepare_inline(make("third", "data.normalize.unicode=NFKC"))
    assert names == ["make_documents", "_make_stage", "make_shards"], "a byte vocabulary hangs on no text"


def test_a_named_directory_is_its_owners_affair(
    make: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_inline(make("first"))
    names = made(monkeypatch)
    prepare_inline(make("second", f"data.directory={tmp_path / 'named'}"))
    assert len(names) == 4
    names.clear()
    shutil.rmtree(tmp_path / "runs" / ".prepared")
    prepare_inline(make("third", f"data.directory={tmp_path / 'other'}"))
    assert len(names) == 4 and not (tmp_path / "runs" / ".prepared").exists()


def test_data_that_came_from_elsewhere_is_not_taken(
    make: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run directory from an archive lies beside the others, but nobody here has noted that it was made here."""
    prepare_inline(make("first"))
    shutil.rmtree(tmp_path / "runs" / ".prepared")
    names = made(monkeypatch)
    second = make("second")
    prepare_inline(second)
    assert len(names) == 4
    note = tmp_path / "runs" / ".prepared" / f"documents-{Plan(second).documents.fingerprint}"
    assert note.read_text() == "second\n"
    shutil.move(tmp_path / "runs" / "second", tmp_path / "outside")
    for name in ("../outside", "..", ".", "", "gone", "link"):
        note.write_text(name)
        (tmp_path / "runs" / "link").mkdir(exist_ok=True)
        if not (tmp_path / "runs" / "link" / "data").is_symlink():
            (tmp_path / "runs" / "link" / "data").symlink_to(tmp_path / "outside" / "data")
        assert Reuse(make("third")).take(Plan(make("third")).documents) is None, name


def test_notes_of_other_users_are_not_believed(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_inline(make("first"))
    documents = Plan(make("second")).documents
    assert Reuse(make("second")).take(documents) is not None
    shutil.rmtree(documents.directory)
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert Reuse(make("second")).take(documents) is None


def test_a_damaged_stage_is_made_anew(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("first")
    prepare_inline(first)
    next((first.data_directory / "shards").rglob("*.bin")).unlink()
    names = made(monkeypatch)
    prepare_inline(make("second"))
    assert names == ["make_shards"]
    assert is_current(make("second"))


def test_altered_bytes_of_one_run_are_not_taken_by_another(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make("first"), make("second")
    prepare_inline(first)
    file = next((first.data_directory / "shards").rglob("*.bin"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    names = made(monkeypatch)
    prepare_inline(second)
    assert names == ["make_shards"]
    verify(second.data_directory)
    assert f"{file} is not what was written; `shards` is made here" in capsys.readouterr().err


def test_where_links_cannot_be_files_are_copied(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    prepare_inline(make("first"))
    monkeypatch.setattr("os.link", refuse)
    names = made(monkeypatch)
    verify(prepare_inline(make("second")).directory)
    assert names == []


def test_a_run_that_is_preparing_the_same_is_waited_for(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("first"), make("second")
    plan = Plan(second)
    stages = [plan.documents, *(stage for _, stage in plan.verdicts), plan.tokenizer]
    Reuse(first).note(Plan(first).documents)
    (first.data_directory / "documents").mkdir(parents=True)
    told: list[str] = []
    with ExitStack() as held:
        held.enter_context(locked(first.data_directory / ".lock", "taken"))

        def end(text: str) -> None:
            told.append(text)
            held.close()

        monkeypatch.setattr(reuse, "say", end)
        Reuse(second).wait(stages)
    assert told == [f"{first.run_directory} is preparing the same data; waiting for it"]
    Reuse(first).wait(stages)
    assert len(told) == 1, "nobody waits for himself"


# ---------------------------------------------------------------------------------------- data that was trained on
def test_data_that_a_run_was_trained_on_is_not_replaced(make: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make("run")
    prepare_inline(recipe)
    write_fake_checkpoint(recipe, 3)
    (tmp_path / "corpus.jsonl").write_text('{"text": "another"}\n')
    before = {path: sha256_file(path) for path in recipe.data_directory.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"would be prepared again \(documents.sources.*`replica train`"):
        data_stage(recipe)
    before.pop(recipe.data_directory / "inputs.json", None)
    assert {path: sha256_file(path) for path in before} == before


def test_data_of_an_earlier_version_is_kept_when_a_run_was_trained_on_it(
    make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make("run")
    prepare_inline(recipe)
    write_fake_checkpoint(recipe, 3)
    written = read_json(recipe.data_directory / "documents" / "manifest.json")["inputs"]["code"]
    monkeypatch.setattr("data_prep.stages.graph.code_version", lambda *modules: f"other {written}")
    assert not is_current(recipe) and changed_inputs(recipe) == []
    assert data_stage(recipe) == recipe.data_directory
    assert "prepared by another version of Replica" in capsys.readouterr().err


def test_files_that_were_deleted_to_save_room(make: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/reuse-data.md says: texts may go once a run was trained, manifests may not."""
    recipe = make("run")
    prepare_inline(recipe)
    write_fake_checkpoint(recipe, 3)
    for file in (recipe.data_directory / "documents").glob("*.parquet"):
        file.unlink()
    assert data_stage(recipe) == recipe.data_directory
    assert "some files are missing; kept" in capsys.readouterr().err
    shutil.rmtree(recipe.data_directory / "documents")
    with pytest.raises(ValueError, match=r"would be prepared again \(documents/manifest.json is gone\)"):
        data_stage(recipe)
