"""Samples from a masked model: fills in the gaps of a prompt, or continues one that has none."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from configs.schema.denoising import Denoising
from configs.schema.recipe import load_run
from data_prep.tokens.gaps import gapped_prompt, has_gaps, without_escapes
from data_prep.tokens.vocab import Vocab
from eval.generation.infill import filled
from pretrain.checkpoint.choice import Choice, choose_checkpoint
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import CheckpointInfo
from pretrain.denoising.candidates import Critic, CriticDenoiser, causal_critic
from pretrain.denoising.denoise import Denoiser
from pretrain.denoising.predictor import predictor_of
from pretrain.generation.player import Request
from pretrain.generation.sampling import Sampling

_CANDIDATES = 8


def filled_sample(arguments: Namespace, checkpoint: CheckpointInfo, most: int) -> str:
    """Returns the text of `replica sample`; a prompt without gaps is continued by up to `most` tokens.

    Raises:
        ValueError: for a prompt that does not fit, and a critic that cannot read the text.
    """
    vocab = Vocab.load(checkpoint.tokenizer)
    context = checkpoint.recipe.model.context_length
    prompt = gapped_prompt(vocab, arguments.prompt, context)
    gaps = has_gaps(arguments.prompt)
    if not gaps and not most:
        return without_escapes(arguments.prompt)
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, vocab.end_ids, vocab.size
    )
    denoiser = _denoiser(arguments, checkpoint, vocab)
    (answer,) = denoiser.run([Request(prompt, most or 1, sampling)])
    if gaps:
        return vocab.decode(filled(prompt, answer.ids, vocab.mask_id))
    new = [token for token in answer.ids if token not in vocab.end_ids]
    return vocab.decode([*prompt, *new])


def _denoiser(arguments: Namespace, checkpoint: CheckpointInfo, vocab: Vocab) -> Denoiser:
    given = {name: getattr(arguments, name) for name in ("steps", "order", "block")}
    plan = Denoising.model_validate({name: value for name, value in given.items() if value is not None})
    if arguments.critic is None:
        if arguments.candidates is not None:
            raise ValueError("--candidates needs a critic that chooses among them; add --critic RUN")
        return Denoiser(predictor_of(load_weights(checkpoint), vocab), vocab.size, plan)
    critic = open_critic(arguments.critic, checkpoint, vocab)
    if not arguments.temperature:
        raise ValueError("--critic needs a temperature above 0: at 0 all candidates are the same")
    predictor = predictor_of(load_weights(checkpoint), vocab)
    return CriticDenoiser(critic, arguments.candidates or _CANDIDATES, predictor, vocab.size, plan)


def open_critic(run: Path, checkpoint: CheckpointInfo, vocab: Vocab) -> Critic:
    """Loads the newest checkpoint of a run as a critic of a masked model's text.

    Raises:
        ValueError: when it is not causal, has another tokenizer, or a shorter context.
    """
    found = choose_checkpoint(load_run(run).run_directory, Choice())
    config = found.recipe.model
    if not config.causal:
        raise ValueError(f"the critic {run} is a masked model; give a run that reads from left to right")
    if Vocab.load(found.tokenizer).fingerprint != vocab.fingerprint:
        raise ValueError(
            f"the critic {run} has another tokenizer than {checkpoint.recipe.name}, so it cannot read its tokens; "
            "train the critic with the same data.tokenizer, special tokens included"
        )
    if config.context_length < checkpoint.recipe.model.context_length:
        raise ValueError(
            f"the critic {run} reads {config.context_length:,} tokens at a time, fewer than the "
            f"{checkpoint.recipe.model.context_length:,} of {checkpoint.recipe.name}; give one with as long a context"
        )
    return causal_critic(load_weights(found), vocab.size)
