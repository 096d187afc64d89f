"""BLEU and chrF against published scores, and few-shot translation end to end."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from configs.schema.chat import CHAT_TOKENS
from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.pair_sets import PairSet, TranslationSet
from data_prep.chat.messages import Message
from data_prep.decontamination.pair_files import TextPair
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.generation.completions import Stops, complete
from eval.generation.translation import translation_results
from eval.pairs.prompts import build_prompt, fit_prompt, prompt_ids, read_pairs, target_text
from eval.reading.reader import LocalReader
from eval.text_metrics.bleu import corpus_scores
from pretrain.generation.generate import generate
from pretrain.generation.player import Player
from pretrain.generation.sampling import Sampling
from pretrain.model.transformer import Transformer
from tests.parts.items_check import without_items

DATA = Path(__file__).parents[1] / "data" / "wmt22-zh-en-niutrans.jsonl.zst"
SHIPPED = Path(__file__).parents[2] / "configs" / "corpus" / "classical-modern-zh-pairs.jsonl.zst"


def test_published_wmt22_scores() -> None:
    """The system NiuTrans, reference A: automatic-scores.tsv of wmt22-news-systems, to the last digit."""
    with DATA.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        rows = [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]
    assert len(rows) == 1875
    scores = corpus_scores([row["hypothesis"] for row in rows], [[row["reference"]] for row in rows], "13a", 2)
    bleu, signature = scores["bleu"]
    assert bleu.score == pytest.approx(26.216305856774966, abs=1e-9)
    assert scores["chrf"][0].score == pytest.approx(55.99355695573055, abs=1e-9)
    assert "tok:13a" in signature and "smooth:exp" in signature and "version:" in signature


def test_unknown_tokenizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"no tokenizer `13b`.*13a"):
        corpus_scores(["a"], [["a"]], "13b", 2)


def test_resamples_without_a_match_are_averaged() -> None:
    """sacrebleu mixes two kinds of numbers there and cannot average them; the interval must come all the same."""
    scores = corpus_scores(["le chat", "xyz", "abc"], [["le chat"], ["ö"], ["ö"]], "13a", 100)
    assert scores["chrf"][0]._ci > 0 and scores["chrf"][0].score > 0


@pytest.mark.parametrize("tokenize", ["ja-mecab", "ko-mecab", "flores200"])
def test_a_tokenizer_that_needs_more_is_refused_before_translating(
    tokenize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sacrebleu.metrics import bleu

    def missing(name: str) -> Any:
        raise RuntimeError(f"\nextra dependencies for {name}\n")

    monkeypatch.setattr(bleu, "_get_tokenizer", missing)
    section = write_pairs(tmp_path / "pairs.jsonl").model_copy(update={"tokenize": tokenize})
    nothing: Any = None  # no model: nothing is translated
    with pytest.raises(ValueError, match=rf"`{tokenize}` cannot be loaded \(extra dependencies.*pip install"):
        translation_results(section, nothing, nothing, 100)


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return train_vocab(Tokenizer(kind="byte"), [])


@pytest.fixture(scope="module")
def model(vocab: Vocab) -> Transformer:
    torch.manual_seed(3)
    config = Model(num_layers=1, hidden_size=32, num_heads=2, context_length=96, init_std=0.3)
    return Transformer(config, config.padded_vocab(vocab.size)).eval()


def write_pairs(path: Path, count: int = 8) -> TranslationSet:
    rows = [{"source": f"s{index}  a\nb", "target": f"target {index}", "other": 1} for index in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TranslationSet(name="small", path=str(path), shots=2, max_new_tokens=16, normalize="spaces")


def test_prompt() -> None:
    section = TranslationSet(name="x", path="x", source_label="Old", target_label="New")
    prompt = build_prompt(section, [TextPair("a", "b"), TextPair("c", "d")], "e")
    assert prompt == "Old: a\nNew: b\n\nOld: c\nNew: d\n\nOld: e\nNew:"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("古文：", "现代文："), ("古文：a\n现代文：b\n\n古文：e\n现代文：", "f")),
        (("DNA", ">"), ("DNA: a\n>b\n\nDNA: e\n>", "f")),
        (("", ""), ("a\nb\n\ne\n", "f")),
        (("Q:", "A: "), ("Q:a\nA: b\n\nQ:e\nA:", " f")),
    ],
)
def test_a_label_with_an_end_of_its_own_stands_as_it_is(labels: tuple[str, str], expected: tuple[str, str]) -> None:
    section = PairSet(name="x", path="x", source_label=labels[0], target_label=labels[1])
    assert (build_prompt(section, [TextPair("a", "b")], "e"), target_text(section, "f")) == expected


def test_shots_that_do_not_fit_are_left_out(vocab: Vocab) -> None:
    section = TranslationSet(name="x", path="x")
    shots = [TextPair("a" * 20, "b" * 20), TextPair("c", "d")]
    bare = len(build_prompt(section, [], "e"))
    one = len(build_prompt(section, shots[1:], "e"))
    assert [fit_prompt(section, shots, "e", vocab, room)[1] for room in (500, one, one - 1, bare)] == [2, 1, 0, 0]
    assert vocab.decode(fit_prompt(section, shots, "e", vocab, one)[0]) == build_prompt(section, shots[1:], "e")
    assert len(fit_prompt(section, shots, "e", vocab, bare - 3)[0]) == bare - 3


def test_in_the_chat_template_sentences_are_messages_and_the_end_of_a_message_ends_the_translation() -> None:
    chat = train_vocab(Tokenizer(kind="byte", special_tokens=list(CHAT_TOKENS)), [])
    section = TranslationSet(name="x", path="x", template="chat")
    ids = prompt_ids(section, [TextPair("a", "b"), TextPair("c", "d")], "e", chat)
    template = ChatTemplate(chat)
    turns = [Message.of(role, text) for role, text in zip(["user", "assistant"] * 3, "abcde", strict=False)]
    assert ids == template.prompt(turns)
    one = len(prompt_ids(section, [TextPair("c", "d")], "e", chat))
    assert fit_prompt(section, [TextPair("a", "b"), TextPair("c", "d")], "e", chat, one)[1] == 1


def test_scores_do_not_depend_on_batch_size(model: Transformer, vocab: Vocab, tmp_path: Path) -> None:
    section = write_pairs(tmp_path / "pairs.jsonl")
    first = translation_results(section, LocalReader(model, vocab.size, 1), vocab, 100)
    second = translation_results(section, LocalReader(model, vocab.size, 4), vocab, 100)
    assert first.results == second.results and first.samples == second.samples
    assert [replace(item, seconds=0) for item in first.items] == [replace(item, seconds=0) for item in second.items]
    assert without_items(first, "translation/small", tmp_path / "run") == {"translation/small/copy_bleu"}
    results = {result.name.removeprefix("translation/small/"): result for result in first.results}
    assert set(results) == {"bleu", "chrf", "copy_bleu"}
    assert results["bleu"].n == 6 and "bs:100" in (results["bleu"].signature or "")
    assert first.samples[0].prompt == "s2 a b" and first.samples[0].reference == "target 2"


def test_one_pair_has_no_interval(model: Transformer, vocab: Vocab, tmp_path: Path) -> None:
    section = write_pairs(tmp_path / "pairs.jsonl", count=3)
    for shots, low in ((2, None), (0, 0.0)):
        results = translation_results(
            section.model_copy(update={"shots": shots}), LocalReader(model, vocab.size, 4), vocab, 100
        ).results
        chrf = next(result for result in results if result.name.endswith("/chrf"))
        assert chrf.n == 3 - shots and (chrf.low is None) == (low is None) == (chrf.high is None)
        assert ("none: a single pair" in chrf.interval) == (low is None)
        assert chrf.settings["shots"] == shots and len(chrf.set) == 32
    bleu, copy = (
        next(result for result in results if result.name.endswith(f"/{name}")) for name in ("bleu", "copy_bleu")
    )
    assert bleu.set == copy.set and copy.settings == {"normalize": "spaces"}


def test_generation_stops_at_the_line_end(model: Transformer, vocab: Vocab) -> None:
    prompts = [vocab.encode(text) for text in ("one", "a second one", "3")]
    texts = complete(LocalReader(model, vocab.size, 2), Stops(vocab, ["e", "zz"]), prompts, 24)
    for prompt, text in zip(prompts, texts, strict=True):
        alone = vocab.decode(generate(model, prompt, 24, Sampling(0, stop={vocab.eod_id}, vocab_size=vocab.size)))
        assert text == alone.partition("e")[0].partition("zz")[0] and "e" not in text
    cuts = [Stops(vocab, stops).cut("abcabc") for stops in (["c", "b"], ["ca"], ["x"], [""], [])]
    assert cuts == ["a", "ab", *["abcabc"] * 3]


def test_a_stop_string_is_found_however_it_is_written(vocab: Vocab) -> None:
    """In bytes of its own, within a token after other text, after a cut character; not before it is whole."""
    merged = train_vocab(Tokenizer(vocab_size=267, pattern="gpt4"), ["le chat dort.\n" * 50])
    assert merged.decode([merged.encode("dort.\n")[-1]]) == ".\n"
    for tokenizer in (vocab, merged, train_vocab(Tokenizer(kind="char"), ["abc"])):
        ends = Stops(tokenizer, ["", "\n", "三国"])
        for text in ("dort.\n", "三\n", "我三国", "\n"):
            ids = tokenizer.encode(text)
            assert [ends.met(ids[:length]) for length in range(1, len(ids) + 1)] == [False] * (len(ids) - 1) + [True]
        assert not ends.met([]) and not ends.met(tokenizer.encode("三 国"))
        after_half = [*tokenizer.encode("三")[1:], *tokenizer.encode("三国")]
        assert ends.met(after_half) == ("三国" in tokenizer.decode(after_half))


def test_a_stop_string_is_met_at_its_last_token(vocab: Vocab) -> None:
    """Random tokens, cut characters among them: told at the token after which the text contains the string."""
    draws = torch.Generator().manual_seed(5)
    ends = Stops(vocab, ["th", "hat", "é"])
    pool = torch.tensor([index for text in ("t", "h", "a", "o", " ", "é", "the") for index in vocab.encode(text)])
    places = []
    for _ in range(60):
        ids = pool[torch.randint(len(pool), (40,), generator=draws)].tolist()
        contained = [any(stop in vocab.decode(ids[:length]) for stop in ends.strings) for length in range(1, 41)]
        first = contained.index(True) if True in contained else 40
        assert [ends.met(ids[: length + 1]) for length in range(first + 1)][:40] == contained[: first + 1]
        places.append(first)
    assert len(set(places)) > 5


def test_translations_keep_what_stands_before_the_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""A model that writes every reference, in tokens such as `.\n`, has BLEU 100."""
    targets = ["le chat dort.", "il mange une pomme rouge!", "la maison est grande."]
    vocab = train_vocab(Tokenizer(vocab_size=290, pattern="gpt4"), ["".join(f"{text}\n" for text in targets) * 50])
    rows = [{"source": f"s{number}", "target": text} for number, text in enumerate(targets)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = TranslationSet(name="t", path=str(tmp_path / "pairs.jsonl"), shots=0, max_new_tokens=32)
    written = {tuple(vocab.encode(build_prompt(section, [], row["source"]))): row["target"] for row in rows}

    def logits_of_one_who_knows(player: Player) -> torch.Tensor:
        """Gives the next token of the right answer all the probability."""
        player._join()
        answers = [vocab.encode(f"{written[tuple(row.request.prompt)]}\n\nSource: next") for row in player._rows]
        following = [answer[len(row.new)] for answer, row in zip(answers, player._rows, strict=True)]
        return torch.nn.functional.one_hot(torch.tensor(following), vocab.size).float()

    monkeypatch.setattr(Player, "_logits", logits_of_one_who_knows)
    config = Model(num_layers=1, hidden_size=8, num_heads=1, context_length=96)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    scored = translation_results(section, LocalReader(model, vocab.size, 2), vocab, 100)
    assert [sample.text for sample in scored.samples] == targets == [item.answer for item in scored.items]
    assert scored.results[0].name == "translation/t/bleu" and scored.results[0].value == pytest.approx(100)


def test_bad_sets(model: Transformer, vocab: Vocab, tmp_path: Path) -> None:
    section = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match=r"field `quelle`.*source, target, other"):
        read_pairs(section.model_copy(update={"source_field": "quelle"}))
    with pytest.raises(ValueError, match="none left after 8 shots"):
        read_pairs(section.model_copy(update={"shots": 8}))
    with pytest.raises(ValueError, match="no such file"):
        read_pairs(section.model_copy(update={"path": str(tmp_path / "absent.jsonl")}))
    with pytest.raises(ValueError, match="leaves no room"):
        translation_results(
            section.model_copy(update={"max_new_tokens": 96}), LocalReader(model, vocab.size, 4), vocab, 100
        )
    (tmp_path / "broken.jsonl").write_text('{"source": "a", "target": "b"}\n{"source"\n')
    with pytest.raises(ValueError, match=r"broken.jsonl, line 2"):
        read_pairs(section.model_copy(update={"path": str(tmp_path / "broken.jsonl")}))


def test_shipped_pairs() -> None:
    shots, pairs = read_pairs(TranslationSet(name="classical-zh", path=str(SHIPPED)))
    assert (len(shots), len(pairs)) == (4, 300)
    assert all(pair.source and pair.target and pair.source != pair.target for pair in pairs)
