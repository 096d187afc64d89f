"""What windows have in common is read once, and gives the scores of windows that are read one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.model import Model, RopeScaling
from eval.reading import scoring
from eval.reading.prefix_tree import Node, prefix_forest
from eval.reading.scoring import BatchSize, scored_windows
from eval.reading.windows import Score, Window
from pretrain.model.transformer import Transformer

CONTEXT, VOCAB = 64, 120
YARN = RopeScaling(kind="yarn", factor=2.0, original_context_length=32)
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama, grouped queries": {"family": "llama", "num_kv_heads": 2, "qk_norm": True},
    "scaled": {"family": "llama", "rope_scaling": YARN, "value_residual": True, "logit_softcap": 20.0},
}


def make_model(settings: dict[str, Any]) -> Transformer:
    torch.manual_seed(3)
    config = Model(num_layers=2, hidden_size=32, num_heads=4, context_length=CONTEXT, init_std=0.2, **settings)
    return Transformer(config, 128).eval()


def shared_windows() -> list[Window]:
    """Two subjects of three questions with choices of one token and of several; windows twice, within others, alone."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(number) for number in draw.integers(0, VOCAB, count)]

    windows = []
    for _ in range(2):
        shots = tokens(20)
        for size in (9, 10, 15):
            question = [*shots, *tokens(size)]
            windows += [Window(np.array([*question, *tokens(count)]), count) for count in (1, 1, 1, 5, 8, 8)]
            windows.append(Window(np.array([*question, 7]), 4, np.array([1.0, 0.0, 1.0, 1.0])))
            windows.append(Window(np.array(question), 12))  # targets within what others share
    whole = windows[4].tokens
    windows += [Window(whole, windows[4].scored), Window(whole, len(whole) - 1), Window(whole[:2], 1)]
    windows += [Window(np.array(tokens(count)), count - 1) for count in (2, 17, CONTEXT + 1)]
    return [windows[number] for number in draw.permutation(len(windows))]


def one_by_one(model: Transformer, window: Window) -> Score:
    """In float64, all positions."""
    with torch.no_grad():
        logits = model(torch.from_numpy(window.tokens[None, :-1]))[0, -window.scored :, :VOCAB]
    targets = torch.from_numpy(window.tokens[-window.scored :])
    weights = torch.ones(window.scored) if window.weights is None else torch.from_numpy(window.weights)
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights
    return Score(float(nats.sum()), bool(((logits.argmax(-1) == targets) | (weights == 0)).all()))


def scores(model: Transformer, windows: list[Window], size: BatchSize) -> list[Score]:
    found = dict(pair for done in scored_windows(model, windows, VOCAB, size) for pair in done)
    assert len(found) == len(windows)
    return [found[number] for number in range(len(windows))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("size", "room"), [(BatchSize(1), 10_000), (BatchSize(70), 1), (BatchSize(10_000, rows=3), 50)], ids=str
)
def test_scores_of_windows_read_one_by_one(
    name: str, size: BatchSize, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batches, and however few nodes may wait for their children."""
    model, windows = make_model(MODELS[name]), shared_windows()
    monkeypatch.setattr(scoring, "_room", lambda _: room)
    exact = make_model(MODELS[name]).double()
    expected = [one_by_one(exact, window) for window in windows]
    found = scores(model, windows, size)
    np.testing.assert_allclose([one.nats for one in found], [one.nats for one in expected], rtol=0, atol=1e-4)
    assert [one.greedy for one in found] == [one.greedy for one in expected]


def nodes(roots: list[Node]) -> list[Node]:
    return [node for root in roots for node in (root, *nodes(root.children))]


def test_a_shared_beginning_is_one_node() -> None:
    shots, questions = list(range(30)), [list(range(40, 52)), list(range(60, 75))]
    windows = [Window(np.array([*shots, *question, letter]), 1) for question in questions for letter in (1, 2, 3, 4)]
    (root,) = prefix_forest(windows)
    assert root.tokens.tolist() == shots and not root.parts
    assert [child.tokens.tolist() for child in root.children] == questions
    for child in root.children:
        assert not child.children and sorted(int(part.targets[0]) for part in child.parts) == [1, 2, 3, 4]


def test_every_target_is_scored_in_one_node() -> None:
    windows = shared_windows()
    found: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(windows))}
    read = 0
    for node in nodes(prefix_forest(windows)):
        read += len(node.tokens)
        for part in node.parts:
            found[part.window] += zip((node.begin + part.offsets + 1).tolist(), part.targets.tolist(), strict=True)
    for number, window in enumerate(windows):
        places = range(len(window.tokens) - window.scored, len(window.tokens))
        assert sorted(found[number]) == [(place, int(window.tokens[place])) for place in places]
    assert read < 0.5 * sum(len(window.tokens) - 1 for window in windows)


def test_a_few_equal_tokens_are_no_node() -> None:
    """Every text begins with the same token: a row of its own would cost more than it saves."""
    windows = [Window(np.array([0, *range(number, number + 9)]), 9) for number in range(1, 90, 10)]
    roots = prefix_forest(windows)
    assert len(roots) == len(windows) and all(node.begin == 0 and not node.children for node in roots)


def test_no_windows() -> None:
    assert prefix_forest([]) == []


def test_memory_of_waiting_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of contexts with two continuations each never lie in the store together."""
    model, seen = make_model(MODELS["gpt2"]), list[int]()
    draw = np.random.default_rng(1)
    contexts = [draw.integers(0, VOCAB, 12) for _ in range(100)]
    windows = [Window(np.append(context, [last, 3]), 2) for context in contexts for last in (1, 2)]
    monkeypatch.setattr(scoring, "_room", lambda store: seen.append(0) or 60)  # type: ignore[func-returns-value]
    extended = scoring.BranchCache

    def watched(store: Any, before: Any, new: int) -> Any:
        made = extended(store, before, new)
        seen.append(store.used)
        return made

    monkeypatch.setattr(scoring, "BranchCache", watched)
    scores(model, windows, BatchSize(40))
    assert max(seen) <= 72 + 40, "a chunk of 60 tokens and one node, and the rows of a pass"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_probabilities_is_named_so(value: float) -> None:
    """Whether the weights spoil what is shared or what is not: one message, and no score."""
    model, windows = make_model(MODELS["gpt2"]), shared_windows()
    assert model.position is not None
    with torch.no_grad():
        model.position.weight[3] = value
    with pytest.raises(ValueError, match=r"gives no finite probabilities. Did training diverge\?"):
        scores(model, windows, BatchSize(70))
