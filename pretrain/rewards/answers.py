"""Checks an answer against a reference. Training (`exact_answer`) and evaluation use this one function.

An answer is what stands after the last `####` of a text, up to the end of that line, as GSM8K writes it
(arXiv:2110.14168). The texts come from a model under training, which finds every gap in a checker. So nothing is run,
numbers are bounded and compared exactly, and what cannot be read as one number is compared as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_HASHES = r"(?<!#)####(?!#)"  # five are a heading of Markdown
MARKER = re.compile(rf"{_HASHES}[^\S\r\n]*((?:(?!{_HASHES})[^\r\n])*)")
_LONGEST = 200  # characters of an answer that can be a number

# Flags of a reward.
SEVERAL = "several_markers"
NO_MARKER = "no_marker"
EMPTY = "empty_answer"
NOT_A_NUMBER = "not_a_number"
UNFINISHED = "unfinished"

_DIGITS = {ord("０") + digit: str(digit) for digit in range(10)}
_SIGNS = {ord("−"): "-", ord("－"): "-", ord("＋"): "+", ord("．"): ".", ord("，"): ",", ord("／"): "/", ord("％"): "%"}
_CURRENCY = "$€£¥₹"
_CURRENCIES = {"dollar": "$", "dollars": "$", "usd": "$", "euro": "€", "euros": "€", "eur": "€", "percent": "%"}
# Words and letters that multiply a number; `5 million` is not 5.
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "k", "bn", "mn", "tsd"}
_LARGE = re.compile(r"[MBKT]")
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,60})(?:\.[0-9]{0,60})?|\.[0-9]{1,60}"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s?(?P<currency>[{_CURRENCY}]?)\s?(?P<inner>[+-]?)"
    rf"(?:(?P<whole>[0-9]{{1,30}})\s)?(?:(?P<above>[0-9]{{1,30}})\s?/\s?(?P<below>[0-9]{{1,30}})"
    rf"|(?P<plain>{_UNSIGNED})(?:[eE](?P<exponent>[+-]?[0-9]{{1,2}}))?)"
    rf"\s?(?P<unit>[%°{_CURRENCY}]|[^\W\d_]+(?:[ /-][^\W\d_]+)?)?"
)


@dataclass(frozen=True)
class Reward:
    """What an answer is worth by one measure.

    Attributes:
        value: the reward, finite.
        matched: the part of the text that it was read from; None where there is none.
        flags: what was odd about the text, such as `several_markers`.
    """

    value: float
    matched: str | None = None
    flags: tuple[str, ...] = ()


def check_answer(text: str, reference: str) -> Reward:
    """Gives 1 if the answer of a text equals the reference, else 0.

    Numbers are equal by value: `1,000`, `1000.0` and `$1000` are, and so are `1/2` and `0.5`. A unit after a number is
    ignored where the other side has none, and must be the same where both have one. A percent sign is read as a unit or
    as hundredths, whichever fits. All else is compared as text, without regard to capitals and spaces.

    Args:
        text: what the assistant wrote.
        reference: the right answer, or a solution that has it after its last `####`.

    Raises:
        ValueError: when the reference is empty.
    """
    given = last_answer(reference)
    wanted = _clean(reference if given is None else given)
    if not wanted:
        raise ValueError("the reference is empty, so no answer can be right; give each prompt its answer")
    found = MARKER.findall(text)
    if not found:
        return Reward(0.0, None, (NO_MARKER,))
    flags = (SEVERAL,) if len(found) > 1 else ()
    answer = _clean(found[-1])
    if not answer:
        return Reward(0.0, found[-1], (*flags, EMPTY))
    right = _read(wanted)
    if right is None:
        return Reward(float(_words(answer) == _words(wanted)), found[-1], flags)
    ours = _read(answer)
    if ours is None:
        return Reward(0.0, found[-1], (*flags, NOT_A_NUMBER))
    return Reward(float(_same(ours, right)), found[-1], flags)


def last_answer(text: str) -> str | None:
    """Returns what stands after the last `####` of a text, as it is written; None without one."""
    found = MARKER.findall(text)
    return found[-1] if found else None


def _clean(answer: str) -> str:
    """Removes what is no part of an answer: spaces, Markdown's emphasis, and the full stop of a sentence."""
    return answer.strip().strip("*_`").rstrip(".!;").strip().strip("*_`")


def _words(text: str) -> list[str]:
    return text.casefold().split()


@dataclass(frozen=True)
class _Quantity:
    number: Fraction
    unit: str  # empty where there is none


def _same(one: _Quantity, other: _Quantity) -> bool:
    if one.unit and other.unit and one.unit != other.unit:
        return False
    if one.number == other.number:
        return True
    if one.unit == "%" != other.unit:
        return one.number / 100 == other.number
    return other.unit == "%" != one.unit and other.number / 100 == one.number


def _read(answer: str) -> _Quantity | None:
    """Reads an answer as one number with its unit; None where it is anything else."""
    if len(answer) > _LONGEST:
        return None
    match = _NUMBER.fullmatch(answer.translate(_DIGITS).translate(_SIGNS))
    if match is None or (match["sign"] and match["inner"]) or (match["inner"] and not match["currency"]):
        return None
    unit = match["unit"] or ""
    if match["currency"] and unit:
        unit = unit if unit.casefold() in _CURRENCIES else ""  # `$5 each` is an amount of dollars
    if any(letter.isnumeric() for letter in unit):  # `4²` is not 4
        return None
    if _LARGE.fullmatch(unit) or any(word in _SCALES for word in re.split(r"[ /-]", unit.casefold())):
        return None
    unit = match["currency"] or _CURRENCIES.get(unit.casefold(), unit.casefold())
    number = _number(match)
    return None if number is None else _Quantity(-number if "-" in match["sign"] + match["inner"] else number, unit)


def _number(match: re.Match[str]) -> Fraction | None:
    whole = int(match["whole"] or 0)
    if match["above"]:
        below = int(match["below"])
        return Fraction(int(match["above"]), below) + whole if below else None
    if match["whole"]:  # two numbers that are not a mixed fraction
        return None
    return Fraction(match["plain"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
