"""PyTorch's own functions, without autograd. Its backward takes no output: a new tensor each time."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..arrays import EPS, Array, Problem
from ..cases import Task
from ..contestant import Contestant


class Library:
    """PyTorch on the CPU."""

    name = "PyTorch"
    version = str(torch.__version__)

    def contestants(self, problem: Problem, task: Task, threads: int) -> Iterable[Contestant]:
        """native_batch_norm with out=, or native_batch_norm_backward."""
        torch.set_num_threads(threads)
        x, dy, out = (channels_second(array, problem) for array in (problem.x, problem.dy, problem.out))
        gamma, beta = torch.from_numpy(problem.gamma), torch.from_numpy(problem.beta)
        mean, var, inv_std = (torch.from_numpy(a).to(x.dtype) for a in (problem.mean, problem.var, problem.inv_std))
        saved = torch.empty_like(mean), torch.empty_like(mean)
        unused = torch.empty(0, dtype=x.dtype), torch.empty(0, dtype=x.dtype)

        def forward() -> object:
            return torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, EPS, out=(out, *saved))

        def inference() -> object:
            return torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.1, EPS, out=(out, *unused))

        def backward() -> tuple[torch.Tensor, ...]:
            gradients: tuple[torch.Tensor, ...] = torch.ops.aten.native_batch_norm_backward(
                dy, x, gamma, None, None, mean, inv_std, True, EPS, [True, True, True]
            )
            return gradients

        if task == "backward":

            def gradients() -> dict[str, Array]:
                dx, dgamma, dbeta = backward()
                return {"dx": to_numpy(dx, problem), "dgamma": dgamma.numpy(), "dbeta": dbeta.numpy()}

            return [Contestant(self.name, backward, gradients)]

        call = forward if task == "forward" else inference

        def output() -> dict[str, Array]:
            call()
            return {"y": to_numpy(out, problem)}

        return [Contestant(self.name, call, output)]


def channels_second(array: Array, problem: Problem) -> torch.Tensor:
    """The same memory as PyTorch sees it: its second dimension is the channels', whatever the order in memory."""
    return torch.from_numpy(array).movedim(problem.axis, 1)


def to_numpy(tensor: torch.Tensor, problem: Problem) -> Array:
    """The way back."""
    array: Array = tensor.movedim(1, problem.axis).numpy()
    return array
