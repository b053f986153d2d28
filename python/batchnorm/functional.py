"""The functions: arrays in, arrays of the same kind and memory order out.

Common to all of them:

x, dy, out
    NumPy arrays, PyTorch tensors, JAX arrays, or CuPy arrays, of float32, float64, float16 or bfloat16 (in NumPy that
    of the package ml_dtypes), all of one kind, device, type and shape, of any rank up to 8 and any strides; they are
    not copied. 16 bits are computed in float32 and rounded once. ``out`` may be exactly an input, else it must not
    overlap one; JAX's arrays cannot be written to. On the CPU NumPy's may stand beside JAX's, also as ``out``, and
    statistics are NumPy's. Without ``out`` the result is a new array; the memory of large ones on the CPU is used again
    when they are gone (see `batchnorm.clear_cache`).
gamma, beta, mean, var
    Of the kept axes' shape in x's order, ``(C,)`` for one axis: an array of any float type, a sequence, or one number
    for all. gamma and beta may be None: 1 and 0. float32 is right beside x of 16 bits too.
axis
    The axis, or tuple of axes, that keeps its own statistics; they run over all the others. ``()`` keeps none.
eps
    Added to the variance under the root; positive, and at least 1e-76 unless x is float64, beside which arithmetic is
    float32.
activation, negative_slope
    None, "relu" or "leaky_relu", which is v where v > 0 and negative_slope * v elsewhere. It comes last, after the
    residual. Backward takes what it let through from a mask of one bit for each element in `Saved`, and so needs
    neither y nor what went into it; x must then be the array that forward had, or one with its shape and strides.
residual
    An array like x that is added before the activation. Backward writes its gradient too with ``need_dresidual=True``.
weights
    Real numbers >= 0, or bools as a mask, of x's shape without the kept axes, or of x's rank and broadcast to x. With
    W = sum(w) in the place of M::

        mean = sum(w * x) / W      var = sum(w * (x - mean)^2) / W
        dx = gamma * inv_std * (dy - w * dbeta / W - w * xhat * dgamma / W)

    An element of weight 0 is left out of the statistics by selection, whatever it is (NaN in the padding does no harm);
    y is written there all the same, and dy there counts (NaN in x too, unless dy is 0). Where W is 0, mean and var are
    0 and y is beta + x * gamma / sqrt(eps). They are taken as float32, or float64 beside float64, and are kept for
    backward as x is: do not change them before.
group_size
    Cuts axis 0 into groups of so many samples, the last one may be shorter, each with statistics of its own: ghost
    batch norm (Hoffer, Hubara and Soudry, 2017, arXiv:1705.08741). Statistics then have the groups as a leading axis;
    gamma and beta are the same for all, and dgamma and dbeta the sums over them.
threads
    None uses as many as the work is worth, at most get_num_threads(); an int exactly as many. The results have the
    same bits for every number. A ValueError beside arrays on a GPU.
stream
    Where the work on a GPU is put: an int, the value of a cudaStream_t, or an object with ``__cuda_stream__()``, as
    PyTorch's and CuPy's streams are. None is the stream that the arrays' library has current on their device, for JAX
    the default one. A ValueError beside arrays on the CPU.

Arrays on a GPU give results on that GPU, all of x's kind: `Saved`, `Moments` and `GradSums` too. Nothing waits for the
GPU, but for JAX, which does not know the stream: its results are complete when they are returned. For the same reason
values there are not looked at: a negative var gives NaN, and weights that are negative or not finite, or a gamma of 0
in `batch_norm_inplace`, give results without meaning. Sequences and numbers are put on x's device. With a stream that
is not the current one, the caller orders the two streams: the arguments must be complete in it, and a result is
complete once it has done its work. A RuntimeError says what is missing where there is no GPU (see `batchnorm.cuda`).

A TypeError says that an argument has a type that these functions do not take, a ValueError that its shape or value
does not fit; both name the argument and what would fit, and nothing was written then.

S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015, arXiv:1502.03167.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

from . import _core
from ._core import Saved
from .statistics import Grads, GradSums, Moments

Array = TypeVar("Array")
Axis = int | tuple[int, ...]
Activation = Literal["relu", "leaky_relu"] | None


class CudaStream(Protocol):
    """What tells its cudaStream_t: ``(0, handle)``."""

    def __cuda_stream__(self) -> tuple[int, int]: ...


Stream = int | CudaStream | None


def batch_norm(
    x: Array,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    group_size: int | None = None,
    weights: Any = None,
    activation: Activation = None,
    negative_slope: float = 0.01,
    residual: Array | None = None,
    out: Array | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> tuple[Array, Saved]:
    """Normalize x by its own statistics: training forward.

    With M values behind each statistic::

        mean = sum(x) / M      var = sum((x - mean)^2) / M      inv_std = 1 / sqrt(var + eps)
        y = activation((x - mean) * inv_std * gamma + beta + residual)

    Returns y and what `batch_norm_backward` needs. The statistics are those of a float64 two-pass computation. M = 1
    is a ValueError, since a variance does not exist; an empty x gives an empty y.
    """
    return _core.batch_norm(
        x, gamma, beta, axis, eps, group_size, weights, activation, negative_slope, residual, out, threads, stream
    )


def batch_norm_backward(
    dy: Array,
    x: Array,
    saved: Saved,
    gamma: Any = None,
    *,
    need_dresidual: bool = False,
    out: Array | tuple[Array, Array] | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Grads:
    """Gradients of `batch_norm`, from dy = dL/dy and what forward saved.

    With xhat = (x - mean) * inv_std::

        dbeta = sum(dy)      dgamma = sum(dy * xhat)
        dx = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)

    where dy is first taken through the activation, which is also the residual's gradient. dgamma and dbeta are computed
    always, also where gamma is None. ``out`` gets dx and may be dy itself, or is a pair that gets dx and dresidual.

    x is the whole batch that the statistics are of: a ValueError where `saved` knows of another number of values. Parts
    of a batch go through `grad_sums` and `input_grad`.
    """
    return Grads(*_core.batch_norm_backward(dy, x, saved, gamma, need_dresidual, out, threads, stream))


def batch_norm_inference(
    x: Array,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    activation: Activation = None,
    negative_slope: float = 0.01,
    residual: Array | None = None,
    out: Array | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Array:
    """Normalize x by given statistics.

    ``y = activation((x - mean) / sqrt(var + eps) * gamma + beta + residual)``. A negative var is a ValueError.
    """
    y: Array = _core.batch_norm_inference(
        x, mean, var, gamma, beta, axis, eps, activation, negative_slope, residual, out, threads, stream
    )
    return y


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    mean: Any,
    var: Any,
    gamma: Any = None,
    *,
    y: Array | None = None,
    axis: Axis = 1,
    eps: float = 1e-5,
    activation: Activation = None,
    negative_slope: float = 0.01,
    need_dresidual: bool = False,
    out: Array | tuple[Array, Array] | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Grads:
    """Gradients of `batch_norm_inference`, in which mean and var are constants.

    With inv_std = 1 / sqrt(var + eps)::

        dx = gamma * inv_std * dy      dgamma = sum(dy * (x - mean)) * inv_std      dbeta = sum(dy)

    where dy is first taken through the activation: y, forward's output, is required with one, since its sign tells what
    was let through; negative_slope must then not be negative.
    """
    return Grads(
        *_core.batch_norm_inference_backward(
            dy, x, mean, var, gamma, y, axis, eps, activation, negative_slope, need_dresidual, out, threads, stream
        )
    )


def batch_norm_inplace(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    group_size: int | None = None,
    weights: Any = None,
    activation: Activation = None,
    negative_slope: float = 0.01,
    threads: int | None = None,
    stream: Stream = None,
) -> Saved:
    """`batch_norm` with y in the place of x, for `batch_norm_backward_from_output`, which finds x again from y.

    A training step then holds one activation tensor, not two or three. activation may be None or leaky_relu with a
    positive slope; a gamma of 0 (or so small that 1 / gamma overflows) is a ValueError, before x is overwritten: use
    `batch_norm` there.

    S. Rota Bulo, L. Porzi and P. Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs",
    CVPR 2018, arXiv:1712.02616. Unlike there, gamma is taken as it is, with its sign.
    """
    return _core.batch_norm_inplace(
        x, gamma, beta, axis, eps, group_size, weights, activation, negative_slope, threads, stream
    )


def batch_norm_backward_from_output(
    dy: Array,
    y: Array,
    saved: Saved,
    gamma: Any = None,
    beta: Any = None,
    *,
    out: Array | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Grads:
    """Gradients of `batch_norm_inplace` (or of `batch_norm`, with settings that it takes), from its output y.

    With z = y before the activation, which is y where y > 0 and y / negative_slope elsewhere::

        xhat = (z - beta) / gamma

    and then as in `batch_norm_backward`. gamma and beta must be those of forward. The error of xhat is about
    eps * (1 + abs(beta / gamma)), eps being the rounding of y's type. ``out`` gets dx and may be dy or y itself.
    """
    return Grads(*_core.batch_norm_backward_from_output(dy, y, saved, gamma, beta, out, threads, stream))


def moments(
    x: Any,
    *,
    axis: Axis = 1,
    group_size: int | None = None,
    weights: Any = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Moments:
    """Mean, m2 = sum((x - mean)^2) and count of x: the first half of `batch_norm`.

    With weights, m2 = sum(w * (x - mean)^2) and count = sum(w). Moments of several arrays add up to those of all of
    them: see `Moments`.
    """
    return Moments(*_core.moments(x, axis, group_size, weights, threads, stream))


def normalize(
    x: Array,
    moments: Moments,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    group_size: int | None = None,
    weights: Any = None,
    activation: Activation = None,
    negative_slope: float = 0.01,
    residual: Array | None = None,
    out: Array | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> tuple[Array, Saved]:
    """Normalize x by moments, its own or those of a larger batch: the second half of `batch_norm`.

    ``normalize(x, moments(x))`` gives the same bits as ``batch_norm(x)``. weights and group_size are those that the
    moments had; weights only go into what is saved for backward.
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments is {type(moments).__name__}, expected bn.Moments")
    return _core.normalize(
        x,
        moments.mean,
        moments.m2,
        moments.count,
        gamma,
        beta,
        axis,
        eps,
        group_size,
        weights,
        activation,
        negative_slope,
        residual,
        out,
        threads,
        stream,
    )


def grad_sums(dy: Array, x: Array, saved: Saved, *, threads: int | None = None, stream: Stream = None) -> GradSums:
    """count, sum(dy) and sum(dy * (x - mean)): the first half of `batch_norm_backward`.

    The sums of several arrays around the same mean add up to those of all of them: see `GradSums`.
    """
    return GradSums(*_core.grad_sums(dy, x, saved, threads, stream))


def input_grad(
    dy: Array,
    x: Array,
    saved: Saved,
    sums: GradSums,
    gamma: Any = None,
    *,
    need_dresidual: bool = False,
    out: Array | tuple[Array, Array] | None = None,
    threads: int | None = None,
    stream: Stream = None,
) -> Grads:
    """Gradients from sums, x's own or those of a larger batch: the second half of `batch_norm_backward`.

    dgamma and dbeta are those of the sums: with merged sums they are already the totals, not to be added again.
    ``input_grad(dy, x, saved, grad_sums(dy, x, saved))`` gives the same bits as ``batch_norm_backward(dy, x, saved)``.
    """
    if not isinstance(sums, GradSums):
        raise TypeError(f"sums is {type(sums).__name__}, expected bn.GradSums")
    return Grads(
        *_core.input_grad(
            dy, x, saved, sums.count, sums.sum_dy, sums.sum_dy_xmu, gamma, need_dresidual, out, threads, stream
        )
    )
