"""A batch norm layer: parameters, running statistics, and what its backward needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ._core import Saved
from .functional import (
    Activation,
    Axis,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from .statistics import Grads


class Exchange(Protocol):
    """Runs a training forward and backward of a layer on a part of the batch, with the statistics of all of it."""

    def forward(self, layer: BatchNorm, x: Any, *, residual: Any, weights: Any, out: Any) -> tuple[Any, Context]:
        """What `BatchNorm.forward` returns."""

    def backward(self, layer: BatchNorm, context: Context, dy: Any, *, out: Any) -> Grads:
        """The gradients of this part; dgamma and dbeta are its share of the whole batch's."""


class Context:
    """What one forward call of a layer leaves for its backward: a reference to x, and the statistics used."""

    def __init__(
        self, x: Any, statistics: Any, y: Any, frozen: bool, residual: bool, exchange: Exchange | None = None
    ) -> None:
        self._x = x
        self._statistics = statistics  # Saved, or (mean, var) where the layer was frozen
        self._y = y  # where the layer was frozen and activates: its sign is the mask
        self._frozen = frozen
        self._residual = residual
        self._exchange = exchange  # where x was a part of the batch


class BatchNorm:
    """Batch normalization with learned scale and shift and running statistics.

    num_features is the length of the kept axis, or the shape of the kept axes; axis is theirs in x. In training the
    layer normalizes by the batch and moves its running statistics, as PyTorch does::

        running <- (1 - momentum) * running + momentum * statistic

    with the unbiased variance, sum((x - mean)^2) / (M - 1); `eval` and `freeze` use the running statistics instead.
    activation ("relu", "leaky_relu") comes last, after a residual that a call may be given. group_size is that of
    `batch_norm`: groups of samples have statistics of their own, and the running ones are those of the whole batch.
    Weights of a call, `batch_norm`'s, give elements a share in the statistics of training; M is then
    (sum w)^2 / sum(w^2), where that is not above 1 the variance stays biased, and a channel without any weight keeps
    its running statistics.

    gamma (ones; None if not scale), beta (zeros; None if not center), running_mean (zeros), running_var (ones) and the
    gradients dgamma and dbeta are NumPy arrays of dtype that are written in place and never replaced.

    ``y = layer(x)`` keeps a reference to x until ``dx = layer.backward(dy)`` uses it; in `eval` it keeps nothing, has
    no backward, and may be called by several threads at once. For several calls before a backward,
    ``y, ctx = layer.forward(x)`` and ``dx = layer.backward(dy, ctx)``. After the backward of a call with a residual,
    dresidual is its gradient.
    """

    _exchange: Exchange | None = None  # in training, if x is a part of the batch

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
        center: bool = True,
        scale: bool = True,
        group_size: int | None = None,
        activation: Activation = None,
        negative_slope: float = 0.01,
        dtype: npt.DTypeLike = "float32",
        threads: int | None = None,
    ) -> None:
        self._shape = _shape_of(num_features)
        axes = axis if isinstance(axis, tuple) else (axis,)
        if len(axes) != len(self._shape):
            raise ValueError(f"axis {axis} has {len(axes)} axes, expected one for each of num_features {num_features}")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be positive and finite, got {eps}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        if group_size is not None and operator.index(group_size) < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        if activation not in (None, "relu", "leaky_relu"):
            raise ValueError(f"activation {activation!r} is unknown, expected None, 'relu' or 'leaky_relu'")
        if not math.isfinite(negative_slope):
            raise ValueError(f"negative_slope must be finite, got {negative_slope}")
        if np.dtype(dtype).kind != "f":
            raise TypeError(f"dtype must be a float type, got {np.dtype(dtype)}")
        if threads is not None and operator.index(threads) < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.num_features = num_features
        self.axis = axis
        self.eps = eps
        self.momentum = momentum
        self.group_size = group_size
        self.activation = activation
        self.negative_slope = negative_slope
        self.threads = threads
        self.dresidual: Any = None
        self._mode = "train"
        self._context: Context | None = None

        self.gamma = np.ones(self._shape, dtype) if scale else None
        self.beta = np.zeros(self._shape, dtype) if center else None
        self.dgamma = np.zeros(self._shape, dtype) if scale else None
        self.dbeta = np.zeros(self._shape, dtype) if center else None
        self.running_mean = np.zeros(self._shape, dtype)
        self.running_var = np.ones(self._shape, dtype)
        self.num_batches_tracked = np.zeros((), np.int64)

    # ------------------------------------------------------------------------------------------------ mode

    def train(self) -> BatchNorm:
        """Normalize by the batch and move the running statistics."""
        self._mode = "train"
        return self

    def eval(self) -> BatchNorm:
        """Normalize by the running statistics; no backward."""
        self._mode = "eval"
        return self

    def freeze(self) -> BatchNorm:
        """Normalize by the running statistics and leave them; backward works, for fine-tuning."""
        self._mode = "freeze"
        return self

    @property
    def mode(self) -> str:
        """What a call does: train, eval or freeze."""
        return self._mode

    # --------------------------------------------------------------------------------- forward and backward

    def __call__(self, x: Any, *, residual: Any = None, weights: Any = None, out: Any = None) -> Any:
        """Return y, and remember what backward needs, unless in eval."""
        y, context = self.forward(x, residual=residual, weights=weights, out=out)
        if context is not None:
            self._context = context
        return y

    def forward(
        self, x: Any, *, residual: Any = None, weights: Any = None, out: Any = None
    ) -> tuple[Any, Context | None]:
        """Return y and the context that backward takes (None in eval). weights count in training alone."""
        if self._exchange is not None and self._mode == "train":
            return self._exchange.forward(self, x, residual=residual, weights=weights, out=out)
        self._check_features(x)
        gamma, beta = _beside(x, self.gamma), _beside(x, self.beta)
        if self._mode == "train":
            y, saved = batch_norm(
                x,
                gamma,
                beta,
                axis=self.axis,
                eps=self.eps,
                group_size=self.group_size,
                weights=weights,
                activation=self.activation,
                negative_slope=self.negative_slope,
                residual=residual,
                out=out,
                threads=self.threads,
            )
            self._track(x, saved)
            return y, Context(x, saved, None, frozen=False, residual=residual is not None)
        mean, var = self.running_mean, self.running_var
        if self._mode == "freeze":
            mean, var = mean.copy(), var.copy()  # as they are now, whatever is loaded before backward
        y = batch_norm_inference(
            x,
            _beside(x, mean),
            _beside(x, var),
            gamma,
            beta,
            axis=self.axis,
            eps=self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=residual,
            out=out,
            threads=self.threads,
        )
        if self._mode == "eval":
            return y, None
        kept_y = y if self.activation else None
        return y, Context(x, (mean, var), kept_y, frozen=True, residual=residual is not None)

    def backward(self, dy: Any, ctx: Context | None = None, *, accumulate: bool = False, out: Any = None) -> Any:
        """Return dx, and write dgamma and dbeta into the layer's arrays (add to them if accumulate).

        dresidual becomes the gradient of that call's residual, or None. Uses up the context, ctx or that of the last
        call: a second backward is a RuntimeError.
        """
        context = self._context if ctx is None else ctx
        if context is None:
            raise RuntimeError("backward needs a call of the layer before it, in train or freeze mode")
        if context._x is None:
            raise RuntimeError("backward was already called for this forward; call forward again")
        x = context._x
        grads: Grads
        if context._frozen:
            mean, var = (_beside(x, statistic) for statistic in context._statistics)
            gamma = _beside(x, self.gamma)
            grads = batch_norm_inference_backward(
                dy,
                x,
                mean,
                var,
                gamma,
                y=context._y,
                axis=self.axis,
                eps=self.eps,
                activation=self.activation,
                negative_slope=self.negative_slope,
                need_dresidual=context._residual,
                out=out,
                threads=self.threads,
            )
        elif context._exchange is not None:
            grads = context._exchange.backward(self, context, dy, out=out)
        else:
            grads = batch_norm_backward(
                dy,
                x,
                context._statistics,
                _beside(x, self.gamma),
                need_dresidual=context._residual,
                out=out,
                threads=self.threads,
            )
        for total, grad in ((self.dgamma, grads.dgamma), (self.dbeta, grads.dbeta)):
            if total is not None:
                total[...] = total + np.asarray(grad) if accumulate else np.asarray(grad)
        self.dresidual = grads.dresidual
        context._x = context._y = context._statistics = None
        return grads.dx

    def _check_features(self, x: Any) -> None:
        shape = getattr(x, "shape", None)
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if shape is None or any(not -len(shape) <= a < len(shape) for a in axes):
            return  # the function called next says what is wrong with x or axis
        features = tuple(shape[a] for a in sorted(a % len(shape) for a in axes))
        if features != self._shape:
            raise ValueError(f"x has {features} features along axis {self.axis}, this layer has {self._shape}")

    def _track(self, x: Any, saved: Saved, effective_count: Any = None) -> None:
        mean, var, count = (
            np.asarray(saved.mean),
            np.asarray(saved.var),
            np.asarray(saved.count if saved.count is not None else 0.0),
        )
        if saved.group_size is not None:
            mean, var, count = _pooled(mean, var, count)
        if not count.any():
            return  # an empty batch says nothing
        values = effective_count
        if values is None:
            values = count if saved.weights is None else _effective_count(x.shape, saved)
        above_one = np.where(values > 1, values - 1, values + (values == 0))
        unbiased = var * (values / above_one)
        m = self.momentum
        some = count > 0
        for running, statistic in ((self.running_mean, mean), (self.running_var, unbiased)):
            moved = (1 - m) * running + m * statistic
            running[...] = moved if some.all() else np.where(some, moved, running)
        self.num_batches_tracked += 1

    # ------------------------------------------------------------------------------------------- parameters

    def parameters(self) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]:
        """(name, value, gradient) of gamma and beta, for an optimizer that updates values in place."""
        if self.gamma is not None and self.dgamma is not None:
            yield "gamma", self.gamma, self.dgamma
        if self.beta is not None and self.dbeta is not None:
            yield "beta", self.beta, self.dbeta

    def zero_grad(self) -> None:
        """Set dgamma and dbeta to 0."""
        for _, _, grad in self.parameters():
            grad[...] = 0

    # ------------------------------------------------------------------------------------------------ state

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        state = {
            "weight": self.gamma,
            "bias": self.beta,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "num_batches_tracked": self.num_batches_tracked,
        }
        return {key: array for key, array in state.items() if array is not None}

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the parameters and running statistics, under PyTorch's keys."""
        return {key: array.copy() for key, array in self._state().items()}

    def load_state_dict(self, mapping: Mapping[str, Any], prefix: str = "", strict: bool = True) -> None:
        """Write the values of a mapping (a state_dict, np.load's or PyTorch's) into the layer's arrays.

        Keys are PyTorch's, after prefix ("bn1."). With strict, a missing key (num_batches_tracked may be) or one that
        starts with prefix and is not the layer's is a ValueError. Nothing is written when a check fails.
        """
        state = self._state()
        given = {key[len(prefix) :]: key for key in mapping if key.startswith(prefix)}
        if strict:
            missing = state.keys() - given.keys() - {"num_batches_tracked"}
            unexpected = given.keys() - state.keys()
            if missing or unexpected:
                raise ValueError(
                    f"state does not fit the layer: missing {sorted(missing)}, unexpected {sorted(unexpected)} "
                    f"(after prefix {prefix!r})"
                )
        values = {key: _to_numpy(mapping[given[key]]) for key in state if key in given}
        for key, value in values.items():
            if value.shape != state[key].shape:
                raise ValueError(f"{prefix}{key} has shape {value.shape}, expected {state[key].shape}")
        if "running_var" in values and (values["running_var"] < 0).any():
            raise ValueError(f"{prefix}running_var must not be negative")
        for key, value in values.items():
            state[key][...] = value

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the batch that a pending backward would need, and its gradients."""
        return {**self.__dict__, "_context": None, "dresidual": None}

    def __repr__(self) -> str:
        off = "".join(
            f", {name}=False" for name, array in (("center", self.beta), ("scale", self.gamma)) if array is None
        )
        if self.group_size is not None:
            off += f", group_size={self.group_size}"
        if self.activation is not None:
            off += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            off += f", negative_slope={self.negative_slope}"
        return (
            f"BatchNorm({self.num_features}, axis={self.axis}, eps={self.eps}, momentum={self.momentum}{off}, "
            f"dtype={self.running_mean.dtype.name!r}, mode={self._mode!r})"
        )


def _shape_of(num_features: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = num_features if isinstance(num_features, tuple) else (num_features,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"num_features must be an int or a tuple of ints, got {num_features!r}") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"num_features must not be negative, got {num_features}")
    return shape


def _pooled(mean: Any, var: Any, count: Any) -> tuple[Any, Any, Any]:
    """Mean, biased variance and count of all groups together, from those of each, along the first axis."""
    total = count.sum(0)
    shares = count / (total + (total == 0))
    pooled = (shares * mean).sum(0)
    return pooled, (shares * (var + (mean - pooled) ** 2)).sum(0), total


def _effective_count(shape: tuple[int, ...], saved: Saved) -> Any:
    """(sum w)^2 / sum(w^2) of each statistic of an x of this shape; 0 where there is no weight."""
    total, squares = _weight_sums(shape, saved.weights, saved.axis)
    return total**2 / (squares + (squares == 0))


def _weight_sums(shape: tuple[int, ...], weights: Any, axis: Axis) -> tuple[Any, Any]:
    """sum(w) and sum(w^2) of each statistic of an x of this shape."""
    weights = np.asarray(weights, np.float64)
    axes = axis if isinstance(axis, tuple) else (axis,)
    kept = {axis % len(shape) for axis in axes}
    reduced = tuple(axis for axis in range(len(shape)) if axis not in kept)
    if weights.ndim < len(shape):
        weights = np.expand_dims(weights, tuple(sorted(kept)))
    weights = np.broadcast_to(weights, [1 if a in kept and weights.shape[a] == 1 else n for a, n in enumerate(shape)])
    return weights.sum(reduced), (weights**2).sum(reduced)


def _beside(x: Any, array: npt.NDArray[Any] | None) -> Any:
    """The layer's array as x's kind of array, sharing its memory."""
    if array is None or not type(x).__module__.startswith("torch"):
        return array
    import torch

    return torch.from_numpy(array)


def _to_numpy(value: Any) -> npt.NDArray[Any]:
    # A PyTorch tensor may need its graph, its device and a type that NumPy lacks taken off.
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    return np.asarray(value)
