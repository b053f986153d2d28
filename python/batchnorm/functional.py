"""The functions: arrays in, arrays of the same kind and memory order out.

Common to all of them:

x, dy, out
    NumPy arrays (bfloat16 is ml_dtypes') or PyTorch CPU tensors of float32, float64, float16 or bfloat16, all of one
    kind, type and shape, of any rank up to 8 and
    any strides; they are not copied. ``out`` may be exactly an input, else it must not overlap one. Without it the
    result is a new array; the memory of large ones is used again when they are gone (see `batchnorm.clear_cache`).
gamma, beta, mean, var
    Of the kept axes' shape in x's order, ``(C,)`` for one axis: an array of any float type, a sequence, or one number
    for all. gamma and beta may be None: 1 and 0. float32 is right beside x of 16 bits too.
axis
    The axis, or tuple of axes, that keeps its own statistics; they run over all the others. ``()`` keeps none.
eps
    Added to the variance under the root; positive.
threads
    None uses as many as the work is worth, at most get_num_threads(); an int exactly as many. The results have the
    same bits for every number.

A TypeError says that an argument has a type that these functions do not take, a ValueError that its shape or value
does not fit; both name the argument and what would fit, and nothing was written then.

S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015, arXiv:1502.03167.
"""

from __future__ import annotations

from typing import Any, TypeVar

from . import _core
from ._core import Saved
from .statistics import Grads, GradSums, Moments

Array = TypeVar("Array")
Axis = int | tuple[int, ...]


def batch_norm(
    x: Array,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Saved]:
    """Normalize x by its own statistics: training forward.

    With M values behind each statistic::

        mean = sum(x) / M      var = sum((x - mean)^2) / M      inv_std = 1 / sqrt(var + eps)
        y = (x - mean) * inv_std * gamma + beta

    Returns y and what `batch_norm_backward` needs. The statistics are those of a float64 two-pass computation. M = 1
    is a ValueError, since a variance does not exist; an empty x gives an empty y.
    """
    return _core.batch_norm(x, gamma, beta, axis, eps, out, threads)


def batch_norm_backward(
    dy: Array,
    x: Array,
    saved: Saved,
    gamma: Any = None,
    *,
    out: Array | None = None,
    threads: int | None = None,
) -> Grads:
    """Gradients of `batch_norm`, from dy = dL/dy and what forward saved.

    With xhat = (x - mean) * inv_std::

        dbeta = sum(dy)      dgamma = sum(dy * xhat)
        dx = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)

    dgamma and dbeta are computed always, also where gamma is None. ``out`` gets dx and may be dy itself.
    """
    return Grads(*_core.batch_norm_backward(dy, x, saved, gamma, out, threads))


def batch_norm_inference(
    x: Array,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Normalize x by given statistics: ``y = (x - mean) / sqrt(var + eps) * gamma + beta``.

    A negative var is a ValueError.
    """
    y: Array = _core.batch_norm_inference(x, mean, var, gamma, beta, axis, eps, out, threads)
    return y


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    mean: Any,
    var: Any,
    gamma: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    threads: int | None = None,
) -> Grads:
    """Gradients of `batch_norm_inference`, in which mean and var are constants.

    With inv_std = 1 / sqrt(var + eps)::

        dx = gamma * inv_std * dy      dgamma = sum(dy * (x - mean)) * inv_std      dbeta = sum(dy)
    """
    return Grads(*_core.batch_norm_inference_backward(dy, x, mean, var, gamma, axis, eps, out, threads))


def moments(x: Any, *, axis: Axis = 1, threads: int | None = None) -> Moments:
    """Mean, m2 = sum((x - mean)^2) and count of x: the first half of `batch_norm`.

    Moments of several arrays add up to those of all of them: see `Moments`.
    """
    return Moments(*_core.moments(x, axis, threads))


def normalize(
    x: Array,
    moments: Moments,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Saved]:
    """Normalize x by moments, its own or those of a larger batch: the second half of `batch_norm`.

    ``normalize(x, moments(x))`` gives the same bits as ``batch_norm(x)``.
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments is {type(moments).__name__}, expected bn.Moments")
    return _core.normalize(x, moments.mean, moments.m2, moments.count, gamma, beta, axis, eps, out, threads)


def grad_sums(dy: Array, x: Array, saved: Saved, *, threads: int | None = None) -> GradSums:
    """count, sum(dy) and sum(dy * (x - mean)): the first half of `batch_norm_backward`.

    The sums of several arrays around the same mean add up to those of all of them: see `GradSums`.
    """
    return GradSums(*_core.grad_sums(dy, x, saved, threads))


def input_grad(
    dy: Array,
    x: Array,
    saved: Saved,
    sums: GradSums,
    gamma: Any = None,
    *,
    out: Array | None = None,
    threads: int | None = None,
) -> Grads:
    """Gradients from sums, x's own or those of a larger batch: the second half of `batch_norm_backward`.

    dgamma and dbeta are those of the sums: with merged sums they are already the totals, not to be added again.
    ``input_grad(dy, x, saved, grad_sums(dy, x, saved))`` gives the same bits as ``batch_norm_backward(dy, x, saved)``.
    """
    if not isinstance(sums, GradSums):
        raise TypeError(f"sums is {type(sums).__name__}, expected bn.GradSums")
    return Grads(*_core.input_grad(dy, x, saved, sums.count, sums.sum_dy, sums.sum_dy_xmu, gamma, out, threads))
