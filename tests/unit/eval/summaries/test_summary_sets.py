"""Summaries are scored beside chosen sentences, and what cannot be scored is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.pair_sets import RougeSettings, SummarySet
from data_prep.decontamination.decontaminate import Touched
from data_prep.decontamination.evaluation_sets import item_key
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.reading.reader import LocalReader, Reader
from eval.reading.windows import Report, Score, Window
from eval.results import Result
from eval.summaries.choices import choose
from eval.summaries.extraction import at_random
from eval.summaries.information import coded, most_informative, weighed
from eval.summaries.summary_documents import joined, read_summaries, summary_prompt
from eval.summaries.summary_names import summary_metrics
from eval.summaries.summary_set import summary_results
from eval.text_metrics.rouge import ROUGE
from pretrain.model.transformer import Transformer

DIALOGUE = ["#A#: The dam broke.", "#B#: When?", "#A#: At night. Nobody was hurt."]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def reader(vocab: Vocab) -> Reader:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=128)
    return LocalReader(Transformer(config, config.padded_vocab(vocab.size)).eval(), vocab.size, 8)


def documents_of(directory: Path, *rows: tuple[str, Any], **settings: Any) -> SummarySet:
    path = directory / "documents.jsonl"
    path.write_text("".join(json.dumps({"document": text, "summary": told}) + "\n" for text, told in rows))
    return SummarySet(**{"name": "s", "path": str(path), "max_new_tokens": 4, **settings})


def named(results: Any) -> dict[str, Result]:
    return {result.name.removeprefix("summarization/s/"): result for result in results}


def test_a_model_is_scored_beside_chosen_sentences(tmp_path: Path, reader: Reader, vocab: Vocab) -> None:
    section = documents_of(
        tmp_path,
        ("\n".join(DIALOGUE), ["The dam broke.", "A dam burst at night."]),
        ("A: Lunch?\nB: At noon.\nA: Good.\nB: Bye.", "They meet at noon."),
        ("A: One line", "One line."),
        split="lines",
        sentences=1,
        score=["rouge", "chrf"],
    )
    scored = summary_results(section, reader, vocab, 100)
    found = named(scored.results)
    assert set(found) == set(summary_metrics(section)), "gates know every score"
    leads = {DIALOGUE[0]: ["The dam broke.", "A dam burst at night."], "A: Lunch?": ["They meet at noon."],
             "A: One line": ["One line."]}  # fmt: skip
    library = RougeScorer(list(ROUGE))
    for kind in ROUGE:
        ours = [library.score_multi(told, lead)[kind].fmeasure for lead, told in leads.items()]
        assert found[f"lead_{kind}"].value == pytest.approx(100 * float(np.mean(ours)))
    assert found["lead_rouge1"].value > found["rouge1"].value == 0, "an untrained model says nothing"
    assert found["oracle_rouge1"].value >= max(found[f"{one}_rouge1"].value for one in ("lead", "lexrank", "random"))
    assert (found["rouge1"].signature or "").startswith("nrefs:2|") and found["chrf"].signature is not None
    assert found["lead_rouge1"].n == 3 and found["information_rouge1"].n == 2
    assert "1 documents with fewer than two lines" in (found["information_rouge1"].note or "")
    for name, result in found.items():
        measures = [item.measures[name] for item in scored.items if name in item.measures]
        if measures:
            assert sum(one for one, _ in measures) / sum(one for _, one in measures) == pytest.approx(result.value)
    assert [sample.text for sample in scored.samples if "save most" in sample.title]


def test_touched_summaries_are_scored_apart(tmp_path: Path, reader: Reader, vocab: Vocab) -> None:
    rows = [("One. Two.", "One."), ("Three. Four.", ["Three.", "Four."]), ("Five. Six.", "Five.")]
    section = documents_of(tmp_path, *rows, information_items=0)
    keys = {item_key(["Three. Four.", "Three.", "Four."])}
    touched = Touched({}, {"summarization/s": frozenset(keys)}, "mark", "f")
    found = named(summary_results(section, reader, vocab, 100, touched=touched).results)
    assert (found["rouge1/clean"].n, found["rouge1/touched"].n) == (2, 1)
    assert "lead_rouge1/clean" not in found and not [name for name in found if "information" in name]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((" \n ", "A summary."), "item 1 of .* has no sentence in the field `document`"),
        (("?!", "A summary."), "has no sentence in the field `document`"),
        (("A text.", ""), "has an empty summary in the field `summary`"),
        (("A text.", ["fine", " . "]), "has an empty summary"),
        (("A text.", []), "has no text in the field `summary`"),
        (("A text.", [1]), "has no text in the field `summary`"),
        ((None, "A summary."), "has no text in the field `document`"),
        (("A text.", "two\nlines"), "has a line break.*normalize: spaces"),
        (("一段文字。", "今天下雨。"), "ROUGE's tokenizer `words` drops 100% .*characters"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, reader: Reader, vocab: Vocab, row: tuple[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summary_results(documents_of(tmp_path, row), reader, vocab, 100)


def test_settings_that_clash_are_refused() -> None:
    with pytest.raises(ValidationError, match="stemmer knows English"):
        RougeSettings(tokens="characters", stem=True)
    with pytest.raises(ValidationError, match="names a metric twice"):
        SummarySet(name="s", path="x", score=["rouge", "rouge"])


def test_long_documents_are_cut_by_whole_sentences(tmp_path: Path, reader: Reader, vocab: Vocab) -> None:
    text = " ".join(f"Sentence {number} is here." for number in range(20))
    section = documents_of(tmp_path, (text, "It is."), ("Short. Text.", "It is."), max_sentences=10)
    sentences = text.replace(" S", "\nS").split("\n")
    for room in range(40, 300, 11):  # as many sentences as fit
        fitting = [len(" ".join(sentences[:n])) + len("Text: \nSummary:") <= room for n in range(1, 20)]
        assert vocab.decode(summary_prompt(section, [], text, vocab, room).ids).count("Sentence") == sum(fitting)
    prompt = summary_prompt(section, [], text, vocab, 100)
    assert prompt.cut and vocab.decode(prompt.ids) == (
        "Text: Sentence 0 is here. Sentence 1 is here. Sentence 2 is here. Sentence 3 is here.\nSummary:"
    )
    assert summary_prompt(section, [], "x" * 200, vocab, 100).broken
    found = named(summary_results(section, reader, vocab, 100).results)
    assert "1 of 2 documents are longer than the context and lost their last sentences" in (found["rouge1"].note or "")
    assert "1 of 2 documents were cut" in (found["kept_information"].note or "")
    assert "of 1 longer documents, among the first 10" in (found["lexrank_rouge1"].note or "")
    assert "longer" not in (found["lead_rouge1"].note or "")


def test_each_choice_is_made_in_its_own_way(tmp_path: Path) -> None:
    lines = [
        "Nobody was hurt.",
        "Last night broke dam.",
        "Weather stays bad.",
        "Dam broke last night.",
        "The dam burst.",
    ]
    section = documents_of(tmp_path, ("\n".join(lines), "Dam broke last night. Nobody was hurt."), split="lines")
    document = read_summaries(section)[1][0]
    assert choose(section, document, "lead", 0, 5, 2) == (0, 1) and document.chosen((0, 2)) == f"{lines[0]}\n{lines[2]}"
    drawn = [choose(section, document, "random", number, 5, 2) for number in range(6)]
    assert drawn == [tuple(at_random(5, 2, number)) for number in range(6)] and len(set(drawn)) > 1
    assert choose(section, document, "oracle", 0, 5, 1) == (3,), "ROUGE-2 knows the order of words"
    assert choose(section, document, "oracle", 0, 5, 2) == (0, 3), "the first choice stands behind the second"
    middle = "Nobody was hurt.\nWeather stays bad.\nThe dam.\nDam broke at night.\nNight came."
    central = read_summaries(documents_of(tmp_path, (middle, "Dam broke."), split="lines"))[1][0]
    assert choose(section, central, "lexrank", 0, 5, 1) == (3,)
    assert choose(section, central, "lexrank", 0, 3, 1) == (0,), "what is not offered does not vote"


def test_chinese_sentences_are_joined_without_blanks() -> None:
    assert joined(["今天下雨。", "明天呢？", "It rains.", "Good."], "sentences") == "今天下雨。明天呢？It rains. Good."
    assert joined(["a", "b"], "lines") == "a\nb"


def test_evened_out_documents_keep_their_lines(tmp_path: Path) -> None:
    """A line break in a summary must be evened out, and the turns of the dialogue must not become one line."""
    rows = ("A:  Lunch? \n\n\tB: At\u00a0noon.\n", "They meet\nat noon.")
    section = documents_of(tmp_path, rows, split="lines", normalize="spaces")
    (document,) = read_summaries(section)[1]
    assert document.pair.passages == ("A: Lunch?\n\nB: At noon.", "They meet at noon.")
    assert document.sentences == ("A: Lunch?", "B: At noon.")


def test_max_sentences_bounds_the_choice(tmp_path: Path) -> None:
    section = documents_of(tmp_path, ("One. Two. Three. Four.", "One."), max_sentences=2)
    document = read_summaries(section)[1][0]
    assert document.sentences == ("One.", "Two.") and document.count == 4


class Copies:
    """A model that codes a byte in 1 bit if it stood before, else in 8: what was read once is cheap."""

    context_length, vocab_size, precision = 512, 257, "fp32"

    def score(self, windows: Any, report: Report | None = None) -> list[Score]:
        return [Score(self._nats(window), False) for window in windows]

    def _nats(self, window: Window) -> float:
        tokens = window.tokens.tolist()
        first = len(tokens) - window.scored
        bits = (1 if tokens[place] in tokens[:place] else 8 for place in range(first, len(tokens)))
        return sum(bits) * math.log(2)


def test_the_sentence_that_saves_most_bits_is_kept(vocab: Vocab) -> None:
    """By hand: `abc` stands in the rest twice, so keeping it saves nothing; of `xyzw` alone the rest knows nothing."""
    document = coded(["ab", "abcd", "cd", "q"], vocab, 512)
    assert len(document.units) == 4
    kept = weighed([(document, (1,)), (document, (3,))], Copies())  # type: ignore[arg-type]
    # Without `abcd`, the rest `ab cd q` costs 6 x 8 bits for a b line-end c d q, and 2 for repeated line ends.
    assert kept[0].saved_bits == pytest.approx(5 * 7) and kept[0].kept_bits == pytest.approx(5 * 8)
    assert kept[1].saved_bits == pytest.approx(7) and kept[1].kept_bits == pytest.approx(16)
    assert most_informative([document], 1, Copies()) == [(1,)]  # type: ignore[arg-type]
    # In the order of the document, whichever was chosen first.
    assert most_informative([coded(["q", "ab", "abcd", "cd"], vocab, 512)], 2, Copies()) == [(0, 2)]  # type: ignore[arg-type]
    # `abyz` saves 28 bits for 40, `z` saves 14 for 16: bits saved decide.
    assert most_informative([coded(["abcd", "z", "abyz"], vocab, 512)], 1, Copies()) == [(2,)]  # type: ignore[arg-type]


def test_code_lengths_are_the_readers_own(reader: Reader, vocab: Vocab) -> None:
    document = coded(DIALOGUE, vocab, reader.context_length)
    kept = weighed([(document, (0, 2))], reader)[0]
    start, one, two, three = [*document.start], *map(list, document.units)

    def bits(before: list[int], after: list[int]) -> float:
        return reader.score([Window(np.array([*before, *after]), len(after))])[0].nats / math.log(2)

    assert kept.kept_bits == pytest.approx(bits(start, one + three))
    assert kept.saved_bits == pytest.approx(bits(start, two) - bits(start + one + three, two), abs=1e-4)
    assert vocab.decode(one) == DIALOGUE[0] + "\n"


def test_sentences_beyond_the_context_are_not_offered(vocab: Vocab) -> None:
    assert len(coded(["abcd", "efgh", "ijkl"], vocab, 11).units) == 2
    assert coded(["abcd", "efgh"], vocab, 5).units == ()
