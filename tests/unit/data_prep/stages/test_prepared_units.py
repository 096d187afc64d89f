"""Conversations, pairs and prompts from their files to shards: whole, with kinds, what is left out counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from configs.common.files import read_json, sha256_file
from configs.schema.recipe import Recipe, RecipeError, load
from data_prep.chat.messages import Conversation, Message
from data_prep.chat.shapes import to_unit
from data_prep.funnel.tally import check
from data_prep.stages.graph import Plan
from data_prep.stages.pipeline import is_current, prepare_inline
from data_prep.stages.verify import verify
from data_prep.tokens.chat_template import ChatTemplate, Kind
from data_prep.tokens.shards import DataManifest, ShardIndex, TokenStream, beside

Make = Callable[..., Recipe]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "conversation": {"kind": "sft"},
    "pair": {"kind": "dpo"},
    "prompt": {
        "kind": "grpo",
        "rewards": {"exact_answer": 1.0},
        "rollout": {"max_new_tokens": 16, "prompts": 2, "samples": 4},
    },
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Loads a recipe over records of a shape, for the unit that is asked for."""

    def recipe(unit: str, shape: str, records: list[dict[str, Any]], *overrides: str) -> Recipe:
        (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        content = {
            "name": "t",
            "data": {
                "sources": [{"name": "s", "path": str(tmp_path / "records.jsonl"), "shape": shape}],
                "tokenizer": {"kind": "byte", "special_tokens": "chat"},
                "validation_fraction": 0.3,
            },
            "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 64},
            "train": {"steps": 3, "global_batch_size": 8, "objective": OBJECTIVES[unit]},
        }
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
        return load(tmp_path / "t.yaml", overrides, {"out": str(tmp_path / "run")})

    return recipe


def turns(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)], **fields}


def streams(manifest: DataManifest) -> list[TokenStream]:
    return [
        TokenStream(source.prefixes, source.name, manifest.vocab_size)
        for source in (*manifest.train, *manifest.validation)
    ]


def documents(stream: TokenStream) -> list[tuple[list[int], list[int]]]:
    """Ids and kinds of each document of a stream."""
    lengths = np.concatenate([ShardIndex.open(prefix).lengths for prefix in stream.prefixes]).tolist()
    places = zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False)
    return [(stream.read(*place).tolist(), stream.kinds(*place).tolist()) for place in places]


def sidecar(stream: TokenStream) -> list[dict[str, Any]]:
    """Rows of the sidecars."""
    return [row for prefix in stream.prefixes for row in pq.read_table(beside(prefix, ".parquet")).to_pylist()]


def rows(manifest: DataManifest) -> dict[str, tuple[int, int]]:
    """Documents and bytes of the funnel, by stage/reason."""
    return {f"{row['stage']}/{row['reason']}": (row["documents"], row["bytes"]) for row in manifest.funnel}


def test_conversations_are_stored_as_the_template_renders_them(make: Make) -> None:
    records = [turns(f"question {n}", f"answer {n}", id=f"c{n}") for n in range(20)]
    recipe = make("conversation", "openai", records)
    manifest = prepare_inline(recipe)
    assert manifest.unit == "conversation"
    template = ChatTemplate(manifest.vocab)
    expected = {}
    for record in records:
        unit = to_unit(record, "openai", "conversation", None)
        assert isinstance(unit, Conversation)
        rendered = template.render(unit.messages)
        expected[record["id"]] = ([*rendered.ids[1:], template.bos], [*rendered.kinds[1:], int(Kind.GIVEN)])
    found = {}
    for stream in streams(manifest):
        names = [span.id for span in stream.documents(0, len(stream))]
        found.update(zip(names, documents(stream), strict=True))
    assert found == expected
    assert manifest.train and manifest.validation
    check(manifest.funnel)
    verify(recipe.data_directory)
    assert is_current(recipe)


def test_a_pair_is_two_documents_on_the_side_of_its_prompt(make: Make) -> None:
    records = [
        {"id": f"{n}-{m}", "prompt": f"question {n}", "chosen": f"good {m}", "rejected": f"bad {m}", "margin": m}
        for n in range(12)
        for m in range(3)
    ]
    manifest = prepare_inline(make("pair", "pairs", records))
    template = ChatTemplate(manifest.vocab)
    sides: list[set[str]] = []
    seen = 0
    for stream in streams(manifest):
        found = documents(stream)
        names = [span.id for span in stream.documents(0, len(stream))]
        sides.append({name.split("-")[0] for name in names})
        assert names[::2] == names[1::2]
        seen += len(names) // 2
        for index, (ids, kinds) in enumerate(found):
            n, m = names[index].split("-")
            answer = template.answer(Message.of("assistant", f"{'bad' if index % 2 else 'good'} {m}"))
            prompt = template.prompt([Message.of("user", f"question {n}")])
            assert ids == [*prompt[1:], *answer.ids, template.bos]
            assert kinds == [*[0] * len(prompt[1:]), *answer.kinds, 0]
            assert sidecar(stream)[index]["margin"] == float(m)
    assert seen == 36
    assert len(sides) == 2 and not sides[0] & sides[1], "one prompt lies on one side"
    counted = rows(manifest)
    assert counted["shards/train"][0] + counted["shards/validation"][0] == 36, "pairs are counted, not documents"
    check(manifest.funnel)


def test_prompts_carry_their_reference_and_the_rest_of_the_record(make: Make) -> None:
    records = [
        {"id": f"p{n}", "question": f"{n}+1?", "answer": f"It is\n#### {n + 1}", "level": {"n": n}} for n in range(9)
    ]
    manifest = prepare_inline(make("prompt", "gsm8k", records))
    template = ChatTemplate(manifest.vocab)
    seen = 0
    for stream in streams(manifest):
        names = [span.id for span in stream.documents(0, len(stream))]
        for index, (ids, kinds) in enumerate(documents(stream)):
            n = int(names[index][1:])
            assert ids == [*template.prompt([Message.of("user", f"{n}+1?")])[1:], template.bos]
            assert set(kinds) == {0}
            assert sidecar(stream)[index]["reference"] == str(n + 1)
            assert json.loads(sidecar(stream)[index]["metadata"]) == {"level": {"n": n}}
            seen += 1
    assert seen == 9


def test_what_is_too_long_loses_whole_turns_or_goes(make: Make) -> None:
    long, short = "x" * 40, "y" * 6
    records = [
        turns(short, short, id="fits"),
        turns(short, long, short, short, id="shortened"),
        turns(long, long, id="goes"),
        {"messages": [{"role": "system", "content": "s" * 20}, *turns(short, long, short, short)["messages"]]},
    ]
    recipe = make("conversation", "openai", records, "data.validation_fraction=0", "data.dedup.exact=false")
    manifest = prepare_inline(recipe)
    (stream,) = streams(manifest)
    template = ChatTemplate(manifest.vocab)
    last = [Message.of("user", short), Message.of("assistant", short)]
    expected = [last, last, [Message.of("system", "s" * 20), *last]]
    assert [ids for ids, _ in documents(stream)] == [
        [*template.render(messages).ids[1:], template.bos] for messages in expected
    ]
    counted = rows(manifest)
    assert counted["shards/longer_than_context"] == (1, 82)
    assert counted["shards/earlier_turns"] == (0, 2 * (6 + 40 + 4))
    assert counted["shards/train"][0] == 3
    check(manifest.funnel)


@pytest.mark.parametrize(
    ("unit", "shape", "fits", "too_long"),
    [
        ("pair", "pairs", {"prompt": "q", "chosen": "c", "rejected": "r"}, {"rejected": "r" * 70}),
        ("prompt", "gsm8k", {"question": "q" * 44, "answer": "#### 1"}, {"question": "q" * 45}),
    ],
)
def test_pairs_and_prompts_that_are_too_long_are_dropped(
    make: Make, unit: str, shape: str, fits: dict[str, Any], too_long: dict[str, Any]
) -> None:
    """Of 64 tokens a prompt leaves 16 to the answer: bos, user, 44 bytes, end, assistant."""
    manifest = prepare_inline(make(unit, shape, [fits, {**fits, **too_long}], "data.validation_fraction=0"))
    assert rows(manifest)["shards/longer_than_context"][0] == 1
    assert rows(manifest)["shards/train"][0] == 1


def test_every_unusable_record_is_counted_with_its_reason(make: Make) -> None:
    records = [
        turns("q", "a"), turns("q", ""), turns("q"),
        {"messages": [*turns("q")["messages"], *turns("r", "a")["messages"]]},
        {"text": "no messages"}, turns("q", "\ud800"),
    ]  # fmt: skip
    manifest = prepare_inline(make("conversation", "openai", records, "data.validation_fraction=0"))
    counted = {key: documents for key, (documents, _) in rows(manifest).items() if key.startswith("read/")}
    assert counted == {
        "read/read": 6, "read/empty_answer": 1, "read/no_assistant_message": 1, "read/roles_do_not_alternate": 1,
        "read/missing_field": 1, "read/invalid_utf8": 1,
    }  # fmt: skip


def test_steps_for_documents_reach_the_messages_and_cut_none(make: Make) -> None:
    """Normalisation and privacy change messages; c4's line rule takes lines from documents, not from conversations."""
    said = "Mail joe@web.org \r\nno end of this line\ncafe\u0301 and three more words here."
    record = {
        "messages": [
            {"role": "user", "content": said},
            {"role": "assistant", "content": [
                {"type": "text", "text": "so  \n2*2 = "}, {"type": "call", "text": "2*2"},
                {"type": "result", "text": "4"}, {"type": "text", "text": "\n done.  "},
            ]},
        ]
    }  # fmt: skip
    recipe = make(
        "conversation", "openai", [record], "data.validation_fraction=0", "data.privacy.emails=true",
        "chat.tools=[calculator]",
        "model.context_length=512", 'data.quality.rules=[{"rule": "c4", "min_sentences": 1}]',
    )  # fmt: skip
    manifest = prepare_inline(recipe)
    (stream,) = streams(manifest)
    ids, _ = documents(stream)[0]
    changed = "Mail email@example.com\nno end of this line\ncaf\u00e9 and three more words here."
    expected = Conversation.from_json(
        {
            "messages": [
                {"role": "user", "content": changed},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "so\n2*2 = "}, {"type": "call", "text": "2*2"},
                    {"type": "result", "text": "4"}, {"type": "text", "text": "\n done."},
                ]},
            ]
        }
    )  # fmt: skip
    assert ids[:-1] == ChatTemplate(manifest.vocab).render(expected.messages).ids[1:]
    check(manifest.funnel)
    assert {"quality/c4_lines", "shards/earlier_turns"}.isdisjoint(rows(manifest)), "nothing was taken out"


def test_answers_that_normalisation_makes_equal_are_no_pair(make: Make) -> None:
    records = [
        {"prompt": "q", "chosen": "same ", "rejected": "same"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
    ]
    manifest = prepare_inline(make("pair", "pairs", records, "data.validation_fraction=0"))
    assert rows(manifest)["normalize/same_answers"][0] == 1


@pytest.mark.parametrize("unit", ["conversation", "prompt"])
def test_a_system_text_stands_before_conversations_that_have_none(make: Make, unit: str) -> None:
    """It has its room and no part in the text that language, quality and duplicates are judged by."""
    own = {"role": "system", "content": "Mine."}
    records = [turns("q", "a"), {"messages": [own, *turns("q", "a")["messages"]]}, turns("q" * 30, "a")]
    recipe = make(unit, "openai", records, "data.validation_fraction=0", "chat.system=Be kind and good.")
    manifest = prepare_inline(recipe)
    template = ChatTemplate(manifest.vocab)
    said = [Message.of("user", "q"), *([Message.of("assistant", "a")] if unit == "conversation" else [])]
    render: Any = (lambda m: template.render(m).ids) if unit == "conversation" else template.prompt
    (stream,) = streams(manifest)
    expected = [render([Message.of("system", text), *said])[1:] for text in ("Be kind and good.", "Mine.")]
    assert [ids[:-1] for ids, _ in documents(stream)][:2] == expected
    assert rows(manifest)["read/read"][0] == 3
    assert ("shards/longer_than_context" in rows(manifest)) == (unit == "prompt"), "48 tokens of 64 are for the prompt"
    assert rows(manifest)["shards/train"][1] == (4 + 11 + 33 if unit == "conversation" else 1 + 8)
    check(manifest.funnel)


@pytest.mark.parametrize("tools", ["[calculator]", "[]"])
def test_calculations_are_calls_only_where_there_is_a_calculator(make: Make, tools: str) -> None:
    """A model that calls a tool which it does not have would wait for its results."""
    record = {"question": "q", "answer": "2*3 = <<2*3=6>>6\n#### 6"}
    recipe = make("conversation", "gsm8k", [record], "data.validation_fraction=0", f"chat.tools={tools}")
    manifest = prepare_inline(recipe)
    (stream,) = streams(manifest)
    template = ChatTemplate(manifest.vocab)
    ids, kinds = documents(stream)[0]
    assert (Kind.CALL in kinds, Kind.RESULT in kinds) == (tools != "[]", tools != "[]")
    said = template.parse(ids[ids.index(template.role_ids["assistant"]) + 1 :]).text
    call = "<|call|>2*3<|/call|><|result|>6<|/result|>" if tools != "[]" else ""
    assert said == f"2*3 = {call}6\n#### 6"


def test_a_table_with_columns_of_the_shape_needs_no_settings(make: Make) -> None:
    recipe = make("conversation", "alpaca", [], "data.validation_fraction=0")
    file = Path(str(recipe.data.sources[0].path)).with_suffix(".csv")
    file.write_text("instruction,input,output\nWhy?,,Because.\n")
    source = recipe.data.sources[0].model_copy(update={"path": str(file)})
    table = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": [source]})})
    assert rows(prepare_inline(table))["shards/train"][0] == 1


def test_a_source_of_another_shape_is_told_so(make: Make) -> None:
    with pytest.raises(ValueError, match=r"missing_field 1 .*no messages; fields: question.* set its `shape`"):
        prepare_inline(make("conversation", "openai", [{"question": "q"}]))


def test_nothing_that_fits_is_said_with_the_room(make: Make) -> None:
    with pytest.raises(ValueError, match=r"no conversation is left for training .longer_than_context 1.; .* 64 tokens"):
        prepare_inline(make("conversation", "openai", [turns("x" * 99, "y")]))


@pytest.mark.parametrize(
    ("unit", "shape", "override", "message"),
    [
        ("pair", "alpaca", "", r"`s`: its records, of shape `alpaca`, make conversations or prompts, but .* pair"),
        ("conversation", "text", "", "of shape `text`, make documents"),
        ("conversation", "openai", "data.tokenizer.special_tokens=[<|endoftext|>]", "set it to `chat`"),
        ("pair", "hh", "data.dedup.substrings={}", "data.dedup.substrings would cut pairs"),
        ("pair", "hh", "data.dedup.lines={}", "data.dedup.lines would cut pairs"),
        ("prompt", "gsm8k", "data.lines.boilerplate=true", "data.lines would cut prompts"),
    ],
)  # fmt: skip
def test_settings_that_cannot_serve_are_refused(make: Make, unit: str, shape: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(unit, shape, [], *filter(None, [override]))


def test_an_answer_must_have_room_beside_its_prompt(make: Make) -> None:
    recipe = make("prompt", "gsm8k", [], "train.objective.rollout.max_new_tokens=64")
    with pytest.raises(ValueError, match=r"max_new_tokens 64 leaves no room for prompts in model.context_length 64"):
        Plan(recipe)


def test_kinds_are_read_over_shards_and_missed_where_there_are_none(tmp_path: Path, make: Make) -> None:
    records = [turns(f"question {n}", f"answer {n}") for n in range(200)]
    recipe = make("conversation", "openai", records, "data.shard_tokens=1024", "data.unit_bytes=1024",
                  "data.validation_fraction=0")  # fmt: skip
    manifest = prepare_inline(recipe)
    (stream,) = streams(manifest)
    assert len(stream.prefixes) > 2
    whole = np.concatenate([np.fromfile(beside(prefix, ".kinds"), np.uint8) for prefix in stream.prefixes])
    assert (stream.kinds(0, len(stream)) == whole).all()
    assert (stream.kinds(500, 1000) == whole[500:1500]).all()
    with pytest.raises(IndexError):
        stream.kinds(len(stream), 1)
    beside(stream.prefixes[0], ".kinds").unlink()
    with pytest.raises(ValueError, match=r"kinds is missing; run `replica data RECIPE`"):
        TokenStream(stream.prefixes).kinds(0, 1)


def test_a_damaged_kind_is_found(make: Make) -> None:
    recipe = make("conversation", "openai", [turns("q", "a")], "data.validation_fraction=0")
    manifest = prepare_inline(recipe)
    file = beside(manifest.train[0].prefixes[0], ".kinds")
    assert (
        file.relative_to(recipe.data_directory / "shards").as_posix()
        in read_json(recipe.data_directory / "shards" / "manifest.json")["files"]
    )
    digest = sha256_file(file)
    file.write_bytes(bytes(file.stat().st_size))
    assert sha256_file(file) != digest
    with pytest.raises(ValueError, match=r"kinds is missing or not as it was written"):
        verify(recipe.data_directory)
    assert pq.read_schema(beside(manifest.train[0].prefixes[0], ".parquet")).names[-1] == "first_token"


def test_a_recipe_of_documents_knows_nothing_of_units(tmp_path: Path) -> None:
    """Inputs of its stages, its manifest and the files of its shards are what they were before there were units."""
    (tmp_path / "a.txt").write_text("some text\n")
    content = {
        "name": "t",
        "data": {
            "sources": [{"name": "s", "path": str(tmp_path / "a.txt")}],
            "tokenizer": {"kind": "byte"}, "validation_fraction": 0,
        },
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "context_length": 64},
        "train": {"steps": 3, "global_batch_size": 8},
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    recipe = load(tmp_path / "t.yaml", [], {"out": str(tmp_path / "run")})
    manifest = prepare_inline(recipe)
    plan = Plan(recipe)
    assert "wanted" not in plan.documents.inputs and "shape" not in plan.documents.inputs["sources"][0]
    assert {"unit", "room"}.isdisjoint(plan.shards(manifest.vocab).inputs)
    assert "unit" not in read_json(recipe.data_directory / "manifest.json") and manifest.unit == "document"
    assert {file.suffix for file in (recipe.data_directory / "shards" / "train").iterdir()} == {
        ".bin",
        ".idx",
        ".parquet",
    }
    assert manifest.vocab_size == 257
