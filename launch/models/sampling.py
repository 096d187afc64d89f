"""Implements `replica sample`: continues a prompt and streams the text; a masked model fills in gaps."""

from __future__ import annotations

import sys
from argparse import Namespace

from configs.schema.recipe import load_run
from configs.schema.stage_recipe import is_masked
from data_prep.tokens.gaps import has_gaps, no_gaps, without_escapes
from data_prep.tokens.vocab import Vocab
from launch.models.text_stream import decode_stream
from pretrain.checkpoint.choice import Choice, choose_checkpoint

# Options that say how masks are filled in.
_OF_MASKED = ("steps", "order", "block", "critic", "candidates")
_NEW_TOKENS = 200


def stream_sample(arguments: Namespace) -> None:
    """Prints the prompt, then each piece of its continuation as it is generated; of a masked model the whole text.

    Raises:
        ValueError: for gaps or settings of masked models, where the model is none, and for a length beside gaps.
    """
    choice = Choice(arguments.checkpoint_step, arguments.best)
    checkpoint = choose_checkpoint(load_run(arguments.run).run_directory, choice)
    most = _NEW_TOKENS if arguments.max_new_tokens is None else arguments.max_new_tokens
    if not checkpoint.recipe.model.causal:
        from launch.models.infilling import filled_sample

        if has_gaps(arguments.prompt) and arguments.max_new_tokens is not None:
            raise ValueError(
                "--max-new-tokens says how far a prompt is continued, and one with gaps is not: each gap has its own "
                "length, such as <|mask|>*12; leave it out"
            )
        sys.stdout.write(filled_sample(arguments, checkpoint, most) + "\n")
        return
    if has_gaps(arguments.prompt):
        masked = [f"{arguments.run}:{stage.name}" for stage in load_run(arguments.run).stages if is_masked(stage)]
        raise ValueError(no_gaps(f"the model of {arguments.run} reads from left to right", *masked[:1]))
    if named := [name for name in _OF_MASKED if getattr(arguments, name) is not None]:
        raise ValueError(
            f"--{named[0]} says how masks are filled in, and the model of {arguments.run} has none: it continues token "
            "by token; leave it out"
        )
    from pretrain.checkpoint.load_weights import load_weights  # torch takes seconds to import
    from pretrain.generation.generate import generate
    from pretrain.generation.sampling import Sampling

    vocab, text = Vocab.load(checkpoint.tokenizer), without_escapes(arguments.prompt)
    prompt = vocab.prompt(text)
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, vocab.end_ids, vocab.size
    )
    tokens = generate(load_weights(checkpoint), prompt, most, sampling)
    print(text, end="", flush=True)
    for piece in decode_stream(vocab, prompt, tokens):
        print(piece, end="", flush=True)
    sys.stdout.write("\n")
