"""Scores of answers: what counts as right, samples, prompts that do not fit; and the calculator's part in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Spelling
from tokenizers import decoders, models, pre_tokenizers

from configs.schema.chat import CHAT_TOKENS, Chat
from configs.schema.data import Tokenizer
from configs.schema.evaluation import ChatSet
from configs.schema.model import Model
from data_prep.chat.messages import Message, MessagePart
from data_prep.decontamination.decontaminate import Touched
from data_prep.decontamination.evaluation_sets import item_key
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.chat_setting import ChatSetting
from eval.generation import chat_tasks
from eval.generation.chat_tasks import chat_results
from eval.reading.reader import LocalReader, Reader
from eval.reading.windows import Score
from eval.results import Result
from eval.statistics import wilson
from pretrain.generation.player import Answer, Request
from pretrain.generation.tools import CalculatorTool, forced_by
from pretrain.model.transformer import Transformer
from pretrain.rewards.answers import check_answer
from tests.parts.answers_table import ANSWERS
from tests.parts.items_check import without_items


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(train_vocab(Tokenizer(kind="byte", special_tokens="chat"), []))


@pytest.fixture(scope="module")
def reader(template: ChatTemplate) -> Reader:
    torch.manual_seed(1)
    config = Model(num_layers=1, hidden_size=8, num_heads=1, context_length=64)
    model = Transformer(config, config.padded_vocab(template.vocab.size)).eval()
    return LocalReader(model, template.vocab.size)


def setting(template: ChatTemplate, **chat: object) -> ChatSetting:
    return ChatSetting(template, Chat(**chat), 7, 200)  # type: ignore[arg-type]


def sums(path: Path, rows: Sequence[tuple[str, str]], **changes: object) -> ChatSet:
    path.write_text("".join(json.dumps({"question": asked, "answer": told}) + "\n" for asked, told in rows))
    return ChatSet(name="sums", path=str(path), **changes)  # type: ignore[arg-type]


class Scripted:
    """Stands for a reader: prompt text -> texts of its samples; a text that ends with `…` was cut."""

    context_length, precision = 64, "fp32"

    def __init__(self, template: ChatTemplate) -> None:
        self.template, self.vocab_size = template, template.vocab.size
        self.script: dict[str, list[str]] = {}
        self.seen: list[Request] = []

    def generate(self, requests: Sequence[Request], report: object = None) -> list[Answer]:
        answers = []
        for request in requests:
            self.seen.append(request)
            (said,) = (
                texts for asked, texts in self.script.items() if asked in self.template.vocab.decode(request.prompt)
            )
            for text in said:
                ids = self.template.vocab.encode(text.removesuffix("…"))
                cut = text.endswith("…")
                ids += [] if cut else [self.template.end]
                answers.append(Answer(ids, [0.0] * len(ids), [False] * len(ids), "length" if cut else "stop"))
        return answers

    def score(self, windows: object, report: object = None) -> list[Score]:
        raise AssertionError("answers need no log-likelihoods")

    def rewards(self, rows: object, report: object = None) -> list[float]:
        raise AssertionError("answers need no rewards")


@pytest.fixture
def scripted(template: ChatTemplate) -> Scripted:
    return Scripted(template)


def by_metric(results: list[Result]) -> dict[str, Result]:
    return {result.name.removeprefix("chat/sums/"): result for result in results}


ROWS = [("2+2?", "#### 4"), ("3+3?", "#### 6"), ("5+5?", "so\n#### 10"), ("x" * 80, "#### 1")]


def test_greedy_answers(template: ChatTemplate, scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = {"2+2?": ["#### 4"], "3+3?": ["#### 7"], "5+5?": ["#### 10…"]}
    scored = chat_results(sums(tmp_path / "a.jsonl", ROWS), scripted, setting(template))
    found, samples = by_metric(scored.results), scored.samples
    assert list(found) == ["accuracy", "format", "stop_rate", "length"]
    assert found["accuracy"].value == 0.25, "an answer that was cut is not right, nor one that had no room"
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(1, 4)
    assert found["format"].value == found["stop_rate"].value == 0.5
    assert found["length"].value == pytest.approx((7 + 7 + 7 + 0) / 4) and not found["length"].higher_is_better
    assert [item.measures["accuracy"] for item in scored.items] == [(1, 1), (0, 1), (0, 1), (0, 1)]
    assert without_items(scored, "chat/sums", tmp_path) == {"chat/sums/length"}
    assert found["accuracy"].note == "greedy, at most 64 tokens"
    assert [(sample.prompt, sample.text, sample.right) for sample in samples[:3]] == [
        ("2+2?", "#### 4", True), ("3+3?", "#### 7", False), ("5+5?", "#### 10 …", False),
    ]  # fmt: skip
    assert all(request.sampling.temperature == 0 and request.samples == 1 for request in scripted.seen)
    assert all(len(request.prompt) + request.max_new_tokens <= 64 for request in scripted.seen)


def test_samples_give_pass_at_k(template: ChatTemplate, scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = {
        "2+2?": ["#### 4", "#### 4", "#### 5"], "3+3?": ["#### 1", "#### 6", "6"], "5+5?": ["no", "no", "no…"],
    }  # fmt: skip
    scored = chat_results(sums(tmp_path / "a.jsonl", ROWS[:3], samples=3), scripted, setting(template))
    found = by_metric(scored.results)
    assert without_items(scored, "chat/sums", tmp_path) == {"chat/sums/length"}
    assert list(found) == ["accuracy", "pass@1", "pass@2", "pass@3", "format", "stop_rate", "length"]
    assert found["accuracy"].value == pytest.approx(found["pass@1"].value) == pytest.approx((2 / 3 + 1 / 3) / 3)
    assert found["pass@2"].value == pytest.approx((1 + 2 / 3) / 3) and found["pass@3"].value == pytest.approx(2 / 3)
    assert found["stop_rate"].value == pytest.approx(8 / 9)
    keys = [key for request in scripted.seen for key in request.keys or ()]
    assert len(set(keys)) == 9 and all(request.sampling.temperature == 1 for request in scripted.seen)


def test_training_and_evaluation_share_the_checker(template: ChatTemplate, scripted: Scripted, tmp_path: Path) -> None:
    """The whole table of answers, as an evaluation sees it: through tokens and back."""
    rows = [(text, reference) for text, reference, *_ in ANSWERS if len(text) < 300 and "\ud800" not in text]
    asked = [(f"<{number}>", reference) for number, (_, reference) in enumerate(rows)]
    scripted.script = {f"<{number}>": [text] for number, (text, _) in enumerate(rows)}
    references = [(prompt, f"#### {reference.rpartition('#### ')[2]}") for prompt, reference in asked]
    scored = chat_results(sums(tmp_path / "a.jsonl", references), scripted, setting(template))
    wanted = [check_answer(text, reference).value for text, reference in rows]
    assert len(rows) > 90 and [item.measures["accuracy"][0] for item in scored.items] == wanted


def test_what_training_text_touches_is_scored_apart(template: ChatTemplate, scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = {"2+2?": ["#### 4"], "3+3?": ["#### 7"]}
    touched = Touched({}, {"chat/sums": frozenset({item_key(["2+2?", "4"])})}, "drop", "f")
    section = sums(tmp_path / "a.jsonl", ROWS[:2])
    scored = chat_results(section, scripted, setting(template), touched=touched)
    found = by_metric(scored.results)
    assert [item.tags for item in scored.items].count(("touched",)) == found["accuracy/touched"].n
    assert {name.split("/")[2] for name in without_items(scored, "chat/sums", tmp_path)} == {"length"}
    assert found["accuracy/touched"].value == 1 and found["accuracy/clean"].value == 0


def test_a_set_without_final_answers_has_no_accuracy(
    template: ChatTemplate, scripted: Scripted, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "Say hello", "input": "", "output": "Hello!"}) + "\n")
    scripted.script = {"Say hello": ["Hi."]}
    section = ChatSet(name="sums", path=str(path), shape="alpaca")
    scored = chat_results(section, scripted, setting(template))
    (sample,) = scored.samples
    assert list(by_metric(scored.results)) == ["stop_rate", "length"] and sample.right is None


def test_unusable_records_are_counted_and_a_set_without_prompts_is_refused(
    template: ChatTemplate, scripted: Scripted, tmp_path: Path
) -> None:
    scripted.script = {"2+2?": ["#### 4"]}
    section = sums(tmp_path / "a.jsonl", [("2+2?", "#### 4"), ("", "#### 1")])
    accuracy, *_ = chat_results(section, scripted, setting(template)).results
    assert accuracy.n == 1 and "1 record left out: " in (accuracy.note or "")
    with pytest.raises(ValueError, match="chat set `sums`: no prompt of shape gsm8k"):
        chat_results(sums(tmp_path / "b.jsonl", [("", "")]), scripted, setting(template))
    with pytest.raises(ValueError, match=r"chat set `sums`: records of shape text serve .* correct `shape`"):
        chat_results(sums(tmp_path / "a.jsonl", ROWS, shape="text"), scripted, setting(template))


def test_a_real_model_answers_the_same_alone_and_in_company(
    template: ChatTemplate, reader: Reader, tmp_path: Path
) -> None:
    own = setting(template, tools=["calculator"], system="Add.")
    rows = [(f"{number}+1?", f"#### {number + 1}") for number in range(6)]
    whole = chat_tasks.read_prompts(sums(tmp_path / "a.jsonl", rows, samples=2), "Add.")[0]
    section = sums(tmp_path / "a.jsonl", rows, samples=2, max_new_tokens=9)
    together = chat_tasks.answer_prompts(section, whole, reader, own)
    assert chat_tasks.answer_prompts(section, whole, reader, own) == together
    assert chat_tasks.answer_prompts(section, whole[:1], reader, own) == together[:1]
    assert together[0][0] != together[0][1] != together[1][1]


# ----------------------------------------------------------------------------------------------------------- calculator
def test_a_call_is_followed_by_its_result(template: ChatTemplate) -> None:
    tool, vocab = CalculatorTool(template), template.vocab
    call = [*vocab.encode("so "), template.call, *vocab.encode("12*4"), template.call_end]
    result = [template.result, *vocab.encode("48"), template.result_end]
    assert tool.forced(call) == result
    assert tool.forced(call[:-1]) is None and tool.forced([*call, *result]) is None and tool.forced([]) is None
    assert tool.forced([template.call_end]) is None
    assert tool.forced([template.call, *vocab.encode("2**9"), template.call_end]) is None
    twice = [*call, *result, template.call, *vocab.encode("48-8"), template.call_end]
    assert tool.forced(twice) == [template.result, *vocab.encode("40"), template.result_end]
    assert template.parse([*twice, *(tool.forced(twice) or []), template.end]).text.count("<|result|>") == 2


def test_a_result_is_written_as_in_training_where_a_first_word_is_written_otherwise() -> None:
    """As Llama 2's vocabulary, which puts a space before a text, and none inside of one."""
    made = Spelling(models.BPE({letter: number for number, letter in enumerate(["<s>", "▁", *"0123456789*"])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    made.add_special_tokens(["<s>"])
    template = ChatTemplate(Vocab(made, "<s>").extended(CHAT_TOKENS[1:]))
    parts = (MessagePart("call", "12*4"), MessagePart("result", "48"))
    trained = template.answer(Message("assistant", parts)).ids[:-1]
    call = trained[: trained.index(template.call_end) + 1]
    assert [*call, *(CalculatorTool(template).forced(call) or [])] == trained


def test_tools_are_off_unless_asked_for(template: ChatTemplate) -> None:
    assert forced_by([], template) is None
    forced = forced_by(["calculator"], template)
    assert forced is not None and forced([template.call, *template.vocab.encode("1+1"), template.call_end])
