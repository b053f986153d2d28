"""A batch norm layer: parameters, running statistics, and what its backward needs."""

from __future__ import annotations

import dataclasses
import math
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ._core import Saved, update_running
from .arguments import check_options, integer, named_arrays, numbers, whole_numbers
from .conventions import Convention, nesting, rules, to_own
from .functional import (
    Activation,
    Axis,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from .running import Batch, Cumulative, Exponential, Memory, Running, effective_count, pooled
from .statistics import Grads, refuse_gpu, to_numpy


class Exchange(Protocol):
    """Runs a training forward and backward of a layer on a part of the batch, with the statistics of all of it."""

    def forward(self, layer: BatchNorm, x: Any, *, residual: Any, weights: Any, out: Any) -> tuple[Any, Context]:
        """What `BatchNorm.forward` returns."""

    def backward(self, layer: BatchNorm, context: Context, dy: Any, *, out: Any) -> Grads:
        """The gradients of this part; dgamma and dbeta are its share of the whole batch's."""


class Context:
    """What one forward call of a layer leaves for its backward: a reference to x, and the statistics used."""

    def __init__(
        self,
        layer: BatchNorm,
        x: Any,
        statistics: Any,
        y: Any,
        frozen: bool,
        residual: bool,
        exchange: Exchange | None = None,
        out: Any = None,
    ) -> None:
        self._layer = weakref.ref(layer)
        self._x = x
        self._statistics = statistics  # Saved, or what batch_norm_inference took where the layer was frozen
        self._y = y  # where the layer was frozen and activates: its sign is the mask
        self._frozen = frozen
        self._residual = residual
        self._exchange = exchange  # where x was a part of the batch
        self._overwritten = _is_same(x, out)


class BatchNorm:
    """Batch normalization with learned scale and shift and running statistics.

    num_features is the length of the kept axis, or the shape of the kept axes; axis is theirs in x. In training the
    layer normalizes by the batch and moves its running statistics, as PyTorch does::

        running <- (1 - momentum) * running + momentum * statistic

    with the unbiased variance, sum((x - mean)^2) / (M - 1); `eval` and `freeze` use the running statistics instead.
    That is the convention "torch". Another one sets what is not given: momentum and what it means, eps, whether the
    variance is biased, and names that `load_state_dict` takes beside PyTorch's; see `convert_state`.

    momentum=None averages all batches, and running is a policy in the place of momentum: `Exponential`, `Cumulative`,
    `Window` or `Population`.

    activation ("relu", "leaky_relu") comes last, after a residual that a call may be given. group_size is that of
    `batch_norm`: groups of samples have statistics of their own, and the running ones are those of the whole batch.
    Weights of a call, `batch_norm`'s, give elements a share in the statistics of training; M is then
    (sum w)^2 / sum(w^2), where that is not above 1 the variance stays biased, and a channel without any weight keeps
    its running statistics.

    gamma (ones; None if not scale), beta (zeros; None if not center), running_mean (zeros), running_var (ones) and the
    gradients dgamma and dbeta are NumPy arrays of dtype (bfloat16 is that of ml_dtypes) that are written in place and
    never replaced.

    ``y = layer(x)`` keeps a reference to x until ``dx = layer.backward(dy)`` uses it: x must not change before, nor
    weights, nor, where a frozen layer activates, y. ``out=x`` is for calls without a backward. In `eval` it keeps
    nothing, has no backward, and may be called by several threads at once. For several calls before a backward,
    ``y, ctx = layer.forward(x)`` and ``dx = layer.backward(dy, ctx)``. After the backward of a call with a residual,
    dresidual is its gradient.
    """

    _exchange: Exchange | None = None  # in training, if x is a part of the batch

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        eps: float | None = None,
        momentum: float | Literal["default"] | None = "default",
        running: Running | None = None,
        convention: Convention = "torch",
        center: bool = True,
        scale: bool = True,
        group_size: int | None = None,
        activation: Activation = None,
        negative_slope: float = 0.01,
        dtype: npt.DTypeLike = "float32",
        threads: int | None = None,
    ) -> None:
        self._shape = _shape_of(num_features)
        axis = _axis_of(axis)
        axes = axis if isinstance(axis, tuple) else (axis,)
        if len(axes) != len(self._shape):
            raise ValueError(f"axis {axis} has {len(axes)} axes, expected one for each of num_features {num_features}")
        convention_rules = rules(convention)
        eps = convention_rules.eps if eps is None else eps
        check_options(
            eps=eps, group_size=group_size, activation=activation, negative_slope=negative_slope, threads=threads
        )
        if running is not None and momentum != "default":
            raise ValueError(f"momentum {momentum} and running {running} were given, expected one of them")
        dtype = _dtype_of(dtype)
        self.num_features = num_features
        self.axis = axis
        self.eps: float = eps
        self.convention = convention
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
        self._memory: Memory = {}
        if running is not None:
            self.running = running
        else:
            self.momentum = convention_rules.momentum if momentum == "default" else momentum

    # ---------------------------------------------------------------------------------- policy of running statistics

    @property
    def running(self) -> Running:
        """The policy of the running statistics.

        An exponential average goes on from what they are now. `Cumulative` does with the weight of the batches so far;
        `Window` and `Population` know of no batch before.
        """
        return self._running

    @running.setter
    def running(self, policy: Running) -> None:
        self._check_running(policy)
        memory = policy.memory(self._shape)
        if {key: array.shape for key, array in memory.items()} != {k: a.shape for k, a in self._memory.items()}:
            policy.restart(memory, int(self.num_batches_tracked))
            self._memory = memory
        self._running = policy

    def _check_running(self, policy: Running) -> None:
        if not isinstance(policy, Running):
            raise TypeError(f"running is {policy!r}, expected bn.Exponential, Cumulative, Window or Population")

    @property
    def momentum(self) -> float | None:
        """The momentum of an exponential average, None with another policy. Setting None averages all batches."""
        return self._running.momentum if isinstance(self._running, Exponential) else None

    @momentum.setter
    def momentum(self, momentum: float | None) -> None:
        if momentum is None:
            self.running = Cumulative()
            return
        policy = getattr(self, "_running", None)
        if not isinstance(policy, Exponential):
            policy = rules(self.convention).policy(self.convention, momentum, self.eps)
        self.running = dataclasses.replace(policy, momentum=momentum)

    def reset_running_statistics(self) -> None:
        """Set the running statistics to those of a new layer, and let the policy forget all batches."""
        self.running_mean[...] = 0
        self.running_var[...] = 1
        self.num_batches_tracked[...] = 0
        self._running.restart(self._memory, 0)

    # ------------------------------------------------------------------------------------------------ mode

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalize by the batch and move the running statistics; ``train(False)`` is `eval`, as in PyTorch."""
        if not isinstance(mode, bool):
            raise TypeError(f"mode must be a bool, got {mode!r}")
        self._mode = "train" if mode else "eval"
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

    @property
    def training(self) -> bool:
        """Whether a call normalizes by the batch: in eval and freeze mode it does not."""
        return self._mode == "train"

    # --------------------------------------------------------------------------------- forward and backward

    def __call__(self, x: Any, *, residual: Any = None, weights: Any = None, out: Any = None) -> Any:
        """Return y, and remember what backward needs: nothing in eval, which forgets the call before."""
        y, self._context = self.forward(x, residual=residual, weights=weights, out=out)
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
                group_size=self.group_size,
                weights=weights,
                residual=residual,
                out=out,
                threads=self.threads,
                **self._settings(),
            )
            self._track(x, saved)
            return y, Context(self, x, saved, None, frozen=False, residual=residual is not None, out=out)
        mean, var = self.running_mean, self.running_var
        if self._mode == "freeze":
            mean, var = mean.copy(), var.copy()  # as they are now, whatever is loaded before backward
        frozen = {"mean": _beside(x, mean), "var": _beside(x, var), **self._settings()}
        y = batch_norm_inference(x, gamma=gamma, beta=beta, residual=residual, out=out, threads=self.threads, **frozen)
        if self._mode == "eval":
            return y, None
        kept_y = y if self.activation else None
        return y, Context(self, x, frozen, kept_y, frozen=True, residual=residual is not None, out=out)

    def backward(
        self, dy: Any, ctx: Context | Literal["last"] | None = "last", *, accumulate: bool = False, out: Any = None
    ) -> Any:
        """Return dx, and write dgamma and dbeta into the layer's arrays (add to them if accumulate).

        dresidual becomes the gradient of that call's residual, or None. Uses up the context, ctx or that of the last
        call: a second backward is a RuntimeError.
        """
        context = self._context if isinstance(ctx, str) and ctx == "last" else ctx
        if context is None:
            raise RuntimeError(
                "backward needs a call of the layer before it, in train or freeze mode (eval keeps nothing)"
            )
        if not isinstance(context, Context):
            raise TypeError(f"ctx must be what forward returned, got {type(context).__name__}")
        if context._layer() is not self:
            raise ValueError(f"ctx is of a forward of another layer, expected one of this {self}")
        if context._x is None:
            raise RuntimeError("backward was already called for this forward; call forward again")
        if context._overwritten:
            raise RuntimeError(
                "backward needs x, which forward overwrote (out was x): give another out, or use "
                "bn.batch_norm_inplace and bn.batch_norm_backward_from_output"
            )
        x = context._x
        grads: Grads
        if context._frozen:
            grads = batch_norm_inference_backward(
                dy,
                x,
                gamma=_beside(x, self.gamma),
                y=context._y,
                need_dresidual=context._residual,
                out=out,
                threads=self.threads,
                **context._statistics,
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
                total[...] = total + to_numpy(grad) if accumulate else to_numpy(grad)
        self.dresidual = grads.dresidual
        context._x = context._y = context._statistics = None
        return grads.dx

    def _settings(self) -> dict[str, Any]:
        """The options that all of forward has, and that backward of a frozen call must have, too."""
        return {
            "axis": self.axis,
            "eps": self.eps,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
        }

    def _check_features(self, x: Any) -> None:
        if not isinstance(x, np.ndarray):
            refuse_gpu(x, "layers compute on")
        shape = getattr(x, "shape", None) or ()
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        kept = [a % len(shape) for a in axes if -len(shape) <= a < len(shape)]
        if len(kept) < len(axes):
            return  # the function called next says what is wrong with x or axis
        features = tuple([shape[a] for a in sorted(kept)])
        if features != self._shape:
            raise ValueError(f"x has {features} features along axis {self.axis}, this layer has {self._shape}")

    def _track(self, x: Any, saved: Saved, effective: Any = None) -> None:
        count = saved.count
        unbiased, share = rules(self.convention).unbiased, self._running._plain_share
        alike = isinstance(count, float) and saved.group_size is None and saved.weights is None and effective is None
        if alike and share is not None:
            update_running(self.running_mean, self.running_var, saved, share, unbiased)
            self.num_batches_tracked += 1
            return
        mean, var = np.asarray(saved.mean), np.asarray(saved.var)
        if alike:
            batch = Batch(mean, var, count, count, not unbiased)
        else:
            count = np.asarray(0.0 if count is None else count)
            if saved.group_size is not None:
                mean, var, count = pooled(mean, var, count)
            values = effective
            if values is None:
                values = count if saved.weights is None else effective_count(x.shape, saved.weights, saved.axis)
            batch = Batch(mean, var, count, values, not unbiased).whole()
        one = isinstance(batch.weight, float)  # for all channels
        if not (batch.weight if one else batch.weight.any()):
            return  # an empty batch says nothing
        moved = self._running.step(self._memory, self.running_mean, self.running_var, batch)
        for running, value in zip((self.running_mean, self.running_var), moved, strict=True):
            running[...] = value if one else np.where(batch.weight > 0, value, running)
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
            **self._memory,
        }
        return {key: array for key, array in state.items() if array is not None}

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the parameters and running statistics, under PyTorch's keys, and of what the policy remembers."""
        saved = self._running.to_save(self._memory, int(self.num_batches_tracked))
        return {key: a.copy() for key, a in self._state().items() if key in saved or key not in self._memory}

    def load_state_dict(self, mapping: Mapping[str, Any], prefix: str = "", strict: bool = True) -> None:
        """Write the values of a mapping (a state_dict, np.load's or PyTorch's) into the layer's arrays.

        Keys are PyTorch's, after prefix ("bn1."). With strict, a missing key (num_batches_tracked may be) or one that
        starts with prefix and is not the layer's is a ValueError. Nothing is written when a check fails. What the
        policy of the running statistics remembers may be missing as a whole, as in a PyTorch checkpoint: it then starts
        again with running statistics that are loaded, from num_batches_tracked alone. A layer with another convention
        than PyTorch's takes that one's names too (`convert_state`), with variances as they are.
        """
        named_arrays("mapping", mapping)
        if self.convention != "torch":
            own = to_own(mapping, self.convention, self.eps, prefix)
            if "scale_factor" not in self._memory:
                own.pop("scale_factor", None)  # Caffe's, which is of no use to another policy
            mapping = {prefix + key: value for key, value in own.items()}
        state = self._state()
        given = {key[len(prefix) :]: key for key in mapping if key.startswith(prefix)}
        remembered = self._memory.keys() & given.keys()
        if strict:
            missing = state.keys() - given.keys() - {"num_batches_tracked"}
            missing -= set() if remembered else self._memory.keys()
            unexpected = given.keys() - state.keys()
            if missing or unexpected:
                raise ValueError(
                    f"state does not fit the layer: missing {sorted(missing)}, unexpected {sorted(unexpected)} "
                    f"(after prefix {prefix!r}; strict=False leaves what is missing as it is)"
                    + nesting(mapping[given[key]] for key in unexpected)
                )
        values = {key: numbers(prefix + key, mapping[given[key]]) for key in state if key in given}
        for key, value in values.items():
            if value.shape != state[key].shape:
                raise ValueError(f"{prefix}{key} has shape {value.shape}, expected {state[key].shape}")
            if not (key in ("weight", "bias") or key.endswith("mean")) and (value < 0).any():
                raise ValueError(f"{prefix}{key} must not be negative")
            if state[key].dtype.kind == "i":
                whole_numbers(prefix + key, value)
        for key, value in values.items():
            state[key][...] = value
        if not remembered and {"running_mean", "running_var"} & values.keys():
            self._running.restart(self._memory, int(self.num_batches_tracked))

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
        usual = rules(self.convention).policy(self.convention, self.momentum or 0.0, self.eps)
        plain = isinstance(self._running, Cumulative) or self._running == usual
        if self.convention != "torch":
            off += f", convention={self.convention!r}"
        running = f"momentum={self.momentum}" if plain else f"running={self._running!r}"
        return (
            f"BatchNorm({self.num_features}, axis={self.axis}, eps={self.eps}, {running}{off}, "
            f"dtype={self.running_mean.dtype.name!r}, mode={self._mode!r})"
        )


def _shape_of(num_features: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = num_features if isinstance(num_features, tuple) else (num_features,)
    shape = tuple(integer("num_features", size, "an int or a tuple of ints") for size in sizes)
    if any(size < 0 for size in shape):
        raise ValueError(f"num_features must not be negative, got {num_features}")
    return shape


def _axis_of(axis: Any) -> Axis:
    if not isinstance(axis, tuple | list):
        return integer("axis", axis, "an int or a tuple of ints")
    return tuple(integer("axis", one, "an int or a tuple of ints") for one in axis)


def _dtype_of(dtype: Any) -> np.dtype[Any]:
    name = str(dtype)
    if name.startswith("torch."):  # PyTorch's types have NumPy's names
        dtype = name = name.removeprefix("torch.")
    if name == "bfloat16":  # which NumPy knows once this is imported
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("dtype bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from None
        dtype = ml_dtypes.bfloat16
    found: np.dtype[Any] | None
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or found.name not in ("float32", "float64", "float16", "bfloat16") or not found.isnative:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    return found


def _is_same(x: Any, out: Any) -> bool:
    """Whether out, which may overlap x only as a whole, is x."""
    return out is not None and math.prod(x.shape) > 0 and _address(out) == _address(x)


def _address(array: Any) -> int | None:
    """Where the elements lie; None for JAX's arrays, which no out can overwrite."""
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    return int(array.data_ptr()) if hasattr(array, "data_ptr") else None


def _beside(x: Any, array: npt.NDArray[Any] | None) -> Any:
    """The layer's array as x's kind of array, sharing its memory."""
    if array is None or isinstance(x, np.ndarray):
        return array
    torch = sys.modules.get("torch")  # which is imported where there are tensors
    if torch is None or not isinstance(x, torch.Tensor):
        return array
    if array.dtype.itemsize == 2 and array.dtype != np.float16:  # bfloat16, which from_numpy does not know
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
