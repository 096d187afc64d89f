"""Perplexity by the conventions of published figures, against the programs that those figures come from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch

from configs.safety.trust import trusting
from configs.schema.data import Normalize, Tokenizer
from configs.schema.evaluation import Benchmarks, PerplexitySet
from configs.schema.model import Model
from data_prep.decontamination.benchmark_tasks import quiet
from data_prep.decontamination.evaluation_sets import read_set
from data_prep.tokens.vocab import Vocab
from data_prep.tokens.vocab_training import train_vocab
from eval.harness.benchmarks import load_tasks
from eval.likelihood.conventions import Convention, counted_texts, detokenized_wikitext
from eval.likelihood.perplexity import score_texts
from eval.likelihood.perplexity_set import perplexity_set_results
from eval.reading.reader import LocalReader
from eval.results import Result
from pretrain.interchange.huggingface_export import export_directory
from pretrain.model.transformer import Transformer

CONTEXT = 32
WIKITEXT = Path(lm_eval.__file__).parent / "tasks" / "wikitext"
# In the form of WikiText: tokens between blanks, `@-@` for a hyphen inside of a word, titles between `=`.
PAGES = [
    " \n = The mill = \n \n The mill 's wheel , built in 1 @,@ 804 , turned a well @-@ known saw ( now lost ) . \n",
    ' \n = = Water = = \n " It ran , " he said , " at 2 @.@ 5 metres ; it never froze . " Why ? \n = = = Ice = = = \n',
    "One line without a title : the keepers ' boats [ three ] lay at 40 ° north .",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take longer to share out than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Vocab, Path]:
    """A random model, its vocabulary, and its export for transformers."""
    torch.manual_seed(7)
    directory = tmp_path_factory.mktemp(request.param)
    vocab = train_vocab(Tokenizer(vocab_size=300), PAGES * 3)
    vocab.save(directory / "tokenizer")
    config = Model(
        family=request.param, num_layers=2, hidden_size=32, num_heads=4, context_length=CONTEXT, init_std=0.15
    )
    model = Transformer(config, config.padded_vocab(vocab.size)).eval()
    return model, vocab, export_directory(model, directory / "tokenizer", directory / "hf")


def write_rows(path: Path, rows: list[str], field: str) -> str:
    path.write_text("".join(json.dumps({field: row}) + "\n" for row in rows))
    return str(path)


def scores(models: tuple[Transformer, Vocab, Path], item: PerplexitySet) -> dict[str, Result]:
    model, vocab, _ = models
    documents = read_set(item, Normalize())
    results = perplexity_set_results(item, documents, LocalReader(model, vocab.size, 4), vocab, 100).results
    return {result.named.metric: result for result in results}


def test_detokenization_equals_lm_eval() -> None:
    space: dict[str, Any] = {}
    exec((WIKITEXT / "preprocess_wikitext.py").read_text(), space)
    odd = ["s ' s", "= = = = =", "( a ( b ) c ) [ ] { x } ' y ' \" z \"", " N  's ° ", "a @-@ b @,@ c @.@ d", ""]
    for text in [*PAGES, *odd, " . ".join(PAGES)]:
        assert detokenized_wikitext(text) == space["wikitext_detokenizer"]({"page": text})
    assert detokenized_wikitext(PAGES[0]) != PAGES[0]


def test_wikitext_equals_lm_eval(models: tuple[Transformer, Vocab, Path], tmp_path: Path) -> None:
    """lm-eval's own definition of the task over local pages, asked of its `hf` model."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    path = write_rows(tmp_path / "pages.jsonl", PAGES, "page")
    shutil.copy(WIKITEXT / "preprocess_wikitext.py", tmp_path)
    task = (WIKITEXT / "wikitext.yaml").read_text()
    for line in ("training_split: train\n", "validation_split: validation\n", "dataset_name: wikitext-2-raw-v1\n"):
        assert line in task
        task = task.replace(line, "")
    local = "dataset_path: json\ndataset_kwargs: {data_files: {test: pages.jsonl}}"
    task = task.replace("dataset_path: EleutherAI/wikitext_document_level", local)
    (tmp_path / "wikitext.yaml").write_text(task.replace("task: wikitext", "task: local_wikitext"))
    with trusting([tmp_path]), quiet():
        section = Benchmarks(tasks=["local_wikitext"], include_path=str(tmp_path))
        theirs = HFLM(pretrained=str(models[2]), device="cpu", dtype="float32", batch_size=1)
        raw = evaluate(theirs, load_tasks(section, tmp_path / "cache"), bootstrap_iters=0)["results"]["local_wikitext"]
    item = PerplexitySet(name="w", path=path, text_field="page", detokenize="wikitext", words="lm_eval", stride=CONTEXT)
    ours = scores(models, item)
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ours[metric].value == pytest.approx(raw[f"{metric},none"], rel=1e-6), metric
    others = [item.model_copy(update=change) for change in ({"stride": 16}, {"detokenize": "none"})]
    for other in others:
        assert scores(models, other)["bits_per_byte"].value != pytest.approx(raw["bits_per_byte,none"], rel=1e-4)


def guide(path: Path, text: str, stride: int) -> tuple[list[float], list[int]]:
    """The loop of transformers' guide: mean loss of each window, and how many of its tokens the loss is of."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    ids = tokenizer(text, return_tensors="pt").input_ids
    length, end_before, losses, counts = ids.shape[1], 0, [], []
    for begin in range(0, length, stride):
        end = min(begin + CONTEXT, length)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - end_before)] = -100
        with torch.no_grad():
            losses.append(float(model(ids[:, begin:end], labels=labels).loss))
        counts.append(int((labels[:, 1:] != -100).sum()))
        end_before = end
        if end == length:
            break
    return losses, counts


@pytest.mark.parametrize("stride", [8, 16, CONTEXT])
def test_sliding_window_equals_the_guide_of_transformers(
    models: tuple[Transformer, Vocab, Path], tmp_path: Path, stride: int
) -> None:
    """All rows as one text, the first token read only, windows of `max_length` tokens that are inputs and labels."""
    model, vocab, export = models
    apart = stride == CONTEXT
    rows = [PAGES[0], "", PAGES[1], " = A title = \n"]
    # The guide's last window has less context than there is room for, unless it is full. Here it is.
    while not apart and (len(vocab.encode("\n\n".join(rows))) - CONTEXT) % stride:
        rows[-1] += " of one"[len(rows[-1]) % 7]
    losses, counts = guide(export, "\n\n".join(rows), stride)
    exact = math.exp(sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts))
    item = PerplexitySet(
        name="g",
        path=write_rows(tmp_path / "rows.jsonl", rows, "text"),
        stream="text",
        start_token="none",
        context=CONTEXT - 1,
        stride=None if apart else stride,
        windows="pieces" if apart else "sliding",
    )
    assert scores(models, item)["perplexity"].value == pytest.approx(exact, rel=1e-6)
    texts = [text.read for text in counted_texts(item, [one.text for one in read_set(item, Normalize())])]
    own = score_texts(LocalReader(model, vocab.size, 4), vocab, texts, Convention.of(item, CONTEXT))
    assert own.tokens.tolist() == counts
    # The guide itself weighs each window by one token less than it has labels; without an overlap that is exact.
    weights = own.tokens - (0 if apart else 1)
    weights[0] = own.tokens[0]
    literal = sum(loss * weight for loss, weight in zip(losses, weights.tolist(), strict=True)) / weights.sum()
    assert (own.nats / own.tokens * weights).sum() / weights.sum() == pytest.approx(literal, rel=1e-6)


def test_full_pieces_equal_the_loop_of_quantisation_papers(
    models: tuple[Transformer, Vocab, Path], tmp_path: Path
) -> None:
    """The mean of the losses of full pieces of `seqlen` tokens; what is left at the end is not read."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, theirs = AutoTokenizer.from_pretrained(models[2]), AutoModelForCausalLM.from_pretrained(models[2])
    ids = tokenizer("\n\n".join(PAGES), return_tensors="pt").input_ids
    count = ids.numel() // CONTEXT
    assert ids.numel() % CONTEXT > 1, "the rest must be able to change the result"
    losses = []
    for number in range(count):
        batch = ids[:, number * CONTEXT : (number + 1) * CONTEXT]
        with torch.no_grad():
            logits = theirs(batch).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, batch[0, 1:])) * CONTEXT)
    item = PerplexitySet(
        name="q",
        path=write_rows(tmp_path / "rows.jsonl", PAGES, "text"),
        stream="text",
        start_token="none",
        context=CONTEXT - 1,
        windows="full_pieces",
    )
    result = scores(models, item)["perplexity"]
    assert result.value == pytest.approx(math.exp(sum(losses) / (count * CONTEXT)), rel=1e-6)
    rest = scores(models, item.model_copy(update={"windows": "pieces"}))["perplexity"]
    assert rest.value != pytest.approx(result.value, rel=1e-6) and rest.settings != result.settings
