"""Exports: shards, dtypes, modes of files, links; and imports that can be repeated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.common.files import read_json, write_json
from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from launch.models.export_model import export_run
from launch.models.import_model import import_run
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.fragment_files import FragmentReader
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import MANIFEST, manifest_content
from pretrain.interchange.huggingface_export import Weights, export_directory, read_size
from pretrain.interchange.huggingface_import import import_directory
from pretrain.model.transformer import Transformer
from pretrain.sizes.shapes import parameter_shapes

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "context_length": 32}


@pytest.fixture(scope="module")
def vocab_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vocab")
    train_vocab(Tokenizer(kind="byte"), []).save(directory)
    return directory


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(2)
    return Transformer(Model(**SHAPE), 320).eval()


@pytest.fixture(scope="module")
def run(model: Transformer, vocab_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    import_run(export_directory(model, vocab_dir, directory / "hf"), directory / "run", None)
    return directory / "run"


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in directory.glob("*.safetensors") for key, value in load_file(file).items()}


def test_shards_are_bounded_and_hold_the_same(model: Transformer, vocab_dir: Path, tmp_path: Path) -> None:
    whole = export_directory(model, vocab_dir, tmp_path / "whole")
    assert not (whole / "model.safetensors.index.json").exists()
    cut = export_directory(model, vocab_dir, tmp_path / "cut", shard_bytes=50_000)
    files = sorted(cut.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    largest = max(value.numel() * 4 for value in tensors(cut).values())
    for file in files:
        held = [value.numel() * 4 for value in load_file(file).values()]
        assert sum(held) <= max(50_000, largest)
    first, second = tensors(whole), tensors(cut)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == first.keys()
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in first.values())
    assert all(key in load_file(cut / name) for key, name in index["weight_map"].items())
    again, _ = import_directory(cut)
    assert torch.equal(again.embed.weight, model.embed.weight[:257])


def test_weights_are_read_one_at_a_time_from_pieces_of_any_rank(
    model: Transformer, vocab_dir: Path, tmp_path: Path
) -> None:
    """As ZeRO leaves them: two files, every parameter in two pieces."""
    (tmp_path / "pieces").mkdir()
    for rank in range(2):
        pieces = {}
        for name, parameter in model.named_parameters():
            flat = parameter.detach().flatten()
            middle = flat.numel() // 3
            pieces[f"{name}@{rank * middle}"] = (flat[:middle] if rank == 0 else flat[middle:]).clone()
        save_file(pieces, tmp_path / "pieces" / f"weights-{rank:05d}-of-00002.safetensors")
    reader = FragmentReader(tmp_path / "pieces", "weights")
    shapes = dict(parameter_shapes(model.config, 320))
    read: list[str] = []

    def one(name: str) -> torch.Tensor:
        read.append(name)
        return reader.whole(name, shapes[name])

    out = export_directory(Weights(model.config, 320, one), vocab_dir, tmp_path / "out", shard_bytes=50_000)
    assert sorted(read) == sorted(shapes), "each weight once, and none before its file is written"
    expected = tensors(export_directory(model, vocab_dir, tmp_path / "expected"))
    assert all(torch.equal(value, expected[key]) for key, value in tensors(out).items())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_dtypes(model: Transformer, vocab_dir: Path, tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    out = export_directory(model, vocab_dir, tmp_path / "out", dtype)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == str(kind).removeprefix("torch.")
    found = tensors(out)
    assert {value.dtype for value in found.values()} == {kind}
    assert torch.equal(found["model.norm.weight"], model.norm.weight.detach().to(kind))


def test_what_fp16_cannot_hold_is_named(vocab_dir: Path, tmp_path: Path) -> None:
    model = Transformer(Model(**SHAPE), 320).eval()
    with torch.no_grad():
        model.norm.weight[3] = 1e6
    with pytest.raises(ValueError, match=r"`norm.weight` holds numbers up to 1,000,000.*--dtype bf16"):
        export_directory(model, vocab_dir, tmp_path / "out", "fp16")
    assert not list(tmp_path.iterdir())


def test_files_have_the_modes_of_the_umask(run: Path, tmp_path: Path, umask: int) -> None:
    export_run(run, tmp_path / "out", max_shard_size="50KB")
    if find_spec("gguf"):
        export_run(run, tmp_path / "one.gguf")
    hidden = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not hidden
    for path in tmp_path.rglob("*"):
        expected = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == expected & ~umask, path


def test_checkpoints_have_the_modes_of_the_umask(
    model: Transformer, vocab_dir: Path, tmp_path: Path, umask: int
) -> None:
    checkpoint = import_run(export_directory(model, vocab_dir, tmp_path / "hf"), tmp_path / "run", None)
    assert {path.stat().st_mode & 0o777 for path in checkpoint.glob("*")} == {0o666 & ~umask, 0o777 & ~umask}


def test_an_import_that_lost_what_texts_begin_with_is_refused(run: Path, tmp_path: Path) -> None:
    """As earlier versions made it: its begin token, and so its scores, cannot be known any more."""
    shutil.copytree(run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    content = {key: value for key, value in read_json(checkpoint / MANIFEST).items() if key not in ("seal", "schema")}
    name = "tokenizer/special_ids.json"
    del content["files"][name]
    (checkpoint / name).unlink()
    write_json(checkpoint / MANIFEST, manifest_content(content))
    for work in (lambda: load_weights(checkpoint), lambda: export_run(tmp_path / "run", tmp_path / "out")):
        with pytest.raises(ValueError, match=r"imported by an earlier version.*replica import DIRECTORY"):
            work()
    assert not (tmp_path / "out").exists()


def test_a_link_is_written_behind(run: Path, tmp_path: Path) -> None:
    for name in ("there", "not yet"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        if name == "there":
            (tmp_path / name).mkdir()
        export_run(run, link)
        assert link.is_symlink() and (tmp_path / name / "config.json").is_file()
    link = tmp_path / "loop"
    link.symlink_to(link)
    with pytest.raises((ValueError, OSError, RuntimeError)):
        export_run(run, link)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_mount_point_is_filled(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be renamed away."""
    target = tmp_path / "volume"
    target.mkdir()
    inode = target.stat().st_ino
    monkeypatch.setattr(Path, "is_mount", lambda self: self == target)
    export_run(run, target)
    assert target.stat().st_ino == inode and (target / "config.json").is_file()
    assert [path.name for path in target.iterdir() if path.name.startswith(".")] == []


def test_what_stands_there_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for target in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="exists"):
            export_run(run, target)
    (tmp_path / "mine.gguf").write_text("x")
    with pytest.raises(ValueError, match="exists; choose another file"):
        export_run(run, tmp_path / "mine.gguf")
    assert (tmp_path / "mine").read_text() == (tmp_path / "mine.gguf").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("77", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "5TBs", "nan", "inf", "1e400", "5 G B", "0x10"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="--max-shard-size"):
        read_size(text)


# -------------------------------------------------------------------------------------------------------------- import
def test_an_import_that_broke_off_is_repeated(
    model: Transformer, vocab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export_directory(model, vocab_dir, tmp_path / "hf")
    with monkeypatch.context() as broken:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device", "somewhere")

        broken.setattr("pretrain.checkpoint.saver.write_pieces", full)
        with pytest.raises(OSError, match="No space"):
            import_run(source, tmp_path / "run", None)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    (tmp_path / "run" / "checkpoints" / ".step_00000000.partial").mkdir(parents=True, exist_ok=True)  # kill -9
    import_run(source, tmp_path / "run", None)
    assert torch.equal(load_weights(Choice().find(tmp_path / "run")).norm.weight, model.norm.weight)
    with pytest.raises(ValueError, match="already holds a run"):
        import_run(source, tmp_path / "run", None)


def _edited(source: Path, target: Path, file: str, change: Any) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(change(content)))
    return target


def _with_token(special: bool) -> Any:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        token = {"id": 257, "content": "[PAD]", "special": special, **flags}
        return {**content, "added_tokens": [*content["added_tokens"], token]}

    return change


def test_a_special_token_beyond_the_embedding(model: Transformer, vocab_dir: Path, tmp_path: Path) -> None:
    """No text gives its id, so that it needs no row; a token that text gives is refused at import."""
    source = export_directory(model, vocab_dir, tmp_path / "hf")
    larger = _edited(source, tmp_path / "larger", "tokenizer.json", _with_token(special=True))
    checkpoint = import_run(larger, tmp_path / "run", None)
    vocab = Vocab.load(checkpoint / "tokenizer")
    assert vocab.size == 257 and len(vocab.token_bytes) == 257 and max(vocab.encode("a [PAD] b")) < 257
    out = export_run(tmp_path / "run", tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (larger / "tokenizer.json").read_bytes()
    ordinary = _edited(source, tmp_path / "ordinary", "tokenizer.json", _with_token(special=False))
    with pytest.raises(ValueError, match=r"embedding 257 rows: '\[PAD\]' \(id 257\) has none"):
        import_run(ordinary, tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


def test_the_end_of_text_from_config_json(tmp_path: Path) -> None:
    train_vocab(Tokenizer(kind="byte", special_tokens=["<a>", "<b>", "<c>", "<d>"]), []).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, "bos_token_id": 2}))
    vocab = Vocab.load(tmp_path)
    assert (vocab.eod_id, vocab.begin_id, vocab.end_ids) == (1, 2, frozenset({1}))
    (tmp_path / "tokenizer_config.json").unlink()
    assert Vocab.load(tmp_path).eod_id == 1
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 1]}))
    assert Vocab.load(tmp_path).end_ids == {1, 3} and Vocab.load(tmp_path).eod_id == 3
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<a>"}))
    assert Vocab.load(tmp_path).end_ids == {1, 3} and Vocab.load(tmp_path).eod_id == 0


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tokenizer_config.json", "null", "tokenizer_config.json"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3, not a token"),
        ("tokenizer_config.json", '{"eos_token": "nowhere"}', "no token 'nowhere'"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id is '2', neither an id nor a list"),
        ("config.json", '{"eos_token_id": 99999999999999999999}', "config.json"),
    ],
)
def test_files_beside_a_tokenizer(vocab_dir: Path, tmp_path: Path, file: str, text: str, words: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((vocab_dir / "tokenizer.json").read_bytes())
    (tmp_path / file).write_text(text)
    if file == "config.json":
        with pytest.raises(ValueError, match="no token 99999999999999999999"):
            Vocab.load(tmp_path)
        return
    with pytest.raises(ValueError) as error:
        Vocab.load(tmp_path)
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_code_in_a_tokenizer_config_is_not_passed_on(model: Transformer, vocab_dir: Path, tmp_path: Path) -> None:
    source = export_directory(model, vocab_dir, tmp_path / "hf")
    coded = _edited(
        source, tmp_path / "coded", "tokenizer_config.json", lambda old: {**old, "auto_map": {"AutoTokenizer": ["e.E"]}}
    )
    import_run(coded, tmp_path / "run", None)
    out = export_run(tmp_path / "run", tmp_path / "out")
    assert not [file for file in out.iterdir() if b"auto_map" in file.read_bytes()]
