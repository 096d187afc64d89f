"""Progress in a log file: a line at first, one every ten seconds, and the last amount."""

from __future__ import annotations

import pytest

from configs.common.progress import progress_bar


@pytest.mark.parametrize(
    ("total", "amounts", "lines"),
    [
        (None, [1, 2, 1500], ["texts: 1", "texts: 1,500"]),
        (None, [7], ["texts: 7"]),
        (None, [7, 7], ["texts: 7"]),
        (9, [1, 5, 9], ["texts: 1/9", "texts: 9/9"]),
        (9, [1, 5], ["texts: 1/9", "texts: 5/9"]),
        (None, [], []),
    ],
)
def test_the_last_amount_is_printed(
    capsys: pytest.CaptureFixture[str], total: float | None, amounts: list[int], lines: list[str]
) -> None:
    with progress_bar("texts", total) as bar:
        for amount in amounts:
            bar.update(amount)
    assert capsys.readouterr().err.splitlines() == lines


def test_an_error_ends_it_without_another_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), progress_bar("texts") as bar:
        bar.update(1)
        bar.update(2)
        raise ValueError("broken")
    assert capsys.readouterr().err.splitlines() == ["texts: 1"]
