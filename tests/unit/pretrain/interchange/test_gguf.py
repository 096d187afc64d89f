"""GGUF files, read again by their own package: tensors, vocabulary, merges and settings are the checkpoint's.

That llama.cpp gives the same text and likelihoods was tried by hand: docs/share-and-serve.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab import Vocab, byte_alphabet
from data_prep.tokens.vocab_training import PATTERNS, train_vocab
from pretrain.interchange.gguf_export import export_gguf, pre_tokenizer
from pretrain.interchange.huggingface_export import Weights
from pretrain.model.rope import frequencies
from pretrain.model.transformer import Transformer

gguf = pytest.importorskip("gguf")

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "context_length": 32}
TEXT = ["It is a truth universally acknowledged, that a single man in possession of a good fortune, 2024"] * 3
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "gpt2 untied, without biases": {"family": "gpt2", "bias": False, "tied_embeddings": False},
    "llama": {"num_kv_heads": 2, "bias": True},
    "llama tied, llama3": {
        "tied_embeddings": True,
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context_length": 64},
    },
    "llama, yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context_length": 16}},
    "llama, ntk and muP": {"rope_scaling": {"kind": "ntk", "factor": 4.0}, "mup_base_width": 24},
    "qwen3": {"qk_norm": True, "num_kv_heads": 2, "head_dim": 20},
}


@pytest.fixture(scope="module")
def vocab_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vocab")
    train_vocab(Tokenizer(vocab_size=290, pattern="gpt4", special_tokens=["<|endoftext|>", "<pad>"]), TEXT).save(
        directory
    )
    return directory


def model(**settings: Any) -> Transformer:
    torch.manual_seed(4)
    made = Transformer(Model(**{**SHAPE, **settings}), 320).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        for tensor in reader.tensors
    }
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


def uninterleaved(value: torch.Tensor, head: int) -> torch.Tensor:
    """The inverse of llama.cpp's `permute`, written the other way round: row 2i + j goes to i + j E/2."""
    order = [2 * i + j for j in range(2) for i in range(head // 2)]
    heads = value.shape[0] // head
    return torch.cat([value[number * head : (number + 1) * head][order] for number in range(heads)])


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_the_checkpoints(name: str, vocab_dir: Path, tmp_path: Path) -> None:
    made = model(**FAMILIES[name])
    config, weights = made.config, Weights.of_model(made)
    found, fields = read(export_gguf(weights, vocab_dir, tmp_path / "m.gguf"))
    architecture = fields["general.architecture"]
    assert architecture == ("gpt2" if name.startswith("gpt2") else "qwen3" if name == "qwen3" else "llama")
    assert torch.equal(found.pop("token_embd.weight"), made.embed.weight.detach()[:290])
    assert torch.equal(found.pop("output_norm.weight"), weights.plain("norm.weight"))
    if not config.tied_embeddings:
        assert torch.equal(found.pop("output.weight"), weights.read("lm_head.weight")[:290])
    heat = 1.0
    if config.rope_scaling and config.rope_scaling.kind != "ntk":
        plain = config.model_copy(update={"rope_scaling": None})
        scaled, heat = frequencies(config)
        assert torch.allclose(frequencies(plain)[0] / found.pop("rope_freqs.weight"), scaled)
        assert "llama.rope.scaling.type" not in fields, "twice would be wrong"
    turn = (lambda value: uninterleaved(value, config.head_width)) if architecture == "llama" else (lambda value: value)
    for layer in range(2):
        here = f"blocks.{layer}."
        for kind in ("weight", "bias"):
            block = {key.removeprefix(f"blk.{layer}."): key for key in found if key.startswith(f"blk.{layer}.")}
            if architecture == "gpt2":
                for theirs, ours in (("attn_qkv", "attention.qkv"), ("ffn_up", "mlp.up"), ("ffn_down", "mlp.down")):
                    value = found.pop(block[f"{theirs}.{kind}"])
                    stored = weights.read(f"{here}{ours}.{kind}") if config.bias or kind == "weight" else value * 0
                    assert torch.equal(value, stored)
            elif f"attn_q.{kind}" in block:
                q, k, v = (found.pop(block[f"attn_{name}.{kind}"]) for name in "qkv")
                qkv = torch.cat([turn(q) / heat**2, turn(k), v])
                assert torch.allclose(qkv, weights.plain(f"{here}attention.qkv.{kind}"), rtol=1e-6)
                up = torch.cat([found.pop(block[f"ffn_{name}.{kind}"]) for name in ("gate", "up")])
                assert torch.equal(up, weights.read(f"{here}mlp.up.{kind}"))
                assert torch.equal(found.pop(block[f"ffn_down.{kind}"]), weights.read(f"{here}mlp.down.{kind}"))
            for theirs, ours in (
                ("attn_output", "attention.out"),
                ("attn_norm", "attention_norm"),
                ("ffn_norm", "mlp_norm"),
                ("attn_q_norm", "attention.q_norm"),
                ("attn_k_norm", "attention.k_norm"),
            ):
                if f"{theirs}.{kind}" in block:
                    value = found.pop(block[f"{theirs}.{kind}"])
                    own = f"{here}{ours}.{kind}"
                    assert torch.equal(value, weights.read(own) if own in weights.names else value * 0), own
    if architecture == "gpt2":
        assert torch.equal(found.pop("position_embd.weight"), weights.read("position.weight"))
        found.pop("output_norm.bias")
    assert not found, found.keys()


def test_settings(vocab_dir: Path, tmp_path: Path) -> None:
    made = model(**FAMILIES["llama, ntk and muP"])
    lineage = {"run": "r", "step": 7, "checkpoint": "abc"}
    _, fields = read(export_gguf(Weights.of_model(made), vocab_dir, tmp_path / "m.gguf", lineage=lineage))
    assert fields["llama.rope.freq_base"] == pytest.approx(10000 * 4 ** (12 / 10))
    assert [fields[f"llama.{key}"] for key in ("context_length", "embedding_length", "block_count")] == [32, 48, 2]
    assert [fields[f"llama.attention.{key}"] for key in ("head_count", "head_count_kv", "key_length")] == [4, 4, 12]
    assert fields["llama.rope.dimension_count"] == 12 and fields["llama.feed_forward_length"] == made.config.mlp_width
    assert (fields["replica.run"], fields["replica.step"], fields["replica.checkpoint"]) == ("r", 7, "abc")


def test_vocabulary_is_the_tokenizers(vocab_dir: Path, tmp_path: Path) -> None:
    _, fields = read(export_gguf(Weights.of_model(model()), vocab_dir, tmp_path / "m.gguf"))
    vocab = Vocab.load(vocab_dir)
    tokens = fields["tokenizer.ggml.tokens"]
    assert {token: index for index, token in enumerate(tokens)} == vocab.vocabulary
    merges = json.loads((vocab_dir / "tokenizer.json").read_text())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges] and merges
    kinds = fields["tokenizer.ggml.token_type"]
    assert [index for index, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL] == [0, 1]
    assert set(kinds[2:]) == {gguf.TokenType.NORMAL}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "dbrx")
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 0)
    assert fields["tokenizer.ggml.add_bos_token"] is False and fields["tokenizer.ggml.add_eos_token"] is False


def test_what_an_imported_vocabulary_begins_and_ends_with(vocab_dir: Path, tmp_path: Path) -> None:
    from tokenizers import processors

    backend = Backend.from_file(str(vocab_dir / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 1)])
    (tmp_path / "v").mkdir()
    backend.save(str(tmp_path / "v" / "tokenizer.json"))
    content = {"bos_token": "<pad>", "eos_token": "<|endoftext|>", "chat_template": "{{ x }}"}
    (tmp_path / "v" / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "v" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5, 6]}))
    (tmp_path / "v" / "special_ids.json").write_text(json.dumps({"pad_token_id": 1, "vocab_size": 290}))
    _, fields = read(export_gguf(Weights.of_model(model()), tmp_path / "v", tmp_path / "m.gguf"))
    expected = {"bos": 1, "eos": 0, "eot": 5, "eom": 6, "padding": 1}
    assert {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in expected} == expected
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.chat_template"] == "{{ x }}"


@pytest.mark.parametrize(("dtype", "file_type"), [("fp32", 0), ("fp16", 1), ("bf16", 32)])
def test_dtypes(dtype: str, file_type: int, vocab_dir: Path, tmp_path: Path) -> None:
    made = model()
    found, fields = read(export_gguf(Weights.of_model(made), vocab_dir, tmp_path / "m.gguf", dtype))
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    down = made.blocks[0].mlp.down.weight.detach()
    assert torch.equal(found["blk.0.ffn_down.weight"], down.to(kind).float())
    assert torch.equal(found["output_norm.weight"], made.norm.weight.detach()), "norms stay exact"
    assert fields["general.file_type"] == file_type


def backend_of(pattern: str | None, **settings: Any) -> Vocab:
    tokens = {token: index for index, token in enumerate(["<|endoftext|>", *byte_alphabet(), "ab"])}
    backend = Backend(models.BPE(tokens, [("a", "b")], **settings))
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, whole])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return Vocab(backend)


def test_pre_tokenizers_by_their_names() -> None:
    for pattern, name in (("gpt2", "gpt-2"), ("gpt4", "dbrx"), ("qwen2", "qwen2")):
        assert pre_tokenizer(train_vocab(Tokenizer(vocab_size=280, pattern=pattern), TEXT)) == name
    assert pre_tokenizer(train_vocab(Tokenizer(kind="byte"), [])) == "gpt-2", "no merges: cut anywhere"
    assert pre_tokenizer(backend_of(PATTERNS["gpt4"], ignore_merges=True)) == "llama-bpe"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pattern": "sequence", "vocab_size": 270}, "no pre-tokenizer for the pattern sequence"),
        ({"kind": "char"}, "not byte-level BPE"),
        ({"kind": "kmer", "kmer": 2}, "no pre-tokenizer for the pattern of '[ACGT]{2}'"),
    ],
)
def test_vocabularies_without_a_pre_tokenizer(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    vocab = train_vocab(Tokenizer(**settings), TEXT)
    vocab.save(tmp_path / "v")
    made = Transformer(Model(**SHAPE), vocab.size)
    with pytest.raises(ValueError) as error:
        export_gguf(Weights.of_model(made), tmp_path / "v", tmp_path / "m.gguf")
    assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_patterns_of_others() -> None:
    for vocab, words in (
        (backend_of(r"\w+|\W+"), "the pattern of"),
        (backend_of(None), "not byte-level BPE"),
        (backend_of(PATTERNS["qwen2"], ignore_merges=True), "ignore_merges"),
    ):
        with pytest.raises(ValueError, match=words):
            pre_tokenizer(vocab)


def test_settings_that_llama_cpp_does_not_have(vocab_dir: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"qk_norm": True, "rope_scaling": {"kind": "linear", "factor": 2.0}}, "model.rope_scaling"),
        ({"logit_softcap": 30.0}, "model.logit_softcap"),
    ):
        with pytest.raises(ValueError, match=words):
            export_gguf(Weights.of_model(model(**settings)), vocab_dir, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
