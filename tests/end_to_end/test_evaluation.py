"""From a checkpoint to results.json: what is scored, what is skipped, and what is said when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.schema.data import Tokenizer
from configs.schema.model import Model
from configs.schema.recipe import Recipe, load, save
from data_prep.tokens.vocab_training import train_vocab
from eval.__main__ import main
from eval.currency import is_current
from eval.report.gates import check_gates
from eval.report.page import write_report
from eval.results import ScoresFailed, load_results
from eval.suite import evaluate
from launch.models.import_model import import_run
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
RECIPE = f"""
name: small
data:
  sources: [{{name: text, path: heldout.jsonl}}]
model: {{num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 64}}
train: {{steps: 1}}
evaluation:
  perplexity: [{{name: heldout, path: heldout.jsonl}}]
  translation: [{{name: pairs, path: pairs.jsonl, shots: 1, max_new_tokens: 8}}]
  benchmarks: {{tasks: [replica_copa], include_path: {TASKS}, limit: 4}}
  samples: {{prompts: ["Once", "Zwölf"], max_new_tokens: 8}}
  bootstrap_samples: 100
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the checkpoint of a random model, and the sets it is to be scored on."""
    torch.manual_seed(0)
    vocab = train_vocab(Tokenizer(kind="byte"), [])
    vocab.save(tmp_path / "tokenizer")
    config = Model(num_layers=1, hidden_size=16, num_heads=2, context_length=64)
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    exported = export_directory(model, tmp_path / "tokenizer", tmp_path / "hf")
    documents = [{"id": str(n), "text": f"Document {n}:  café " + "word " * n} for n in range(25)]
    write_lines(tmp_path / "heldout.jsonl", documents)
    write_lines(tmp_path / "pairs.jsonl", [{"source": f"a{n}", "target": f"b{n}"} for n in range(4)])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    import_run(exported, tmp_path / "run", str(tmp_path / "recipe.yaml"))
    return tmp_path / "run"


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(run: Path, *overrides: str) -> Recipe:
    recipe = load(run / "recipe.yaml", overrides)
    save(recipe, run)
    return recipe


def test_scores_and_skipping(run: Path) -> None:
    assert not is_current(run)
    results = load_results(evaluate(run, progress=False).parent)
    names = [result.name for result in results.results]
    assert names == [
        "perplexity/heldout/bits_per_byte",
        "perplexity/heldout/perplexity",
        "perplexity/heldout/nats_per_token",
        "compression/heldout/gzip_bits_per_byte",
        "compression/heldout/xz_bits_per_byte",
        "compression/heldout/zstd_bits_per_byte",
        "translation/pairs/bleu",
        "translation/pairs/chrf",
        "translation/pairs/copy_bleu",
        "benchmark/replica_copa/acc",
    ]
    bits = results.by_name()["perplexity/heldout/bits_per_byte"]
    # 257 ids, all about equally likely to a model with small random weights; one id a byte.
    assert bits.value == pytest.approx(8.0, abs=0.1) and bits.n == 25
    assert [sample.kind for sample in results.samples] == ["prompt", "prompt", "document", *["translation"] * 3]
    assert results.samples[2].prompt + (results.samples[2].reference or "") == "Document 0:  café "  # as it stands
    assert results.checkpoint["step"] == 0 and results.model["layers"] == 1
    assert write_report(run).is_file()

    assert is_current(run)
    change(run, "evaluation.batch_size=3", "report.gates=['perplexity/heldout/perplexity < 1000']")
    assert is_current(run), "neither the batch size nor a gate changes a score"
    change(run, "evaluation.bootstrap_samples=101")
    assert not is_current(run)
    change(run, "evaluation.bootstrap_samples=100")
    assert is_current(run)
    write_lines(run.parent / "pairs.jsonl", [{"source": f"a{n}", "target": f"c{n}"} for n in range(4)])
    assert not is_current(run)


def test_batch_size_changes_no_score(run: Path) -> None:
    values = []
    for size in (1, 7):
        overrides = [f"evaluation.batch_size={size}", f"evaluation.benchmarks.batch_size={size}"]
        results = load_results(evaluate(run, overrides, progress=False, again=True).parent)
        values.append({result.name: result.value for result in results.results})
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_skipping_needs_no_torch(run: Path) -> None:
    code = (
        f"import sys; from eval.currency import is_current; from pathlib import Path; is_current(Path({str(run)!r}))\n"
    )
    code += "print([name for name in ('torch', 'lm_eval', 'datasets', 'ray', 'sacrebleu') if name in sys.modules])"
    evaluate(run, ["evaluation.translation=[]", "evaluation.benchmarks.tasks=[]"], progress=False)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_missing_is_said_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*arguments: str) -> str:
        assert main(["run", str(run), *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and not (run / "results.json").exists()
        return error

    assert "overrides of `evaluation.…` only" in message("model.num_layers=3")
    for manifest in (run / "checkpoints").iterdir():
        manifest.rename(run / f"lost_{manifest.name}")
    assert "no checkpoint yet" in message()


def test_one_failing_score_loses_no_other(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The good ones are kept and shown, the failed one is named, and only it is made again."""
    pairs, kept = run.parent / "pairs.jsonl", run / "scores"
    pairs.rename(run.parent / "away")
    assert main(["run", str(run), "evaluation.benchmarks.include_path=nowhere"]) == 2
    error = capsys.readouterr().err
    assert "pairs.jsonl: no such file" in error and "is not a directory; correct it" in error
    results = load_results(run)
    assert [failure.name for failure in results.failures] == ["benchmark/replica_copa", "translation/pairs"]
    assert {"perplexity/heldout/perplexity", "compression/heldout/xz_bits_per_byte"} <= results.by_name().keys()
    assert not any(name.startswith(("translation", "benchmark")) for name in results.by_name())
    change(run, "report.gates=['translation/pairs/bleu > 3', 'perplexity/heldout/perplexity < 1000']")
    assert not is_current(run)
    with pytest.raises(ScoresFailed, match="translation/pairs"):
        evaluate(run, progress=False)
    page = write_report(run).read_text()
    assert "Scores that could not be made" in page and "pairs.jsonl: no such file" in page
    assert [gate.passed for gate in check_gates(run)] == [False, True]
    (run.parent / "away").rename(pairs)
    before = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert not is_current(run)
    results = load_results(evaluate(run, progress=False).parent)
    assert is_current(run) and not results.failures and len(results.results) == 10
    after = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        name for name in after if name.startswith("translation-pairs")
    }
    assert not main(["run", str(run), "evaluation.samples.max_new_tokens=9"])


def test_weights_that_are_no_numbers_get_one_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes first: samples, perplexity, translation and benchmarks; sizes of the compressors are kept."""
    from pretrain.checkpoint.load_weights import load_weights

    def spoiled(directory: Path) -> Transformer:
        model = load_weights(directory)
        with torch.no_grad():
            model.embed.weight.fill_(float("nan"))
        return model

    monkeypatch.setattr("eval.reading.opening.load_weights", spoiled)
    with pytest.raises(ScoresFailed, match=r"^the checkpoint gives no finite.*Did training diverge.*/pairs"):
        evaluate(run, progress=False)
    results = load_results(run)
    assert all("Did training diverge" in failure.reason for failure in results.failures)
    assert [failure.name.partition("/")[0] for failure in results.failures] == [
        "benchmark", "samples", "perplexity", "samples", "translation",
    ]  # fmt: skip
    assert all(name.startswith("compression/") for name in results.by_name())
