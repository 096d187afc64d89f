"""Our adapter in the chat template against lm-eval's own `hf` model of an exported assistant, request by request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.safety.trust import trusting
from configs.schema.data import Tokenizer
from configs.schema.evaluation import Benchmarks
from configs.schema.model import Model
from data_prep.decontamination.benchmark_tasks import quiet
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.harness.benchmarks import benchmark_results, load_tasks
from eval.harness.lm_eval_adapter import ReplicaLM
from eval.reading.reader import LocalReader
from pretrain.generation.player import Player, Request
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer
from tests.parts.items_check import without_items
from tests.reference.test_lm_eval import TEXT, instances

SYSTEM, ASKED = {"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 12 + 30? naïve 🦊"}
HISTORIES: list[tuple[list[dict[str, str]], bool]] = [
    ([ASKED], True),
    ([SYSTEM, ASKED], True),
    ([ASKED, {"role": "assistant", "content": "42"}, {"role": "user", "content": " and\nthen? "}], True),
    ([ASKED, {"role": "assistant", "content": "The answer is"}], False),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Vocab, Any]:
    """A random model with chat tokens, its vocabulary, and lm-eval's `hf` model of its export."""
    from lm_eval.models.huggingface import HFLM

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("chat")
    vocab = train_vocab(Tokenizer(vocab_size=300, special_tokens="chat"), [TEXT] * 3)  # type: ignore[arg-type]
    vocab.save(directory / "tokenizer")
    config = Model(num_layers=2, hidden_size=48, num_heads=4, num_kv_heads=2, context_length=256, init_std=0.15)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    exported = export_directory(model, directory / "tokenizer", directory / "hf", chat=True)
    return model, vocab, HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3)


def test_the_template_and_its_ids_equal_hf(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, theirs = models
    adapter = ReplicaLM(LocalReader(model, vocab.size, 3), vocab, progress=False, chat=True)
    assert adapter.chat_template(True) == theirs.chat_template(True)
    assert ReplicaLM(LocalReader(model, vocab.size, 3), vocab, progress=False).chat_template(True) is None
    assert adapter.eot_token_id == theirs.eot_token_id != vocab.eod_id
    for history, asked in HISTORIES:
        text = adapter.apply_chat_template(history, add_generation_prompt=asked)
        assert text == theirs.apply_chat_template(history, add_generation_prompt=asked)
        assert adapter.tok_encode(text) == theirs.tok_encode(text)
        assert adapter.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)


def test_requests_in_the_template_equal_hf(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, theirs = models
    adapter = ReplicaLM(LocalReader(model, vocab.size, 2), vocab, progress=False, chat=True)
    prompts = [adapter.apply_chat_template(history, add_generation_prompt=asked) for history, asked in HISTORIES]
    pairs = instances(
        "loglikelihood", [(prompt, answer) for prompt in prompts for answer in ("42", " the answer", "x")]
    )
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    for (value, greedy), (their_value, their_greedy) in zip(adapter.loglikelihood(pairs), expected, strict=True):
        assert value == pytest.approx(their_value, rel=1e-4) and greedy == their_greedy
    asked = instances("generate_until", [(prompt, {"until": ["zz", "\n\n"], "max_gen_toks": 24}) for prompt in prompts])
    assert adapter.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_an_answer_ends_with_its_message(
    models: tuple[Transformer, Vocab, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`<|end|>` ends a text in the template alone, as the exported generation_config says."""
    model, vocab, _ = models
    end = vocab.vocabulary["<|end|>"]
    stops = []

    add = Player.add

    def seen(self: Player, request: Request) -> list[int]:
        stops.append(set(request.sampling.stop))
        return add(self, request)

    monkeypatch.setattr(Player, "add", seen)
    for chat in (False, True):
        adapter = ReplicaLM(LocalReader(model, vocab.size, 2), vocab, progress=False, chat=chat)
        adapter.generate_until(instances("generate_until", [("hello", {"until": ["zz"], "max_gen_toks": 4})]))
    assert stops == [{vocab.eod_id}, {vocab.eod_id, end}]


TASK = """
task: chat_colours
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def test_scores_in_the_template_equal_lm_evals_own(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    """Item by item; and a score in the template is not comparable with one without."""
    from lm_eval.evaluator import evaluate

    from eval.comparison.comparable import difference

    model, vocab, theirs = models
    rows = [
        {"question": f"What colour is {thing}?", "choices": ["red", "green like grass", "blue"], "answer": number % 3}
        for number, thing in enumerate(["snow", "the sky", "grass", "a fire truck", "milk", "coal", "a lemon"])
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.replace("DIR", str(tmp_path)))
    section = Benchmarks(tasks=["chat_colours"], include_path=str(tmp_path), batch_size=4, chat_template=True)
    with trusting([tmp_path]):
        ours = benchmark_results(section, LocalReader(model, vocab.size), vocab, 100, progress=False, chat=True)
        plain = benchmark_results(section, LocalReader(model, vocab.size), vocab, 100, progress=False)
        with quiet():
            loaded = load_tasks(section, tmp_path / "cache")
            raw = evaluate(theirs, loaded, bootstrap_iters=0, log_samples=True, apply_chat_template=True)
    assert without_items(ours, "benchmark/chat_colours", tmp_path) == set()
    for result in ours.results:
        metric = result.named.metric
        items = [item[metric] for item in raw["samples"]["chat_colours"]]
        assert [item.measures[metric] for item in ours.items] == [(value, 1) for value in items]
        assert result.value == raw["results"]["chat_colours"][f"{metric},none"]
    assert ours.results[0].settings["chat template"] == "replica"
    assert "chat template replica against unknown" in (difference(ours.results[0], plain.results[0]) or "")
