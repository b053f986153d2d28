"""Statistics as values: they add up over the parts of a batch, and the sum is that of the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Grads(NamedTuple):
    """What backward returns.

    dx has x's shape, dtype and memory order; dgamma and dbeta have the kept axes' shape and gamma's dtype (float32,
    or float64 for float64 data, if gamma has none). dresidual is like dx; None unless it was asked for.
    """

    dx: Any
    dgamma: Any
    dbeta: Any
    dresidual: Any = None


def on_gpu(array: Any) -> bool:
    """Whether an array is on a GPU, where looking at a value means to wait for it."""
    is_cuda = getattr(array, "is_cuda", None)
    return hasattr(array, "__cuda_array_interface__") if is_cuda is None else bool(is_cuda)


def refuse_gpu(x: Any, what: str) -> None:
    """Raise RuntimeError for an array on a GPU, which `what` does not take."""
    if on_gpu(x):
        raise RuntimeError(f"x is on a GPU, and {what} the CPU alone: the functions take it")


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """An array of any kind as NumPy's, of its own type where NumPy has that."""
    if hasattr(value, "detach"):  # a PyTorch tensor may need its graph and its device taken off
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _float64(array: Any) -> AbstractContextManager[Any]:
    """For arithmetic in float64, which JAX otherwise makes float32 of, unless its user has said that it should not."""
    if not type(array).__module__.startswith("jax"):
        return nullcontext()
    import jax
    from jax import experimental

    context: AbstractContextManager[Any]
    context = jax.enable_x64(True) if hasattr(jax, "enable_x64") else experimental.enable_x64()
    return context


def _is_zero(count: Any) -> bool:
    return isinstance(count, float | int) and count == 0


def _same_shape(a: Any, b: Any) -> None:
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"statistics of shapes {tuple(a.shape)} and {tuple(b.shape)} do not merge")


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, m2 = sum((x - mean)^2) and count of each statistic, float64, of the kept axes' shape.

    count is a number, or an array of that shape where there are weights (their sums) or groups. ``m1 + m2``,
    ``sum([...])`` and ``Moments.merge([...])`` give the moments of all the values together (Chan, Golub and LeVeque,
    1979), in the order given.
    """

    mean: Any
    m2: Any
    count: Any

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        _same_shape(self.mean, other.mean)
        if _is_zero(other.count):
            return self
        if _is_zero(self.count):
            return other
        one = isinstance(self.count, float | int) and isinstance(other.count, float | int)  # for all statistics
        if one and self.count < other.count:
            return other + self  # a far mean costs delta digits of the other one: let its share be the small one
        with _float64(self.mean):
            count = self.count + other.count
            nonzero = count + (count == 0)  # where there is nothing behind either: 0 / 1
            share = other.count / nonzero
            delta = other.mean - self.mean
            mean = self.mean + delta * share
            if not one:  # either may be the heavier part: the lost digits are in what is left of the deviations
                mean = mean + ((self.mean - mean) * (self.count / nonzero) + (other.mean - mean) * share)
            # In this order nothing overflows where a share is 0.
            return Moments(mean, self.m2 + other.m2 + delta * (delta * (self.count * share)), count)

    def __radd__(self, zero: int) -> Moments:
        return self if zero == 0 else NotImplemented

    @staticmethod
    def merge(parts: Iterable[Moments]) -> Moments:
        """The moments of all parts together; ValueError if there are none."""
        merged = sum(parts)
        if merged == 0:
            raise ValueError("merge needs at least one part")
        return merged

    def var(self, correction: float = 0) -> Any:
        """m2 / (count - correction): the biased variance, or with correction=1 the unbiased one.

        Where there are counts for each statistic, one of 0 has the variance 0. Too small a count is a ValueError, but
        not on a GPU, where counts for each statistic are not looked at.
        """
        if isinstance(self.count, float | int):
            enough, nothing = self.count > correction, False
        elif on_gpu(self.count):
            enough, nothing = True, (self.count == 0) & (correction == 0)
        else:
            nothing = (self.count == 0) & (correction == 0)
            enough = bool(((self.count > correction) | nothing).all())
        if not enough:
            raise ValueError(f"var with correction {correction} needs a larger count than {self.count}")
        with _float64(self.m2):
            return self.m2 / (self.count - correction + nothing)


@dataclass(frozen=True, eq=False)
class GradSums:
    """count, sum(dy) and sum(dy * (x - mean)) of each statistic, float64, of the kept axes' shape.

    They are additive: ``s1 + s2`` and ``sum([...])`` are the sums over both parts of a batch, if both were taken
    around the same mean.
    """

    count: Any
    sum_dy: Any
    sum_dy_xmu: Any

    def __add__(self, other: GradSums) -> GradSums:
        if not isinstance(other, GradSums):
            return NotImplemented
        _same_shape(self.sum_dy, other.sum_dy)
        with _float64(self.sum_dy):
            return GradSums(self.count + other.count, self.sum_dy + other.sum_dy, self.sum_dy_xmu + other.sum_dy_xmu)

    def __radd__(self, zero: int) -> GradSums:
        return self if zero == 0 else NotImplemented
