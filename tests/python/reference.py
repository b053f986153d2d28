"""Batch norm as its definition says, in two passes of NumPy: what the library is compared with.

float32 data, and float16 and bfloat16, is computed in float64, float64 data in longdouble. A result comes as a Value:
the number, and how far from it the library's rounding may end, term by term from the arithmetic that DESIGN describes:

- u, half an ulp of the arithmetic's type (the data's; float32 for 16 bits), for each rounding of a term: of a
  difference, a coefficient, a product, a sum.
- half an ulp of the data's type more, where that has 16 bits: y and dx are rounded to it once.
- 2**-53 for each rounding of what is computed in float64 for each statistic before: 1 / sqrt(var + eps) * gamma.
- the statistics are float64 sums of n terms, whose roundings add up like a random walk: STATISTICS(n) below.
  Those of 16-bit data start as float32 sums, on a GPU those of float32 data too: what DESIGN promises.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

# Whether the library computes on a GPU.
on_gpu = False


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


class DoubleBackward(NamedTuple):
    ddy: Value
    dx: Value
    dgamma: Value


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


def forward(x, axis=1, gamma=None, beta=None, eps=1e-5, *, weights=None, group_size=None, residual=None):
    """Training forward, up to an activation. weights: None, or broadcast to x."""
    if group_size is not None:
        parts = [
            forward(x[at], axis, gamma, beta, eps, weights=_part(weights, at), residual=_part(residual, at))
            for at in groups_of(x, group_size)
        ]
        stats = [Value(*map(np.stack, zip(*values, strict=True))) for values in list(zip(*parts, strict=True))[1:4]]
        y = Value(*map(np.concatenate, zip(*(part.y for part in parts), strict=True)))
        return Forward(y, *stats, np.stack([np.broadcast_to(part.count, stats[0].exact.shape[1:]) for part in parts]))
    box = _Box(x, axis, weights)
    mean = box.mean(box.x)
    mean = mean + box.mean(box.x - mean)
    var = box.mean((box.x - mean) ** 2)
    inv_std = 1 / np.sqrt(var + eps)
    # Chunks of x are merged by the differences of their means, float64 numbers.
    var_error = box.squares * var + 8 * 2.0**-53 * np.abs(mean) * np.sqrt(var)
    y = _normalized(box, mean, inv_std, gamma, beta, box.squares)
    if residual is not None:
        exact = y.exact + box.widen(residual)
        y = Value(exact, y.error + box.roundings(1) * np.abs(exact))
    return Forward(
        box.stored(*y),
        box.value(mean, box.statistics * (np.abs(mean) + np.sqrt(var))),
        box.value(var, var_error),
        box.value(inv_std, 4 * 2.0**-53 * inv_std + var_error / 2 * inv_std**3),
        box.count if weights is None else box.value(box.count, 0).exact,
    )


def groups_of(x, group_size):
    """Slices of axis 0, the last of which may be shorter."""
    return [slice(first, first + group_size) for first in range(0, x.shape[0], group_size)]


def inference(x, mean, var, axis=1, gamma=None, beta=None, eps=1e-5):
    """Forward with given statistics."""
    box = _Box(x, axis)
    return box.stored(*_normalized(box, box.spread(mean), 1 / np.sqrt(box.spread(var) + eps), gamma, beta, 0))


def backward(
    dy,
    x,
    axis=1,
    gamma=None,
    eps=1e-5,
    grad_dtype=None,
    *,
    weights=None,
    group_size=None,
    through=None,
    slope=0,
):
    """Gradients of forward. grad_dtype is the type that dgamma and dbeta come in: the data's if None.

    through says which elements an activation let through; the gradients of the others are `slope` times as large.
    """
    parts = [
        _backward(dy[at], x[at], axis, gamma, eps, _part(weights, at), _part(through, at), slope)
        for at in ([...] if group_size is None else groups_of(x, group_size))
    ]
    grads = []
    for values in list(zip(*parts, strict=True))[1:]:
        exact = sum(value.exact for value in values)
        sizes = sum(np.abs(value.exact) for value in values) if len(parts) > 1 else 0
        error = sum(value.error for value in values) + len(parts) * 2.0**-53 * sizes
        grads.append(_rounded(Value(exact, error), grad_dtype or x.dtype))
    return Backward(
        Value(*map(np.concatenate, zip(*(p.dx for p in parts), strict=True))) if x.ndim else parts[0].dx, *grads
    )


def _backward(dy, x, axis, gamma, eps, weights, through, slope):
    """For one group; dgamma and dbeta are not yet rounded to their type."""
    box = _Box(x, axis, weights)
    dy = box.widen(dy)
    mean, inv_std = (box.spread(v.exact) for v in forward(x, axis, eps=eps, weights=weights)[1:4:2])
    gamma = box.spread(1 if gamma is None else gamma)
    scaled = 0
    if through is not None:  # two roundings, of the slope and of the product
        dy = np.where(through, dy, slope * dy if slope else 0)
        scaled = box.roundings(2) * np.where(through, 0, np.abs(dy))
    # With weights, the sums leave x out where dy is 0, whatever it is, and dx where the weight is 0.
    raw = (box.x - mean) * inv_std
    summed = raw if weights is None else np.where(dy != 0, raw, 0)
    dy_mean, dy_xhat = box.share(box.sum(dy)), box.share(box.sum(dy * summed))
    xhat = np.where(box.weighted, raw, 0)
    w = box.weights
    first, second = gamma * inv_std * (dy - w * dy_mean), gamma * inv_std * w * xhat * dy_xhat
    # first is rounded 3 times (dy - mean, coefficient, sum) and second 6; the sums behind them have errors of their
    # own, which |mean| far above the standard deviation enlarges.
    condition = 1 + np.abs(mean) * inv_std
    error = box.roundings(8) * (np.abs(first) + np.abs(second)) + np.abs(gamma) * inv_std * scaled
    if weights is None:
        size = np.sqrt(box.mean(dy**2))
    else:
        # The sums run over dy of weight 0 as well; w * the mean of dy and w * the rest are rounded before the sum.
        size = box.share(box.sum(np.abs(dy)) + box.sum(np.abs(dy * summed)))
        error = error + box.roundings(2) * np.abs(gamma) * inv_std * w * (np.abs(dy_mean) + np.abs(dy_xhat))
        error = error + box.statistics * np.abs(first)
    error = error + box.statistics * np.abs(gamma) * inv_std * w * size * condition * (1 + np.abs(xhat))
    return Backward(box.stored(first - second, error), *_param_grads(box, dy, summed, condition))


def through_activation(z, activation, slope, dtype):
    """What an activation makes of z (of dtype), to the bit, and which elements it let through: all but those <= 0."""
    if activation is None:
        return z, None
    through = ~(z <= 0)
    with np.errstate(invalid="ignore"):
        below = np.zeros_like(z) if activation == "relu" or slope == 0 else z * np.asarray(slope, dtype)
    return np.where(through, z, below), through


def inference_backward(dy, x, mean, var, axis=1, gamma=None, eps=1e-5, grad_dtype=None):
    """Gradients of inference: mean and var are constants."""
    box = _Box(x, axis)
    dy = box.widen(dy)
    inv_std = 1 / np.sqrt(box.spread(var) + eps)
    dx = box.spread(1 if gamma is None else gamma) * inv_std * dy
    xhat = (box.x - box.spread(mean)) * inv_std
    # The coefficient is rounded, and the product.
    grads = (_rounded(value, grad_dtype or box.dtype) for value in _param_grads(box, dy, xhat, 1))
    return Backward(box.stored(dx, box.roundings(2) * np.abs(dx)), *grads)


def grad_sums(dy, x, mean, axis=1):
    """sum(dy) and sum(dy * (x - mean))."""
    box = _Box(x, axis)
    terms = box.widen(dy), box.widen(dy) * (box.x - box.spread(mean))
    return tuple(box.value(box.sum(t), box.statistics * box.sum(np.abs(t))) for t in terms)


def jvp(tx, x, mean, inv_std, axis=1, gamma=None, tgamma=None, tbeta=None):
    """Derivative of forward in a direction; mean and inv_std are x's."""
    box = _Box(x, axis)
    v = _Centred(box, tx, mean, inv_std)
    gamma, tgamma, tbeta = (
        box.spread(otherwise if p is None else p) for p, otherwise in ((gamma, 1), (tgamma, 0), (tbeta, 0))
    )
    a = gamma * box.spread(inv_std)
    first, second, third = a * v.centred, a * v.slope * v.xhat, tgamma * v.xhat
    # first is rounded 3 times and second and third, as one, 5 times; all then with two sums.
    error = box.roundings(8) * (np.abs(first) + np.abs(second) + np.abs(third) + np.abs(tbeta))
    error = error + np.abs(a) * (v.mean_error + v.slope_error * np.abs(v.xhat))
    return box.stored(first - second + third + tbeta, error)


def double_backward(ddx, dy, x, mean, inv_std, axis=1, gamma=None, ddgamma=None, ddbeta=None, grad_dtype=None):
    """Gradients of backward; mean and inv_std are x's."""
    box = _Box(x, axis)
    v, g = _Centred(box, ddx, mean, inv_std), _Centred(box, dy, mean, inv_std)
    r = box.spread(inv_std)
    a = box.spread(1 if gamma is None else gamma) * r**2
    b = box.spread(0 if ddgamma is None else ddgamma) * r
    # Of backward's scalars gamma * inv_std * M * k and ddgamma * M * q:
    k = box.mean(v.centred * g.centred) - v.slope * g.slope
    k_error = box.statistics * box.mean(np.abs(v.centred * g.values)) + v.mean_error * box.mean(np.abs(g.values))
    k_error = k_error + np.abs(v.slope) * g.slope_error + np.abs(g.slope) * v.slope_error
    k_error = k_error + 4 * 2.0**-53 * (np.abs(k) + np.abs(v.slope * g.slope))
    terms = (
        -a * g.slope * v.centred,
        -a * v.slope * g.centred,
        b * g.centred,
        a * (2 * v.slope * g.slope - k) * v.xhat,
        -b * g.slope * v.xhat,
    )
    # Each is rounded at most 5 times, and 3 times in sums.
    error = box.roundings(8) * sum(map(np.abs, terms)) + np.abs(a) * (
        g.slope_error * np.abs(v.centred) + np.abs(g.slope) * v.mean_error
    )
    error = error + np.abs(a) * v.slope_error * np.abs(g.centred) + np.abs(a * v.slope - b) * g.mean_error
    error = error + np.abs(v.xhat * a) * (
        2 * np.abs(v.slope) * g.slope_error + 2 * np.abs(g.slope) * v.slope_error + k_error
    )
    error = error + np.abs(v.xhat * b) * g.slope_error
    u = float(finfo(grad_dtype or box.dtype).eps) / 2
    dgamma = box.count * r * k
    return DoubleBackward(
        jvp(ddx, x, mean, inv_std, axis, gamma, ddgamma, ddbeta),
        box.stored(sum(terms), error),
        box.value(dgamma, u * np.abs(dgamma) + box.count * r * k_error),
    )


class _Centred:
    """A tensor without its mean, and the mean of its product with xhat; each mean with the error that its float64 sum
    has."""

    def __init__(self, box, values, mean, inv_std):
        self.values = box.widen(values)
        self.xhat = (box.x - box.spread(mean)) * box.spread(inv_std)
        self.centred = self.values - box.mean(self.values)
        self.slope = box.mean(self.values * self.xhat)
        self.mean_error = box.statistics * box.mean(np.abs(self.values))
        self.slope_error = box.statistics * box.mean(np.abs(self.values * self.xhat))


def _normalized(box, mean, inv_std, gamma, beta, statistics):
    gamma, beta = box.spread(1 if gamma is None else gamma), box.spread(0 if beta is None else beta)
    xhat = (box.x - mean) * inv_std
    # gamma * xhat is rounded 3 times (x - mean, coefficient, sum), beta twice.
    error = box.roundings(4) * (np.abs(gamma * xhat) + np.abs(beta))
    error = error + statistics * np.abs(gamma) * (1 + np.abs(mean) * inv_std) * (1 + np.abs(xhat))
    return Value(gamma * xhat + beta, error)


def _param_grads(box, dy, xhat, condition):
    """dgamma and dbeta, before they are rounded to their type."""
    sum_dy, sum_dy_xhat = box.sum(dy), box.sum(dy * xhat)
    sizes = box.sum(np.abs(dy * xhat)) + box.sum(np.abs(dy)) * condition, box.sum(np.abs(dy))
    return (
        box.value(total, (box.squares - box.statistics) * np.abs(total) + box.statistics * size)
        for total, size in zip((sum_dy_xhat, sum_dy), sizes, strict=True)
    )


def _rounded(value, dtype):
    return Value(value.exact, value.error + float(finfo(dtype).eps) / 2 * np.abs(value.exact))


def _part(array, at):
    return None if array is None else array[at]


class _Box:
    """x in a wider type, and the axes that its statistics run over."""

    def __init__(self, x, axis, weights=None):
        self.dtype = x.dtype
        half = is_half(x.dtype)
        self.u = float(finfo(np.float32 if half else x.dtype).eps) / 2
        self.storage = float(finfo(x.dtype).eps) / 2 if half else 0.0
        self.kept = kept_axes(x, axis)
        self.reduced = tuple(a for a in range(x.ndim) if a not in self.kept)
        self.x = self.widen(np.asarray(x))
        self.values = int(np.prod([x.shape[a] for a in self.reduced]))
        self.weights, self.weighted, self.count = 1, True, self.values
        if weights is not None:
            self.weights = np.broadcast_to(self.widen(weights), x.shape)
            self.weighted = self.weights > 0
            self.count = self.sum(self.weights)
        # STATISTICS(n): roundings of n additions in float64, of squares of differences from a pivot that may be four
        # standard deviations from the mean: 1 + 4**2 times the variance.
        float32_runs = half or (on_gpu and x.dtype == np.float32)
        self.statistics = 1e-7 if float32_runs else 2.0**-53 * 17 * (8 + np.sqrt(self.values))
        self.squares = 1e-6 if float32_runs else self.statistics  # half of what 1e-6 for inv_std allows

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
        return self.share(
            self.sum(array if self.weighted is True else np.where(self.weighted, self.weights * array, 0))
        )

    def share(self, total):
        """A sum over the count, or the weight, behind it; 0 where there is none."""
        return total / self.count if self.weighted is True else total / np.where(self.count > 0, self.count, np.inf)

    def value(self, exact, error):
        """A Value of the kept axes' shape."""
        shape = [self.x.shape[a] for a in self.kept]
        return Value(exact.reshape(shape), np.broadcast_to(error, exact.shape).reshape(shape))
