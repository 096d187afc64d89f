"""The trained judge of quality: it learns what it is shown, says how well, and is read back as it was written."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from configs.schema.sources import Source
from data_prep.__main__ import main
from data_prep.documents import classifier as module
from data_prep.documents.classifier import QualityClassifier, features, train
from data_prep.documents.conversion import read_documents

ROOT = Path(__file__).resolve().parents[4]
MANUAL = ROOT / "tests" / "data" / "powershell-docs-versions.jsonl.zst"
NOVELS = ROOT / "configs" / "corpus" / "gutenberg-heldout.jsonl.zst"


def write(file: Path, texts: list[str]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def chunks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of novels in two files, and a file of technical writing."""
    directory = tmp_path_factory.mktemp("examples")
    novels = [
        piece
        for document in read_documents(Source(name="novels", path=str(NOVELS)))
        for piece in chunks(document.text, 2000)
    ]
    write(directory / "novels" / "a.jsonl", novels[:100])
    write(directory / "novels" / "b.jsonl", novels[100:])
    technical = [document.text for document in read_documents(Source(name="manual", path=str(MANUAL)))]
    return directory / "novels", write(directory / "technical.jsonl", chunks("".join(technical), 500))


@pytest.mark.slow
def test_separates_novels_from_technical_writing(examples: tuple[Path, Path], tmp_path: Path) -> None:
    model = train(*examples)
    assert model.report is not None
    assert model.report.held_out_good > 5 and model.report.held_out_bad > 2
    assert model.report.accuracy > 0.95 and model.report.auc > 0.99
    novel = "The old man smiled at her, and they walked slowly home through the snow without a word."
    manual = "Sets the value of the parameter; the default is $null. Run `Get-Help` to see the syntax of the cmdlet."
    assert 0 <= model(manual) < 0.5 < model(novel) <= 1
    assert 0 <= model("") <= 1
    again = train(*examples)
    model.save(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    loaded = QualityClassifier.load(tmp_path / "one.safetensors")
    assert loaded.report == model.report
    assert [loaded(text) for text in (novel, manual)] == pytest.approx([model(novel), model(manual)], abs=1e-6)


@pytest.mark.slow
def test_labels_decide_not_the_order(examples: tuple[Path, Path]) -> None:
    good, bad = examples
    turned = train(bad, good)
    assert turned("The old man smiled at her, and they walked slowly home through the snow.") < 0.5


@pytest.mark.slow
def test_the_command(examples: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    assert main(["classifier", *map(str, examples), "--out", str(file)]) == 0
    assert "AUC" in capsys.readouterr().out
    assert QualityClassifier.load(file)("word") >= 0
    assert main(["classifier", str(tmp_path / "absent"), str(tmp_path), "--out", str(file)]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_features_are_what_they_say() -> None:
    def naive(text: str) -> set[int]:
        data = [byte + 1 for byte in text.lower().encode()]
        words = [[byte + 1 for byte in word.encode()] for word in text.lower().split()]

        def rolling(values: list[int]) -> int:
            return sum(value * module._PRIME ** (len(values) - 1 - place) for place, value in enumerate(values))

        def running(values: list[int]) -> int:
            return sum(value * module._PRIME**place for place, value in enumerate(values))

        hashes = [(rolling(data[at : at + n]), n) for n in (3, 5) for at in range(len(data) - n + 1)]
        hashes += [(running(word), 1) for word in words]
        pairs = pairwise(words)
        hashes += [(running(first) * module._PRIME + running(second), 2) for first, second in pairs]
        return {int(module._bucket(np.array([value % 2**64], dtype=np.uint64), kind)[0]) for value, kind in hashes}

    for text in ("The old man the boats", "wörter und 中文 two", "a", "ab cd"):
        assert set(features(text).tolist()) == naive(text)
    assert len(features("")) == 0
    assert np.array_equal(features("x" * 20_000 + " tail"), features("x" * 20_000 + " other"))


def test_mistakes_are_named(tmp_path: Path, examples: tuple[Path, Path]) -> None:
    few = write(tmp_path / "few.jsonl", ["a text"] * 3)
    with pytest.raises(ValueError, match=r"few\.jsonl: 3 documents to train on"):
        train(examples[0], few)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder is empty"):
        train(tmp_path / "empty", few)
    with pytest.raises(ValueError, match="is not a classifier"):
        QualityClassifier.load(few)
    with pytest.raises(ValueError, match="is not a classifier"):
        QualityClassifier.load(tmp_path / "absent.safetensors")
