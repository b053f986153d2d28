"""PyTorch's operators of batch norm, ``torch.ops.batchnorm``: what torch.compile and torch.export record of it.

A graph holds calls from tensors to tensors: `batchnorm.Saved` goes through it in parts, and running statistics go in
and come out. Nothing else calls these, for PyTorch takes longer to than to call the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._core import Saved
from .torch_running import move

__all__ = ["in_strides", "infer", "refuse_lost_gradients", "train", "values"]

# Options come last, in this order.
_INFERENCE = "int[] axis, float eps, str? activation, float negative_slope, int? threads"
_TRAINING = _INFERENCE + ", int? group_size"

# Tensors are to come in the memory order that they have where nothing is compiled.
_TAGS = (getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),)


def train(
    x: Tensor, gamma: Any, beta: Any, residual: Any, running: Any, batches: Any, momentum: Any, options: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Y, and the running statistics moved, by operators."""
    _refuse_forward_mode()
    y, *_, mean, var = batch_norm(
        x, gamma, beta, residual, options["weights"], *running, batches, momentum, *_in_order(options, _TRAINING)
    )
    return y, (mean, var)


def infer(x: Tensor, gamma: Any, beta: Any, residual: Any, mean: Any, var: Any, options: Any) -> Tensor:
    """Y by operators."""
    _refuse_forward_mode()
    y: Tensor = batch_norm_inference(x, gamma, beta, residual, mean, var, *_in_order(options, _INFERENCE))
    return y


def values(tensor: Any) -> Any:
    """Without what autograd knows of a tensor: inside of what it records as one step.

    Negations and zeros that PyTorch has put off are carried out.
    """
    if not isinstance(tensor, Tensor):
        return tensor
    tensor = tensor.detach()
    if tensor.is_neg():
        return tensor.resolve_neg()
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else tensor


def in_strides(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """X in that memory order."""
    if x.stride() == strides:
        return x
    once = x[tuple(slice(1) if stride == 0 else slice(None) for stride in strides)]  # of what is expanded
    return torch.empty_strided(once.shape, strides, dtype=x.dtype, device=x.device).copy_(once).expand(x.shape)


def _operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Make an operator of a function, which gets the values of tensors."""

    def define(function: Callable[..., Any]) -> Any:
        def call(*arguments: Any) -> Any:
            _refuse_forward_mode()
            return function(*map(values, arguments))

        return torch.library.custom_op(
            f"batchnorm::{function.__name__}", call, mutates_args=(), schema=schema, tags=_TAGS
        )

    return define


def _refuse_forward_mode() -> None:
    """Operators would lose tangents, and where they are called there is nothing to see of them."""
    if torch.autograd.forward_ad._current_level >= 0:
        raise TypeError(
            "forward mode (torch.func.jvp, dual_level) has no rule for batch norm that torch.compile or torch.export "
            "has recorded: go without them, or use batchnorm.torch.revert(model)"
        )


def refuse_lost_gradients(**needed: bool) -> None:
    """Say which argument requires a gradient that it would not get."""
    for name, needs in needed.items():
        if needs:
            raise TypeError(f"{name} requires grad, which this function would lose: pass {name}.detach()")


def _in_order(options: Any, schema: str) -> list[Any]:
    return [options[option.split()[1]] for option in schema.split(", ")]


def _named(options: Any) -> dict[str, Any]:
    names = [option.split()[1] for option in _TRAINING.split(", ")]
    named = dict(zip(names, options, strict=False))
    return {**named, "axis": tuple(named["axis"])}


def _absent(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """In the place of a result that a call does not have."""
    return x.new_empty(0, dtype=dtype or x.dtype)


def _kept(x: Tensor, axis: Any) -> list[Any]:
    return [x.shape[a] for a in sorted(a % x.dim() for a in axis)]


def _mask_bytes(x: Tensor, group_size: int | None) -> Any:
    """Enough for a mask, however the library goes through x, if x has no gaps: strides do not go in.

    Each row begins a byte; it is as long as one of x's dimensions, of which the first ends with each group, or longer.
    """
    most: Any = 1
    for d, n in enumerate(x.shape):
        if n > 1:
            group = n if group_size is None or d > 0 else group_size
            row = n // group * ((group + 7) // 8) + (n % group + 7) // 8
            most = torch.sym_max(most, x.numel() // n * row)
    return most


def _fake_grads(x: Tensor, gamma: Tensor | None, axis: Any, need_dresidual: bool) -> tuple[Tensor, ...]:
    narrow = torch.float64 if x.dtype == torch.float64 else torch.float32
    dgamma, dbeta = (x.new_empty(_kept(x, axis), dtype=narrow if gamma is None else gamma.dtype) for _ in range(2))
    return torch.empty_like(x), dgamma, dbeta, torch.empty_like(x) if need_dresidual else _absent(x)


def _wanted(ctx: Any, grads: Any, dy: Tensor) -> list[Any]:
    """The gradients of x, gamma, beta and the residual, where they are wanted; without an activation its is dy."""
    grads = (*grads[:3], grads[3] if ctx.options["activation"] else dy)
    return [grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False)]


# ------------------------------------------------------------------------------------------------------------ training


@_operator(
    "(Tensor x, Tensor? gamma, Tensor? beta, Tensor? residual, Tensor? weights, Tensor? running_mean, "
    f"Tensor? running_var, Tensor? batches, float? momentum, {_TRAINING}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    residual: Any,
    weights: Any,
    running_mean: Any,
    running_var: Any,
    batches: Any,
    momentum: Any,
    *given: Any,
) -> tuple[Tensor, ...]:
    """Y, mean, inv_std, the count if there are weights, the activation's mask, its size with the strides of x, which it
    follows, and the running statistics moved.

    These move by the share momentum, or, if that is None, 1 / batches.
    """
    options = _named(given)
    if options["activation"] and not x.is_contiguous():
        x = in_strides(x, torch.empty_like(x, device="meta").stride())  # without gaps, for the mask to fit
    y, saved = functional.batch_norm(x, gamma, beta, residual=residual, weights=weights, **options)
    count = _absent(x, torch.float64) if weights is None else saved.count
    mask, layout = _absent(x, torch.uint8), []
    if options["activation"]:
        # Only here strides are certain: a compiler may choose others than it told when it traced.
        mask, layout = saved.mask, [saved.mask.numel(), *x.stride()]
        most = _mask_bytes(x, options["group_size"])
        if most > layout[0]:
            mask = mask.new_zeros(most)
            mask[: layout[0]] = saved.mask
    moved_mean, moved_var = (_absent(x) if one is None else one.clone() for one in (running_mean, running_var))
    if running_mean is not None and x.numel() > 0:
        move(moved_mean, moved_var, x, saved, 1 / float(batches) if momentum is None else momentum)
    return y, saved.mean, saved.inv_std, count, mask, torch.tensor(layout, dtype=torch.int64), moved_mean, moved_var


@batch_norm.register_fake  # type: ignore[untyped-decorator]
def _(x: Any, gamma: Any, beta: Any, residual: Any, weights: Any, *rest: Any) -> tuple[Tensor, ...]:
    running, options = rest[:2], _named(rest[4:])
    shape, group_size = _kept(x, options["axis"]), options["group_size"]
    if group_size is not None:
        shape = [(x.shape[0] + group_size - 1) // group_size, *shape]
    mean, inv_std = (x.new_empty(shape, dtype=torch.float64) for _ in range(2))
    count = _absent(x, torch.float64) if weights is None else torch.empty_like(mean)
    moved = [_absent(x) if one is None else torch.empty_like(one) for one in running]
    mask = x.new_empty(_mask_bytes(x, group_size) if options["activation"] else 0, dtype=torch.uint8)
    layout = torch.empty(1 + x.dim() if options["activation"] else 0, dtype=torch.int64)
    return torch.empty_like(x), mean, inv_std, count, mask, layout, *moved


@_operator(
    "(Tensor dy, Tensor x, Tensor? gamma, Tensor mean, Tensor inv_std, Tensor count, Tensor mask, Tensor layout, "
    f"Tensor? weights, bool need_dresidual, {_TRAINING}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def batch_norm_backward(
    dy: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    inv_std: Any,
    count: Any,
    mask: Any,
    layout: Any,
    weights: Any,
    need_dresidual: bool,
    *given: Any,
) -> tuple[Tensor, ...]:
    """Dx, dgamma, dbeta, and dresidual if it is needed."""
    options = _named(given)
    laid_out = x
    if options["activation"]:
        size, *strides = layout.tolist()
        mask, laid_out = mask[:size], in_strides(x, tuple(strides))
    saved = Saved(
        mean,
        inv_std,
        count=None if weights is None else count,
        axis=options["axis"],
        group_size=options["group_size"],
        activation=options["activation"],
        negative_slope=options["negative_slope"],
        mask=mask if options["activation"] else None,
        weights=weights,
    )
    grads = functional.batch_norm_backward(
        dy, laid_out, saved, gamma, need_dresidual=need_dresidual, threads=options["threads"]
    )
    dx, dresidual = (
        one if one is None or laid_out is x else torch.empty_like(x).copy_(one) for one in (grads.dx, grads.dresidual)
    )
    return dx, grads.dgamma, grads.dbeta, _absent(x) if dresidual is None else dresidual


@batch_norm_backward.register_fake  # type: ignore[untyped-decorator]
def _(dy: Any, x: Any, gamma: Any, *rest: Any) -> tuple[Tensor, ...]:
    need_dresidual, axis = rest[6:8]
    return _fake_grads(x, gamma, axis, need_dresidual)


def _save_training(ctx: Any, inputs: Any, output: Any) -> None:
    x, gamma, _, _, weights, *_ = inputs
    names = ("weights", "running_mean", "running_var")
    refuse_lost_gradients(**dict(zip(names, ctx.needs_input_grad[4:7], strict=True)))
    _, mean, inv_std, count, mask, layout, *_ = output
    ctx.given = inputs[9:]
    ctx.options = _named(ctx.given)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, gamma, mean, inv_std, count, mask, layout, weights)


def _training_backward(ctx: Any, dy: Any, *_: Any) -> tuple[Any, ...]:
    x, gamma, mean, inv_std, count, mask, layout, weights = ctx.saved_tensors
    need_dresidual = bool(ctx.options["activation"]) and ctx.needs_input_grad[3]
    grads = batch_norm_backward(dy, x, gamma, mean, inv_std, count, mask, layout, weights, need_dresidual, *ctx.given)
    return *_wanted(ctx, grads, dy), *[None] * (len(ctx.needs_input_grad) - 4)


batch_norm.register_autograd(_training_backward, setup_context=_save_training)


# ----------------------------------------------------------------------------------------------------------- inference


@_operator(
    f"(Tensor x, Tensor? gamma, Tensor? beta, Tensor? residual, Tensor mean, Tensor var, {_INFERENCE}) -> Tensor"
)
def batch_norm_inference(x: Any, gamma: Any, beta: Any, residual: Any, mean: Any, var: Any, *options: Any) -> Tensor:
    """Y."""
    y: Tensor = functional.batch_norm_inference(x, mean, var, gamma, beta, residual=residual, **_named(options))
    return y


@batch_norm_inference.register_fake  # type: ignore[untyped-decorator]
def _(x: Any, *_: Any) -> Tensor:
    return torch.empty_like(x)


@_operator(
    "(Tensor dy, Tensor x, Tensor? gamma, Tensor mean, Tensor var, Tensor? y, bool need_dresidual, "
    f"{_INFERENCE}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def batch_norm_inference_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, var: Any, y: Any, need_dresidual: bool, *options: Any
) -> tuple[Tensor, ...]:
    """Dx, dgamma, dbeta, and dresidual if it is needed."""
    grads = functional.batch_norm_inference_backward(
        dy, x, mean, var, gamma, y=y, need_dresidual=need_dresidual, **_named(options)
    )
    return *grads[:3], grads.dresidual if need_dresidual else _absent(x)


@batch_norm_inference_backward.register_fake  # type: ignore[untyped-decorator]
def _(dy: Any, x: Any, gamma: Any, *rest: Any) -> tuple[Tensor, ...]:
    need_dresidual, axis = rest[3:5]
    return _fake_grads(x, gamma, axis, need_dresidual)


def _save_inference(ctx: Any, inputs: Any, output: Any) -> None:
    x, gamma, _, _, mean, var, *ctx.given = inputs
    refuse_lost_gradients(mean=ctx.needs_input_grad[4], var=ctx.needs_input_grad[5])
    ctx.options = _named(ctx.given)
    y = output if ctx.options["activation"] else None
    ctx.save_for_backward(x, gamma, mean.clone(), var.clone(), y)  # running statistics may move before backward


def _inference_backward(ctx: Any, dy: Any) -> tuple[Any, ...]:
    x, gamma, mean, var, y = ctx.saved_tensors
    need_dresidual = y is not None and ctx.needs_input_grad[3]
    grads = batch_norm_inference_backward(dy, x, gamma, mean, var, y, need_dresidual, *ctx.given)
    return *_wanted(ctx, grads, dy), *[None] * (len(ctx.needs_input_grad) - 4)


batch_norm_inference.register_autograd(_inference_backward, setup_context=_save_inference)
