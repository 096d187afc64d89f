"""A reader without a model, which counts what it is asked, for tests of what stands before a model."""

from __future__ import annotations

from collections.abc import Sequence

from eval.reading.windows import Report, Score, Window
from pretrain.generation.player import Answer, Request


class CountingReader:
    """Answers follow from the request alone. `dies_after` requests it raises `KeyboardInterrupt`, as a kill would."""

    context_length, vocab_size, precision = 64, 100, "fp32"

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._dies_after = dies_after

    def _note(self, tokens: Sequence[int]) -> int:
        if self._dies_after is not None and len(self.asked) >= self._dies_after:
            raise KeyboardInterrupt
        self.asked.append(tuple(map(int, tokens)))
        return sum(self.asked[-1])

    def score(self, windows: Sequence[Window], report: Report | None = None) -> list[Score]:
        out = []
        for window in windows:
            out.append(Score(self._note(window.tokens) / 7, window.scored % 2 == 0))
            if report is not None:
                report(len(out), total=len(windows))
        return out

    def generate(self, requests: Sequence[Request], report: Report | None = None) -> list[Answer]:
        answers = []
        for request in requests:
            total = self._note(request.prompt)
            answers += [Answer([total % 100, sample], [-0.1, -1 / 3], [False, False], "stop")
                        for sample in range(request.samples)]  # fmt: skip
        return answers

    def rewards(self, rows: Sequence[Sequence[int]], report: Report | None = None) -> list[float]:
        return [self._note(row) / 3 for row in rows]
