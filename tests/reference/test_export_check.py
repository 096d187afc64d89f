"""`replica export --verify`: logits and ids of `transformers` on what was written, against the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab_training import train_vocab
from launch.cli import parse
from launch.commands.exchanging import replica_export
from launch.models.import_model import import_run
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    train_vocab(Tokenizer(kind="byte"), []).save(directory / "vocab")
    torch.manual_seed(5)
    config = Model(family=request.param, num_layers=2, hidden_size=48, num_heads=4, context_length=32, init_std=0.2)
    model = Transformer(config, 320).eval()
    import_run(export_directory(model, directory / "vocab", directory / "hf"), directory / "run", None)
    return directory / "run"


def export(run: Path, target: Path, *more: str) -> int:
    return replica_export(parse(["export", str(run), str(target), "--verify", *more]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_what_was_written_is_the_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    assert export(run, tmp_path / "out", "--dtype", dtype, "--max-shard-size", "50KB") == 0
    said = capsys.readouterr().err
    assert "verified: logits of transformers differ by" in said and "Loading weights" not in said
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_wrong_weight_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.interchange import huggingface_export as module

    right = module._tensor

    def turned(part: Any, value: torch.Tensor) -> torch.Tensor:
        found = right(part, value)
        return found.roll(1, 0).contiguous() if ".1." in part.name and found.ndim == 2 else found

    monkeypatch.setattr(module, "_tensor", turned)
    for dtype in ("fp32", "bf16"):
        assert export(run, tmp_path / "out", "--dtype", dtype) == 1
        said = capsys.readouterr().err
        assert "differ by" in said and "nothing was written" in said
    assert not list(tmp_path.iterdir())


def test_other_ids_are_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_prep.tokens.vocab import Vocab

    right = Vocab.framed
    monkeypatch.setattr(Vocab, "framed", lambda self, text: [self.eod_id, *right(self, text)])
    assert export(run, tmp_path / "out") == 1
    assert "transformers gives other token ids for" in capsys.readouterr().err


def test_a_gguf_file_is_not_for_transformers(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--verify needs transformers"):
        export(run, tmp_path / "m.gguf")
