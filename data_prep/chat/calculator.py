"""Calculates an arithmetic expression exactly: the tool that an assistant may call while it answers.

The text comes from a model, so it is never run. It is parsed, and only numbers, + - * / and brackets are accepted.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

_LONGEST = 200  # characters, which also bounds the depth and the size of every number
_DIGITS = 30  # of a number before or after the point
_DECIMALS = 10
_ALLOWED = re.compile(r"[0-9.+\-*/() ]+")
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-"})
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(expression: str) -> str | None:
    """Calculates an expression of numbers, + - * / and brackets.

    The arithmetic is exact. The result is a whole number or a decimal fraction; one that needs more than ten decimals,
    such as 10/3, is rounded to ten at the end.

    Returns:
        the result, such as `48` or `0.25`; None for anything else: other characters, a division by zero, more than 200
        characters, or more than 30 digits.
    """
    if len(expression) > _LONGEST:
        return None
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), expression.translate(_SIGNS)).strip()
    if not _ALLOWED.fullmatch(text):
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return _written(value)


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        digits = text[node.col_offset : node.end_col_offset]  # the value would be a rounded float
        if len(digits) > _DIGITS:
            raise ValueError("too many digits")
        return Fraction(digits)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, text), _value(node.right, text))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def _written(value: Fraction) -> str | None:
    if abs(value) >= 10**_DIGITS:
        return None
    with localcontext() as context:
        context.prec = _DIGITS + _DECIMALS + 2
        quotient = Decimal(round(value * 10**_DECIMALS)).scaleb(-_DECIMALS)
        shown = f"{quotient:f}".rstrip("0").rstrip(".")
    return "0" if shown in ("", "-0") else shown
