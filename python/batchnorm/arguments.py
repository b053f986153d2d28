"""Arguments that Python checks itself: numbers, with the argument's name in what is said of others."""

from __future__ import annotations

import operator
from typing import Any


def integer(argument: str, value: Any, expected: str = "an int") -> int:
    """The value as an int, or a TypeError."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument} must be {expected}, got {value!r}") from None


def number(argument: str, value: Any) -> float:
    """The value as a float, or a TypeError; text is no number."""
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{argument} must be a number, got {value!r}")
