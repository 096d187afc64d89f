"""Batches of conversations, pairs and prompts: a pure function of (recipe, step); weights follow the kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.batch_plan import plan_batch, total_steps
from configs.schema.recipe import Recipe
from data_prep.chat.messages import Message, MessagePart
from data_prep.tokens.chat_template import ChatTemplate, Kind
from data_prep.tokens.shards import TokenStream, load_manifest
from pretrain.batches.mixture import mixture_table, plan_mixture
from pretrain.batches.pair_batches import PairBatches
from pretrain.batches.prompt_batches import PromptBatches
from pretrain.batches.source import BatchSource
from pretrain.batches.trace import traced
from pretrain.batches.units import last_answer, learnt, scored
from tests.parts.small_units import chat_vocab, prepare_units
from tests.parts.training_run import tiny_recipe

SFT: dict[str, Any] = {"objective": {"kind": "sft"}, "packing": "best_fit", "global_batch_size": 4}
DPO: dict[str, Any] = {"objective": {"kind": "dpo"}, "global_batch_size": 8}
ROLLOUT = {"prompts": 4, "samples": 3, "updates": 2}
GRPO: dict[str, Any] = {
    "objective": {"kind": "grpo", "rewards": {"exact_answer": 1.0}, "rollout": ROLLOUT}, "global_batch_size": 6
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("units")
    sources = {"a": 23, "b": 12}
    return {
        unit: prepare_units(directory / unit, unit, sources)  # type: ignore[arg-type]
        for unit in ("conversation", "pair", "prompt")
    }


def recipe(directory: Path, data: Path, **train: Any) -> Recipe:
    made = tiny_recipe(directory, data, **train)
    return made.model_copy(update={"model": made.model.model_copy(update={"context_length": 96})})


def source_of(directory: Path, data: Path, **train: Any) -> BatchSource:
    made = recipe(directory, data, **train)
    return BatchSource(made, load_manifest(data))


# --------------------------------------------------------------------------------------------------------------- kinds
def test_weight_stands_exactly_at_the_targets_first_word_to_end() -> None:
    """The golden conversation: off by one at either side is the classic fault."""
    template = ChatTemplate(chat_vocab())
    turns = [("user", "Hi"), ("assistant", "Yo"), ("user", "?"), ("assistant", "No")]
    rendered = template.render([Message.of(*turn) for turn in turns])
    ids, kinds = [*rendered.ids[1:], template.bos], np.array([*rendered.kinds[1:], 0], dtype=np.uint8)
    names = [chat_vocab().tokenizer.id_to_token(index) for index in ids]
    assert names == [
        "<|user|>", "H", "i", "<|end|>", "<|assistant|>", "Y", "o", "<|end|>",
        "<|user|>", "?", "<|end|>", "<|assistant|>", "N", "o", "<|end|>", "<|endoftext|>",
    ]  # fmt: skip
    assert learnt(kinds).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0]
    assert learnt(kinds, "last").tolist() == [0] * 12 + [1, 1, 1, 0]
    assert last_answer(kinds).tolist() == [0] * 12 + [1, 1, 1, 0]
    # The score is read where the last `<|end|>` is the input: one place behind where it is the target.
    assert scored(kinds).tolist() == [0] * 15 + [1]


def test_calls_are_learnt_and_results_are_given() -> None:
    template = ChatTemplate(chat_vocab())
    parts = (MessagePart("text", "a"), MessagePart("call", "1+1"), MessagePart("result", "2"), MessagePart("text", "b"))
    answer = template.answer(Message("assistant", parts))
    weights = learnt(np.array(answer.kinds, dtype=np.uint8))
    given = [index for index, weight in zip(answer.ids, weights, strict=True) if not weight]
    assert given == [template.result, *chat_vocab().encode("2"), template.result_end]


# -------------------------------------------------------------------------------------------------------- conversations
@pytest.mark.parametrize("packing", ["best_fit", "stream"])
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_an_epoch_weighs_each_learnt_token_once(
    tmp_path: Path, data: dict[str, Path], packing: str, train_on: str
) -> None:
    train = {**SFT, "packing": packing, "objective": {"kind": "sft", "train_on": train_on}, "global_batch_size": 1}
    source = source_of(tmp_path, data["conversation"], steps=None, epochs=1, **train)
    batches = [source.batch(step) for step in range(source.windows)]
    assert all(batch.fresh for batch in batches)
    manifest = load_manifest(data["conversation"])
    trained = given = 0
    for part in manifest.train:
        stream = TokenStream(part.prefixes)
        kinds, ids = stream.kinds(0, len(stream)), stream.read(0, len(stream))
        for piece in np.split(kinds, np.flatnonzero(ids == manifest.eod_id)[:-1] + 1):
            trained += int(learnt(piece, train_on).sum())  # type: ignore[arg-type]
            given += int((piece == Kind.GIVEN).sum())
    weights = sum(float(batch.weights.sum()) for batch in batches)
    assert weights == trained > 0
    end = ChatTemplate(manifest.vocab).end
    answers = sum(int((batch.weights * (batch.targets == end)).sum()) for batch in batches)
    assert answers == (35 if train_on == "last" else 35 + sum(n % 3 for n in range(23)) + sum(n % 3 for n in range(12)))
    # Bytes of what is learnt alone: `<|end|>` stands for none.
    assert sum(batch.target_bytes for batch in batches) == trained - answers


def test_rows_hold_whole_conversations_that_do_not_see_each_other(tmp_path: Path, data: dict[str, Path]) -> None:
    source = source_of(tmp_path, data["conversation"], **SFT)
    batch, spans = source.batch(1), source.documents(1)
    assert batch.positions is not None, "packed conversations are masked whatever the recipe says"
    assert max(len(row) for row in spans) > 1
    eod = load_manifest(data["conversation"]).eod_id
    for tokens, targets, positions, documents in zip(batch.tokens, batch.targets, batch.positions, spans, strict=True):
        begin = 0
        for span in documents:
            assert span.offset_in_document == 0
            part = slice(begin, begin + span.tokens)
            assert positions[part].tolist() == list(range(span.tokens))
            assert tokens[part].tolist() == [eod, *targets[part].tolist()[:-1]], "exactly one bos"
            assert targets[part].tolist().count(eod) == 1
            begin += span.tokens


def test_plain_rows_hold_one_conversation_each(tmp_path: Path, data: dict[str, Path]) -> None:
    source = source_of(tmp_path, data["conversation"], **{**SFT, "packing": "stream"})
    batch, spans = source.batch(0), source.documents(0)
    assert source.windows == 35 and batch.positions is None
    assert [len(row) for row in spans] == [1] * 4
    assert batch.lengths == tuple(row[0].tokens for row in spans)
    for weights, length in zip(batch.weights, batch.lengths, strict=True):
        assert weights[length - 2] == 1 and not weights[length - 1 :].any(), "the last that is learnt is `<|end|>`"


def test_a_conversation_that_does_not_fit_is_refused(tmp_path: Path, data: dict[str, Path]) -> None:
    for packing in ("best_fit", "stream"):
        made = tiny_recipe(tmp_path, data["conversation"], **{**SFT, "packing": packing})
        with pytest.raises(ValueError, match=r"more than model.context_length 32, and no answer is ever cut"):
            BatchSource(made, load_manifest(data["conversation"]))


# --------------------------------------------------------------------------------------------------------------- pairs
def test_pairs_are_neighbours_and_pure_functions_of_the_step(tmp_path: Path, data: dict[str, Path]) -> None:
    manifest = load_manifest(data["pair"])
    pairs = PairBatches(recipe(tmp_path, data["pair"], **DPO), manifest, last_answer)
    assert pairs.windows == 70
    digests = [pairs.digest(step) for step in range(12)]
    assert len(set(digests)) == 12
    for ranks in (2, 4):
        assert [pairs.digest(step, ranks) for step in range(12)] == digests
    later = PairBatches(recipe(tmp_path, data["pair"], micro_batch_size=2, **DPO), manifest, last_answer)
    assert later.digest(11) == digests[11], "a fresh object, another micro-batch"
    template = ChatTemplate(manifest.vocab)
    for step in range(3):
        batch = pairs.batch(step)
        assert batch.count == 4 and batch.fresh
        role = template.role_ids["assistant"]
        rows = [row[: (row == manifest.eod_id).int().argmax()].tolist() for row in batch.targets]
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
            end = len(chosen) - chosen[::-1].index(role)
            assert chosen[:end] == rejected[:end], "one prompt"
            assert chosen != rejected
        margins = batch.columns["margin"].view(-1, 2)
        assert torch.equal(margins[:, 0], margins[:, 1])
        for targets, weights, spans in zip(batch.targets, batch.weights, pairs.documents(step), strict=True):
            learnt_ids = targets[weights > 0].tolist()
            assert learnt_ids[-1] == template.end and learnt_ids.count(template.end) == 1, "the last answer alone"
            assert sum(span.tokens for span in spans) == int((targets == manifest.eod_id).int().argmax()) + 1


def test_an_epoch_is_every_pair_once(tmp_path: Path, data: dict[str, Path]) -> None:
    made = recipe(tmp_path, data["pair"], steps=None, epochs=1, **{**DPO, "global_batch_size": 2})
    pairs = PairBatches(made, load_manifest(data["pair"]), scored)
    steps = plan_mixture(made, load_manifest(data["pair"])).end
    seen = {(row[0].source, row[0].id) for step in range(35) for row in pairs.documents(step)}
    assert len(seen) == 35 and steps is None
    table = mixture_table(made, load_manifest(data["pair"]))
    assert sum(row["steps"] for row in table if row["source"] == "a") == 35
    assert [row["epochs"] for row in table] == [1.0, 1.0]


def test_no_micro_batch_and_no_rank_parts_a_pair(tmp_path: Path, data: dict[str, Path]) -> None:
    made = recipe(tmp_path, data["pair"], **{**DPO, "global_batch_size": 6}).train
    assert plan_batch(made, 3).micro_batch == 2
    assert plan_batch(made, 1).micro_batch == 6
    assert "make it a multiple of 4" in plan_batch(made, 2).problems[0]
    odd = made.model_copy(update={"micro_batch_size": 3})
    assert "would part a pair" in plan_batch(odd, 1).problems[0]
    assert not plan_batch(made.model_copy(update={"micro_batch_size": 2}), 1).problems


# ------------------------------------------------------------------------------------------------------------- prompts
def test_prompts_of_a_rollout_are_the_same_on_every_rank_and_feed_several_steps(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    manifest = load_manifest(data["prompt"])
    prompts = PromptBatches(recipe(tmp_path, data["prompt"], **GRPO), manifest)
    assert prompts.windows == 35 * 3
    template = ChatTemplate(manifest.vocab)
    seen = []
    for step in range(0, 16, 2):
        batch = prompts.batch(step)
        assert batch == prompts.batch(step + 1) == prompts.batch(step, 1, 2)
        assert [unit.slot for unit in batch.prompts] == [4 * (step // 2) + place for place in range(4)]
        for unit, spans in zip(batch.prompts, prompts.documents(step), strict=True):
            assert unit.ids[0] == template.bos and unit.ids.count(template.bos) == 1
            assert unit.ids[-1] == template.role_ids["assistant"]
            a, b = manifest.vocab.decode(list(unit.ids[2:5])).split("+")
            assert unit.reference == str(int(a) + int(b))
            assert unit.id == spans[0].id == f"unit {unit.metadata['number']}"
            seen.append((unit.source, unit.document))
    assert len(set(seen)) == len(seen) == 32
    assert prompts.digest(3) == prompts.digest(2) != prompts.digest(4)


@pytest.mark.parametrize(("updates", "passes"), [(1, 1), (2, 1), (2, 2), (6, 3)])
def test_an_epoch_asks_every_prompt_however_often_answers_are_trained_on(
    tmp_path: Path, data: dict[str, Path], updates: int, passes: int
) -> None:
    rollout = {"prompts": 5, "samples": 2, "updates": updates, "passes": passes}
    objective = {"kind": "grpo", "rewards": {"exact_answer": 1.0}, "rollout": rollout}
    rows = 10 * passes // updates
    train = {"objective": objective, "global_batch_size": rows, "checkpoint": {"every": updates}}
    made = recipe(tmp_path, data["prompt"], **train)
    made = made.model_copy(update={"train": made.train.model_copy(update={"steps": None, "epochs": 1.0})})
    prompts = PromptBatches(made, load_manifest(data["prompt"]))
    steps = total_steps(made, prompts.windows)
    assert steps == 7 * updates  # 35 prompts, 5 a rollout
    asked = [(unit.source, unit.document) for step in range(0, steps, updates) for unit in prompts.batch(step).prompts]
    assert len(asked) == len(set(asked)) == 35


# ------------------------------------------------------------------------------------------------------------- tracing
def test_a_step_names_the_units_that_it_read(tmp_path: Path, data: dict[str, Path]) -> None:
    manifest = load_manifest(data["pair"])
    pairs = PairBatches(recipe(tmp_path, data["pair"], **DPO), manifest, last_answer)
    lines = list(traced(pairs, manifest.vocab, 3))
    assert [line.row for line in lines] == list(range(8))
    assert all(chosen.id == rejected.id for chosen, rejected in zip(lines[::2], lines[1::2], strict=True))
    source = source_of(tmp_path, data["conversation"], **{**SFT, "packing": "stream"})
    for line in traced(source, load_manifest(data["conversation"]).vocab, 2):
        assert re.match(r"\d\+\d \d", line.words), "markers part what they stand between"
