"""Makes rich consoles that are safe for untrusted text. Every console of the project is made here."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from configs.safety.terminal import printable, unguarded


class Console(rich.console.Console):
    """Prints text as it is, never as markup, with control characters escaped (`printable`).

    Only rich itself sends styles and cursor movements to the terminal.
    """

    def __init__(self, stderr: bool = False, **settings: Any) -> None:
        super().__init__(
            file=unguarded(sys.stderr if stderr else sys.stdout), markup=False, emoji=False, highlight=False, **settings
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as rich does, and escapes control characters in all text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
