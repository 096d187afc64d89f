"""The calculator: exact results, and nothing for what is not arithmetic."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from data_prep.chat.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*4", "48"),
        (" 48 / 2 ", "24"),
        ("(1+2)*-3", "-9"),
        ("0.1+0.2", "0.3"),
        ("5*.5", "2.5"),
        ("5.+1", "6"),
        ("1,000*3", "3000"),
        ("1,234,567+1", "1234568"),
        ("10/3", "3.3333333333"),
        ("-2/3", "-0.6666666667"),
        ("10/3*3", "10"),
        ("1/3-1/3", "0"),
        ("-0", "0"),
        ("-1/100000000000", "0"),
        ("2×3", "6"),
        ("6÷4", "1.5"),
        ("5\N{MINUS SIGN}7", "-2"),
        ("99999999999*99999999999", "9999999999800000000001"),
        ("((((1))))", "1"),
        ("12345678901234567.5*2", "24691357802469135"),
        ("2--3", "5"),
    ],
)
def test_arithmetic_is_exact(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "1/0", "1/(2-2)", "2**9", "9**9**9**9", "9//2", "7%2", "1e9", "0x10", "1_000", "1j", "3 4", "1 000",
        "08", "(1", "1)", "()", "1+", "*2", "1,00", "1,2", "1,2,3", "abs(1)", "__import__('os')", "a", "1;2",
        "1\n2", "'1'*9", "[1]", "1<2", "1 if 1 else 2", "lambda: 1", "True", "٤+1", "9" * 31, "9" * 30 + "*9",
        "(" * 99 + "1" + ")" * 99 + "1", "1+" * 150 + "1", "(" * 200, "-" * 200 + "1", "\x00",
    ],
)  # fmt: skip
def test_all_else_gives_nothing(expression: str) -> None:
    assert calculate(expression) is None


def test_no_expression_of_allowed_characters_fails_or_takes_long() -> None:
    """Also deep ones: the parser of Python has a limit of its own."""
    generator = random.Random(1)
    began = time.process_time()
    for _ in range(2000):
        text = "".join(generator.choice("0123456789.+-*/() ,") for _ in range(generator.randrange(1, 200)))
        result = calculate(text)
        assert result is None or Fraction(result) == Fraction(result)
    assert calculate("-" * 199 + "1") == "-1"
    assert calculate("(" * 60 + "1" + ")" * 60) == "1"
    assert time.process_time() - began < 20
