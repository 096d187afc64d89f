"""Starts training from existing weights: for fine-tuning, or for a longer context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from configs.schema.model import Model
from configs.schema.objectives import unit_of
from configs.schema.reading_direction import needs_causal
from configs.schema.recipe import Recipe
from data_prep.tokens.shards import DataManifest
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.load_weights import open_weights
from pretrain.checkpoint.manifest import DIRECTORY, IMPORTED, MANIFEST, newest, read_info
from pretrain.interchange.huggingface_config import CONFIG_NAME
from pretrain.interchange.huggingface_import import open_directory
from pretrain.model.weight_names import EXTRA_WEIGHTS

Read = Callable[[str], Tensor]

# What may differ, because no weight depends on it; and what stands for a default, compared by what it comes to.
_FREE = {"family", "context_length", "rope_scaling", "rope_theta", "dropout", "init_std", "zero_init", "causal"}
_RESOLVED = {"num_kv_heads": "kv_heads", "head_dim": "head_width", "intermediate_size": "mlp_width"}
_VOCABULARY = {"vocab_size", "vocab_multiple"}


def weights_to_start_from(recipe: Recipe, data: DataManifest, initial: Read) -> Read:
    """Returns a function that reads a weight of `train.init_from`, whole and in fp32, when it is asked for.

    The data's tokenizer may have more special tokens than that of the weights. Their rows, and those of special tokens
    that the weights were not trained on, are the mean of the other rows. Rows that only pad the embedding stay as they
    are, because the softmax goes over them too; where there are more of them here, these come from `initial`, and so do
    weights that only this objective has.

    Raises:
        ValueError: when the path holds no weights, or the model or tokenizer is another one; names what differs.
    """
    assert recipe.train.init_from
    return weights_of(Path(recipe.train.init_from), recipe.model, data.vocab, initial, "train.init_from")


def weights_of(path: Path, model: Model, vocab: Vocab, initial: Read, what: str) -> Read:
    """Returns a function that reads a weight of a run, a checkpoint or a Hugging Face directory, as above.

    `what` begins the message of a `ValueError`.
    """
    theirs = _opened(path, what)
    if model.causal:
        needs_causal(theirs.model, f"{what} {path}")
    if different := _differences(theirs.model, model):
        raise ValueError(f"{what} {path} has another model: {'; '.join(different)}; make the recipe's the same")
    known = Vocab.load(theirs.tokenizer)
    added = added_tokens(known, vocab)
    if added is None:
        raise ValueError(
            f"{what} {path} has other tokens than the data; prepare the data with "
            f"data.tokenizer={{kind: file, path: {theirs.tokenizer}}}"
        )
    seen = {known.eod_id, known.begin_id, None if theirs.model.causal else known.mask_id}
    untrained = {index for index in known.special_ids - seen if theirs.of_text}

    def value(name: str) -> Tensor:
        if name.startswith(EXTRA_WEIGHTS) and not theirs.has(name):
            return initial(name)
        found = theirs.read(name)
        if name not in ("embed.weight", "lm_head.weight"):
            return found
        whole, rows = initial(name), min(known.size, len(found))  # special tokens may have no row (see `Vocab`)
        kept = min(len(found), len(whole))
        whole[:kept] = found[:kept]
        trained = sorted(index for index in known.vocabulary.values() if index < rows and index not in untrained)
        if fresh := sorted(untrained | added):
            whole[fresh] = found[trained].mean(dim=0)
        return whole

    return value


def added_tokens(theirs: Vocab, ours: Vocab) -> set[int] | None:
    """Returns the ids of `ours` that `theirs` lacks; None: it is not the same vocabulary with more special tokens."""
    if not theirs.vocabulary.items() <= ours.vocabulary.items():
        return None
    added = {index for token, index in ours.vocabulary.items() if token not in theirs.vocabulary}
    return added if added <= ours.special_ids else None


class _Weights(NamedTuple):
    model: Model
    tokenizer: Path
    read: Read
    has: Callable[[str], bool]
    of_text: bool  # trained on documents, where no special token but the end of a document occurs


def _opened(path: Path, what: str) -> _Weights:
    if (path / CONFIG_NAME).is_file():
        return _Weights(*open_directory(path), has=lambda name: False, of_text=False)
    try:
        info = read_info(path) if (path / MANIFEST).is_file() and not (path / DIRECTORY).is_dir() else newest(path)
        if info is None:
            raise ValueError(
                f"{path} has neither {CONFIG_NAME} (a Hugging Face directory), {MANIFEST} (a checkpoint) "
                f"nor {DIRECTORY}/ with a whole checkpoint (a run); give a path that has"
            )
        _, weights = open_weights(info)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    made_here = not info.data_fingerprint.startswith(IMPORTED)
    return _Weights(
        info.recipe.model,
        info.tokenizer,
        lambda name: weights.whole(name, info.shapes[name]),
        lambda name: name in info.shapes,
        made_here and not info.recipe.train.init_from and unit_of(info.recipe.train.objective) == "document",
    )


def _differences(theirs: Model, ours: Model) -> list[str]:
    def of(model: Model, key: str) -> Any:
        return getattr(model, _RESOLVED.get(key, key))

    names = [key for key in Model.model_fields if key not in _FREE | _VOCABULARY]
    found = [f"model.{key} is {of(theirs, key)} there and {of(ours, key)} here" for key in names]
    found = [text for key, text in zip(names, found, strict=True) if of(theirs, key) != of(ours, key)]
    if ours.position == "learned" and theirs.context_length != ours.context_length:
        found.append(
            f"learned positions are {theirs.context_length} there and {ours.context_length} here (model.context_length)"
        )
    return found
