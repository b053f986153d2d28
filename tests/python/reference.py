"""Batch norm as its definition says, in two passes of NumPy: what the library is compared with.

float32 data, and float16 and bfloat16, is computed in float64, float64 data in longdouble. A result comes as a Value:
the number, and how far from it the library's rounding may end, term by term from the arithmetic that DESIGN describes:

- u, half an ulp of the arithmetic's type (the data's; float32 for 16 bits), for each rounding of a term: of a
  difference, a coefficient, a product, a sum.
- half an ulp of the data's type more, where that has 16 bits: y and dx are rounded to it once.
- 2**-53 for each rounding of what is computed in float64 for each statistic before: 1 / sqrt(var + eps) * gamma.
- the statistics are float64 sums of n terms, whose roundings add up like a random walk: STATISTICS(n) below.
  Those of 16-bit data start as float32 sums: what DESIGN promises.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np


class Value(NamedTuple):
    exact: np.ndarray
    error: np.ndarray


class Forward(NamedTuple):
    y: Value
    mean: Value
    var: Value
    inv_std: Value
    count: int


class Backward(NamedTuple):
    dx: Value
    dgamma: Value
    dbeta: Value


def finfo(dtype):
    """np.finfo, of bfloat16 too."""
    return ml_dtypes.finfo(dtype)


def is_half(dtype):
    return np.dtype(dtype).itemsize == 2


def assert_matches(got, want, name="result"):
    got = np.asarray(got)
    assert got.shape == want.exact.shape, f"{name} has shape {got.shape}, not {want.exact.shape}"
    subnormal = 4 * float(finfo(got.dtype).smallest_subnormal)
    if is_half(got.dtype):
        largest = float(finfo(got.dtype).max)
        got = got.astype(np.float64)
        # What is too large for the type is infinite.
        too_large = np.isinf(got) & (np.sign(got) * want.exact + want.error > largest)
        got = np.where(too_large, want.exact, got)
    excess = np.abs(got - want.exact) - want.error - subnormal
    if not np.all(excess <= 0):  # also for NaN
        at = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), got.shape)
        raise AssertionError(f"{name}{list(at)} is {got[at]!r}, not {want.exact[at]!r} +- {want.error[at]!r}")


def kept_axes(x, axis):
    """The axes that keep their own statistics, in x's order."""
    return tuple(sorted(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))))


def kept_shape(x, axis):
    return tuple(x.shape[a] for a in kept_axes(x, axis))


def forward(x, axis=1, gamma=None, beta=None, eps=1e-5):
    """Training forward."""
    box = _Box(x, axis)
    mean = box.mean(box.x)
    mean = mean + box.mean(box.x - mean)
    var = box.mean((box.x - mean) ** 2)
    inv_std = 1 / np.sqrt(var + eps)
    # Chunks of x are merged by the differences of their means, float64 numbers.
    var_error = box.squares * var + 8 * 2.0**-53 * np.abs(mean) * np.sqrt(var)
    return Forward(
        _normalized(box, mean, inv_std, gamma, beta, box.squares),
        box.value(mean, box.statistics * (np.abs(mean) + np.sqrt(var))),
        box.value(var, var_error),
        box.value(inv_std, 4 * 2.0**-53 * inv_std + var_error / 2 * inv_std**3),
        box.count,
    )


def inference(x, mean, var, axis=1, gamma=None, beta=None, eps=1e-5):
    """Forward with given statistics."""
    box = _Box(x, axis)
    return _normalized(box, box.spread(mean), 1 / np.sqrt(box.spread(var) + eps), gamma, beta, 0)


def backward(dy, x, axis=1, gamma=None, eps=1e-5, grad_dtype=None):
    """Gradients of forward. grad_dtype is the type that dgamma and dbeta come in: the data's if None."""
    box = _Box(x, axis)
    dy = box.widen(dy)
    mean, inv_std = (box.spread(v.exact) for v in forward(x, axis, eps=eps)[1:4:2])
    gamma = box.spread(1 if gamma is None else gamma)
    xhat = (box.x - mean) * inv_std
    dy_mean = box.mean(dy)
    dy_xhat = box.mean(dy * xhat)
    first, second = gamma * inv_std * (dy - dy_mean), gamma * inv_std * xhat * dy_xhat
    # first is rounded 3 times (dy - mean, coefficient, sum) and second 6; the sums behind them have errors of their
    # own, which |mean| far above the standard deviation enlarges.
    condition = 1 + np.abs(mean) * inv_std
    rms = np.sqrt(box.mean(dy**2))
    error = box.roundings(8) * (np.abs(first) + np.abs(second))
    error = error + box.statistics * np.abs(gamma) * inv_std * rms * condition * (1 + np.abs(xhat))
    dx = box.stored(first - second, error)
    return Backward(dx, *_param_grads(box, dy, xhat, condition, grad_dtype))


def inference_backward(dy, x, mean, var, axis=1, gamma=None, eps=1e-5, grad_dtype=None):
    """Gradients of inference: mean and var are constants."""
    box = _Box(x, axis)
    dy = box.widen(dy)
    inv_std = 1 / np.sqrt(box.spread(var) + eps)
    dx = box.spread(1 if gamma is None else gamma) * inv_std * dy
    xhat = (box.x - box.spread(mean)) * inv_std
    # The coefficient is rounded, and the product.
    return Backward(box.stored(dx, box.roundings(2) * np.abs(dx)), *_param_grads(box, dy, xhat, 1, grad_dtype))


def grad_sums(dy, x, mean, axis=1):
    """sum(dy) and sum(dy * (x - mean))."""
    box = _Box(x, axis)
    terms = box.widen(dy), box.widen(dy) * (box.x - box.spread(mean))
    return tuple(box.value(box.sum(t), box.statistics * box.sum(np.abs(t))) for t in terms)


def _normalized(box, mean, inv_std, gamma, beta, statistics):
    gamma, beta = box.spread(1 if gamma is None else gamma), box.spread(0 if beta is None else beta)
    xhat = (box.x - mean) * inv_std
    # gamma * xhat is rounded 3 times (x - mean, coefficient, sum), beta twice.
    error = box.roundings(4) * (np.abs(gamma * xhat) + np.abs(beta))
    error = error + statistics * np.abs(gamma) * (1 + np.abs(mean) * inv_std) * (1 + np.abs(xhat))
    return box.stored(gamma * xhat + beta, error)


def _param_grads(box, dy, xhat, condition, grad_dtype):
    u = float(finfo(grad_dtype or box.dtype).eps) / 2
    sum_dy, sum_dy_xhat = box.sum(dy), box.sum(dy * xhat)
    sizes = box.sum(np.abs(dy * xhat)) + box.sum(np.abs(dy)) * condition, box.sum(np.abs(dy))
    return (
        box.value(total, (u + box.squares - box.statistics) * np.abs(total) + box.statistics * size)
        for total, size in zip((sum_dy_xhat, sum_dy), sizes, strict=True)
    )


class _Box:
    """x in a wider type, and the axes that its statistics run over."""

    def __init__(self, x, axis):
        self.dtype = x.dtype
        half = is_half(x.dtype)
        self.u = float(finfo(np.float32 if half else x.dtype).eps) / 2
        self.storage = float(finfo(x.dtype).eps) / 2 if half else 0.0
        self.kept = kept_axes(x, axis)
        self.reduced = tuple(a for a in range(x.ndim) if a not in self.kept)
        self.x = self.widen(np.asarray(x))
        self.count = int(np.prod([x.shape[a] for a in self.reduced]))
        # STATISTICS(n): roundings of n additions in float64, of squares of differences from a pivot that may be four
        # standard deviations from the mean: 1 + 4**2 times the variance.
        self.statistics = 1e-7 if half else 2.0**-53 * 17 * (8 + np.sqrt(self.count))
        self.squares = 1e-6 if half else self.statistics  # half of what 1e-6 for inv_std allows

    def roundings(self, count):
        return count * self.u + 4 * 2.0**-53

    def stored(self, exact, error):
        """A Value of x's type."""
        return Value(exact, error + self.storage * (np.abs(exact) + error))

    def widen(self, array):
        return np.asarray(array).astype(np.longdouble if self.dtype == np.float64 else np.float64)

    def spread(self, param):
        """A parameter, broadcastable to x."""
        param = np.asarray(param)
        if param.ndim == 0:
            return self.widen(param)
        return self.widen(param).reshape([n if a in self.kept else 1 for a, n in enumerate(self.x.shape)])

    def sum(self, array):
        return array.sum(self.reduced, keepdims=True)

    def mean(self, array):
        return self.sum(array) / self.count

    def value(self, exact, error):
        """A Value of the kept axes' shape."""
        shape = [self.x.shape[a] for a in self.kept]
        return Value(exact.reshape(shape), np.broadcast_to(error, exact.shape).reshape(shape))
