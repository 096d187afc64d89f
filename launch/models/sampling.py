"""Implements `replica sample`: continues a prompt and streams the text."""

from __future__ import annotations

import sys
from argparse import Namespace

from configs.schema.recipe import load_run
from data_prep.tokens.vocab import Vocab
from launch.models.text_stream import decode_stream
from pretrain.checkpoint.choice import Choice, choose_checkpoint


def stream_sample(arguments: Namespace) -> None:
    """Prints the prompt, then each piece of its continuation as it is generated."""
    choice = Choice(arguments.checkpoint_step, arguments.best)
    checkpoint = choose_checkpoint(load_run(arguments.run).run_directory, choice)
    from pretrain.checkpoint.load_weights import load_weights  # torch takes seconds to import
    from pretrain.generation.generate import generate
    from pretrain.generation.sampling import Sampling

    vocab = Vocab.load(checkpoint.tokenizer)
    prompt = vocab.prompt(arguments.prompt)
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, vocab.end_ids, vocab.size
    )
    tokens = generate(load_weights(checkpoint), prompt, arguments.max_new_tokens, sampling)
    print(arguments.prompt, end="", flush=True)
    for text in decode_stream(vocab, prompt, tokens):
        print(text, end="", flush=True)
    sys.stdout.write("\n")
