"""Describes a subcommand: its words in the help, its arguments, and the function that does it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand of `replica`.

    Attributes:
        name: the word after `replica`.
        description: what it does, in one sentence.
        example: a command line that works.
        add_arguments: adds its arguments to a parser.
        run: does it, and returns the exit code. It imports what it needs itself, so that `--help` costs nothing.
        resumes: when it is interrupted, the same command goes on from there.
    """

    name: str
    description: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    resumes: bool = False
