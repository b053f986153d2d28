"""A training step as users write it: a layer's forward and backward, without out=, with the allocator as it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import batchnorm as bn

from . import machine
from .arrays import EPS, Problem, buffers, problem
from .cases import Case, Settings, chosen_cases
from .check import check_against
from .contestant import UnavailableError
from .measure import quartiles_of_ratios, rounded, take_turns

NAMES = ("batchnorm", "PyTorch")


def step_cases(settings: Settings) -> list[Case]:
    """The shapes of ResNet-50 with 32 samples."""
    return [case for case in chosen_cases(settings) if case.n == 32 and "ResNet-50" in case.networks]


def step_count(settings: Settings) -> int:
    """How many rows there will be."""
    return len(step_cases(settings)) * len(settings.layouts)


def measure_steps(settings: Settings, emit: Callable[[str, Any], None]) -> None:
    """Measure every shape in both layouts, with all threads, in float32."""
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(f"--step compares with PyTorch: {error}") from None
    emit("versions", {"PyTorch": str(torch.__version__)})
    threads = max(settings.threads)
    bn.set_num_threads(threads)
    torch.set_num_threads(threads)
    for case in step_cases(settings):
        memory = buffers(case, "float32")
        for layout in settings.layouts:
            steps = _checked_steps(problem(case, layout, memory))
            in_cache = case.size * 4 <= machine.last_level_cache()
            bn.clear_cache()  # of buffers that would leave a training loop that has no use for them
            seconds = take_turns(dict(zip(NAMES, steps, strict=True)), settings.runs, in_cache)
            emit(
                "step",
                {
                    "case": case.shape,
                    "layout": layout,
                    "threads": threads,
                    "bytes": case.size * 4,
                    "ratio": quartiles_of_ratios(seconds["PyTorch"], seconds["batchnorm"]),
                    "seconds": {name: rounded(values) for name, values in seconds.items()},
                },
            )
        del memory


def _checked_steps(problem: Problem) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of each library, returning y and dx; both were found to agree."""
    import torch

    from .peers.pytorch import channels_second, to_numpy

    ours = bn.BatchNorm(problem.case.c, axis=problem.axis, eps=EPS)
    x, dy = problem.x, problem.dy

    def our_step() -> tuple[Any, Any]:
        y = ours(x)
        dx = ours.backward(dy)
        return y, dx

    theirs = torch.nn.BatchNorm2d(problem.case.c, eps=EPS)
    leaf, torch_dy = channels_second(x, problem).requires_grad_(), channels_second(dy, problem)

    def their_step() -> tuple[torch.Tensor, torch.Tensor]:
        leaf.grad = theirs.weight.grad = theirs.bias.grad = None
        y = theirs(leaf)
        y.backward(torch_dy)
        assert leaf.grad is not None
        return y, leaf.grad

    y, dx = our_step()
    torch_y, torch_dx = their_step()
    assert theirs.weight.grad is not None
    assert theirs.bias.grad is not None
    check_against(
        problem,
        "PyTorch",
        {
            "y": to_numpy(torch_y.detach(), problem),
            "dx": to_numpy(torch_dx, problem),
            "dgamma": theirs.weight.grad.numpy(),
            "dbeta": theirs.bias.grad.numpy(),
        },
        {"y": y, "dx": dx, "dgamma": np.asarray(ours.dgamma), "dbeta": np.asarray(ours.dbeta)},
    )
    return our_step, their_step
