"""A run directory with a random model and the sets that it is scored on, made up in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from data_prep.tokens.vocab_training import train_vocab
from launch.models.import_model import import_run
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
_RECIPE = """
name: small
data:
  sources: [{name: text, path: heldout.jsonl}]
model: {num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 64}
train: {steps: 1, watch: {timeout_seconds: 60, heartbeat_seconds: 0.2}}
evaluation:
  perplexity: [{name: heldout, path: heldout.jsonl}]
  translation: [{name: pairs, path: pairs.jsonl, shots: 1, max_new_tokens: 8}]
  information: [{name: both, path: pairs.jsonl, shots: [0, 1], candidates: 3}]
  samples: {prompts: ["Once", "Zwölf"], max_new_tokens: 8}
  bootstrap_samples: 100
"""


def make_evaluation_run(directory: Path) -> Path:
    """Writes `directory/run`, with texts, pairs and samples to score, and no benchmark."""
    torch.manual_seed(0)
    vocab = train_vocab(Tokenizer(kind="byte"), [])
    vocab.save(directory / "tokenizer")
    config = Model(num_layers=2, hidden_size=32, num_heads=2, context_length=64)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    exported = export_directory(model, directory / "tokenizer", directory / "hf")
    documents = [{"id": str(n), "text": f"Document {n}:  café " + "word " * (n + 1)} for n in range(25)]
    _write_lines(directory / "heldout.jsonl", documents)
    _write_lines(directory / "pairs.jsonl", [{"source": f"a{n}", "target": f"b{n}"} for n in range(5)])
    (directory / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    import_run(exported, directory / "run", str(directory / "recipe.yaml"))
    return directory / "run"


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
