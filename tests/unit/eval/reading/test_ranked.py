"""Requests are divided over ranks, each is read once, and every rank gets all answers in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.model import Model
from eval.reading.ranked import RankedReader, deal, divide_windows
from eval.reading.reader import LocalReader
from eval.reading.windows import Window
from pretrain.generation.player import Request
from pretrain.generation.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer
from pretrain.parallel.lockstep import Lockstep, OutOfStep
from pretrain.parallel.ranks import Ranks
from tests.parts.counting_reader import CountingReader
from tests.parts.training_run import as_ranks

RANDOM = np.random.default_rng(0)


def windows(count: int, vocab: int = 90) -> list[Window]:
    """Questions of several lengths with four choices each."""
    made = []
    for _ in range(-(-count // 4)):
        question = RANDOM.integers(0, vocab, RANDOM.integers(3, 25))
        made += [Window(np.append(question, RANDOM.integers(0, vocab, n)), n) for n in RANDOM.integers(1, 5, 4)]
    return made[:count]


def on_ranks(count: int, work: Callable[[RankedReader], Any], reader: Callable[[], Any]) -> list[Any]:
    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        own = reader()
        return work(RankedReader(own, Lockstep(ranks.rank, ranks.count, gather))), own

    return as_ranks(count, of)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_request_is_read_once_and_all_ranks_know_all_answers(count: int) -> None:
    asked, rows = windows(41), [[1, 2, 3], [4], [5, 6]]
    requests = [Request(list(range(1, n + 1)), 4, samples=1 + n % 3) for n in (5, 1, 9, 2)]

    def work(reader: RankedReader) -> Any:
        return reader.score(asked), reader.generate(requests), reader.rewards(rows), reader.score([])

    alone = CountingReader()
    wanted = work(RankedReader(alone, Lockstep()))
    ends = on_ranks(count, work, CountingReader)
    assert [answers for answers, _ in ends] == [wanted] * count
    assert sorted(tokens for _, own in ends for tokens in own.asked) == sorted(alone.asked)


def test_more_ranks_than_requests() -> None:
    two = windows(2)
    ends = on_ranks(5, lambda reader: reader.score(two), CountingReader)
    assert sum(len(own.asked) for _, own in ends) == 2 and all(len(answers) == 2 for answers, _ in ends)


def test_ranks_that_are_asked_for_other_things_are_told_so() -> None:
    """Files that differ between machines would mix up the answers."""
    asked = [windows(8), windows(8)]

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> Any:
        with pytest.raises(OutOfStep, match="log-likelihoods"):
            RankedReader(CountingReader(), Lockstep(ranks.rank, 2, gather)).score(asked[ranks.rank])

    as_ranks(2, of)


def test_no_rank_reads_when_another_has_failed_before() -> None:
    """Where weights are divided, its forward pass would wait for that rank."""

    def of(ranks: Ranks, gather: Callable[[Any], list[Any]]) -> list[tuple[int, ...]]:
        lockstep, reader = Lockstep(ranks.rank, 2, gather), CountingReader()
        with pytest.raises(ValueError, match="no such set"), lockstep.together("part"):
            if ranks.rank:
                raise ValueError("no such set")
            RankedReader(reader, lockstep).score(windows(8))
        return reader.asked

    assert as_ranks(2, of) == [[], []]


def test_windows_that_begin_alike_stay_together_and_ranks_have_equal_work() -> None:
    shots = [RANDOM.integers(0, 90, 300) for _ in range(8)]
    made = [Window(np.append(shot, RANDOM.integers(0, 90, 12)), 2) for shot in shots for _ in range(25)]
    order = RANDOM.permutation(len(made))
    shares = divide_windows([made[index] for index in order], 4)
    assert sorted(index for share in shares for index in share) == list(range(len(made)))
    assert all(share == sorted(share) for share in shares)
    begun = [{int(order[index]) // 25 for index in share} for share in shares]
    assert sum(map(len, begun)) <= len(shots) + 3, "a beginning is read twice at the borders alone"
    mixed = windows(2000)
    costs = [sum(len(mixed[index].tokens) for index in share) for share in divide_windows(mixed, 4)]
    assert max(costs) < 1.1 * min(costs)


def test_long_and_short_requests_are_dealt_evenly() -> None:
    assert deal([5, 9, 1, 7, 3], 2) == [[1, 2, 4], [0, 3]]
    assert deal([], 2) == [[], []]
    shares = deal(list(range(1000)), 3)
    assert max(map(sum, shares)) - min(map(sum, shares)) < 1000


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    config = Model(num_layers=2, hidden_size=32, num_heads=2, context_length=64)
    return Transformer(config, 96).eval()


def test_long_answers_are_reported_before_they_end(model: Transformer) -> None:
    """A report is a sign of life, and slow machines need minutes until the first of many answers ends."""
    told: list[float] = []
    LocalReader(model, 90).generate(
        [Request([1, number], 30) for number in range(20)], lambda done, note="", total=None: told.append(done)
    )
    assert told.count(0) >= 2 and told[-20:] == list(range(1, 21))


def test_scores_and_texts_of_a_model_do_not_depend_on_ranks(model: Transformer) -> None:
    asked = windows(60)
    drawn = Sampling(temperature=1.0, seed=3, vocab_size=90)
    requests = [Request(list(range(n, 2 * n)), 6, GREEDY if n % 2 else drawn, samples=1 + n % 2) for n in range(2, 12)]

    def work(reader: Any) -> tuple[np.ndarray, list[bool], list[list[int]]]:
        scores = reader.score(asked)
        answers = reader.generate(requests)
        return np.array([s.nats for s in scores]), [s.greedy for s in scores], [one.ids for one in answers]

    nats, greedy, texts = work(LocalReader(model, 90))
    for count in (1, 2, 4):
        for (own_nats, own_greedy, own_texts), _ in on_ranks(count, work, lambda: LocalReader(model, 90)):
            np.testing.assert_allclose(own_nats, nats, rtol=1e-6)
            assert own_greedy == greedy and own_texts == texts
