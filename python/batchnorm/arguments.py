"""Arguments that Python checks itself: numbers, with the argument's name in what is said of others."""

from __future__ import annotations

import math
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


def check_options(*, eps: Any, group_size: Any, activation: Any, negative_slope: Any, threads: Any) -> None:
    """The options of a layer's calls, checked when it is made."""
    if not (math.isfinite(number("eps", eps)) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if activation not in (None, "relu", "leaky_relu"):
        raise ValueError(f"activation {activation!r} is unknown, expected None, 'relu' or 'leaky_relu'")
    if not math.isfinite(number("negative_slope", negative_slope)):
        raise ValueError(f"negative_slope must be finite, got {negative_slope}")
    for argument, value in (("group_size", group_size), ("threads", threads)):
        if value is not None and integer(argument, value) < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
