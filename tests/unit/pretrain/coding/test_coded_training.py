"""Training as the compressor: the same weights as without, and a file that training again makes the corpus of."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.common.files import read_json, write_json
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import TokenStream, load_manifest
from pretrain import session
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import newest
from pretrain.coding import coded_training, decode_corpus, encode_corpus
from pretrain.coding.container import CodedCorpus, read_coded, write_coded
from pretrain.coding.corpus_text import text_facts
from pretrain.coding.encode_corpus import RECORD, train_coded
from pretrain.coding.facts import refuse_engine
from pretrain.coding.strands import Strands
from tests.parts.training_run import metric_lines, prepare_data, tiny_recipe

# 96 rows of some 90 windows in 12 steps: the last ones are read again. Two sources that are mixed.
STEPS, SOURCES = 12, {"first": 2_000, "second": 900}


def prepare(directory: Path) -> Path:
    data = prepare_data(directory, SOURCES)
    content = read_json(data / "manifest.json")
    for split in content["splits"].values():
        for source in split:
            source["bytes"] = source["tokens"] - source["documents"]  # a byte a token, and none for an end
    write_json(data / "manifest.json", content)
    return data


def recipe_in(directory: Path, data: Path, **train: Any) -> Recipe:
    directory.mkdir(exist_ok=True)
    settings = {"steps": STEPS, "zero": {"stage": 0}, "validation": {"every": 5}, **train}
    return tiny_recipe(directory, data, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def coded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The recipe of a run, and the file that it coded."""
    directory = tmp_path_factory.mktemp("coded")
    recipe = recipe_in(directory, data)
    train_coded(recipe, directory / "corpus.coded")
    return recipe, directory / "corpus.coded"


def weights(run: Path) -> dict[str, torch.Tensor]:
    info = newest(run)
    assert info is not None and info.step == STEPS
    return dict(load_weights(info).named_parameters())


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert all(torch.equal(expected[name], found[name]) for name in expected | found)


def documents(data: Path) -> list[str]:
    manifest = load_manifest(data)
    found = []
    for source in [*manifest.train, *manifest.validation]:
        stream = TokenStream(source.prefixes, source.name)
        text = manifest.vocab.tokenizer.decode(stream.read(0, stream.length).tolist(), skip_special_tokens=False)
        found += text.split(manifest.vocab.end_of_document)[:-1]
    return found


def test_coding_changes_no_weight(coded: tuple[Recipe, Path], data: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, data)
    session.run(recipe)
    assert_same_weights(recipe.run_directory, coded[0].run_directory)
    key = "train/code_length_bits"
    assert metric_lines(recipe.run_directory, key) == metric_lines(coded[0].run_directory, key)
    assert metric_lines(recipe.run_directory, "val/loss") == metric_lines(coded[0].run_directory, "val/loss")


def test_training_again_gives_the_corpus_and_the_weights(
    coded: tuple[Recipe, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (recipe, file), out, kept = coded, tmp_path / "back.jsonl", tmp_path / "kept"

    def run_and_keep(inside: Recipe, **more: Any) -> None:
        session.run(inside, **more)
        shutil.copytree(inside.run_directory, kept)

    monkeypatch.setattr(decode_corpus, "run", run_and_keep)
    content = read_coded(file)
    content.header["made by"]["software"]["pretrain"] = "another version, in which a comment was changed"
    write_coded(tmp_path / "file", content)
    decode_corpus.decode_corpus(tmp_path / "file", recipe, out, anyway=True)
    assert "software.pretrain was another version" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "file", kept], "the work directory is gone"
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == documents(data)
    assert {(line["source"], line["split"]) for line in lines} == {
        ("first", "train"), ("second", "train"), ("held-out", "validation")
    }  # fmt: skip
    assert_same_weights(kept, recipe.run_directory)
    assert metric_lines(kept, "train/loss") == metric_lines(recipe.run_directory, "train/loss")
    for stem in ("train", "validation"):  # the shards hold the same tokens, whichever files they lie in
        streams = [
            TokenStream([prefix for source in getattr(load_manifest(place), stem) for prefix in source.prefixes])
            for place in (data, kept / "data")
        ]
        assert (streams[0].read(0, len(streams[0])) == streams[1].read(0, len(streams[1]))).all()
    with pytest.raises(ValueError, match="is there already"):
        decode_corpus.decode_corpus(file, recipe, out)


def test_the_file_is_as_long_as_the_model_says(coded: tuple[Recipe, Path]) -> None:
    recipe, file = coded
    record = read_json(recipe.run_directory / RECORD)
    bits, symbols, parts = record["bits"], record["symbols"], record["parts"]
    assert sum(parts.values()) == record["file_bytes"] == file.stat().st_size
    assert sum(bits.values()) - 1 < 8 * parts["stream"] < 1.001 * sum(bits.values()) + 64
    assert sum(symbols.values()) - symbols.get("checksums", 0) == record["tokens"]
    # Of all fresh batches: their targets are coded, but for those that were met first as the input of a window.
    logged = list(metric_lines(recipe.run_directory, "train/code_length_bits").values())[-1]
    assert bits["batches"] + bits["first tokens of windows"] == pytest.approx(logged, rel=0.1)


# ------------------------------------------------------------------------------------------------------ what is refused
@pytest.fixture
def changed(coded: tuple[Recipe, Path], tmp_path: Path) -> Iterator[Any]:
    """Decodes a copy of the file whose header was changed; says what is wrong, and that nothing was written."""
    content = read_coded(coded[1])
    header = json.loads(json.dumps(content.header))

    def decode(recipe: Recipe = coded[0], stream: bytes = content.stream) -> str:
        write_coded(tmp_path / "file", CodedCorpus(header, content.tokenizer, stream))
        with pytest.raises(ValueError) as caught:
            decode_corpus.decode_corpus(tmp_path / "file", recipe, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()
        return str(caught.value)

    decode.header = header  # type: ignore[attr-defined]
    yield decode
    assert sorted(path.name for path in tmp_path.iterdir()) in (["file"], ["file", "other"])


def test_another_recipe(changed: Any, data: Path, tmp_path: Path) -> None:
    other = recipe_in(tmp_path / "other", data, optimizer={"lr": 1e-3}, steps=13)
    message = changed(other)
    assert "written with another recipe: " in message and "train.optimizer.lr was 0.003, here it is 0.001" in message
    assert "the number of steps was 12, here it is 13" in message


def test_other_threads_software_and_machine(changed: Any) -> None:
    changed.header["made by"]["hardware"]["threads"] = 7
    message = changed()
    assert "(by Replica " in message and "--anyway tries it" in message
    assert "hardware.threads was 7, here it is " in message and "(OMP_NUM_THREADS=7 gives as many threads)" in message
    changed.header["made by"]["software"]["torch"] = "2.11.0"
    changed.header["made by"]["hardware"]["capability"] = "NEON"
    message = changed()
    assert "software.torch was 2.11.0, here it is 2." in message and "hardware.capability was NEON" in message


def test_a_damaged_stream_and_other_weights(changed: Any) -> None:
    """Behind a hash that fits: as where training did not repeat to the bit."""
    assert "decoding went wrong within the last 16 batches" in changed(stream=b"\0" * 4000)
    changed.header["tokens"]["sha256"] = "0"
    assert "training did not repeat to the bit" in changed()


def test_a_header_without_what_is_needed(changed: Any) -> None:
    changed.header["strands"][0]["tokens"] = -5
    assert "its header lacks what a decoder needs" in changed()
    del changed.header["strands"]
    assert "its header lacks what a decoder needs" in changed()


def test_a_file_in_the_tokenizer_that_is_none(coded: tuple[Recipe, Path], tmp_path: Path) -> None:
    content = read_coded(coded[1])
    write_coded(tmp_path / "file", CodedCorpus(content.header, {"../outside": "x"}, b""))
    with pytest.raises(ValueError, match="belongs to no tokenizer"):
        decode_corpus.decode_corpus(tmp_path / "file", coded[0], tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"packing": "best_fit"}, "train.packing=best_fit"),
        ({"faults": {"action": "rewind"}}, "train.faults.action=rewind"),
        ({"objective": {"kind": "sft"}}, "train.objective"),
        ({"deterministic": False}, "train.deterministic=false"),
        ({"ranks": 2}, "one rank codes"),
        ({"checkpoint": {"mirror": "file:///x"}}, "train.checkpoint.mirror"),
    ],
)
def test_settings_that_cannot_be_coded(data: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    recipe = recipe_in(tmp_path, data, **settings)
    with pytest.raises(ValueError, match=words):
        train_coded(recipe, tmp_path / "file")
    assert not (tmp_path / "file").exists() and newest(recipe.run_directory) is None


@pytest.mark.parametrize(
    ("device", "ranks", "stage", "dtype", "words"),
    [
        ("cuda", 1, 0, torch.float32, "works on a CPU only"),
        ("cpu", 2, 0, torch.float32, "2 were started"),
        ("cpu", 1, 3, torch.float32, "ZeRO stage 3"),
        ("cpu", 1, 1, torch.bfloat16, "the weights are in bfloat16"),
    ],
)
def test_engines_that_cannot_code(
    coded: tuple[Recipe, Path], device: str, ranks: int, stage: int, dtype: torch.dtype, words: str
) -> None:
    engine: Any = SimpleNamespace(
        ranks=SimpleNamespace(count=ranks),
        device=torch.device(device),
        stage=stage,
        module=torch.nn.Linear(1, 1, dtype=dtype),
    )
    with pytest.raises(ValueError, match=words):
        refuse_engine(coded[0], engine)


def test_a_file_that_is_there_and_a_run_that_has_begun(
    coded: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no permission to write in"):
        patch.setattr(os, "access", lambda *_: False)
        train_coded(coded[0], tmp_path / "file")
    with pytest.raises(ValueError, match="is there already"):
        train_coded(*coded)
    with pytest.raises(ValueError, match="no such directory"):
        train_coded(coded[0], tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="was trained already"):
        train_coded(coded[0], tmp_path / "file")


def test_coding_that_is_stopped_writes_nothing_and_does_not_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, code = recipe_in(tmp_path, data), coded_training.CodedTraining.experience

    def stop(self: Any, engine: Any, read: Any, step: int) -> Any:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return code(self, engine, read, step)

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="coding cannot go on from a checkpoint"):
        patched.setattr(coded_training.CodedTraining, "experience", stop)
        train_coded(recipe, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    monkeypatch.setattr(encode_corpus, "newest", lambda _: None)
    with pytest.raises(ValueError, match="must begin with the first step"):  # the session itself refuses it as well
        train_coded(recipe, tmp_path / "file")


def test_a_vocabulary_that_loses_text(data: Path) -> None:
    manifest = load_manifest(data)
    strands = Strands.of(manifest)
    strands.read(manifest)
    assert text_facts(strands, manifest.vocab, {}).bytes == sum(strand.bytes for strand in strands.strands)
    strands.tokens[5] = manifest.vocab.encode("é")[0]  # half a character becomes U+FFFD, of three bytes
    with pytest.raises(ValueError, match=r"of `first` \(train split\) give back 2,\d+ of 2,\d+ bytes of its text"):
        text_facts(strands, manifest.vocab, {})


def test_a_tag_before_each_document_is_text_of_the_corpus(data: Path) -> None:
    """`data.sources.N.prefix` stands in the tokens and comes back; the bytes of the text are without it."""
    manifest = load_manifest(data)
    strands = Strands.of(manifest)
    strands.read(manifest)
    whole = text_facts(strands, manifest.vocab, {})
    strands.strands = [
        replace(one, bytes=one.bytes - 3 * one.documents) if one.name == "first" else one for one in strands.strands
    ]
    assert text_facts(strands, manifest.vocab, {"first": "<é", "second": ""}) == whole
    with pytest.raises(ValueError, match="of `first`"):
        text_facts(strands, manifest.vocab, {})
