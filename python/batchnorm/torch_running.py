"""Running statistics of PyTorch's modules: float64 averages of a batch's, rounded once to the buffers' type."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ._core import Saved, update_running
from .running import effective_count, pooled, unbiased

__all__ = ["move"]


def move(running_mean: Tensor, running_var: Tensor, x: Tensor, saved: Saved, momentum: float) -> None:
    """Move running statistics by the share momentum of x's, of which saved tells; in place.

    The variance is the unbiased one. A channel without any weight in x is left as it is.
    """
    count = saved.count
    if saved.group_size is None and saved.weights is None and x.device.type == "cpu" and not _transforms():
        # What it refuses, before it writes anything, PyTorch's operations may take: another momentum or type, say.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            update_running(running_mean, running_var, saved, momentum, True)
            return
    mean, var = saved.mean, saved.var
    if saved.group_size is not None:
        mean, var, count = pooled(mean, var, count)
    values = count
    if saved.weights is not None:
        values = torch.from_numpy(effective_count(tuple(x.shape), saved.weights, saved.axis)).to(x.device)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.numel() != mean.numel():
            raise ValueError(f"{name} has shape {tuple(running.shape)}, expected {tuple(mean.shape)}")
    for running, value in ((running_mean, mean), (running_var, unbiased(var, values))):
        moved = torch.lerp(running.double(), value, momentum)
        running.copy_(moved if isinstance(count, float) else torch.where(count > 0, moved, running))


def _transforms() -> bool:
    """Whether this is inside of a transform of torch.func, which wraps tensors, and watches what is written."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return peek is None or peek() is not None
