"""What llama.cpp makes of our GGUF files, against `transformers` on the Hugging Face export of the same models.

Needs `pip install llama-cpp-python==0.3.36` (it compiles llama.cpp) and the extra `gguf`. Small models are trained on
made-up words, for every pattern; then ids of difficult texts, their log-likelihoods and greedy text are compared.

    python benchmarks/gguf_files.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.encode import NASTY
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from pretrain.interchange.gguf_export import export_gguf
from pretrain.interchange.huggingface_export import Weights, export_directory
from pretrain.model.transformer import Transformer

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"num_kv_heads": 2},
    "llama, biases, tied": {"bias": True, "tied_embeddings": True, "head_dim": 32, "rope_theta": 5e5},
    "llama, llama3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context_length": 64}},
    "llama, yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context_length": 64}},
    "qwen3": {"qk_norm": True, "num_kv_heads": 2, "head_dim": 32},
}
PATTERNS = ("gpt2", "gpt4", "qwen2", "byte")
TEXTS = [
    "It is a truth universally acknowledged, that a single man",
    *(text for text in NASTY if "<|endoftext|>" not in text),
    # Every script, a character of 32.
    "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x20), *range(0xE000, 0x20000, 0x20)])).replace("\0", ""),
]
STEPS, NEW = 250, 32


def corpus() -> list[str]:
    """Words that were made up, so that the script needs no files: text is not what is tried here."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("aeioustnrld"), size=n)) for n in generator.integers(2, 8, 400)]
    return [" ".join(generator.choice(words, size=120)).capitalize() + ".\n" for _ in range(100)]


def trained(config: Model, vocab: Vocab, texts: list[str]) -> Transformer:
    """A model whose most likely token is no accident of rounding."""
    torch.manual_seed(1)
    model = Transformer(config, config.padded_vocab(vocab.size))
    ids = torch.tensor([token for text in texts for token in (vocab.eod_id, *vocab.encode(text))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        starts = torch.randint(0, len(ids) - 97, (8,), generator=generator).tolist()
        rows = torch.stack([ids[start : start + 97] for start in starts])
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def nats(logits: Any, ids: list[int]) -> float:
    """Of all tokens but the first; logits (T, V)."""
    scores = torch.as_tensor(logits).double().log_softmax(-1)[:-1]
    return -float(scores.gather(1, torch.tensor(ids)[1:, None]).sum())


def compare(name: str, directory: Path, file: Path) -> None:
    """Prints one line: texts with other ids, the largest relative difference of nats, whether greedy text is equal."""
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    # fp32 keys and values; the default rounds them to fp16.
    llama = Llama(str(file), n_ctx=512, logits_all=True, verbose=False, type_k=0, type_v=0)
    other, worst = 0, 0.0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if llama.tokenize(text.encode(), add_bos=True, special=False) != ids:
            other += 1
        ids = ids[:256]
        llama.reset()
        llama.eval(ids)
        with torch.no_grad():
            expected = nats(theirs(torch.tensor([ids])).logits[0], ids)
        worst = max(worst, abs(nats(llama.scores[: len(ids)], ids) - expected) / expected)
    ids = tokenizer(TEXTS[0])["input_ids"]
    given = torch.tensor([ids])
    expected_ids = theirs.generate(given, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    llama.reset()
    llama.eval(ids)
    for _ in range(NEW):
        ids = [*ids, int(np.argmax(llama.scores[llama.n_tokens - 1]))]
        llama.eval(ids[-1:])
    same = ids == expected_ids[0].tolist()
    print(f"{name:32} other ids {other} of {len(TEXTS)}, nats differ by {worst:.0e}, greedy equal: {same}", flush=True)


def main() -> None:
    """One line for each family and pattern, and for each dtype of the first pattern."""
    texts = corpus()
    for pattern in PATTERNS:
        settings = Tokenizer(kind="byte") if pattern == "byte" else Tokenizer(vocab_size=600, pattern=pattern)
        with tempfile.TemporaryDirectory() as work:
            vocab = train_vocab(settings, texts)
            vocab.save(Path(work) / "vocab")
            for family, shape in FAMILIES.items():
                if pattern != PATTERNS[0] and family not in ("gpt2", "llama"):
                    continue
                config = Model(num_layers=2, hidden_size=64, num_heads=4, context_length=256, **shape)
                model = trained(config, vocab, texts)
                for dtype in ("fp32", "bf16", "fp16") if pattern == PATTERNS[0] else ("fp32",):
                    name, target = f"{family}, {pattern}, {dtype}", Path(work) / f"{family} {dtype}"
                    export_directory(model, Path(work) / "vocab", target, dtype)
                    file = target.with_suffix(".gguf")
                    export_gguf(Weights.of_model(model), Path(work) / "vocab", file, dtype)
                    compare(name, target, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
