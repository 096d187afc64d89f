"""Our adapter against lm-eval's own `hf` model on the exported checkpoint, request by request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.safety.trust import trusting
from configs.schema.data import Tokenizer
from configs.schema.evaluation import Benchmarks
from configs.schema.model import Model
from configs.schema.pair_sets import InformationSet
from data_prep.decontamination.benchmark_tasks import quiet
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.encode import NASTY
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.harness import lm_eval_adapter
from eval.harness.benchmarks import benchmark_results, load_tasks
from eval.harness.lm_eval_adapter import ReplicaLM
from eval.information.draws import draw
from eval.information.information_set import information_results
from eval.items.item import Item
from eval.reading.reader import LocalReader
from pretrain.generation import sampling
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer
from tests.parts.items_check import without_items

CONTEXT = 512
TASKS = Path(__file__).parents[2] / "configs" / "tasks"
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families."
)
PAIRS = [
    ("It is a truth", " universally acknowledged"),
    ("trailing space ", "goes with the continuation"),
    ("", "no context at all"),
    ("naïve café 三国志", " 🦊 and more"),
    (TEXT * 9, " a context that is cut on the left"),
    ("one", " w"),
]
QUESTIONS = [
    ("It is a truth", {"until": ["\n", "."], "max_gen_toks": 12}),
    (TEXT, {"until": ["e"], "max_gen_toks": 8}),
    ("However", {"until": ["zzzz"], "max_gen_toks": 16, "do_sample": False}),
    (TEXT * 9 + "One", {"until": ["\n"], "max_gen_toks": 20}),
    ("A much longer question than the others", {"until": ["\n", "."], "max_gen_toks": 12}),
]


@pytest.fixture(autouse=True)
def trusted(tmp_path: Path) -> Iterator[None]:
    """The tasks of these tests are their own."""
    with trusting([tmp_path]):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take longer to share out than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Vocab, Any]:
    """A random model, its vocabulary, and lm-eval's `hf` model of its export."""
    from lm_eval.models.huggingface import HFLM

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp(request.param)
    vocab = train_vocab(Tokenizer(vocab_size=300), [TEXT] * 3)
    vocab.save(directory / "tokenizer")
    kv_heads = None if request.param == "gpt2" else 2
    config = Model(
        family=request.param,
        num_layers=2,
        hidden_size=48,
        num_heads=4,
        num_kv_heads=kv_heads,
        context_length=CONTEXT,
        init_std=0.15,
    )
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    assert model.vocab_size > vocab.size, "the padding of the vocabulary must not change scores"
    exported = export_directory(model, directory / "tokenizer", directory / "hf")
    return model, vocab, HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3)


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, item, index) for index, item in enumerate(arguments)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihood_equals_hf(models: tuple[Transformer, Vocab, Any], batch_size: int) -> None:
    model, vocab, theirs = models
    requests = instances("loglikelihood", PAIRS)
    ours = ReplicaLM(LocalReader(model, vocab.size, batch_size), vocab, progress=False).loglikelihood(requests)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for pair, (value, greedy), (their_value, their_greedy) in zip(PAIRS, ours, expected, strict=True):
        assert value == pytest.approx(their_value, rel=1e-4), pair
        assert greedy == their_greedy, pair


@pytest.mark.parametrize("fast", [True, False])
def test_texts_are_encoded_as_the_vocabulary_does(
    models: tuple[Transformer, Vocab, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the fast encoder of data preparation, and by `tokenizers` for a vocabulary that it does not know."""
    model, vocab, _ = models
    if not fast:
        monkeypatch.setattr(lm_eval_adapter, "fast_encoder", lambda *_: None)
    adapter = ReplicaLM(LocalReader(model, vocab.size), vocab, progress=False)
    assert (adapter._encode != vocab.encode) == fast
    for text in (*NASTY, TEXT, ""):
        assert adapter.tok_encode(text) == vocab.framed(text)
        assert adapter.tok_encode(text, add_special_tokens=False) == vocab.encode(text)


def test_rolling_equals_hf(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, theirs = models
    requests = instances("loglikelihood_rolling", [(TEXT,), ("short",), (TEXT * 9,)])
    ours = ReplicaLM(LocalReader(model, vocab.size, 2), vocab, progress=False).loglikelihood_rolling(requests)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-4)


def test_generation_equals_hf(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, theirs = models
    requests = instances("generate_until", QUESTIONS)
    ours = ReplicaLM(LocalReader(model, vocab.size, 4), vocab, progress=False).generate_until(requests)
    assert ours == theirs.generate_until(requests, disable_tqdm=True)
    assert any(ours)


# ------------------------------------------------------------------------------------- stop strings inside of tokens
SENTENCES = "He came.\n\nShe went.\nWho was it?\nIt is a truth!\n\n"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def writers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Vocab, Any]:
    r"""As `models`, but one that likes tokens in which text stands before a line end, such as `.\n`."""
    from lm_eval.models.huggingface import HFLM

    torch.manual_seed(5)
    directory = tmp_path_factory.mktemp(f"writes-{request.param}")
    vocab = train_vocab(Tokenizer(vocab_size=300, pattern="gpt4"), [SENTENCES * 20, TEXT])
    vocab.save(directory / "tokenizer")
    config = Model(
        family=request.param, num_layers=2, hidden_size=48, num_heads=4, context_length=CONTEXT, init_std=0.15
    )
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    liked = [token for token in range(vocab.size) if "\n" in vocab.decode([token]).lstrip("\n")]
    assert len(liked) > 3, "the vocabulary must have such tokens"
    with torch.no_grad():
        (model.embed if model.lm_head is None else model.lm_head).weight[liked] *= 2
    exported = export_directory(model, directory / "tokenizer", directory / "hf")
    return model, vocab, HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=1)


STOPS = [["\n"], ["\n\n"], [".", "\n"], ["?\n", "."], ["\n", "truth"], ["e", "was it"], []]


def ask(stops: list[str], **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    prompts = [text[:length] for text in (TEXT, SENTENCES) for length in (3, 9, 40)]
    return [(prompt, {"until": list(stops), "max_gen_toks": 24, **settings}) for prompt in prompts]


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_text_before_a_stop_within_a_token_is_kept(
    writers: tuple[Transformer, Vocab, Any], stops: list[str], batch_size: int
) -> None:
    model, vocab, theirs = writers
    questions = ask(stops)
    ours = ReplicaLM(LocalReader(model, vocab.size, batch_size), vocab, progress=False).generate_until(
        instances("generate_until", questions)
    )
    assert ours == theirs.generate_until(instances("generate_until", ask(stops)), disable_tqdm=True)
    if stops == ["\n"]:
        ends = [vocab.encode(text + "\n") for text in ours]
        assert any("\n" in vocab.decode(ids[-1:])[1:] for ids in ends), "no text ends within a token: proves nothing"


def least_likely(chances: torch.Tensor, count: int, **_: Any) -> torch.Tensor:
    """Plays `torch.multinomial`: the least likely of all tokens that can be drawn, so that a draw shows them."""
    assert count == 1
    return torch.where(chances > 0, chances, torch.inf).argmin(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7},
        {"temperature": 1.3, "top_k": 4},
        {"do_sample": True, "temperature": 1.0, "top_p": 0.6},
        {"do_sample": True, "temperature": 0.9, "top_k": 0},
        {"do_sample": False, "temperature": 0.7},
    ],
)
def test_sampling_draws_from_the_tokens_that_hf_draws_from(
    writers: tuple[Transformer, Vocab, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vocab, theirs = writers
    monkeypatch.setattr(torch, "multinomial", lambda *args, num_samples=1, **_: least_likely(args[0], num_samples))

    def drawn(weights: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return least_likely(weights, 1).squeeze(-1), weights.sum(dim=-1, dtype=torch.float64)

    monkeypatch.setattr(sampling, "draw_with_total", drawn)
    adapter = ReplicaLM(LocalReader(model, vocab.size, 2), vocab, progress=False)
    ours = adapter.generate_until(instances("generate_until", ask(["\n"], **settings)))
    assert ours == theirs.generate_until(instances("generate_until", ask(["\n"], **settings)), disable_tqdm=True), (
        settings
    )
    assert any(ours)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4}, "num_beams: 4"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_length": 40}, "max_length: 40"),
        ({"do_sample": True}, "without a temperature"),
        ({"do_sample": True, "temperature": 0.0}, "without a temperature"),
    ],
)
def test_generation_settings_that_would_be_ignored_are_refused(
    writers: tuple[Transformer, Vocab, Any], settings: dict[str, Any], words: str
) -> None:
    model, vocab, _ = writers
    with pytest.raises(ValueError, match=words):
        ReplicaLM(LocalReader(model, vocab.size, 1), vocab, False).generate_until(
            instances("generate_until", ask(["\n"], **settings))
        )
    harmless = ask(["\n"], num_beams=1, repetition_penalty=1.0)[:1]
    assert ReplicaLM(LocalReader(model, vocab.size, 1), vocab, False).generate_until(
        instances("generate_until", harmless)
    )


def test_greedy_continuation_is_recognised(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, _ = models
    adapter = ReplicaLM(LocalReader(model, vocab.size, 1), vocab, progress=False)
    (text,) = adapter.generate_until(instances("generate_until", [("It is", {"until": [], "max_gen_toks": 3})]))
    if vocab.encode("It is" + text)[: len(vocab.encode("It is"))] == vocab.encode("It is") and "\ufffd" not in text:
        (outcome,) = adapter.loglikelihood(instances("loglikelihood", [("It is", text)]))
        assert outcome[1] == (vocab.decode(vocab.encode(text)) == text)


def test_task_that_generates_beyond_the_context(models: tuple[Transformer, Vocab, Any]) -> None:
    model, vocab, _ = models
    with pytest.raises(ValueError, match="max_gen_toks"):
        ReplicaLM(LocalReader(model, vocab.size, 1), vocab, progress=False).generate_until(
            instances("generate_until", [("question", {"until": ["\n"], "max_gen_toks": CONTEXT})])
        )


# ----------------------------------------------------------------------------------------------------- tasks and scores
def test_shipped_tasks_equal_hf(
    models: tuple[Transformer, Vocab, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every task of configs/tasks, from another working directory, item by item like lm-eval with `hf`."""
    import datasets
    from lm_eval.evaluator import evaluate

    model, vocab, theirs = models
    monkeypatch.chdir(tmp_path)
    usual_cache = datasets.config.HF_DATASETS_CACHE
    section = Benchmarks(
        tasks=[
            *("replica_copa", "replica_lambada", "replica_piqa", "replica_winogrande"),
            *("replica_piqa_mc", "replica_copa_cloze", "replica_classical_zh"),
        ],
        include_path=str(TASKS),
        limit=12,
    )
    scored = benchmark_results(section, LocalReader(model, vocab.size), vocab, 200, progress=False)
    results = {result.name: result for result in scored.results}
    # A perplexity is no mean of its items: they have its statistics.
    left = without_items(scored, "benchmark/shipped", tmp_path / "run")
    assert left == {"benchmark/replica_lambada/perplexity"}
    assert Path.cwd() == tmp_path and usual_cache == datasets.config.HF_DATASETS_CACHE
    with quiet():
        expected = evaluate(theirs, load_tasks(section, tmp_path), limit=12, bootstrap_iters=0)
        ours = evaluate(
            ReplicaLM(LocalReader(model, vocab.size, 5), vocab, False),
            load_tasks(section, tmp_path),
            limit=12,
            bootstrap_iters=0,
        )
    for task in section.names:
        for mine, reference in zip(ours["samples"][task], expected["samples"][task], strict=True):
            assert mine["arguments"] == reference["arguments"]
            flat = [value for response in mine["filtered_resps"] for value in response]
            assert flat == pytest.approx([value for r in reference["filtered_resps"] for value in r], rel=1e-4)
        check_items([item for item in scored.items if item.subject == task], expected["samples"][task])
        for key, value in expected["results"][task].items():
            if "," in key and "stderr" not in key:
                result = results[f"benchmark/{task}/{key.partition(',')[0]}"]
                assert result.value == pytest.approx(value, rel=1e-4) and result.n == 12
                assert result.low is not None and result.high is not None and result.low <= result.value <= result.high
                assert result.task_version == "1.0" and "the first 12 of" in (result.note or "")
    chances = {name: result.chance for name, result in results.items()}
    assert chances["benchmark/replica_copa/acc"] == chances["benchmark/replica_winogrande/acc"] == 0.5
    assert chances["benchmark/replica_lambada/acc"] is None
    assert chances["benchmark/replica_classical_zh/acc"] == chances["benchmark/replica_copa_cloze/acc_norm"] / 2 == 0.25
    cut = results["benchmark/replica_classical_zh/acc"].note or ""
    assert "12 of 12 items are longer than the context of 512 tokens" in cut
    assert "longer" not in (results["benchmark/replica_copa/acc"].note or "")


def check_items(items: list[Item], expected: list[dict[str, Any]]) -> None:
    """Each item has the log-likelihoods of its choices, in order; its answer is the likeliest of them."""
    assert [item.id for item in items] == [str(sample["doc_id"]) for sample in expected]
    assert len({item.hash for item in items}) == len(items)
    for item, sample in zip(items, expected, strict=True):
        nats = [response[0] for response in sample["filtered_resps"]][: len(item.choices) or None]  # not those alone
        assert item.log_likelihoods == pytest.approx(nats, rel=1e-4) and item.seconds is not None
        if item.choices:
            likeliest = item.choices[max(range(len(nats)), key=lambda index: nats[index])]
            assert item.answer == likeliest and item.reference in item.choices
            assert (item.answer == item.reference) == (sample["acc"] == 1)
        else:
            assert item.reference == sample["arguments"][0][1]


def write_task(directory: Path, name: str, choices: list[list[str]], **changes: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"question": "It is", "choices": options, "answer": 0} for options in choices]
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.0},
        **changes,
    }
    (directory / f"{name}.yaml").write_text(json.dumps(task))


@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_few_shot_items_equal_hf(models: tuple[Transformer, Vocab, Any], tmp_path: Path, kind: str) -> None:
    """Every type of output, item by item: what the items share is read once here, and for each item there."""
    from lm_eval.evaluator import evaluate

    model, vocab, theirs = models
    rolling, generated = kind == "loglikelihood_rolling", kind == "generate_until"
    names = TEXT.split()
    options = [[*names[place : place + 3], f"{names[place]} {names[place + 5]} and more"] for place in range(7)]
    write_task(
        tmp_path,
        "shots",
        options,
        output_type=kind,
        description="Choose the word.\n\n",
        fewshot_split="test",
        num_fewshot=0 if rolling else 3,
        doc_to_text="" if rolling else "Words: {{choices | join(', ')}}\n{{question}}",
        doc_to_target="{{question}} {{choices[0]}} {{choices[3]}}" if rolling or generated else "{{choices[0]}}",
        **({"generation_kwargs": {"until": ["\n"], "max_gen_toks": 9}, "doc_to_choice": None} if generated else {}),
        metric_list=[{"metric": "word_perplexity" if rolling else "exact_match" if generated else "acc"}],
    )
    section = Benchmarks(tasks=["shots"], include_path=str(tmp_path))
    with quiet():
        reader = LocalReader(model, vocab.size, batch_tokens=400)
        ours = evaluate(ReplicaLM(reader, vocab, False), load_tasks(section, tmp_path), bootstrap_iters=0)
        expected = evaluate(theirs, load_tasks(section, tmp_path), bootstrap_iters=0)
    assert len(ours["samples"]["shots"]) == 7
    for mine, reference in zip(ours["samples"]["shots"], expected["samples"]["shots"], strict=True):
        assert mine["arguments"] == reference["arguments"]
        assert rolling or str(mine["arguments"]).count("Words:") >= 4
        for one, other in zip(mine["filtered_resps"], reference["filtered_resps"], strict=True):
            assert one == (other if generated else pytest.approx(other, rel=1e-5))


def test_chance_groups_and_files_beside_the_yaml(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    model, vocab, _ = models
    write_task(tmp_path / "inner", "two_choices", [["a truth", "a man"]] * 30)
    write_task(tmp_path / "inner", "four_choices", [["a", "b", "c", "d"]] * 10)
    group = {"group": "both", "task": ["two_choices", "four_choices"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "inner" / "both.yaml").write_text(json.dumps(group))
    section = Benchmarks(tasks=["both"], include_path=str(tmp_path))
    results = {
        result.name: result
        for result in benchmark_results(section, LocalReader(model, vocab.size), vocab, 200, progress=False).results
    }
    assert results["benchmark/two_choices/acc"].chance == 0.5
    assert results["benchmark/four_choices/acc"].chance == 0.25
    whole = results["benchmark/both/acc"]
    two, four = results["benchmark/two_choices/acc"].value, results["benchmark/four_choices/acc"].value
    assert whole.n == 40 and math.isclose(whole.value, (30 * two + 10 * four) / 40)


def scores_of(directory: Path, models: tuple[Transformer, Vocab, Any], *tasks: str) -> dict[str, Any]:
    section = Benchmarks(tasks=list(tasks), include_path=str(directory))
    found = benchmark_results(section, LocalReader(models[0], models[1].size), models[1], 200, progress=False).results
    assert len({result.name for result in found}) == len(found)
    return {result.name.removeprefix("benchmark/"): result for result in found}


def test_chance_counts_choices_and_right_answers(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    metrics = [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")]
    write_task(tmp_path, "pmi", [["a", "b", "c", "d"]] * 6, metric_list=metrics)
    write_task(tmp_path, "several", [["a", "b", "c", "d"]] * 3 + [["a", "b"]], doc_to_target=[0, 1])
    write_task(tmp_path, "spelled", [["a truth", "a man", "b"]] * 4, doc_to_target="{{choices[1]}}")
    (tmp_path / "rule.py").write_text("def score(doc, results):\n    return {'acc': 0.3}\n")
    write_task(tmp_path, "ruled", [["a", "b"]] * 3, process_results="PLACE")
    file = tmp_path / "ruled.yaml"
    file.write_text(file.read_text().replace('"PLACE"', "!function rule.score"))
    found = scores_of(tmp_path, models, "pmi", "several", "spelled", "ruled")
    chances = {name: result.chance for name, result in found.items()}
    assert chances.pop("several/acc") == pytest.approx((3 * 2 / 4 + 2 / 2) / 4)
    assert chances == {
        **dict.fromkeys(("pmi/acc", "pmi/acc_norm", "pmi/acc_bytes", "pmi/acc_mutual_info"), 0.25),
        "spelled/acc": pytest.approx(1 / 3),
        "pmi/exact_match": None,
        "ruled/acc": None,
    }


def test_groups_use_the_weights_of_lm_eval(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    """Weighted or not, nested, and behind filters: value as lm-eval's, interval and n as the weights say."""
    from lm_eval.evaluator import evaluate

    answers = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 4},
        "filter_list": [{"name": "get-answer", "filter": [{"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "higher_is_better": True}],
    }
    write_task(tmp_path, "big", [["a truth", "a man"]] * 20 + [["a man", "a truth"]] * 10)
    write_task(tmp_path, "small", [["a", "b", "c", "d"]] * 4)
    write_task(tmp_path, "written_a", [["x"]] * 5, **{**answers, "doc_to_choice": None})
    write_task(tmp_path, "written_b", [["y"]] * 3, **{**answers, "doc_to_choice": None})
    by_size = {"metric": "acc", "weight_by_size": True}
    for name, tasks, rules in (
        ("weighted", ["big", "small"], [by_size]),
        ("equal", ["big", "small"], [by_size, {"metric": "acc", "weight_by_size": False}]),
        ("nested", ["weighted", "small"], [{"metric": "acc", "weight_by_size": False}]),
        ("written", ["written_a", "written_b"], [{"metric": "exact_match", "filter_list": "get-answer"}]),
    ):
        group = {"group": name, "task": tasks, "aggregate_metric_list": rules, "metadata": {"version": 3}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(group))
    tasks = ("equal", "nested", "written")
    found = scores_of(tmp_path, models, *tasks)
    with quiet():
        loaded = load_tasks(Benchmarks(tasks=list(tasks), include_path=str(tmp_path)), tmp_path / "cache")
        printed = evaluate(
            ReplicaLM(LocalReader(models[0], models[1].size, 4), models[1], False), loaded, bootstrap_iters=0
        )["results"]

    def share(weights: dict[str, float]) -> tuple[float, float, float]:
        members = [(weight, found[f"{task}/acc"]) for task, weight in weights.items()]
        below = math.sqrt(sum((weight * (m.value - m.low)) ** 2 for weight, m in members))
        above = math.sqrt(sum((weight * (m.high - m.value)) ** 2 for weight, m in members))
        return below, above, sum(weight * m.chance for weight, m in members)

    for name, weights in (
        ("weighted", {"big": 30 / 34, "small": 4 / 34}),
        ("equal", {"big": 1 / 2, "small": 1 / 2}),
        ("nested", {"big": 1 / 3, "small": 2 / 3}),
    ):
        result = found[f"{name}/acc"]
        assert result.value == pytest.approx(printed[name]["acc,none"])
        assert (result.value - result.low, result.high - result.value, result.chance) == pytest.approx(share(weights))
        assert result.n == 34 and result.task_version == "3", name
    whole = found["written/exact_match/get-answer"]
    assert whole.value == printed["written"]["exact_match,get-answer"] and whole.n == 8
    assert whole.value == 0 and found["written_b/exact_match/get-answer"].high > whole.high > 0.1


def test_unknown_task_names_a_near_one(tmp_path: Path) -> None:
    section = Benchmarks(tasks=["replica_coppa"], include_path=str(TASKS))
    with pytest.raises(ValueError, match="did you mean replica_copa"):
        load_tasks(section, tmp_path)


def test_missing_data_file_is_one_message(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    model, vocab, _ = models
    write_task(tmp_path, "no_data", [["a", "b"]])
    (tmp_path / "no_data.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no_data.*could not be loaded"):
        benchmark_results(
            Benchmarks(tasks=["no_data"], include_path=str(tmp_path)),
            LocalReader(model, vocab.size),
            vocab,
            100,
            progress=False,
        )


def test_quiet_and_tidy(
    models: tuple[Transformer, Vocab, Any],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing on the screen, and nothing left in the cache of `datasets`."""
    import datasets

    model, vocab, _ = models
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_task(tmp_path / "tasks", "small", [["a", "b"]])
    benchmark_results(
        Benchmarks(tasks=["small"], include_path=str(tmp_path / "tasks")),
        LocalReader(model, vocab.size),
        vocab,
        100,
        progress=False,
    )
    assert not (tmp_path / "cache").exists()
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_information_is_a_difference_of_log_likelihoods(models: tuple[Transformer, Vocab, Any], tmp_path: Path) -> None:
    """Item by item, of our adapter and of `hf`: a target alone, behind its source, and behind the control's."""
    model, vocab, theirs = models
    words = TEXT.split()
    pairs = [TextPair(" ".join(words[n : n + 3]), " ".join(words[n + 3 : n + 5]) + " 三国") for n in range(0, 40, 5)]
    lines = [json.dumps({"source": pair.source, "target": pair.target}) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    section = InformationSet(name="s", path=str(tmp_path / "pairs.jsonl"), shots=[0, 2], candidates=3)
    reader = LocalReader(model, vocab.size, 4)
    items = information_results(section, reader, vocab, 100).items
    scored = pairs[2:]
    others = draw(scored, 3, "").other
    asked: dict[tuple[str, int, int], tuple[str, str]] = {}
    for shots in section.shots:
        sources = "".join(f"Source: {one.source}\nTarget: {one.target}\n\n" for one in pairs[:shots])
        alone = "".join(f"Target: {one.target}\n\n" for one in pairs[:shots])
        for number, pair in enumerate(scored):
            target = f" {pair.target}"
            asked["alone_bits", shots, number] = (f"{alone}Target:", target)
            asked["given_bits", shots, number] = (f"{sources}Source: {pair.source}\nTarget:", target)
            other = scored[others[number]].source
            asked["other_bits", shots, number] = (f"{sources}Source: {other}\nTarget:", target)
    requests = instances("loglikelihood", list(asked.values()))
    ours = ReplicaLM(reader, vocab, progress=False).loglikelihood(requests)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert len(items) == 6
    bits = {
        key: (-one / math.log(2), -other / math.log(2))
        for key, (one, _), (other, _) in zip(asked, ours, expected, strict=True)
    }
    for (metric, shots, number), values in bits.items():
        found, _ = items[number].measures[f"{metric}/{shots}-shot"]
        assert found == pytest.approx(values[0], rel=1e-5) and found == pytest.approx(values[1], rel=1e-4)
        saved = items[number].measures[f"saved_bits/{shots}-shot"][0]
        difference = bits["alone_bits", shots, number][1] - bits["given_bits", shots, number][1]
        assert saved == pytest.approx(difference, abs=2e-3), "bits, of which a target has about a hundred"
