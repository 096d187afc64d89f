"""Settings of others are compared with the headers of the weights before memory is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab_training import train_vocab
from pretrain.checkpoint.fragment_files import FragmentReader
from pretrain.interchange.huggingface_export import export_directory
from pretrain.interchange.huggingface_import import import_directory
from pretrain.model.transformer import Transformer
from pretrain.sizes.shapes import check_context, parameter_shapes

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "context_length": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "gpt2 without biases": {"family": "gpt2", "bias": False, "tied_embeddings": False},
    "llama": {"num_kv_heads": 2, "head_dim": 20, "bias": True},
    "qwen3": {"qk_norm": True, "tied_embeddings": True},
    "speedrun": {"activation": "relu2", "value_residual": True, "intermediate_size": 100},
    "layernorm": {"norm": "layernorm", "bias": True, "position": "learned"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_shapes_are_those_of_the_model(name: str) -> None:
    config = Model(**{**SHAPE, **SETTINGS[name]})
    with torch.device("meta"):
        model = Transformer(config, 320)
    found = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert dict(parameter_shapes(config, 320)) == found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shapes")
    train_vocab(Tokenizer(kind="byte"), []).save(directory / "vocab")
    return export_directory(Transformer(Model(**SHAPE), 320).eval(), directory / "vocab", directory / "out")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 3_000_000, "lacks the weight model.layers.2."),
        ("vocab_size", 2**40, "config.json asks for (1099511627776, 48)"),
        ("hidden_size", 2**40, "config.json asks for (257, 1099511627776)"),
        ("intermediate_size", 2**62, "config.json asks for (4611686018427387904, 48)"),
        ("head_dim", 2**40, "config.json asks for"),
        ("num_attention_heads", 2**40, "config.json asks for"),
        ("max_position_embeddings", 2**40, "the context length is 1,099,511,627,776"),
        ("num_hidden_layers", "2", "num_hidden_layers is '2'; only a whole number"),
        ("num_hidden_layers", True, "num_hidden_layers is True; only a whole number"),
        ("vocab_size", None, "vocab_size is None"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small'; only a number"),
        ("rope_parameters", [1], "rope_parameters is [1]; only an object"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no'; only true or false"),
        ("num_key_value_heads", 3, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ("attention_bias", True, "attention_bias is True without mlp_bias"),
        ("architectures", 7, "architecture 7 cannot be imported"),
    ],
)
def test_settings_of_a_directory(exported: Path, tmp_path: Path, key: str, value: Any, words: str) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    changed = {**config, key: value, **({"num_key_value_heads": value} if key == "num_attention_heads" else {})}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError) as error:
        import_directory(tmp_path)
    assert words in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "[]", "{", "[" * 100_000])
def test_an_index_that_is_none(exported: Path, tmp_path: Path, text: str) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        import_directory(tmp_path)


def test_contexts_are_bounded_by_the_weights() -> None:
    config = Model(**{**SHAPE, "context_length": 50_000_000})
    check_context(Model(**{**SHAPE, "context_length": 1_000_000}), 1000, "x")
    check_context(config, 10**11, "x")
    with pytest.raises(ValueError, match="x is 50,000,000"):
        check_context(config, 1000, "x")
    check_context(Model(**{**SHAPE, "context_length": 2**40, "position": "learned"}), 1000, "x")


# ------------------------------------------------------------------------------------------------------------ fragments
@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("embed.weight", [4], "`embed.weight` names no piece"),
        ("embed.weight@x", [4], "names no piece"),
        ("embed.weight@-4", [4], "names no piece"),
        ("embed.weight@0+", [2, 2], "names no piece"),
        ("embed.weight@" + "9" * 30, [4], "names no piece"),
        ("embed.weight@٣", [4], "names no piece"),
        ("embed.weight@0", [], "which no piece has"),
        ("embed.weight@0", [1, 2, 2], "which no piece has"),
        ("embed.weight@0+1", [2, 2], "overlap"),
        ("embed.weight@0", [0, 4], "its files hold 0"),
        ("embed.weight@0", [3], "make `embed.weight` 2 x 2 numbers, its files hold 3"),
        ("other@0", [4], "its files hold 0"),
    ],
)
def test_pieces_that_are_none_are_sentences(tmp_path: Path, key: str, shape: list[int], words: str) -> None:
    save_file({key: torch.zeros(shape)}, tmp_path / "weights-00000-of-00001.safetensors")
    with pytest.raises(ValueError) as error:
        FragmentReader(tmp_path, "weights").expect([("embed.weight", (2, 2))])
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_more_parameters_than_settings(tmp_path: Path) -> None:
    save_file({"a@0": torch.zeros(4), "b@0": torch.zeros(4)}, tmp_path / "weights-00000-of-00001.safetensors")
    with pytest.raises(ValueError, match="make 1 parameters, its files hold 2"):
        FragmentReader(tmp_path, "weights").expect([("a", (4,))])


def test_absurd_shapes_end_at_the_first_parameter(tmp_path: Path) -> None:
    """Nothing is made of a million layers or of numbers that no memory holds."""
    config = Model(**SHAPE)
    pieces = {f"{name}@0": torch.zeros(shape).flatten() for name, shape in parameter_shapes(config, 320)}
    save_file(pieces, tmp_path / "weights-00000-of-00001.safetensors")
    reader = FragmentReader(tmp_path, "weights")
    reader.expect(parameter_shapes(config, 320))
    for changes in ({"num_layers": 10**9}, {"hidden_size": 2**50}, {"intermediate_size": 2**60}):
        with pytest.raises(ValueError, match="its settings make"):
            reader.expect(parameter_shapes(Model(**{**SHAPE, **changes}), 320))
    with pytest.raises(ValueError, match=r"numbers of `embed\.weight` are missing"):
        reader.part("embed.weight", 0, 2**60)
    with pytest.raises(ValueError, match="numbers of `nothing` are missing"):
        reader.part("nothing", 0, 1)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "weights-00000-of-00001.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        FragmentReader(tmp_path, "weights")
