"""PyTorch: batch norm that autograd goes through, as functions and as a module in the place of ``torch.nn``'s.

::

    import batchnorm.torch

    model = batchnorm.torch.convert(model)  # every BatchNorm1d, 2d and 3d of it, with their parameters
    y, saved = batchnorm.torch.batch_norm(x, gamma, beta, activation="relu")

Tensors of any memory format, on the CPU and on GPUs; arguments, formulas and errors are those of
`batchnorm.functional`. Gradients go to x, gamma, beta and the residual. On the CPU there is forward mode, too, and
gradients have gradients again, in training not with weights, and no third derivatives (which
``torch.autograd.functional.hvp`` takes, unlike ``vhp``); modes do not nest (a `torch.func.jvp` of another one). What
backward keeps is x, and with an activation a bit for each element, or y where statistics are frozen.

``torch.compile`` and ``torch.export`` record the modules and `batch_norm_inference` as operators of
``torch.ops.batchnorm``, which have first derivatives in reverse mode, and not those of ``torch.func``.
``torch.compile`` goes around `batch_norm`, for what it saves is no tensor, and fails on it with ``fullgraph=True``, as
``torch.export`` does. PyTorch's functions that make other layers of batch norm
(``SyncBatchNorm.convert_sync_batchnorm``, ``fuse_conv_bn_eval``) drop an activation, an axis or groups.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from . import functional
from ._core import Saved
from .arguments import check_options, integer
from .functional import Activation, Axis
from .higher_order import batch_norm_double_backward, batch_norm_jvp
from .running import Exponential
from .torch_operators import in_strides, infer, refuse_lost_gradients, train, values
from .torch_running import move

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "batch_norm",
    "batch_norm_inference",
    "convert",
    "revert",
]


def batch_norm(
    x: Tensor,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    group_size: int | None = None,
    weights: Any = None,
    activation: Activation = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Saved]:
    """`batchnorm.batch_norm` with gradients: y, and the statistics, through which none flow."""
    _check_tensor(x)
    axis, kept = _kept(x, axis)
    options = {
        "axis": axis,
        "eps": eps,
        "group_size": group_size,
        "weights": weights,
        "activation": activation,
        "negative_slope": negative_slope,
        "threads": threads,
    }
    return _train(x, _full(x, gamma, kept), _full(x, beta, kept), residual, options)


def batch_norm_inference(
    x: Tensor,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    activation: Activation = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """`batchnorm.batch_norm_inference` with gradients, for frozen statistics: mean and var are constants."""
    _check_tensor(x)
    axis, kept = _kept(x, axis)
    mean, var, gamma, beta = (_full(x, one, kept) for one in (mean, var, gamma, beta))
    options = {
        "axis": axis,
        "eps": eps,
        "activation": activation,
        "negative_slope": negative_slope,
        "threads": threads,
    }
    return _infer(x, gamma, beta, residual, mean, var, options)


class BatchNorm(torch.nn.modules.batchnorm._BatchNorm):  # type: ignore[misc]
    """``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` in one, with their arguments, attributes and state_dict.

    x has any rank, and num_features along axis (1, or -1 for data that end with the features). The running statistics
    are moved as PyTorch moves them, by the unbiased variance, in float64 before they are rounded; an empty batch leaves
    them. activation comes last, after the residual that a call may be given; group_size and a call's weights are those
    of `batch_norm`, and the running statistics those of the whole batch. momentum=None averages over all batches, which
    are counted for all channels together, as in PyTorch: also for one without any weight in a batch
    (`batchnorm.BatchNorm` counts for each)::

        y = layer(x, residual=skip, weights=mask)
    """

    # Those of a layer that `convert` made one.
    axis: int = 1
    activation: Activation = None
    negative_slope: float = 0.01
    group_size: int | None = None
    threads: int | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int = 1,
        activation: Activation = None,
        negative_slope: float = 0.01,
        group_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_options(
            eps=eps, group_size=group_size, activation=activation, negative_slope=negative_slope, threads=threads
        )
        if momentum is not None:
            Exponential(momentum)  # which checks it
        num_features = integer("num_features", num_features)
        if num_features < 0:
            raise ValueError(f"num_features must not be negative, got {num_features}")
        more = {} if bias else {"bias": False}  # older PyTorch has no such argument
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **more)
        self.axis = integer("axis", axis)
        self.activation = activation
        self.negative_slope = negative_slope
        self.group_size = group_size
        self.threads = threads

    def forward(self, input: Tensor, residual: Tensor | None = None, *, weights: Any = None) -> Tensor:
        """Normalize input by its own statistics in training, and where there are no running ones; else by those."""
        x = input
        self._check_features(x)
        shape = [self.num_features]
        options = {
            "axis": (self.axis,),
            "eps": self.eps,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "threads": self.threads,
        }
        gamma, beta = _full(x, self.weight, shape), _full(x, self.bias, shape)
        if not self.training and self.running_mean is not None:
            mean, var = _full(x, self.running_mean, shape), _full(x, self.running_var, shape)
            return _infer(x, gamma, beta, residual, mean, var, options)
        options |= {"group_size": self.group_size, "weights": weights}
        if torch.compiler.is_compiling():
            return self._train_in_graph(x, gamma, beta, residual, options)
        y, saved = _train(x, gamma, beta, residual, options)
        if self._tracks(x):
            self._track(x, saved)
        return y

    def _check_input_dim(self, x: Tensor) -> None:
        """Any rank will do; PyTorch's classes have theirs."""

    def __prepare_scriptable__(self) -> None:
        """Called by ``torch.jit.script``, which would complain of the syntax."""
        raise TypeError("torch.jit.script cannot compile this layer: script batchnorm.torch.revert(model)")

    def _check_features(self, x: Tensor) -> None:
        _check_tensor(x)
        self._check_input_dim(x)
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"axis {self.axis} is out of range for x of shape {tuple(x.shape)}")
        if x.shape[self.axis] != self.num_features:
            raise ValueError(
                f"x of shape {tuple(x.shape)} has {x.shape[self.axis]} features along axis {self.axis}, this layer has "
                f"{self.num_features}"
            )

    def _tracks(self, x: Tensor) -> bool:
        return self.training and self.track_running_stats and self.running_mean is not None and x.numel() > 0

    def _track(self, x: Tensor, saved: Saved) -> None:
        batches, momentum = self._count(), self.momentum
        if momentum is None and batches is not None:
            momentum = 1 / float(batches)
        if momentum is not None:  # else as PyTorch has it: an average over batches that nobody counts
            move(self.running_mean, self.running_var, x, saved, momentum)

    def _count(self) -> Tensor | None:
        """Batches, with this one; None if nobody counts."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self.num_batches_tracked

    def _train_in_graph(self, x: Tensor, gamma: Any, beta: Any, residual: Any, options: Any) -> Tensor:
        """As in `forward` and `_track`, by an operator, which gives running statistics anew."""
        options, momentum = _constant_weights(x, options), None if self.momentum is None else float(self.momentum)
        tracks = self._tracks(x)
        batches = self._count() if tracks else None
        if not tracks or (momentum is None and batches is None):
            return train(x, gamma, beta, residual, (None, None), None, None, options)[0]
        running = (self.running_mean, self.running_var)
        y, moved = train(x, gamma, beta, residual, running, batches, momentum, options)
        for one, new in zip(running, moved, strict=True):
            one.copy_(new)
        return y

    def extra_repr(self) -> str:
        """PyTorch's, and what differs from its layers."""
        own: dict[str, tuple[Any, Any]] = {
            "axis": (self.axis, 1),
            "group_size": (self.group_size, None),
            "activation": (self.activation, None),
        }
        if self.activation == "leaky_relu":
            own["negative_slope"] = (self.negative_slope, None)
        more = [f"{name}={value!r}" for name, (value, usual) in own.items() if value != usual]
        return ", ".join([super().extra_repr(), *more])


class BatchNorm1d(BatchNorm, torch.nn.BatchNorm1d):  # type: ignore[misc]
    """`BatchNorm` that is a ``torch.nn.BatchNorm1d``, too, and takes x of rank 2 or 3."""

    _check_input_dim = torch.nn.BatchNorm1d._check_input_dim


class BatchNorm2d(BatchNorm, torch.nn.BatchNorm2d):  # type: ignore[misc]
    """`BatchNorm` that is a ``torch.nn.BatchNorm2d``, too, and takes x of rank 4."""

    _check_input_dim = torch.nn.BatchNorm2d._check_input_dim


class BatchNorm3d(BatchNorm, torch.nn.BatchNorm3d):  # type: ignore[misc]
    """`BatchNorm` that is a ``torch.nn.BatchNorm3d``, too, and takes x of rank 5."""

    _check_input_dim = torch.nn.BatchNorm3d._check_input_dim


_OURS = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: torch.nn.Module) -> torch.nn.Module:
    """Make PyTorch's BatchNorm1d, 2d and 3d in a module, itself included, those of this library; return the module.

    Each stays the object that it is, with its parameters, buffers, hooks and mode, and an instance of PyTorch's class:
    an optimizer that holds the parameters goes on. Subclasses of these classes are left as they are, and so are lazy
    layers before their first call. `revert` goes back.
    """
    for one in module.modules():
        if type(one) in _OURS:
            one.__class__ = _OURS[type(one)]
    return module


def revert(module: torch.nn.Module) -> torch.nn.Module:
    """Make `BatchNorm1d`, 2d and 3d in a module PyTorch's, for torch.jit, torch.fx or ONNX; return the module.

    Those with an activation, groups or another axis, which PyTorch's lack, are left as they are.
    """
    for one in module.modules():
        if type(one) in _THEIRS and one.axis == 1 and not (one.activation or one.group_size):
            one.__class__ = _THEIRS[type(one)]
            for name in ("axis", "activation", "negative_slope", "group_size", "threads"):
                one.__dict__.pop(name, None)
    return module


# --------------------------------------------------------------------------------------------------------- derivatives


def _computes(method: Callable[..., Any]) -> Callable[..., Any]:
    """For what calls the plain functions: where they fail since PyTorch batches or traces, the error says so."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (RuntimeError, ValueError):
            _check_values(*arguments)  # not before, for the time that it takes
            raise

    call.__signature__ = _Positional()  # type: ignore[attr-defined]
    return call


class _Positional(inspect.Signature):
    """Takes any arguments as they are: `Function.apply` binds those of each call, which takes Python 10 us.

    Of what it is bound to, that uses args, kwargs and apply_defaults().
    """

    class _Bound(NamedTuple):
        args: tuple[Any, ...]
        kwargs: dict[str, Any]

        def apply_defaults(self) -> None:
            """There are none."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """See `inspect.Signature.bind`."""
        return self._Bound(args, kwargs)


_NO_VMAP = (
    "vmap, is_grads_batched and vectorize=True have no rule for batch norm: go without them, or use "
    "batchnorm.torch.revert(model)"
)


class _Function(Function):  # type: ignore[misc]
    """One without a rule for vmap, which says how to do without."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise TypeError(_NO_VMAP)


class _Training(_Function):
    """(x, gamma, beta, residual) to y; the statistics are x's own."""

    @staticmethod
    @_computes
    def forward(x: Any, gamma: Any, beta: Any, residual: Any, options: Any) -> Any:
        return functional.batch_norm(values(x), values(gamma), values(beta), residual=values(residual), **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, gamma, _, _, options = inputs
        ctx.statistics, ctx.strides = output[1], x.stride()
        ctx.set_materialize_grads(False)
        weights = options["weights"]  # for PyTorch to see that they do not change
        ctx.save_for_backward(x, gamma, weights if isinstance(weights, Tensor) else None)
        ctx.save_for_forward(x, gamma)

    @staticmethod
    @_computes
    def backward(ctx: Any, dy: Any, _: Any) -> Any:
        if dy is None:
            return (None,) * 5
        x, gamma, _ = ctx.saved_tensors
        saved = ctx.statistics
        if saved.activation is not None:  # whose mask is in forward's memory order; a hook may have given x another
            x = in_strides(x, ctx.strides)
        if _records():  # these gradients are to have gradients
            if saved.activation is not None:
                dy, saved = _through(dy, _Slopes.apply(x, saved)), saved._without_activation()
            dx, dgamma, dbeta = _TrainingBackward.apply(dy, x, gamma, saved)
            dresidual = dy
        else:
            adds = ctx.needs_input_grad[3] and saved.activation is not None
            dx, dgamma, dbeta, dresidual = functional.batch_norm_backward(
                values(dy), values(x), saved, values(gamma), need_dresidual=adds
            )
            dresidual = dresidual if adds else dy
        return _wanted(ctx, dx, dgamma, dbeta, dresidual)

    @staticmethod
    def jvp(ctx: Any, tx: Any, tgamma: Any, tbeta: Any, tresidual: Any, _: Any) -> Any:
        x, gamma = ctx.saved_tensors[:2]
        saved = ctx.statistics
        tx = torch.zeros_like(x) if tx is None else tx
        plain = saved if saved.activation is None else saved._without_activation()
        ty = _Tangent.apply(tx, x, gamma, tgamma, tbeta, plain)
        if tresidual is not None:
            ty = ty + tresidual
        return ty if saved.activation is None else _through(ty, _Slopes.apply(x, saved)), None


class _TrainingBackward(_Function):
    """(dy, x, gamma) to (dx, dgamma, dbeta), without an activation."""

    @staticmethod
    @_computes
    def forward(dy: Any, x: Any, gamma: Any, saved: Any) -> Any:
        return functional.batch_norm_backward(values(dy), values(x), saved, values(gamma))[:3]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, gamma, ctx.statistics = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, gamma)

    @staticmethod
    def backward(ctx: Any, ddx: Any, ddgamma: Any, ddbeta: Any) -> Any:
        dy, x, gamma = ctx.saved_tensors
        ddx = torch.zeros_like(x) if ddx is None else ddx
        ddy, dx, dgamma = _DoubleBackward.apply(ddx, dy, x, gamma, ddgamma, ddbeta, ctx.statistics)
        return ddy, dx, dgamma if gamma is not None else None, None


class _DoubleBackward(_Function):
    """(ddx, dy, x, gamma, ddgamma, ddbeta) to (ddy, dx, dgamma); no further derivatives."""

    @staticmethod
    @_computes
    def forward(ddx: Any, dy: Any, x: Any, gamma: Any, ddgamma: Any, ddbeta: Any, saved: Any) -> Any:
        ddx, dy, x, gamma, ddgamma, ddbeta = map(values, (ddx, dy, x, gamma, ddgamma, ddbeta))
        return tuple(batch_norm_double_backward(ddx, dy, x, saved, gamma, ddgamma=ddgamma, ddbeta=ddbeta))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _Tangent(_Function):
    """(tx, x, gamma, tgamma, tbeta) to ty, without an activation; no further derivatives."""

    @staticmethod
    @_computes
    def forward(tx: Any, x: Any, gamma: Any, tgamma: Any, tbeta: Any, saved: Any) -> Any:
        tx, x, gamma, tgamma, tbeta = map(values, (tx, x, gamma, tgamma, tbeta))
        return batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, tbeta=tbeta)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _Slopes(_Function):
    """The derivative of the activation at each element of x: what it makes of a gradient of ones."""

    @staticmethod
    @_computes
    def forward(x: Any, saved: Any) -> Any:
        x = values(x)
        return functional.batch_norm_backward(torch.ones_like(x), x, saved, need_dresidual=True).dresidual

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        return None, None


class _Inference(_Function):
    """(x, gamma, beta, residual) to y; mean and var are constants."""

    @staticmethod
    @_computes
    def forward(x: Any, gamma: Any, beta: Any, residual: Any, mean: Any, var: Any, options: Any) -> Any:
        return functional.batch_norm_inference(
            values(x), mean, var, values(gamma), values(beta), residual=values(residual), **options
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, gamma, _, _, mean, var, ctx.options = inputs
        ctx.set_materialize_grads(False)  # a tangent that there is not, as zeros, would be NaN beside NaN
        mean, var = mean.clone(), var.clone()  # running statistics may move before backward
        y = output if ctx.options["activation"] else None
        ctx.save_for_backward(x, gamma, mean, var, y)
        ctx.save_for_forward(x, gamma, mean, var, y)

    @staticmethod
    @_computes
    def backward(ctx: Any, dy: Any) -> Any:
        if dy is None:
            return (None,) * 7
        x, gamma, mean, var, y = ctx.saved_tensors
        if _records():  # they are to have gradients: PyTorch's own operations do
            scale, xhat, reduced = _frozen(ctx.options, x, gamma, mean, var)
            dresidual = dy if y is None else _through(dy, _slopes_by_sign(ctx.options, y))
            wide = dresidual.double()
            dx, product = (wide * scale).to(x.dtype), wide * xhat
            dgamma, dbeta = (one.sum(reduced) if reduced else one for one in (product, wide))
        else:
            adds = ctx.needs_input_grad[3] and y is not None
            dx, dgamma, dbeta, dresidual = functional.batch_norm_inference_backward(
                values(dy), values(x), mean, var, values(gamma), y=values(y), need_dresidual=adds, **ctx.options
            )
            dresidual = dresidual if adds else dy
        return *_wanted(ctx, dx, dgamma, dbeta, dresidual), None, None

    @staticmethod
    def jvp(ctx: Any, tx: Any, tgamma: Any, tbeta: Any, tresidual: Any, *_: Any) -> Any:
        x, gamma, mean, var, y = ctx.saved_tensors
        scale, xhat, reduced = _frozen(ctx.options, x, gamma, mean, var)
        ty = torch.zeros_like(xhat)
        shape = [1 if d in reduced else n for d, n in enumerate(x.shape)]
        for tangent, factor in ((tx, scale), (tresidual, None)):
            if tangent is not None:
                ty = ty + (tangent.double() if factor is None else tangent.double() * factor)
        for tangent, factor in ((tgamma, xhat), (tbeta, None)):
            if tangent is not None:
                wide = tangent.double().reshape(shape)
                ty = ty + (wide if factor is None else wide * factor)
        return (ty if y is None else _through(ty, _slopes_by_sign(ctx.options, y))).to(x.dtype)


def _train(x: Tensor, gamma: Any, beta: Any, residual: Any, options: Any) -> tuple[Tensor, Saved]:
    """`_Training`, recorded if PyTorch records."""
    options = _constant_weights(x, options)
    _check_nesting()
    function = _Training.apply if _records() else _Training.forward
    y, saved = function(x, gamma, beta, residual, options)
    return y, saved


def _infer(x: Tensor, gamma: Any, beta: Any, residual: Any, mean: Any, var: Any, options: Any) -> Tensor:
    """`_Inference`, recorded if PyTorch records."""
    _check_constants(mean=mean, var=var)
    if torch.compiler.is_compiling():
        return infer(x, gamma, beta, residual, mean, var, options)
    _check_nesting()
    function = _Inference.apply if _records() else _Inference.forward
    y: Tensor = function(x, gamma, beta, residual, mean, var, options)
    return y


def _constant_weights(x: Tensor, options: Any) -> Any:
    """Options, whose weights, if any, are a tensor that needs no gradient."""
    if options["weights"] is None:
        return options
    _check_constants(weights=options["weights"])
    return {**options, "weights": _tensor(x, options["weights"])}


def _check_tensor(x: Any) -> None:
    if type(x) is not Tensor and not (isinstance(x, Tensor) and torch.compiler.is_compiling()):
        _check_values(x)
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}, expected a torch tensor")


def _check_values(*tensors: Any) -> None:
    """Refuse what only stands for a tensor, where PyTorch batches or traces."""
    for one in tensors:
        if _is_any(one, "is_batchedtensor", "is_legacy_batchedtensor"):
            raise TypeError(_NO_VMAP) from None
        if _is_any(one, "is_functionaltensor") or type(one).__module__.startswith(("torch.fx", "torch._subclasses")):
            raise TypeError(
                f"a tensor that PyTorch traces ({type(one).__name__}) has no values to normalize: use a module "
                "of batchnorm.torch for torch.compile or torch.export, else trace batchnorm.torch.revert(model)"
            ) from None


def _is_any(one: Any, *kinds: str) -> bool:
    """Whether it is a tensor of such a kind, as far as this PyTorch knows them."""
    known = (getattr(torch._C._functorch, kind, None) for kind in kinds)
    return isinstance(one, Tensor) and any(is_kind(one) for is_kind in known if is_kind)


def _check_constants(**constants: Any) -> None:
    """Refuse arguments whose gradient or tangent would be lost; inside of a Function nobody would see it."""
    for name, one in constants.items():
        if not isinstance(one, Tensor):
            continue
        refuse_lost_gradients(**{name: one.requires_grad})
        forward_ad = torch.autograd.forward_ad
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(one).tangent is not None:
            raise TypeError(f"{name} has a tangent, which this function would lose: pass its primal")


def _check_nesting() -> None:
    """Refuse forward mode inside of forward mode, where the outer tangents of a Function are zeros."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    stack = torch._C._functorch.get_interpreter_stack() or []
    if sum(one.key() == torch._C._functorch.TransformType.Jvp for one in stack) > 1:
        raise TypeError("a torch.func.jvp of another one has no rule for batch norm: use batchnorm.torch.revert(model)")


def _kept(x: Tensor, axis: Any) -> tuple[Any, list[int] | None]:
    """Axis as a tuple, and the shape of these axes in x's order; None where the functions will refuse it."""
    axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    try:
        axes = tuple(map(operator.index, axes))
    except TypeError:
        return axis, None
    if not all(-x.dim() <= a < x.dim() for a in axes):
        return axis, None
    return axes, [x.shape[a] for a in sorted(a % x.dim() for a in axes)]


def _tensor(x: Tensor, values: Any, dtype: Any = None) -> Any:
    """Values on x's device; of an array a copy, since PyTorch would not see it change before backward."""
    if values is None or isinstance(values, Tensor):
        return values
    if isinstance(values, np.ma.MaskedArray):
        return values  # not without its mask
    try:
        return torch.from_numpy(np.array(values, dtype)).to(x.device)
    except (TypeError, ValueError):
        return values  # the functions say what is wrong with it


def _full(x: Tensor, parameter: Any, shape: list[int] | None) -> Any:
    """A parameter as a tensor of the kept axes' shape, which a number has for all."""
    if parameter is None or shape is None:
        return parameter
    parameter = _tensor(x, parameter, np.float64)
    return parameter.expand(shape) if isinstance(parameter, Tensor) and parameter.dim() == 0 else parameter


def _records() -> bool:
    """Whether PyTorch records operations for derivatives, in reverse or in forward mode."""
    return bool(torch.is_grad_enabled()) or torch.autograd.forward_ad._current_level >= 0


def _wanted(ctx: Any, dx: Any, dgamma: Any, dbeta: Any, dresidual: Any) -> tuple[Any, ...]:
    """The gradients of those inputs that need one; the options have none."""
    grads = (dx, dgamma, dbeta, dresidual)
    return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


def _through(gradient: Any, slopes: Any) -> Tensor:
    """Gradient * slopes, but 0 where that is 0: also of an infinity."""
    return torch.where(slopes == 0, 0.0, gradient * slopes)


def _slopes_by_sign(options: Any, y: Tensor) -> Tensor:
    slope = options["negative_slope"] if options["activation"] == "leaky_relu" else 0.0
    if slope < 0:
        raise ValueError(f"negative_slope must not be negative, since the sign of y tells the slope, got {slope}")
    return torch.ones_like(y).masked_fill(y <= 0, slope)  # NaN passes


def _frozen(options: Any, x: Any, gamma: Any, mean: Any, var: Any) -> tuple[Tensor, Tensor, list[int]]:
    """Gamma * inv_std and xhat in float64, and the axes that statistics are the same along."""
    kept = {a % x.dim() for a in options["axis"]}
    shape = [n if d in kept else 1 for d, n in enumerate(x.shape)]
    inv_std = (var.double() + options["eps"]).rsqrt().reshape(shape)
    scale = inv_std if gamma is None else inv_std * gamma.double().reshape(shape)
    xhat = (x.double() - mean.double().reshape(shape)) * inv_std
    return scale, xhat, [d for d in range(x.dim()) if d not in kept]
