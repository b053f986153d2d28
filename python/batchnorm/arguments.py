"""Arguments that Python checks itself, with the argument's name in what is said of others: numbers, arrays, states."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .statistics import to_numpy


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


def numbers(argument: str, value: Any) -> npt.NDArray[Any]:
    """The value as an array of real numbers, or a TypeError."""
    array = to_numpy(value)
    if array.dtype == np.dtype("V2"):  # bfloat16, as np.load gives it back
        array = np.left_shift(array.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument} has dtype {array.dtype}, expected real numbers")
    return array


def whole_numbers(argument: str, array: npt.NDArray[Any]) -> None:
    """Raise a ValueError if the array has a number that int64 does not hold."""
    wide = np.asarray(array, np.longdouble)
    if not ((wide == np.floor(wide)) & (abs(wide) < 2.0**63)).all():
        raise ValueError(f"{argument} must be whole numbers that int64 holds, got {array}")


def named_arrays(argument: str, value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, or a TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{argument} is {type_name(value)}, expected a mapping of names to arrays, such as a state_dict()"
        )
    return value


def type_name(value: Any) -> str:
    """The name of the value's type with its module, since PyTorch and this library have classes of the same name."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
