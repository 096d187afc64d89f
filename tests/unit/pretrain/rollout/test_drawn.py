"""Tests of `pretrain.rollout.drawn`: blocks, parts and rows depend on nothing but the rollout."""

from __future__ import annotations

import pytest
import torch

from pretrain.rollout.drawn import Drawn, blocks, counts_in_loss, deal, loss_weights, parts, training_rows


def drawn(ids: list[int], prompt: int = 0, forced: list[int] | None = None, finish: str = "stop") -> Drawn:
    given = [place in (forced or []) for place in range(len(ids))]
    return Drawn(prompt, 0, ids, [0.0 if one else -0.5 for one in given], given, finish)  # type: ignore[arg-type]


def test_blocks_hold_every_answer_once_by_length_and_group() -> None:
    found = blocks([5, 3, 9, 3], samples=3, rows=4)
    assert sorted(pair for block in found for pair in block) == [(p, s) for p in range(4) for s in range(3)]
    assert [len(block) for block in found] == [4, 4, 4]
    assert [prompt for block in found for prompt, _ in block] == [1, 1, 1, 3, 3, 3, 0, 0, 0, 2, 2, 2]


def test_parts_use_every_answer_once_a_pass_in_a_keyed_order() -> None:
    first = parts(12, updates=6, passes=2, key="1/0")
    assert len(first) == 6 and all(len(part) == 4 for part in first)
    for turn in (first[:3], first[3:]):
        assert sorted(answer for part in turn for answer in part) == list(range(12))
    assert first[:3] != first[3:]
    assert first == parts(12, 6, 2, "1/0") != parts(12, 6, 2, "1/1")
    assert parts(12, 1, 1, "1/0") == [list(range(12))]
    assert parts(12, 2, 2, "1/0") == [list(range(12))] * 2


def test_rows_are_dealt_by_length_the_same_set_at_any_number_of_ranks() -> None:
    lengths = [3, 9, 1, 7, 5, 2]
    assert deal(range(6), lengths, 2) == [[1, 4, 5], [3, 0, 2]]
    for ranks in (1, 2, 3):
        assert sorted(row for share in deal(range(6), lengths, ranks) for row in share) == list(range(6))


def test_a_row_learns_the_end_that_was_drawn_and_no_tool_output() -> None:
    """Prompt 1 2 3, answer 10 11 [12 13 forced] 14 and the end 9."""
    answer = drawn([10, 11, 12, 13, 14, 9], forced=[2, 3])
    other = drawn([10, 9], prompt=1)
    rows = training_rows([[1, 2, 3], [1]], [answer, other], pad=0)
    assert rows.tokens.tolist() == [[1, 2, 3, 10, 11, 12, 13, 14], [1, 10, 0, 0, 0, 0, 0, 0]]
    assert rows.targets.tolist() == [[2, 3, 10, 11, 12, 13, 14, 9], [10, 9, 0, 0, 0, 0, 0, 0]]
    assert rows.drawn.int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert rows.sampled[0].tolist() == [0, 0, -0.5, -0.5, 0, 0, -0.5, -0.5]
    assert torch.equal(rows.sampled != 0, rows.drawn)
    again = [int(target) for target, one in zip(rows.targets[0], rows.drawn[0], strict=True) if one]
    assert again == [10, 11, 14, 9]  # the ids that were drawn, as they were drawn


@pytest.mark.parametrize(
    ("normalise", "weights", "count"),
    [("dapo", [1, 0, 1], 6), ("grpo", [1 / 4, 0, 1 / 2], 2), ("dr_grpo", [1, 0, 1], 2 * 8)],
)
def test_a_cut_answer_leaves_loss_and_count_alike(normalise: str, weights: list[float], count: float) -> None:
    """trl once took such rows from the one and not from the other (trl #6369)."""
    answers = [drawn([5, 6, 7, 8, 9], forced=[1]), drawn([5] * 8, finish="length"), drawn([5, 9])]
    assert loss_weights(answers, normalise, "mask", 8) == (weights, count)  # type: ignore[arg-type]
    without = [answers[0], answers[2]]
    assert loss_weights(without, normalise, "keep", 8) == ([weights[0], weights[2]], count)  # type: ignore[arg-type]
    kept, more = loss_weights(answers, normalise, "keep", 8)  # type: ignore[arg-type]
    assert kept[1] > 0 and more > count


def test_answers_without_a_drawn_token_do_not_count() -> None:
    assert not counts_in_loss(drawn([], finish="length"), "keep")
    assert loss_weights([drawn([], finish="length")], "grpo", "keep", 4) == ([0.0], 0.0)
