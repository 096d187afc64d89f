"""Implements `replica embed`: writes a vector for each document of files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from configs.common.files import refuse_existing
from configs.common.notices import say
from configs.common.progress import progress_bar
from configs.common.versions import own_version
from configs.schema.recipe import load_run
from data_prep.tokens.vocab import Vocab
from eval.currency import scored_recipe
from eval.stage_facts import is_reward_model
from eval.texts.documents import Text, batched_texts, texts_at
from pretrain.checkpoint.choice import Choice, choose_checkpoint

if TYPE_CHECKING:
    from pretrain.model.transformer import Transformer


Document = tuple[str, str, int]  # id, file, tokens


def embed_texts(arguments: Namespace) -> None:
    """Embeds documents, writes `--out`, and prints what it holds.

    Vectors of all documents are in memory: 8 bytes a document and dimension of the model.

    Raises:
        ValueError: for `--dims` together with `--like`, a reward model, a target or a file of `--like` that does not
            serve, a target that exists without `--force`, and as `texts_at`.
    """
    if arguments.dims is not None and arguments.like is not None:
        raise ValueError("--like has a projection of its own; give --dims or --like, not both")
    run = load_run(arguments.run).run_directory
    checkpoint = choose_checkpoint(run, Choice(arguments.checkpoint_step, arguments.best))
    if is_reward_model(checkpoint.recipe):
        raise ValueError(f"{run} has a reward model, whose states serve its reward; use a model of text")
    import torch  # takes seconds

    from eval.embedding.projection import Projection
    from eval.embedding.vector_file import MadeBy, check_target, read_projection, write_vectors
    from eval.reading.opening import HERE, reading_precision
    from pretrain.checkpoint.load_weights import load_weights

    check_target(arguments.out, [] if arguments.like is None else [arguments.like])
    refuse_existing(arguments.out, arguments.force)
    vocab, device = Vocab.load(checkpoint.tokenizer), HERE.own_device
    precision = reading_precision(scored_recipe(run, checkpoint), device)
    model_name = f"{run}, step {checkpoint.step}"
    made_by = MadeBy(checkpoint.fingerprint, vocab.fingerprint, precision, model_name, own_version())
    projection = None if arguments.like is None else read_projection(arguments.like, made_by)
    model = load_weights(checkpoint).to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    if arguments.dims is not None and arguments.dims > model.config.hidden_size:
        raise ValueError(
            f"--dims {arguments.dims}: vectors of this model have {model.config.hidden_size:,} dimensions; lower it, "
            "or leave it out"
        )
    documents, vectors = _embedded(model, vocab, texts_at(arguments.paths, arguments.text_field, arguments.lines))
    if arguments.dims is not None:
        projection = Projection.of(vectors, arguments.dims)
    if projection is not None:
        vectors = projection.apply(vectors)
    write_vectors(arguments.out, documents, vectors, made_by, projection)
    kept = "" if projection is None else f", {projection.explained.sum():.1%} of the variance of {_of(arguments)}"
    say(f"{arguments.out}: {len(documents):,} vectors of {vectors.shape[1]:,} dimensions{kept}")


def _of(arguments: Namespace) -> str:
    return "all dimensions" if arguments.like is None else f"the documents of {arguments.like}"


def _embedded(
    model: Transformer, vocab: Vocab, texts: Iterator[Text]
) -> tuple[list[Document], npt.NDArray[np.float64]]:
    """Returns the documents, and their vectors (n, D).

    Raises:
        ValueError: when there is no document.
    """
    from eval.embedding.mean_states import mean_states

    documents: list[Document] = []
    vectors = []
    done = 0
    with progress_bar("bytes embedded", None) as bar:
        for batch in batched_texts(texts):
            found, tokens = mean_states(model, vocab, [text.text for text in batch])
            vectors.append(found)
            documents += [(text.id, text.file, count) for text, count in zip(batch, tokens.tolist(), strict=True)]
            bar.update(done := done + sum(len(text.text.encode()) for text in batch))
    if not documents:
        raise ValueError("there is no document to embed: all files are empty")
    return documents, np.concatenate(vectors)
