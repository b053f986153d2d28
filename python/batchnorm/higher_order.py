"""Derivatives beyond the gradients: of `batch_norm` in a direction, and of `batch_norm_backward`.

For gradients of gradients (gradient penalties, meta-learning), products with Jacobians and Hessians, and rules of
automatic differentiation. Arguments are as in `batchnorm.functional`, but for arrays on a GPU, which are a RuntimeError
here. The statistics are x's own, as `batch_norm` saved them, of the whole batch or with group_size. A `saved` with an
activation or weights is a ValueError; a residual's derivatives are the caller's, who adds them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from . import _core
from ._core import Saved

Array = TypeVar("Array")


class DoubleGrads(NamedTuple):
    """What `batch_norm_double_backward` returns: gradients with respect to the dy, x and gamma of backward.

    ddy and dx have x's shape, dtype and memory order; dgamma has the kept axes' shape and gamma's dtype (float32, or
    float64 for float64 data, if gamma has none).
    """

    ddy: Any
    dx: Any
    dgamma: Any


def batch_norm_jvp(
    tx: Array,
    x: Array,
    saved: Saved,
    gamma: Any = None,
    *,
    tgamma: Any = None,
    tbeta: Any = None,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Forward-mode derivative of `batch_norm`: how y changes as x, gamma and beta go in direction (tx, tgamma, tbeta).

    `saved` is what ``batch_norm(x, ...)`` returned. With xhat = (x - mean) * inv_std and means over each statistic's
    values::

        ty = gamma * inv_std * (tx - mean(tx) - xhat * mean(tx * xhat)) + tgamma * xhat + tbeta

    None for tgamma or tbeta is 0. The mean of tx is taken off before anything is rounded: a large common part of it
    costs no accuracy, unless x has one, too (docs/numerics.md). ``out`` may be tx or x itself.
    """
    ty: Array = _core.batch_norm_jvp(tx, x, saved, gamma, tgamma, tbeta, out, threads)
    return ty


def batch_norm_double_backward(
    ddx: Array,
    dy: Array,
    x: Array,
    saved: Saved,
    gamma: Any = None,
    *,
    ddgamma: Any = None,
    ddbeta: Any = None,
    out: tuple[Array | None, Array | None] | None = None,
    threads: int | None = None,
) -> DoubleGrads:
    """Gradients of `batch_norm_backward`: backward through backward.

    ``batch_norm_backward(dy, x, saved, gamma)`` took (dy, x, gamma) to (dx, dgamma, dbeta). ddx, ddgamma and ddbeta are
    the gradients of some loss with respect to those three; the result has its gradients with respect to dy, x and
    gamma, which are those of the number ``sum(ddx * dx) + sum(ddgamma * dgamma) + sum(ddbeta * dbeta)``. With M values
    behind each statistic, xhat = (x - mean) * inv_std, and the means p = mean(ddx * xhat), q = mean(dy * xhat) and
    k = mean((ddx - mean(ddx)) * dy) - p * q::

        ddy    = gamma * inv_std * (ddx - mean(ddx) - xhat * p) + ddgamma * xhat + ddbeta
        dx     = gamma * inv_std**2 * (xhat * (2 * p * q - k) - q * (ddx - mean(ddx)) - p * (dy - mean(dy)))
                 + ddgamma * inv_std * (dy - mean(dy) - xhat * q)
        dgamma = M * inv_std * k

    None for ddgamma or ddbeta is 0. x is taken with its statistics' dependence on it; what flows into x by way of
    forward's y is not part of the result, but that of `batch_norm_backward`. ddy is, to the bit,
    ``batch_norm_jvp(ddx, x, saved, gamma, tgamma=ddgamma, tbeta=ddbeta)``.

    ``out`` is a tuple (ddy, dx), either of which may be None. Each may be exactly one of ddx, dy and x; both, if dx is
    dy: of the two one is written first, and the other still needs its inputs then.

    Sums are float64, and the means of x, dy and ddx are taken off before anything is rounded. What is left is the
    rounding of the terms of dx, each a few times: where they cancel, dx is as accurate as the largest of them. For
    float32 data the terms' factors, of the size of gamma * inv_std**2 * dy, are float32 too: they underflow where x is
    of the order of 1e20.
    """
    return DoubleGrads(*_core.batch_norm_double_backward(ddx, dy, x, saved, gamma, ddgamma, ddbeta, out, threads))
