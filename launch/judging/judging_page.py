"""Makes the page on which people judge: for a server, or as one file that works from disk."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from eval.people.davidson import elo_half_width
from eval.people.session import Session
from launch.chat.page_policy import page_policy


def template() -> str:
    """Returns the page without a session in it."""
    return (files("launch.judging") / "page.html").read_text(encoding="utf-8")


def shown_by(session: Session) -> dict[str, Any]:
    """Returns what a page needs: what is blind, and how precise the outcome will be."""
    return {**session.blind, "about": precision(session)}


def precision(session: Session) -> str:
    """Says beforehand how precise the outcome will be."""
    prompts, count = len(session.prompts), len(session.trials)
    if session.rates:
        return (
            f"{count:,} answers. Among 5 grades, 100 answers tell a mean to about ±0.2, and 400 to ±0.1; one rater who "
            f"reads all of them tells each mean to about ±{1.96 / prompts**0.5:.2g}."
        )
    return (
        f"{count:,} comparisons. 100 votes between two about equal models tell their difference to "
        f"±{elo_half_width(100):.0f} Elo points, and 400 to ±{elo_half_width(400):.0f} (681/√n, ties aside); one rater "
        f"who judges all of them gives {prompts:,} votes on each two models: ±{elo_half_width(prompts):.0f}."
    )


def page_file(session: Session) -> str:
    """Returns the page as one file that works from disk, with the session in it."""
    # `<` is escaped so that no text can end the script element.
    data = json.dumps(shown_by(session), ensure_ascii=False).replace("<", "\\u003c")
    for separator in ("\u2028", "\u2029"):
        data = data.replace(separator, f"\\u{ord(separator):x}")
    empty = '<script type="application/json" id="session"></script>'
    page = template()
    assert page.count(empty) == 1
    policy = f'<meta http-equiv="Content-Security-Policy" content="{page_policy(page)}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}', 1)
    return page.replace(empty, empty.replace("></", f">{data}</"), 1)
