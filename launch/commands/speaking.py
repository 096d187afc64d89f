"""The subcommands that generate text: `replica sample`, `replica chat`, `replica serve`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launch.commands.arguments import (
    add_run_and_checkpoint,
    add_server,
    count,
    number,
    positive,
    probability,
    run_directory,
    seed,
    utf8,
)
from launch.commands.command import Command


def _add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--temperature", type=number, default=0.8, metavar="T", help="0: always the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=count, metavar="K", help="sample among the K likeliest tokens (0: all)")
    parser.add_argument(
        "--top-p",
        type=probability,
        metavar="P",
        help="sample among the likeliest tokens whose probabilities add up to P",
    )


def _add_longest_answer(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="longest answer, in tokens (default: what fits the context)"
    )


def _sample_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "--prompt", type=utf8, required=True, help="text to continue, or with gaps such as '<|mask|>*12' to fill in"
    )
    parser.add_argument("--max-new-tokens", type=count, metavar="N", help="generate at most N tokens (default: 200)")
    _add_sampling(parser)
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="the same seed gives the same text (default: 0)"
    )
    masked = parser.add_argument_group("of a masked model (docs/any-order.md)")
    masked.add_argument("--steps", type=positive, metavar="N", help="forward passes (default: one for each token)")
    masked.add_argument(
        "--order", choices=["confidence", "random"], help="which masks are filled in first (default: confidence)"
    )
    masked.add_argument(
        "--block", type=positive, metavar="N", help="fill in N masks before any to their right (default: 32)"
    )
    masked.add_argument(
        "--critic", type=run_directory, metavar="RUN", help="let the causal model of this run choose among candidates"
    )
    masked.add_argument(
        "--candidates", type=positive, metavar="N", help="candidates of each pass, with --critic (default: 8)"
    )


def replica_sample(arguments: Namespace) -> int:
    """`replica sample`: prints the prompt and streams its continuation, or prints it with its gaps filled in."""
    from launch.models.sampling import stream_sample

    stream_sample(arguments)
    return 0


SAMPLE = Command(
    "sample",
    "Continue a prompt, or fill in its gaps.",
    'replica sample runs/demo --prompt "It was"',
    _sample_arguments,
    replica_sample,
)


def _chat_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    parser.add_argument(
        "--once", type=utf8, metavar="TEXT", help="print the answer to TEXT alone (default: converse in a terminal)"
    )
    parser.add_argument("--system", type=utf8, metavar="TEXT", help="system text (default: chat.system of the recipe)")
    _add_sampling(parser)
    _add_longest_answer(parser)
    parser.add_argument(
        "--seed", type=seed, metavar="S", help="the same seed gives the same answers (default: another each time)"
    )


def replica_chat(arguments: Namespace) -> int:
    """`replica chat`: a conversation with a model, or one printed answer."""
    from launch.chat.terminal import chat

    chat(arguments)
    return 0


CHAT = Command(
    "chat",
    "Talk to a model in the terminal.",
    "replica chat runs/assistant:sft --temperature 0",
    _chat_arguments,
    replica_chat,
)


def _serve_arguments(parser: ArgumentParser) -> None:
    add_run_and_checkpoint(parser)
    add_server(parser, 8000)
    _add_longest_answer(parser)
    parser.add_argument(
        "--rows", type=positive, default=32, metavar="N", help="answers decoded at a time (default: 32)"
    )
    parser.add_argument(
        "--waiting", type=count, default=64, metavar="N", help="requests that may wait for a row (default: 64)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the decode step, on a GPU to one CUDA graph: takes a minute, and computes all rows always",
    )


def replica_serve(arguments: Namespace) -> int:
    """`replica serve`: serves a page and an API until a signal ends it."""
    from launch.chat.serve import serve

    serve(arguments)
    return 0


SERVE = Command(
    "serve",
    "Serve a model: a web page, and an API that OpenAI's clients understand.",
    "replica serve runs/assistant:sft --port 8000",
    _serve_arguments,
    replica_serve,
)
