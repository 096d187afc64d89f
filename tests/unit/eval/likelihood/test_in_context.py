"""Loss late in the context minus loss early in it, by readers whose gain from the context is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from configs.schema.data import Tokenizer
from configs.schema.evaluation import PerplexitySet
from data_prep.decontamination.evaluation_sets import SetText
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.likelihood.in_context import IN_CONTEXT
from eval.likelihood.perplexity_set import perplexity_set_results
from eval.parts import Scored
from eval.reading.windows import Report, Score, Window
from eval.report import gates
from tests.parts.counting_reader import CountingReader

NEW, SEEN = math.log(256), 0.5
Rule = Callable[[Sequence[int], int], float]  # tokens before, target -> nats


class Stub(CountingReader):
    """Gives each target nats by a rule of what stands before it."""

    context_length, vocab_size = 64, 257

    def __init__(self, nats: Rule) -> None:
        super().__init__()
        self._nats = nats

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        out = []
        for window in windows:
            ids = window.tokens.tolist()
            places = range(len(ids) - window.scored, len(ids))
            out.append(Score(sum(self._nats(ids[:place], ids[place]) for place in places), False))
        return out


def copies(before: Sequence[int], target: int) -> float:
    """What was read before is predicted well."""
    return SEEN if target in before else NEW


def by_place(before: Sequence[int], target: int) -> float:
    """The further in the window, the better, whatever stands there."""
    return 5 - len(before) / 64


def bigram(before: Sequence[int], target: int) -> float:
    """Only the last token matters."""
    return NEW if (before[-1] + target) % 3 else SEEN


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


def documents(count: int, letters: int = 40, length: int = 200) -> list[SetText]:
    """Each document draws from letters of its own, which no neighbour has."""
    draw = np.random.default_rng(5)
    return [
        SetText(str(n), "".join(chr(0x20 + 45 * (n % 2) + place) for place in draw.integers(0, letters, length)), None)
        for n in range(count)
    ]


def scored(
    nats: Callable[[Sequence[int], int], float], vocab: Vocab, texts: list[SetText], **settings: object
) -> Scored:
    item = PerplexitySet.model_validate({"name": "p", "path": "x", "late_minus_early": True, **settings})
    return perplexity_set_results(item, texts, Stub(nats), vocab, 200)


def test_a_model_that_copies_gains_from_its_context_and_not_from_another_one(vocab: Vocab) -> None:
    found = {one.named.metric: one for one in scored(copies, vocab, documents(100)).results}
    own, other = (found[metric] for metric in IN_CONTEXT)
    assert own.value < -2 and own.high is not None and own.high < -2
    # Not 0: in a document's first piece, the token that early targets see first is the begin token, which is no letter.
    assert abs(other.value) < 0.2
    assert own.n == 100 and own.interval == "bootstrap over 100 documents" and own.tokenizer == vocab.fingerprint
    assert own.note is not None and "16 each, in 300 pieces of 64 tokens" in own.note


def test_a_gain_of_the_place_alone_is_told_from_one_of_the_context(vocab: Vocab) -> None:
    own, other = (found_of(scored(by_place, vocab, documents(30)), metric) for metric in IN_CONTEXT)
    assert own == pytest.approx(-48 / 64) and other == pytest.approx(-48 / 64)


def test_a_model_without_memory_gains_nothing(vocab: Vocab) -> None:
    """Nor does any model of a shuffled context more than of one that was not read."""
    assert abs(found_of(scored(bigram, vocab, documents(200)), IN_CONTEXT[0])) < 0.05


def found_of(scores: Scored, metric: str) -> float:
    return next(one.value for one in scores.results if one.named.metric == metric)


def test_quarters_by_hand(vocab: Vocab) -> None:
    """A context of 8: a document of 17 bytes after the begin token is two pieces, of 9 tokens each, of 2 targets."""
    texts = [SetText("a", "abcdefgh" + "aabbccdda", None), SetText("b", "short", None)]
    made = scored(copies, vocab, texts, context=8)
    # Piece 1: begin abcdefgh; a, b, g, h are new. Piece 2: a (read) abbccdda; early a seen, b new; late d, a seen.
    assert found_of(made, IN_CONTEXT[0]) == pytest.approx(((2 * NEW - 2 * NEW) + (2 * SEEN - SEEN - NEW)) / 4)
    assert IN_CONTEXT[1] not in {one.named.metric for one in made.results}, "no other document has a piece"
    long, short = made.items
    assert long.measures[IN_CONTEXT[0]] == (pytest.approx(SEEN - NEW), 4.0) and IN_CONTEXT[0] not in short.measures
    assert long.units[IN_CONTEXT[0]] == pytest.approx((0.0, 2.0, SEEN - NEW, 2.0))


def test_the_control_by_hand(vocab: Vocab) -> None:
    """A context of 8: late targets see one token of their own document and six of the other, the begin token first."""
    made = scored(copies, vocab, [SetText("a", "abcdeffg", None), SetText("b", "uvwxyzzt", None)], context=8)
    # Late: f and z stand before themselves, g and t are new. Early: a, b, u and v are new.
    assert found_of(made, IN_CONTEXT[1]) == pytest.approx((SEEN - NEW) / 2)
    assert not any(one.higher_is_better for one in made.results)


def test_items_give_the_scores(vocab: Vocab) -> None:
    made = scored(copies, vocab, documents(25))
    for metric in IN_CONTEXT:
        above, below = (sum(item.measures[metric][place] for item in made.items) for place in (0, 1))
        assert above / below == pytest.approx(found_of(made, metric))
    assert next(iter(made.items[0].measures)) == "bits_per_byte", "items are still ordered by that"


@pytest.mark.parametrize(("context", "length", "said"), [(3, 50, "4 tokens or more"), (64, 60, "longest has 61")])
def test_what_has_no_quarters_is_said(vocab: Vocab, context: int, length: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scored(copies, vocab, documents(2, length=length), context=context)


def test_one_text_has_pieces_too_and_gates_know_the_names(vocab: Vocab) -> None:
    made = scored(copies, vocab, documents(5), stream="text")
    assert found_of(made, IN_CONTEXT[0]) < 0
    assert gates.IN_CONTEXT == IN_CONTEXT
