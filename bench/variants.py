"""Calls with options, and the plain ones in 16 bits, in the time of the plain float32 call of the same task.

PyTorch makes several calls of what is fused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

import batchnorm as bn

from . import machine
from .arrays import BETWEEN, Problem, aligned, buffers, problem, reserve_pages
from .cases import Case, Job, Settings, Task, chosen_cases
from .check import Results, check_against, checked_channels, compare_channels, reference
from .contestant import Contestant, Peer, UnavailableError
from .measure import quartiles_of_ratios, rounded, undisturbed_turns
from .options import SLOPE, Option, OptionProblem, options, plain_call, results_of, with_options
from .peers import load

Emit = Callable[[str, Any], None]

# What PyTorch makes several calls of.
_FUSED: dict[Task, str] = {
    "forward": "residual + relu",
    "inference": "residual + relu",
    "backward": "relu + dresidual",
}

# Largest errors allowed: of elements in their largest value, with the roundings of 11 and 8 bits; of values summed.
_TOLERANCES = {"float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_FROM_OUTPUT = 1e-4  # y was rounded before it is divided by the slope and by gamma
_SUMS = 1e-5


def variant_jobs(settings: Settings) -> Iterator[Job]:
    """The shapes of ResNet-50 with 32 samples, unless others are asked for; float32, all threads."""
    for case in chosen_cases(settings):
        if settings.quick or settings.case or (case.n == 32 and "ResNet-50" in case.networks):
            for layout in case.layouts:
                for task in settings.tasks:
                    if layout in settings.layouts:
                        yield Job(case, "float32", layout, task, max(settings.threads))


def measure_variants(settings: Settings, emit: Emit) -> None:
    """Measure every job, all its variants in the same turns."""
    halves = list(_halves(emit))
    peer = _pytorch(settings, emit)
    for case, jobs in groupby(variant_jobs(settings), lambda job: job.case):
        memory = _Memory(case, halves)
        reserve_pages(case, "float32")
        for job in jobs:
            emit("variant", _measure(job, memory, peer, settings, emit))
        del memory


def _halves(emit: Emit) -> Iterator[str]:
    """The types of 16 bits that NumPy and batchnorm have here."""
    for name in ("float16", "bfloat16"):
        try:
            if name == "bfloat16":
                import ml_dtypes  # noqa: F401  NumPy knows the name from then on
            bn.moments(np.zeros((2, 1), name))
        except (ImportError, TypeError) as error:
            emit("note", f"{name} is skipped: {error}")
        else:
            yield name


def _pytorch(settings: Settings, emit: Emit) -> Peer | None:
    if "pytorch" not in settings.peers:
        return None
    try:
        peer = load("pytorch", settings.large_numpy)
    except UnavailableError as reason:
        emit("note", str(reason))
        return None
    emit("versions", {peer.name: peer.version})
    return peer


class _Memory:
    """The memory of a case, which both layouts share."""

    def __init__(self, case: Case, halves: list[str]) -> None:
        self.plain = buffers(case, "float32")
        self.residual, self.dresidual, self.y = (aligned(case.size, "float32", offset) for offset in BETWEEN)
        self.residual[...] = self.plain.dy[::-1]
        self.halves = {name: buffers(case, name) for name in halves}

    def problem(self, job: Job) -> OptionProblem:
        plain = problem(job.case, job.layout, self.plain)
        return with_options(plain, self.residual, self.dresidual, self.y)


def _measure(job: Job, memory: _Memory, peer: Peer | None, settings: Settings, emit: Emit) -> dict[str, object]:
    bn.set_num_threads(job.threads)
    given = memory.problem(job)
    checked = options(given, job.task)
    fused = _checked(given, job.task, checked)
    calls = {option.name: option.call for option in checked}
    for name, half in memory.halves.items():
        halved = replace(problem(job.case, job.layout, half), gamma=given.gamma, beta=given.beta)
        calls[name] = plain_call(halved, job.task)
        channels = checked_channels(halved)
        halved.out.fill(float("nan"))
        _check(halved, name, results_of(calls[name]), reference(halved, job.task, channels), channels)
    if peer is not None:
        try:
            theirs = _several_calls(peer, given, job)
            given.out.fill(float("nan"))
            check_against(given, theirs.name, theirs.results(), fused)
            calls[theirs.name] = theirs.call
        except ArithmeticError as error:
            emit("note", f"not timed: {job.case.shape}, {job.task}, channels {job.layout}: {error}")
    del fused

    cache = machine.last_level_cache()
    in_cache = given.x.nbytes // (2 if memory.halves else 1) <= cache  # one of the tensors
    seconds, others = undisturbed_turns(calls, settings, in_cache)
    ratios = {
        f"{name} / plain": quartiles_of_ratios(seconds[name], seconds["plain"])
        for name in seconds
        if name not in ("plain", "PyTorch")
    }
    if "PyTorch" in seconds:
        name = _FUSED[job.task]
        ratios[f"{name} / PyTorch"] = quartiles_of_ratios(seconds[name], seconds["PyTorch"])
    return {
        "case": job.case.shape,
        "layout": job.layout,
        "task": job.task,
        "threads": job.threads,
        "bytes": given.x.nbytes,
        "large": given.x.nbytes > cache,
        "others": round(others, 2),
        "ratios": ratios,
        "seconds": {name: rounded(values) for name, values in seconds.items()},
    }


def _checked(given: OptionProblem, task: Task, calls: list[Option]) -> Results:
    """What the fused one returned; all were found right."""
    channels = checked_channels(given)
    if task == "backward":
        y = reference(given, "forward", channels)["y"]
        _check(given, "leaky_relu", {"y": given.y}, {"y": np.where(y > 0, y, SLOPE * y)}, channels)
    fused: Results = {}
    for option in calls:
        option.prepare(given)
        results = option.results()
        _check(given, option.name, results, option.expected(channels), channels)
        if option.name == _FUSED[task]:
            fused = {part: array.copy() for part, array in results.items()}  # the others write to the same outputs
    return fused


def _check(given: Problem, name: str, results: Results, expected: Results, channels: list[int]) -> None:
    tolerance = _FROM_OUTPUT if name == "from the output" else _TOLERANCES[given.x.dtype.name]
    for part, want in expected.items():
        allowed = tolerance if want.ndim == given.x.ndim else min(tolerance, _SUMS)
        compare_channels(given, f"batchnorm, {name}", results, {part: want}, channels, allowed)


def _several_calls(peer: Peer, given: OptionProblem, job: Job) -> Contestant:
    """PyTorch's own call and those around it, in place, with outputs where there can be any, without autograd."""
    import torch

    from .peers.pytorch import channels_second

    dy, y, dresidual, out, residual = (
        channels_second(array, given) for array in (given.dy, given.y, given.dresidual, given.out, given.residual)
    )
    inner = replace(given, dy=given.dresidual) if job.task == "backward" else given
    [plain] = peer.contestants(inner, job.task, job.threads)

    def through_relu() -> object:
        return torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=dresidual)

    def backward() -> object:
        through_relu()
        return plain.call()

    def gradients() -> Results:
        through_relu()
        return {**plain.results(), "dresidual": given.dresidual}

    if job.task == "backward":
        return Contestant(peer.name, backward, gradients)

    def fused() -> object:
        plain.call()
        return out.add_(residual).relu_()

    def output() -> Results:
        fused()
        return {"y": given.out}

    return Contestant(peer.name, fused, output)
