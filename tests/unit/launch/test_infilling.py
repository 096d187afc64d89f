"""`replica sample` of a masked model: gaps, continuations, critics, and what does not fit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.schema.chat import END_OF_TEXT, MASK
from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.objectives import MaskedDiffusion
from data_prep.tokens.vocab_training import train_vocab
from launch.commands.speaking import SAMPLE
from launch.models import infilling, sampling
from pretrain.model.transformer import Transformer


def checkpoint(name: str, masked: bool, directory: Path, special: list[str], context: int = 40) -> Any:
    """A checkpoint of random weights."""
    vocab = train_vocab(Tokenizer(kind="byte", special_tokens=special), [])
    vocab.save(directory / name)
    torch.manual_seed(2)
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=context, causal=not masked, init_std=0.5)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    return SimpleNamespace(recipe=SimpleNamespace(name=name, model=config), tokenizer=directory / name, model=model)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs by their names, as the command finds them."""
    both = [END_OF_TEXT, MASK]
    made = {
        "masked": checkpoint("masked", True, tmp_path, both),
        "causal": checkpoint("causal", False, tmp_path, both),
        "plain": checkpoint("plain", False, tmp_path, [END_OF_TEXT]),
        "short": checkpoint("short", False, tmp_path, both, context=20),
    }
    chains = {"plain": [SimpleNamespace(name="gaps", objective=MaskedDiffusion(kind="masked_diffusion"))]}
    for module in (infilling, sampling):
        found = lambda run: SimpleNamespace(run_directory=run, stages=chains.get(Path(run).name, []))  # noqa: E731
        monkeypatch.setattr(module, "load_run", found)
        monkeypatch.setattr(module, "choose_checkpoint", lambda run, choice: made[Path(run).name])
    monkeypatch.setattr(infilling, "load_weights", lambda found: found.model)
    monkeypatch.setattr("launch.commands.arguments.run_directory", Path)
    return made


def asked(run: str, prompt: str, *options: str) -> Namespace:
    parser = ArgumentParser()
    SAMPLE.add_arguments(parser)
    for action in parser._actions:
        if action.dest in ("run", "critic"):
            action.type = Path
    return parser.parse_args([run, "--prompt", prompt, *options])


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    sampling.stream_sample(asked(*words))
    return capsys.readouterr().out


def test_gaps_are_filled_in_and_the_rest_stays(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "masked", r"\<|mask|> was a<|mask|>*6 night", "--top-k", "40")
    assert (
        first.startswith("<|mask|> was a") and first.endswith(" night\n") and len(first) > len("<|mask|> was a night\n")
    )
    assert said(capsys, "masked", r"\<|mask|> was a<|mask|>*6 night", "--top-k", "40") == first
    other = said(capsys, "masked", r"\<|mask|> was a<|mask|>*6 night", "--top-k", "40", "--seed", "1")
    assert other != first
    text = said(capsys, "masked", "abc", "--max-new-tokens", "7", "--steps", "3", "--order", "random", "--block", "4")
    assert text.startswith("abc")
    assert said(capsys, "masked", "abc", "--max-new-tokens", "0") == "abc\n"


def test_a_critic_chooses(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("masked", "ab<|mask|>*8 end", "--steps", "2")
    plain = said(capsys, *words)
    critical = said(capsys, *words, "--critic", "causal", "--candidates", "4")
    assert critical.startswith("ab") and critical.endswith(" end\n") and critical != plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("causal", "a<|mask|>"), "reads from left to right; give a model that was trained with"),
        (("plain", "a<|mask|>"), "reads from left to right; give plain:gaps, or write"),
        (("causal", "a", "--steps", "3"), "--steps says how masks are filled in"),
        (("masked", "a", "--candidates", "3"), "needs a critic"),
        (("masked", "a", "--critic", "masked"), "the critic masked is a masked model"),
        (("masked", "a", "--critic", "plain"), "has another tokenizer than masked"),
        (("masked", "a", "--critic", "short"), "reads 20 tokens at a time, fewer than the 40"),
        (("masked", "a", "--critic", "causal", "--temperature", "0"), "a temperature above 0"),
        (("masked", "a<|mask|>", "--max-new-tokens", "9"), "each gap has its own length"),
        (("masked", "a<|mask|>*50"), "does not fit the model's context of 40"),
    ],
)
def test_what_does_not_fit(runs: dict[str, Any], words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.stream_sample(asked(*words))
