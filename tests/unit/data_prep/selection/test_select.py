"""Selection by code lengths: against sorting in memory, over any cut into parts, and with scores that do not fit."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema.data import Data
from configs.schema.selection import Select
from configs.schema.sources import Source
from data_prep.selection import join as joining
from data_prep.selection.score_files import ScoredBy, hash_of_text, schema_of
from data_prep.selection.select import Selection
from data_prep.tokens.splits import split_of
from data_prep.workers.stage import Run, Stage
from tests.parts.dedup_parts import after, contents, make_parts, make_stage, run_inline, texts_left

NUMBERS = random.Random(7)
TEXTS = [f"document {number:3} " + "x" * NUMBERS.choice([20, 70, 180]) for number in range(120)]
BITS = {text: NUMBERS.choice([0.5, 1.0, 1.25, 2.0, 3.5]) for text in TEXTS}  # many ties
OTHER = {text: NUMBERS.choice([0.5, 1.0, 2.5]) for text in TEXTS}
DOMAIN = ScoredBy("c1", "t", {"context": 8}, "code", "domain, step 10")
GENERAL = ScoredBy("c2", "t", {"context": 8}, "code", "general, step 10")


def nats_of(text: str, bits: dict[str, float]) -> float:
    return bits[text] * len(text) * math.log(2)


def write_scores(
    file: Path, bits: dict[str, float], by: ScoredBy = DOMAIN, rows: int = 16, **columns: Sequence[Any]
) -> str:
    found: dict[str, Any] = {
        "hash": [hash_of_text(text) for text in bits],
        "nats": [nats_of(text, bits) for text in bits],
        **columns,
    }
    schema = schema_of(by)
    arrays = [pa.array(found.get(name, [None] * len(bits)), schema.field(name).type) for name in schema.names]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, row_group_size=rows)
    return str(file)


def selection(scores: list[str], minus: list[str] | None = None, **settings: Any) -> Selection:
    sources = settings.pop("of", ["s"])
    data = Data(
        sources=[source if isinstance(source, Source) else Source(name=source, path="/x.txt") for source in sources],
        select=Select(scores=scores, minus=minus or [], **{"keep": 0.3, **settings}),
        validation_fraction=0.0,
    )
    return Selection(data, "document", lambda file: Path(file).read_bytes().hex()[:16])


def cut(texts: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    found, start = [], 0
    for size in sizes:
        found.append(list(texts[start : start + size]))
        start += size
    return found


def run_reversed(stage: Stage) -> Run:
    """The last task first, each written down and read again, as on its way to a worker."""

    def run(label: str, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        for task in pickle.loads(pickle.dumps(stage.missing(tasks)[::-1])):
            function(task)

    return run


def left(parts: Any) -> list[str]:
    return [text for rows in texts_left(parts) for _, text in rows]


def expected(value: Callable[[str], float], keep: float, rule: str) -> set[str]:
    """What sorting all documents in memory keeps."""
    sign = -1 if rule == "high" else 1
    order = sorted(TEXTS, key=lambda text: (sign * value(text), hash_of_text(text)))
    total = sum(map(len, TEXTS))
    first, last = ((1 - keep) / 2, (1 + keep) / 2) if rule == "middle" else (0.0, keep)
    found, size = set(), 0
    for text in order:
        size += len(text)
        if round(first * total) < size <= round(last * total):
            found.add(text)
    return found


@pytest.mark.parametrize("rule", ["low", "middle", "high"])
@pytest.mark.parametrize("keep", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("second", [False, True])
def test_as_sorting_in_memory(tmp_path: Path, rule: str, keep: float, second: bool) -> None:
    scores = [write_scores(tmp_path / "domain.parquet", BITS)]
    minus = [write_scores(tmp_path / "general.parquet", OTHER, GENERAL)] if second else []
    parts = make_parts(tmp_path / "documents", cut(TEXTS, [50, 0, 70]))
    made, manifest = make_stage(tmp_path, selection(scores, minus, rule=rule, keep=keep), parts)
    kept = left(after(parts, made))
    assert set(kept) == expected(
        lambda text: (nats_of(text, BITS) - second * nats_of(text, OTHER)) / math.log(2) / len(text), keep, rule
    )
    chosen = manifest["chosen"]["all"]
    assert (chosen["documents"], chosen["bytes"]) == (len(TEXTS), sum(map(len, TEXTS)))
    assert (chosen["kept_documents"], chosen["kept_bytes"]) == (len(kept), sum(map(len, kept)))
    assert chosen["kept_bytes"] == pytest.approx(keep * chosen["bytes"], abs=210)


def test_nothing_depends_on_parts_files_workers_or_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_scores(tmp_path / "all.parquet", BITS)
    parts = make_parts(tmp_path / "one", [TEXTS])
    made, _ = make_stage(tmp_path / "a", selection([whole]), parts)
    monkeypatch.setattr(joining, "TASK_ROWS", 20)
    items = list(BITS.items())
    halves = [
        write_scores(tmp_path / "x.parquet", dict(items[70:][::-1])),
        write_scores(tmp_path / "y.parquet", dict(items[:75])),  # five texts twice, with equal scores
    ]
    others = make_parts(tmp_path / "more", cut(TEXTS, [40, 40, 40]))
    again, _ = make_stage(tmp_path / "b", selection(halves), others, run_reversed)
    assert left(after(parts, made)) == left(after(others, again))
    assert 0 < len(left(after(parts, made))) < len(TEXTS)


def test_an_interrupted_stage_goes_on(tmp_path: Path) -> None:
    scores = [write_scores(tmp_path / "all.parquet", BITS)]
    parts = make_parts(tmp_path / "documents", cut(TEXTS, [60, 60]))
    made, _ = make_stage(tmp_path / "whole", selection(scores), parts)
    chosen = selection(scores)
    place = Stage(tmp_path / "stopped" / "select", {"settings": chosen.inputs})

    class Stopped(Exception):
        pass

    for calls in range(8):  # stopped once in each pass, then finished
        place.begin()
        run, left_over = run_inline(place), [calls]

        def stopping(label: str, function: Any, tasks: Any, run: Any = run, left_over: list[int] = left_over) -> None:
            if not left_over[0]:
                run(label, function, tasks[:1])
                raise Stopped
            left_over[0] -= 1
            run(label, function, tasks)

        try:
            chosen.make(place, parts, stopping)
        except Stopped:
            continue
        break
    assert calls > 4
    place.finish({}, {})
    assert contents(made).keys() == contents(place.directory).keys()
    assert left(after(parts, made)) == left(after(parts, place.directory))


def test_each_source_or_some(tmp_path: Path) -> None:
    scores = [write_scores(tmp_path / "all.parquet", BITS)]
    parts = make_parts(tmp_path / "documents", cut(TEXTS, [60, 60]), ["a", "b"])
    made, manifest = make_stage(tmp_path, selection(scores, of=["a", "b"], each_source=True), parts)
    for chosen, rows in zip(manifest["chosen"].values(), texts_left(after(parts, made)), strict=True):
        assert chosen["kept_documents"] == len(rows)
        assert 0.2 < chosen["kept_bytes"] / chosen["bytes"] <= 0.3
    made, _ = make_stage(tmp_path, selection(scores, of=["a", "b"], sources=["b"]), parts)
    counts = [len(rows) for rows in texts_left(after(parts, made))]
    assert counts[0] == 60 and 0 < counts[1] < 30


def test_held_out_documents_stay_and_need_no_score(tmp_path: Path) -> None:
    held_out = Source(name="s", path="/x.txt", split="validation")
    scores = [write_scores(tmp_path / "some.parquet", dict(list(BITS.items())[60:]))]
    parts = make_parts(tmp_path / "documents", cut(TEXTS, [60, 60]), ["s", "t"])
    made, _ = make_stage(tmp_path, selection(scores, of=[held_out, "t"]), parts)
    assert len(texts_left(after(parts, made))[0]) == 60

    data = Data(
        sources=[Source(name="s", path="/x.txt")], select=Select(rule="random", keep=0.2), validation_fraction=0.4
    )
    parts = make_parts(tmp_path / "again", [TEXTS])
    made, _ = make_stage(tmp_path, Selection(data, "document", str), parts)
    kept = {row for row, _ in texts_left(after(parts, made))[0]}
    validation = {row for row in range(120) if split_of(f"0/{row}", data.sources[0], 0.4) == "validation"}
    assert validation < kept and len(kept - validation) < 0.4 * (120 - len(validation))


def test_a_random_choice_is_of_the_same_size_and_another_with_each_seed(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "documents", [TEXTS])
    kept = []
    for seed in (0, 0, 1):
        made, manifest = make_stage(tmp_path, selection([], rule="random", seed=seed), parts)
        kept.append(left(after(parts, made)))
        assert 0.25 < manifest["chosen"]["all"]["kept_bytes"] / manifest["chosen"]["all"]["bytes"] <= 0.3
    assert kept[0] == kept[1] != kept[2]


def test_a_dropped_document_says_its_value_and_what_stays(tmp_path: Path) -> None:
    scores = [write_scores(tmp_path / "all.parquet", BITS)]
    parts = make_parts(tmp_path / "documents", [TEXTS])
    for rule, words in (
        ("low", "kept: up to 1.000"),
        ("high", "kept: from 2.000"),
        ("middle", "kept: from 1.000 up to"),
    ):
        made, _ = make_stage(tmp_path, selection(scores, rule=rule), parts)
        table = pq.read_table(made / "000-00000-000000.parquet").to_pylist()
        assert {row["reason"] for row in table} == {"selected_out"}
        for row in table:
            assert row["detail"].startswith(f"{BITS[TEXTS[row['row']]]:.3f} bits per byte; {words}"), row


NAN = [math.nan] + [1.0] * 119


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"bits": dict.fromkeys(TEXTS[1:], 1.0)},
            ["scores: 1 of 120 documents have no score", "the first: 0/0"],
        ),
        ({"bits": {"another": 1.0}}, ["none of 120 documents", "another corpus", "replica score RUN --data RECIPE"]),
        ({"columns": {"nats": NAN}}, ["1 rows without a score", "all.parquet"]),
        ({"columns": {"nats": [-1.0, -2.0] + [1.0] * 118}}, ["2 rows without a score"]),
        ({"columns": {"nats": [None] + [1.0] * 119}}, ["1 rows without a score"]),
        ({"columns": {"hash": ["no hash"] + [hash_of_text(text) for text in TEXTS[1:]]}}, ["1 rows without a score"]),
        ({"columns": {"hash": ["zz" * 16] + [hash_of_text(text) for text in TEXTS[1:]]}}, ["1 rows without a score"]),
        ({"more": {TEXTS[3]: 1.7, TEXTS[4]: 0.1}}, ["2 texts have two scores that differ"]),
        ({"more": {TEXTS[3]: 1.0}, "by": GENERAL}, ["domain, step 10", "general, step 10", "differ in checkpoint"]),
        ({"minus": DOMAIN}, ["`scores` and `minus` are both by domain, step 10"]),
        ({"minus": ScoredBy("c1", "t", {"context": 4}, "code", "same")}, ["`scores` and `minus` are both by domain"]),
        (
            {"minus": ScoredBy("c3", "t", {"context": 8, "bound": {"draws": 4}}, "code", "masked")},
            ["masked is a masked model", "give two models of one kind"],
        ),
        ({"keep": 0.001}, ["keep 0.001 of", "is less than the first document"]),
    ],
)
def test_scores_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    files = [write_scores(tmp_path / "all.parquet", change.get("bits", BITS), **change.get("columns", {}))]
    if "more" in change:
        files.append(write_scores(tmp_path / "more.parquet", change["more"], change.get("by", DOMAIN)))
    minus = [write_scores(tmp_path / "minus.parquet", OTHER, change["minus"])] if "minus" in change else []
    parts = make_parts(tmp_path / "documents", [TEXTS])
    with pytest.raises(ValueError) as caught:
        make_stage(tmp_path, selection(files, minus, keep=change.get("keep", 0.3)), parts)
    assert all(word in str(caught.value) for word in words), caught.value


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "documents", [TEXTS])
    for name, content, words in (
        ("text.parquet", b"no Parquet", "is not a whole Parquet file"),
        ("plain.parquet", None, "has no scores of `replica score`"),
    ):
        if content is None:
            pq.write_table(pa.table({"hash": ["a"], "nats": [1.0]}), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words):
            make_stage(tmp_path, selection([str(tmp_path / name)]), parts)
    with pytest.raises(ValueError, match=r"data\.select\.scores: there is no file .*none\.parquet; write it by"):
        selection([str(tmp_path / "none.parquet")])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.3}, "needs `scores`"),
        ({"keep": 0.3, "rule": "random", "scores": ["a"]}, "uses no scores"),
        ({"keep": 0.3, "scores": ["a"], "sources": []}, "is empty"),
        ({"keep": 0.0, "scores": ["a"]}, "greater than 0"),
        ({"keep": 1.5, "scores": ["a"]}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Select(**settings)


def test_unknown_sources() -> None:
    with pytest.raises(ValueError, match=r"select\.sources names unknown sources: b; known: a"):
        Data(sources=[Source(name="a", path="x")], select=Select(rule="random", keep=0.5, sources=["b"]))
