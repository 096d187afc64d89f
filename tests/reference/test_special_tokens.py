"""What a text begins and ends with, in imported models.

Numbers are those of lm-eval's `hf`, text is that of `transformers`, both on the original directory. What was imported
is exported as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.tokens.vocab import Vocab
from eval.harness.lm_eval_adapter import ReplicaLM
from eval.likelihood.conventions import Convention
from eval.likelihood.perplexity import score_texts
from eval.reading.reader import LocalReader
from launch.models.export_model import export_run
from launch.models.import_model import import_run
from pretrain.checkpoint.choice import Choice
from pretrain.checkpoint.load_weights import load_weights
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Sampling
from pretrain.interchange.huggingface_import import open_directory

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want of"
TEXTS = [TEXT, " leading space", "naïve café 三国志 🦊\n\nend", "one"]
BOS, EOS = "<|bos|>", "<|eos|>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def byte_level(template: bool) -> Tokenizer:
    """Byte-level BPE with a beginning (0) and an end (1); with Llama 3's template, or without."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if template:
        put = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), put])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2's: a dummy prefix, bytes for what is unknown, `<s>` before every text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ["▁", *sorted(set(TEXT) - {" "}), "▁t", "▁a", "▁tr", "th"]:
        vocab.setdefault(token, len(vocab))
    merges = [("▁", "t"), ("▁", "a"), ("▁t", "r"), ("t", "h")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    """The other form of the dummy prefix: none where the text begins with a space."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return tokenizer


ADDED = {"__type": "AddedToken", "content": EOS, "special": True}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "no template": (lambda: byte_level(False), {"bos_token": BOS, "eos_token": EOS}, {}),
    "template": (lambda: byte_level(True), {"bos_token": BOS, "eos_token": ADDED}, {}),
    "flag": (lambda: byte_level(False), {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True}, {}),
    "flag against template": (
        lambda: byte_level(True),
        {"bos_token": BOS, "eos_token": EOS, "add_bos_token": False},
        {},
    ),
    "no beginning": (lambda: byte_level(False), {"eos_token": EOS}, {}),
    "two ends": (
        lambda: byte_level(False),
        {"bos_token": BOS, "eos_token": EOS},
        {"eos_token_id": [1, 40, 41, 42, 43]},
    ),
    "sentencepiece": (sentencepiece, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}, {}),
    "metaspace": (metaspace, {"bos_token": "<s>", "eos_token": "</s>"}, {}),
}


def make(directory: Path, kind: str, **changes: Any) -> Path:
    """A directory as others write it, of a random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    build, settings, ids = KINDS[kind]
    tokenizer = build()
    torch.manual_seed(3)
    begin, end = (1, 2) if kind in ("sentencepiece", "metaspace") else (0, 1)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    named = {"bos_token_id": begin, "eos_token_id": end, "max_position_embeddings": 160, "initializer_range": 0.2}
    config = {"vocab_size": tokenizer.get_vocab_size(), **shape, **named, **ids, **changes}
    LlamaForCausalLM(LlamaConfig(**config)).eval().save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module", params=KINDS)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An original directory and the run that it was imported as."""
    directory = tmp_path_factory.mktemp("special")
    original = make(directory / "original", request.param)
    import_run(original, directory / "run", None)
    return original, directory / "run"


def ours(run: Path) -> tuple[Any, Vocab]:
    checkpoint = Choice().find(run)
    return load_weights(checkpoint), Vocab.load(checkpoint.tokenizer)


def test_scores_equal_hf(imported: tuple[Path, Path]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    original, run = imported
    model, vocab = ours(run)
    adapter = ReplicaLM(LocalReader(model, vocab.size, 2), vocab, progress=False)
    theirs = HFLM(pretrained=str(original), device="cpu", dtype="float32", batch_size=1)
    assert adapter.prefix_token_id == theirs.prefix_token_id

    def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [Instance(kind, {}, item, index) for index, item in enumerate(arguments)]

    rolling = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert adapter.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-4)
    pairs = instances("loglikelihood", [("It is a truth", " universally"), ("", "no context"), ("one ", "two")])
    scores = [value for value, _ in adapter.loglikelihood(pairs)]
    assert scores == pytest.approx([value for value, _ in theirs.loglikelihood(pairs, disable_tqdm=True)], rel=1e-4)
    questions = instances("generate_until", [("It is", {"until": ["zz"], "max_gen_toks": 9})])
    assert adapter.generate_until(questions) == theirs.generate_until(questions, disable_tqdm=True)


def test_greedy_text_equals_transformers(imported: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    original, run = imported
    model, vocab = ours(run)
    tokenizer, theirs = AutoTokenizer.from_pretrained(original), AutoModelForCausalLM.from_pretrained(original)
    for prompt in ("It is", TEXT, " a"):
        given = tokenizer(prompt, return_tensors="pt")
        assert vocab.prompt(prompt) == given["input_ids"][0].tolist()
        expected = theirs.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        new = list(generate(model, vocab.prompt(prompt), 12, Sampling(0, stop=vocab.end_ids, vocab_size=vocab.size)))
        left = expected[given["input_ids"].shape[1] :].tolist()
        assert new == [token for token in left if token not in vocab.end_ids]
        assert vocab.decode(vocab.prompt(prompt) + new) == tokenizer.decode(expected, skip_special_tokens=True)


def test_nats_of_all_tokens_over_bytes_of_the_text(imported: tuple[Path, Path]) -> None:
    """Also behind a dummy prefix, which is no byte of the text."""
    model, vocab = ours(imported[1])
    scores = score_texts(LocalReader(model, vocab.size, 4), vocab, TEXTS, Convention(model.config.context_length, 16))
    assert scores.bytes.sum() == sum(len(text.encode()) for text in TEXTS)
    assert scores.tokens.sum() == sum(len(vocab.encode(text)) for text in TEXTS)
    first = torch.tensor([[vocab.begin_id, *vocab.encode("one")]])
    with torch.no_grad():
        logits = model(first)[0, :-1, : vocab.size].log_softmax(-1)
    nats = -logits.gather(1, first[0, 1:, None]).sum().item()
    assert scores.nats[-1] == pytest.approx(nats, rel=1e-5)


def test_export_of_an_import_is_the_original(imported: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    original, run = imported
    export_run(run, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (original / name).read_bytes(), name
    before, after = (json.loads((path / "config.json").read_text()) for path in (original, tmp_path / "out"))
    for key in ("bos_token_id", "eos_token_id", "vocab_size"):
        assert after.get(key) == before.get(key), key
    first, second = (AutoTokenizer.from_pretrained(path) for path in (original, tmp_path / "out"))
    assert [first(text)["input_ids"] for text in TEXTS] == [second(text)["input_ids"] for text in TEXTS]
    assert first.special_tokens_map == second.special_tokens_map and first.chat_template == second.chat_template


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Qwen3"])
@pytest.mark.parametrize("head", ["own", "equal", "none"])
def test_a_head_in_the_file_decides(family: str, head: str, tmp_path: Path) -> None:
    """config.json says tied; `transformers` 5 looks into the file, and so do import and train.init_from."""
    import transformers
    from safetensors.torch import load_file, save_file

    settings: dict[str, Any] = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings |= {"tie_word_embeddings": head != "own", "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1}
    settings |= {} if family == "GPT2" else {"intermediate_size": 96, "head_dim": 12, "num_key_value_heads": 4}
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(**settings)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    byte_level(False).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    embedding = next(value for key, value in weights.items() if "embed" in key or "wte" in key)
    if head == "equal":
        save_file({**weights, "lm_head.weight": embedding.clone()}, file, {"format": "pt"})
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "tie_word_embeddings": True}))

    found, _, read = open_directory(tmp_path)
    assert found.tied_embeddings == (head != "own")
    if head == "own":
        assert torch.equal(read("lm_head.weight"), weights["lm_head.weight"])
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(theirs.lm_head.weight, weights["lm_head.weight"])
