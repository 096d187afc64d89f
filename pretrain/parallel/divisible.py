"""Checks that sizes of the model can be divided between ranks."""

from __future__ import annotations

from collections.abc import Mapping


def require_multiple(what: str, sizes: Mapping[str, int], of: int) -> None:
    """Raises `ValueError` naming all `sizes` that are no multiple of `of`, the value of the setting `what`."""
    if problems := [f"{name} to be a multiple of it, not {size}" for name, size in sizes.items() if size % of]:
        raise ValueError(f"{what} {of} needs {', and '.join(problems)}")
