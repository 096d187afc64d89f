"""`replica sample`: continues a prompt, printing the text as it is made."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence

from configs.schema.recipe import load_run
from data_prep.tokens.vocab import Vocab
from pretrain.checkpoint.choice import Choice, choose_checkpoint

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def stream_sample(arguments: Namespace) -> None:
    """Prints the prompt and its continuation as it is made."""
    choice = Choice(arguments.checkpoint_step, arguments.best)
    checkpoint = choose_checkpoint(load_run(arguments.run).run_directory, choice)
    from pretrain.checkpoint.load_weights import load_weights  # torch takes seconds to import
    from pretrain.model.generate import Sampling, generate

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


def decode_stream(vocab: Vocab, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text after the prompt, as tokens come; a character spread over several tokens waits until it is whole."""
    seen = list(prompt)
    told = len(vocab.decode(seen))
    text = ""
    for token in tokens:
        seen.append(token)
        text = vocab.decode(seen)
        if not text.endswith(_UNFINISHED):
            yield text[told:]
            told = len(text)
    yield text[told:]
