"""rich's console for text from anywhere; every console of the project is made here."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from configs.safety.terminal import printable, unguarded


class Console(rich.console.Console):
    """Styles and cursor movements are rich's alone: text is never markup, and reaches the terminal `printable`."""

    def __init__(self, stderr: bool = False, **settings: Any) -> None:
        super().__init__(
            file=unguarded(sys.stderr if stderr else sys.stdout), markup=False, emoji=False, highlight=False, **settings
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does it; the leaves' text cannot steer the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
