"""Logits, greedy text and tokens equal `transformers`, for directories exported by us and for its own, imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from pretrain.generation.generate import generate, generate_batch
from pretrain.generation.sampling import Sampling
from pretrain.interchange.huggingface_export import export_directory
from pretrain.interchange.huggingface_import import import_directory
from pretrain.model.rope import rope_base
from pretrain.model.transformer import Transformer

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "context_length": 32}
OURS = {
    "gpt2": {"family": "gpt2", "dropout": 0.1},
    "gpt2-untied": {"family": "gpt2", "tied_embeddings": False, "intermediate_size": 100},
    "gpt2-without-biases": {"family": "gpt2", "bias": False},
    "llama": {"family": "llama"},
    "llama-grouped-tied": {"family": "llama", "num_kv_heads": 2, "tied_embeddings": True, "rope_theta": 500000.0},
    "llama-wide-heads-biases": {"family": "llama", "num_kv_heads": 1, "head_dim": 20, "bias": True, "norm_eps": 1e-3},
    "qwen3": {"family": "llama", "qk_norm": True, "num_kv_heads": 2, "head_dim": 32, "intermediate_size": 72},
    "qwen3-tied": {"family": "llama", "qk_norm": True, "tied_embeddings": True},
    "gpt2-mup": {"family": "gpt2", "mup_base_width": 20, "mup_base_head_dim": 5},
    "llama-mup-grouped-biases": {"num_kv_heads": 2, "bias": True, "mup_base_width": 96, "mup_base_head_dim": 5},
    "qwen3-mup-tied": {"qk_norm": True, "tied_embeddings": True, "mup_base_width": 24, "mup_base_head_dim": 6},
    "llama-linear": {"family": "llama", "rope_scaling": {"kind": "linear", "factor": 2.5}},
    "llama-ntk": {"family": "llama", "rope_scaling": {"kind": "ntk", "factor": 4.0}},
    "qwen3-yarn": {
        "family": "llama",
        "qk_norm": True,
        "head_dim": 32,
        "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context_length": 8, "beta_fast": 2.0},
    },
    "llama-yarn-by-hand": {
        "family": "llama",
        "rope_scaling": {"kind": "yarn", "factor": 2.0, "original_context_length": 16, "attention_factor": 1.5},
    },
    "llama-3.1": {
        "family": "llama",
        "head_dim": 32,
        "rope_theta": 50.0,
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context_length": 64, "high_freq_factor": 3.0},
    },
}
COMMON = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": 32}
COMMON |= {"vocab_size": 257, "intermediate_size": 96, "bos_token_id": 0, "eos_token_id": 0}
THEIRS = {
    "gpt2": ("GPT2", {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 32, "vocab_size": 257}),
    "gpt2-untied": (
        "GPT2",
        {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 32, "vocab_size": 257, "tie_word_embeddings": False},
    ),
    "llama": ("Llama", {**COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}),
    "llama-grouped-tied-biases": (
        "Llama",
        {
            **COMMON,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
        },
    ),
    "llama-3.1": (
        "Llama",
        {
            **COMMON,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-yarn-without-factor": (
        "Llama",
        {
            **COMMON,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": None,
                "original_max_position_embeddings": 8,
            },
        },
    ),
    "qwen3": ("Qwen3", {**COMMON, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-3}),
}


@pytest.fixture(scope="module")
def vocab_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vocab")
    train_vocab(Tokenizer(kind="byte"), []).save(directory)
    return directory


def roughen(model: nn.Module) -> None:
    """Large random values everywhere, norms and biases too: nothing is left that could be mixed up unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1) * 0.7)


def ours(**settings: Any) -> Transformer:
    config = Model(**{**SHAPE, **settings})
    model = Transformer(config, config.padded_vocab(257)).eval()
    roughen(model)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, 257, (3, 32), generator=torch.Generator().manual_seed(6))


def assert_equal_logits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert a.std() > 0.5  # differences between logits near 0 would mean nothing
    assert (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("name", OURS)
def test_exported_equals_transformers(name: str, vocab_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = ours(**OURS[name])
    path = export_directory(model, vocab_dir, tmp_path / "out")
    with torch.no_grad():
        expected = model(tokens())[..., :257]
        hugging = AutoModelForCausalLM.from_pretrained(path).eval()
        assert type(hugging).__name__ == json.loads((path / "config.json").read_text())["architectures"][0]
        assert_equal_logits(hugging(tokens()).logits, expected)
        again, tokenizer = import_directory(path)
        assert_equal_logits(again(tokens()), expected)
    assert tokenizer == path / "tokenizer.json"
    if model.config.bias or name != "gpt2-without-biases":
        assert again.config == model.config.model_copy(update={"vocab_size": 257, **_resolved(model.config)})


def _resolved(config: Model) -> dict[str, Any]:
    """A directory names these even where the recipe leaves them to their defaults; it has no muP."""
    resolved: dict[str, Any] = {"intermediate_size": config.mlp_width}
    resolved |= {"mup_base_width": None, "mup_base_head_dim": None}
    if config.position == "rope":
        resolved |= {"num_kv_heads": config.kv_heads, "head_dim": config.head_width}
    if config.rope_scaling and config.rope_scaling.kind == "ntk":
        resolved |= {"rope_scaling": None, "rope_theta": rope_base(config)}
    return resolved


def transformers_model(name: str) -> nn.Module:
    import transformers

    prefix, settings = THEIRS[name]
    class_name = f"{prefix}LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
    config = getattr(transformers, f"{prefix}Config")(**settings)
    model: nn.Module = getattr(transformers, class_name)(config).eval()
    roughen(model)
    return model


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shard_size", ["5GB", "50KB"])
def test_imported_equals_transformers(name: str, shard_size: str, vocab_dir: Path, tmp_path: Path) -> None:
    model: Any = transformers_model(name)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "50KB")
    Vocab.load(vocab_dir).save(tmp_path)
    imported, _ = import_directory(tmp_path)
    with torch.no_grad():
        assert_equal_logits(imported(tokens()), model(tokens()).logits)


def test_each_scaling_changes_the_logits() -> None:
    scaled = [name for name, settings in OURS.items() if "rope_scaling" in settings]
    with torch.no_grad():
        for name in scaled:
            plain = ours(**{**OURS[name], "rope_scaling": None})(tokens())
            assert (ours(**OURS[name])(tokens()) - plain).abs().max() > 0.05, name


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_greedy_text_equals_transformers(name: str, vocab_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = ours(**OURS[name])
    hugging: Any = AutoModelForCausalLM.from_pretrained(export_directory(model, vocab_dir, tmp_path / "out"))
    prompts = [row.tolist()[:length] for row, length in zip(tokens(), (7, 12, 3), strict=True)]
    expected = []
    for prompt in prompts:
        text = hugging.generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False, eos_token_id=None)
        expected.append(text[0, len(prompt) :].tolist())
    assert [list(generate(model, prompt, 15, Sampling(0, vocab_size=257))) for prompt in prompts] == expected
    assert generate_batch(model, prompts, 15, Sampling(0, vocab_size=257)) == expected
    longest = max(map(len, prompts))  # and as one batch, which transformers pads on the left
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    texts = hugging.generate(padded, attention_mask=mask, max_new_tokens=15, do_sample=False, eos_token_id=None)
    assert texts[:, longest:].tolist() == expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_exported_tokenizer_loads(name: str, vocab_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = export_directory(ours(**OURS[name]), vocab_dir, tmp_path / "out")
    theirs, vocab = AutoTokenizer.from_pretrained(path), Vocab.load(vocab_dir)
    text = " Café 🙂 你好\n\tend"
    assert theirs(text)["input_ids"] == vocab.encode(text)
    assert theirs.decode(vocab.encode(text)) == text
    assert (theirs.eos_token_id, len(theirs)) == (vocab.eod_id, vocab.size)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"family": "gpt2", "num_kv_heads": 2}, ["GPT2LMHeadModel", "num_kv_heads=2"]),
        ({"family": "gpt2", "head_dim": 16}, ["GPT2LMHeadModel", "head_dim=16"]),
        ({"family": "gpt2", "activation": "swiglu"}, ["GPT2LMHeadModel", "activation=swiglu"]),
        ({"family": "llama", "norm": "layernorm"}, ["LlamaForCausalLM", "norm=layernorm"]),
        ({"family": "llama", "qk_norm": True, "bias": True}, ["Qwen3ForCausalLM", "bias=True"]),
    ],
)
def test_uncovered_settings_are_named(
    settings: dict[str, Any], words: list[str], vocab_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        export_directory(ours(**settings), vocab_dir, tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def _edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def _only_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_only_pickle, "pickle (pytorch_model.bin)"),
        (_cut, "cannot be read as safetensors"),
        (lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (lambda path: _edit(path, architectures=["BertModel"]), "BertModel cannot be imported; known: GPT2LMHeadModel"),
        (lambda path: _edit(path, num_hidden_layers=3), "lacks the weight model.layers.2."),
        (lambda path: _edit(path, num_hidden_layers=1), "such as model.layers.1."),
        (lambda path: _edit(path, vocab_size=300), "config.json asks for (300, 48)"),
        (lambda path: _edit(path, hidden_act="relu"), "hidden_act is 'relu'"),
        (lambda path: _edit(path, rope_parameters={"rope_type": "dynamic", "factor": 4}), "rope_type is 'dynamic'"),
        (
            lambda path: _edit(path, rope_parameters={"rope_type": "yarn", "factor": 4, "mscale": 0.7}),
            "mscale is 0.7",
        ),
        (lambda path: _edit(path, mlp_bias=True), "mlp_bias is True"),
    ],
)
def test_unusable_directories_are_refused(
    spoil: Callable[[Path], None], words: str, vocab_dir: Path, tmp_path: Path
) -> None:
    path = export_directory(ours(family="llama"), vocab_dir, tmp_path / "out")
    import_directory(path)
    spoil(path)
    with pytest.raises(ValueError) as error:
        import_directory(path)
    assert words in str(error.value)


def test_first_gpt2_files_have_no_prefix_and_carry_masks(vocab_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = ours(family="gpt2")
    path = export_directory(model, vocab_dir, tmp_path / "out")
    weights = {key.removeprefix("transformer."): value for key, value in load_file(path / "model.safetensors").items()}
    save_file({**weights, "h.0.attn.bias": torch.ones(1, 1, 32, 32)}, path / "model.safetensors")
    with torch.no_grad():
        assert_equal_logits(import_directory(path)[0](tokens()), model(tokens())[..., :257])


def test_a_larger_tokenizer_is_refused(vocab_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 257 tokens, the model only 256"):
        export_directory(Transformer(Model(**SHAPE), 256), vocab_dir, tmp_path / "out")
