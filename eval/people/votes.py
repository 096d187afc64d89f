"""Reads, checks and appends votes. `votes.jsonl` is append-only, and each line is flushed to disk.

A line is a vote, the withdrawal of one, or a decision of the owner to set a rater aside. Who is which model is not in
it. The last line of a rater's slot counts: so a vote is taken back by a further line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from configs.common.locks import locked
from configs.common.notices import warn
from configs.safety.parsing import parse_json
from eval.people.session import Session, text_hash

CHOICES = ("left", "right", "tie", "bad")
LONGEST_NAME, LONGEST_NOTE = 40, 2000
_MOST_SLOTS, _MOST_MILLISECONDS = 10**6, 10**9
_SET_ASIDE = "set_aside"


@dataclass(frozen=True)
class Vote:
    """What one rater said about one trial.

    Attributes:
        rater: the name that the rater gave.
        key: of the rater's browser. Two raters with one name have different keys.
        slot: place in the rater's order, from 0.
        trial: id of the trial.
        shown: hashes of the answers, as they stood from left to right.
        choice: one of CHOICES; None with ratings, or where the vote was taken back.
        ratings: grade on each scale, from 1; empty for a comparison.
        milliseconds: from the trial's appearance to the vote.
        at: time of the vote in ISO 8601.
        note: the rater's remark.
    """

    rater: str
    key: str
    slot: int
    trial: str
    shown: tuple[str, ...]
    choice: str | None
    ratings: Mapping[str, int]
    milliseconds: int
    at: str
    note: str = ""

    @property
    def withdrawn(self) -> bool:
        """Tells whether it takes back the vote of its slot."""
        return self.choice is None and not self.ratings

    def as_json(self, page: str) -> dict[str, Any]:
        """The line of the file."""
        return {
            "page": page, "rater": self.rater, "key": self.key, "slot": self.slot, "trial": self.trial,
            "shown": list(self.shown), "choice": self.choice, "ratings": dict(self.ratings),
            "milliseconds": self.milliseconds, "at": self.at, "note": self.note,
        }  # fmt: skip


def parse_vote(raw: Any, session: Session) -> Vote:
    """Checks a vote against the session's page.

    Raises:
        ValueError: says what is wrong; for a vote of another page, that it is.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"a vote is an object of fields, not {type(raw).__name__}")
    if raw.get("page") != session.page:
        raise ValueError(
            f"it is a vote of another page ({str(raw.get('page'))[:40]!r}; this session's is {session.page!r})"
        )
    vote = Vote(
        rater=_text(raw, "rater", LONGEST_NAME, least=1),
        key=_text(raw, "key", 64, least=1),
        slot=_number(raw, "slot", _MOST_SLOTS),
        trial=_text(raw, "trial", 64, least=1),
        shown=tuple(map(str, raw["shown"])) if isinstance(raw.get("shown"), list) else (),
        choice=raw.get("choice"),
        ratings=raw.get("ratings") or {},
        milliseconds=_number(raw, "milliseconds", _MOST_MILLISECONDS),
        at=_time(raw),
        note=_text(raw, "note", LONGEST_NOTE),
    )
    trial = session.by_id.get(vote.trial)
    if trial is None:
        raise ValueError(f"the page has no trial {vote.trial!r}")
    if sorted(vote.shown) != sorted(map(text_hash, trial.answers)):
        raise ValueError(f"trial {vote.trial} has other answers than the vote says")
    if vote.withdrawn:
        return vote
    if session.rates:
        _check_ratings(vote, session)
    elif vote.choice not in CHOICES or vote.ratings:
        raise ValueError(f"`choice` is {str(vote.choice)[:40]!r}; expected one of {', '.join(CHOICES)}")
    return vote


def _check_ratings(vote: Vote, session: Session) -> None:
    scales = {scale.name: len(scale.anchors) for scale in session.settings.scales}
    if vote.choice is not None or not isinstance(vote.ratings, dict) or vote.ratings.keys() != scales.keys():
        raise ValueError(f"expected a grade on each of the scales {', '.join(scales)}, and nothing else")
    for name, grade in vote.ratings.items():
        if type(grade) is not int or not 1 <= grade <= scales[name]:
            raise ValueError(f"{name} is {str(grade)[:40]!r}; expected a whole number from 1 to {scales[name]}")


def _text(raw: Mapping[str, Any], name: str, most: int, least: int = 0) -> str:
    text = raw.get(name, "")
    if not isinstance(text, str) or not least <= len(text.strip()) or len(text) > most:
        raise ValueError(f"`{name}` must be a text of {least} to {most:,} characters")
    if name == "rater":
        text = " ".join(text.split())  # a Japanese keyboard writes wide blanks
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"`{name}` holds half of a surrogate pair, which is not a character")
    if name != "note" and not text.isprintable():
        raise ValueError(f"`{name}` holds characters that cannot be printed")
    return text


def _number(raw: Mapping[str, Any], name: str, most: int) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"`{name}` must be a whole number from 0 to {most:,}")
    return value


def _time(raw: Mapping[str, Any]) -> str:
    text = _text(raw, "at", 40, least=1)
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"`at` is {text!r}; expected a time such as 2026-11-30T09:00:00Z") from None
    return text


# ------------------------------------------------------------------------------------------------------------ the file
@dataclass
class VotesFile:
    """All lines of a session.

    Attributes:
        lines: votes in the order of the file, withdrawn ones too.
        aside: raters whose votes are not counted, with the reason.
        torn: bytes of a last line that was not written to its end; 0 for a whole file.
    """

    lines: list[Vote] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    torn: int = 0

    @property
    def labels(self) -> dict[tuple[str, str], str]:
        """Maps (name, key) to the name of the rater: `Ada`, and `Ada (2)` for another person of that name."""
        found: dict[tuple[str, str], str] = {}
        taken: set[str] = set()  # somebody may be called `Ada (2)`
        for vote in self.lines:
            if (vote.rater, vote.key) not in found:
                names = (f"{vote.rater} ({number})" for number in count(2))
                found[vote.rater, vote.key] = next(name for name in chain([vote.rater], names) if name not in taken)
                taken.add(found[vote.rater, vote.key])
        return found

    def by_rater(self) -> dict[str, list[Vote]]:
        """Maps raters to their votes that stand, in the order in which they saw the trials."""
        labels = self.labels
        last: dict[str, dict[int, Vote]] = {}
        for vote in self.lines:
            last.setdefault(labels[vote.rater, vote.key], {})[vote.slot] = vote
        return {
            rater: [slots[slot] for slot in sorted(slots) if not slots[slot].withdrawn] for rater, slots in last.items()
        }


def read_votes(path: Path, session: Session) -> VotesFile:
    """Reads a file of votes. A last line that was torn, as by a crash, is counted and left out.

    Raises:
        ValueError: for a damaged line, or a vote of another page, with the number of the line.
    """
    out = VotesFile()
    if not path.is_file():
        return out
    content = path.read_bytes()
    pieces = content.split(b"\n")
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            raw = parse_json(piece)
        except ValueError as error:
            if number == len(pieces):
                out.torn = len(piece)
                break
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}); restore the file") from error
        try:
            _add(out, raw, session)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return out


def _add(out: VotesFile, raw: Any, session: Session) -> None:
    if not isinstance(raw, dict) or _SET_ASIDE not in raw:
        out.lines.append(parse_vote(raw, session))
        return
    if raw.get("page") != session.page:
        raise ValueError("it belongs to another page")
    rater = _text({"rater": raw[_SET_ASIDE]}, "rater", LONGEST_NAME + 6, least=1)
    if raw.get("because") is None:
        out.aside.pop(rater, None)
    else:
        out.aside[rater] = _text(raw, "because", 200, least=1)


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines and flushes them to disk. What is left of a torn line is removed first."""
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), f"{path} is in use", wait=10):
        _mend(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            data = text.encode()
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mend(path: Path) -> None:
    """Ends a file in a whole line: a torn one was never acknowledged, and its page sends it again."""
    if not path.is_file():
        return
    with path.open("r+b") as stream:
        content = stream.read()
        if not content or content.endswith(b"\n"):
            return
        whole = content.rfind(b"\n") + 1
        try:
            parse_json(content[whole:])
        except ValueError:
            warn(f"{path}: the last line was torn, as by a crash; {len(content) - whole:,} bytes of it are removed")
            stream.truncate(whole)
        else:
            stream.write(b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def add_votes(path: Path, votes: Sequence[Vote], session: Session) -> int:
    """Appends the votes that the file does not have yet; returns their number. A file may be imported twice."""
    known = {(vote.key, vote.slot, vote.at) for vote in read_votes(path, session).lines}
    new = [vote.as_json(session.page) for vote in votes if (vote.key, vote.slot, vote.at) not in known]
    if new:
        append_lines(path, new)
    return len(new)


def import_votes(file: Path, target: Path, session: Session) -> tuple[int, int]:
    """Adds the votes of a file that a page gave; all of them or, where one is wrong, none.

    Returns:
        The numbers of votes that were new, and that were there.

    Raises:
        ValueError: when the file is missing, damaged, empty, or of another page.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give the one that the page saved")
    found = read_votes(file, session)
    if found.torn:
        raise ValueError(f"{file}: the last line is torn ({found.torn:,} bytes); have the page save the file again")
    if not found.lines:
        raise ValueError(f"{file} has no votes")
    new = add_votes(target, found.lines, session)
    return new, len(found.lines) - new


def set_aside(path: Path, session: Session, rater: str, because: str | None) -> None:
    """Records that a rater's votes are not counted, with the reason; None: they are counted again.

    Raises:
        ValueError: when nobody of this name has voted.
    """
    raters = read_votes(path, session).by_rater()
    if rater not in raters:
        raise ValueError(f"nobody called {rater!r} has voted; these have: {', '.join(raters) or 'none'}")
    append_lines(path, [{"page": session.page, _SET_ASIDE: rater, "because": because}])
