"""Keeps the compiled templates of lm-eval's tasks, which lm-eval compiles anew for each text that it renders."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

_TEMPLATES = 1024  # more than the tasks of one entry have


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Makes lm-eval compile each template once while this lasts; what is rendered stays the same, to the character.

    A five-shot item needs six texts of one template. Compiling it takes longer than a small model reads the item.
    """
    from lm_eval.utils import env

    env.from_string = functools.lru_cache(_TEMPLATES)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the method of the class is left
