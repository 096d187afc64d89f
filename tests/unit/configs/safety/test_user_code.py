"""Code that a recipe names (`FILE.py:NAME`): when it runs, what of it is fingerprinted, what travels to workers."""

from __future__ import annotations

import gzip
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from configs.safety.trust import trust_options, trusting
from configs.safety.user_code import UserCode
from configs.schema.model import Model
from configs.schema.recipe import Recipe, RecipeError, load
from data_prep.documents.conversion import read_documents
from data_prep.documents.document import Document, Rejected
from data_prep.stages.graph import Plan
from data_prep.stages.pipeline import is_current, prepare_inline
from pretrain.checkpoint.compatible import OBJECTIVE, differences, objective_code
from pretrain.checkpoint.manifest import newest
from pretrain.model.transformer import Transformer
from pretrain.objectives.chosen import make_objective
from tests.parts.fake_checkpoint import write_fake_checkpoint

RULE = """
from data_prep.quality import Drop

def short(facts, most=20):
    if len(facts.text) > most:
        return Drop("long", f"{len(facts.text)} > {most}")
    return facts.text.replace("!", "")

def broken(facts):
    return {}[facts.text]

def silent(facts):
    return None
"""
READER = """
def words(stream, stop=None):
    for word in stream.read().decode().split():
        if word == stop:
            raise KeyError(word)
        yield {"text": word, "id": word.upper()} if word != "raw" else b"\\xc3\\xa4"

def numbers(stream):
    yield 1
"""
LOSS = """
from torch import nn
from pretrain.objectives.objective import LossModule

class Twice(LossModule):
    def loss(self, tokens, targets, weights, positions):
        return 2 * self.nats(tokens, targets, weights, positions)

class Heavy(Twice):
    def __init__(self, model, chunk):
        super().__init__(model, chunk)
        self.own = nn.Linear(2, 2)

def wrong(model, chunk):
    return model
"""


@pytest.fixture
def trusted(tmp_path: Path) -> Iterator[None]:
    with trusting([tmp_path]):
        yield


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    """Writes a tiny recipe with these parts and loads it."""

    def write(source: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **quality: Any) -> Recipe:
        (tmp_path / "a.txt").write_text("one!\n\ntwo words\n\na text that is too long to stay\n", encoding="utf-8")
        values = {
            "out": str(tmp_path / "run"),
            "data": {
                "sources": [{"name": "s", "path": "a.txt", "text_documents": "paragraph", **(source or {})}],
                "quality": quality,
                "tokenizer": {"kind": "byte"},
            },
            "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8},
            "train": {"steps": 4, "global_batch_size": 2, **(train or {})},
        }
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file)

    return write


def rule(name: str = "short", file: str = "rule.py", **more: Any) -> list[dict[str, Any]]:
    return [{"rule": "custom", "code": f"{file}:{name}", **more}]


# ----------------------------------------------------------------------------------------------------------- the code
def test_nothing_runs_that_nobody_trusts(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text("raise SystemExit('it ran')\n")
    code = UserCode.read(f"{tmp_path}/rule.py:short")
    with pytest.raises(ValueError, match=rf"data\.quality\.rules\.0: .*--trust {tmp_path}$"):
        code.allowed("data.quality.rules.0")
    with pytest.raises(PermissionError):
        code.load()
    assert code.identity["name"] == "short", "a fingerprint runs nothing"


def test_a_stranger_s_recipe_runs_none_of_its_code(make: Callable[..., Recipe], tmp_path: Path) -> None:
    for name in ("rule.py", "reader.py", "loss.py"):
        (tmp_path / name).write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match="--trust"):
        prepare_inline(make(rules=rule()))
    with pytest.raises(ValueError, match="--trust"):
        prepare_inline(make(source={"reader": {"code": "reader.py:words"}}))
    recipe = make(train={"objective": {"code": "loss.py:Twice"}})
    with pytest.raises(ValueError, match="--trust"):
        make_objective(recipe)


def test_workers_run_the_text_that_was_read(tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    file.write_text("def number():\n    return 1\n")
    with trusting([tmp_path]):
        code = UserCode.read(f"{file}:number").allowed("x")
    file.write_text("def number():\n    return 2\n")
    file.unlink()
    travelled = pickle.loads(pickle.dumps(code))  # nosec: our own bytes
    assert travelled == code and travelled.load()() == 1
    assert travelled.load() is code.load(), "a file runs once in a process"


def test_the_fingerprint_is_of_the_text_and_the_options_not_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [tmp_path / "a.py", tmp_path / "other" / "b.py"]
    for file in files:
        file.write_text("def f(x):\n    pass\n")
    first, second = (UserCode.read(f"{file}:f", {"k": 1}).identity for file in files)
    assert first == second
    assert UserCode.read(f"{files[0]}:f", {"k": 2}).identity != first
    files[0].write_text("def f(x):\n    return x\n")
    assert UserCode.read(f"{files[0]}:f", {"k": 1}).identity != first


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def f(): pass", "g", r"has no `g`; it has f"),
        ("import json", "g", "it has no functions or classes"),
        ("def f(:", "f", "cannot be run: SyntaxError"),
        ("import no_such_module", "f", "cannot be run: ModuleNotFoundError: .*no_such_module"),
        ("def f(x, y): pass", "f", r"is called with \(facts, k=1\): .*'y'|unexpected keyword"),
        ("f = 1", "f", "not callable|is not a callable"),
    ],
)
@pytest.mark.usefixtures("trusted")
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / "rule.py").write_text(text)
    code = UserCode.read(f"{tmp_path}/rule.py:{name}", {"k": 1}).allowed("x")
    with pytest.raises(ValueError, match=message):
        code.check_call("facts")


def test_a_missing_file_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.py: no such file; correct `code"):
        UserCode.read(f"{tmp_path}/none.py:f")


@pytest.mark.usefixtures("trusted")
def test_a_traceback_shows_the_lines(tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    file.write_text("def f():\n    return 1 / 0  # here\n")
    code = UserCode.read(f"{file}:f").allowed("x")
    file.unlink()
    with pytest.raises(ZeroDivisionError) as caught:
        code.load()()
    assert "return 1 / 0  # here" in "".join(traceback.format_exception(caught.value))


def test_trust_is_handed_on_to_ranks(tmp_path: Path) -> None:
    assert trust_options() == []
    with trusting([tmp_path]):
        assert trust_options() == ["--trust", str(tmp_path)]


# --------------------------------------------------------------------------------------------------------------- rules
@pytest.mark.usefixtures("trusted")
def test_a_rule_drops_and_takes_out_under_its_own_names(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text(RULE)
    counts = Plan(recipe := make(rules=rule())).documents.read()
    assert counts is None
    prepare_inline(recipe)
    made = Plan(recipe).documents.read()
    assert made is not None
    counts = made["counts"]["s"]
    assert counts["quality/long"] == [1, 31] and counts["quality/short"] == [0, 1] and counts["kept"] == [2, 12]
    assert is_current(recipe)
    (tmp_path / "rule.py").write_text(RULE.replace("most=20", "most=2000"))
    assert not is_current(recipe), "another rule makes other data"
    prepare_inline(recipe)
    made = Plan(recipe).documents.read()
    assert made is not None and made["counts"]["s"]["kept"][0] == 3


@pytest.mark.parametrize("name", ["broken", "silent"])
@pytest.mark.usefixtures("trusted")
def test_a_rule_that_fails_costs_the_document_and_says_why(
    make: Callable[..., Recipe], tmp_path: Path, name: str
) -> None:
    (tmp_path / "rule.py").write_text(RULE)
    recipe = make(rules=rule(name))
    with pytest.raises(ValueError, match=r"no text|empty|nothing"):
        prepare_inline(recipe)
    made = Plan(recipe).documents.read()
    assert made is not None and made["counts"]["s"]["quality/failed"][0] == 3
    assert {"broken": "KeyError", "silent": "gave a NoneType"}[name] in str(made["examples"])


def test_files_of_the_quality_section_may_be_moved(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for place in (tmp_path, tmp_path / "other"):
        (place / "rule.py").write_text(RULE)
        (place / "blocked.txt").write_text("bad.example\n")
        (place / "good.bin").write_text("a model")
    found = {
        Plan(make(rules=rule(file=f"{place}rule.py"), blocklist=f"{place}blocked.txt",
                  classifier={"path": f"{place}good.bin"})).documents.fingerprint
        for place in ("", "other/")
    }  # fmt: skip
    assert len(found) == 1
    (tmp_path / "blocked.txt").write_text("worse.example\n")
    same = {"rules": rule(), "classifier": {"path": "good.bin"}}
    assert Plan(make(blocklist="blocked.txt", **same)).documents.fingerprint not in found


# -------------------------------------------------------------------------------------------------------------- readers
@pytest.mark.usefixtures("trusted")
def test_a_reader_gives_rows_and_texts_of_packed_files_too(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "b.own.gz").write_bytes(gzip.compress(b"alpha raw omega"))
    (source,) = make(source={"path": "b.own.gz", "reader": {"code": "reader.py:words"}}).data.sources
    documents = list(read_documents(source))
    assert [(d.id, d.text) for d in documents] == [("ALPHA", "alpha"), ("b.own.gz:1", "ä"), ("OMEGA", "omega")]


@pytest.mark.usefixtures("trusted")
def test_a_reader_that_fails_ends_its_file_and_keeps_what_it_read(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "b.own").write_bytes(b"alpha stop omega")
    own = {"path": "b.own", "reader": {"code": "reader.py:words", "options": {"stop": "stop"}}}
    rejected: list[Rejected] = []
    found = list(read_documents(make(source=own).data.sources[0], on_reject=rejected.append))
    assert [item.text for item in found if isinstance(item, Document)] == ["alpha"]
    assert [(item.reason, "KeyError" in item.excerpt) for item in rejected] == [("damaged_file", True)]
    own["reader"] = {"code": "reader.py:numbers"}
    list(read_documents(make(source=own).data.sources[0], on_reject=rejected.append))
    assert "the reader gave a int" in rejected[-1].excerpt


@pytest.mark.usefixtures("trusted")
def test_another_reader_makes_other_data(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(READER)
    own = {"reader": {"code": "reader.py:words"}}
    before = Plan(make(source=own)).documents.fingerprint
    assert before != Plan(make()).documents.fingerprint
    (tmp_path / "reader.py").write_text(READER + "\n")
    assert before != Plan(make(source=own)).documents.fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "text", "reader": {"code": "reader.py:words"}}, "`reader` reads files by itself"),
        ({"reader": {"code": "reader.py"}}, r"data\.sources\.0\.reader\.code"),
        ({"reader": {"code": "reader.words"}}, r"data\.sources\.0\.reader\.code"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(
    make: Callable[..., Recipe], source: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(source=source)


# ------------------------------------------------------------------------------------------------------------ objective
@pytest.mark.usefixtures("trusted")
def test_an_objective_is_trained_and_validation_stays_in_nats(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text(LOSS)
    recipe = make(train={"objective": {"code": "loss.py:Twice"}})
    torch.manual_seed(0)
    model = Transformer(recipe.model, 300).materialize("cpu")
    model.init_weights()
    own, plain = make_objective(recipe).module(model), make_objective(make()).module(model)
    tokens, weights = torch.randint(0, 300, (2, 8)), torch.ones(2, 8)
    losses = {kind: [one.train(kind)(tokens, tokens, weights).item() for one in (own, plain)] for kind in (True, False)}
    assert losses[True] == [pytest.approx(2 * losses[True][1]), losses[True][1]]
    assert losses[False][0] == losses[False][1]


@pytest.mark.parametrize(
    ("name", "message"),
    [("wrong", "made a Transformer; an objective is a LossModule"), ("Heavy", r"weights of its own \(own\.weight\)")],
)
@pytest.mark.usefixtures("trusted")
def test_what_is_no_objective_is_refused(make: Callable[..., Recipe], tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loss.py").write_text(LOSS)
    recipe = make(train={"objective": {"code": f"loss.py:{name}"}})
    with pytest.raises(ValueError, match=message):
        make_objective(recipe).module(Transformer(Model(**recipe.model.model_dump()), 300))


def test_a_checkpoint_goes_on_with_the_objective_that_made_it(make: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text(LOSS)
    own = {"objective": {"code": "loss.py:Twice"}}
    recipe = make(train=own)
    write_fake_checkpoint(recipe, 2, {OBJECTIVE: objective_code(recipe)})
    info = newest(recipe.run_directory)
    assert info is not None
    assert differences(info, recipe) == {}
    (tmp_path / "moved.py").write_text(LOSS)
    assert differences(info, make(train={"objective": {"code": "moved.py:Twice"}})) == {}, "the same text elsewhere"
    (tmp_path / "loss.py").write_text(LOSS.replace("2 *", "3 *"))
    assert list(differences(info, recipe)) == ["the code of train.objective"]
    assert "the code of train.objective" in differences(info, make())
