"""Calls that do more than the plain ones, in the time of the plain float32 call of the same task.

With a residual and relu, with weights, in groups, backward through the mask and from the output, and the plain calls in
16 bits. PyTorch makes several calls of what is fused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

import batchnorm as bn

from . import machine
from .arrays import BETWEEN, EPS, Array, Problem, aligned, buffers, problem, reserve_pages
from .cases import Case, Job, Settings, Task, chosen_cases
from .check import Results, check_against, checked_channels, compare_channels, reference
from .contestant import Contestant, Peer, UnavailableError
from .measure import quartiles_of_ratios, rounded, undisturbed_turns
from .peers import load

Emit = Callable[[str, Any], None]
Call = Callable[..., Any]

# What PyTorch makes several calls of.
_FUSED: dict[Task, str] = {
    "forward": "residual + relu",
    "inference": "residual + relu",
    "backward": "relu + dresidual",
}
_GROUP = 8  # samples
_SLOPE = 0.01  # of leaky_relu, which backward from the output takes back

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


@dataclass
class _Problem(Problem):
    """What variants are given besides."""

    residual: Array
    dresidual: Array
    y: Array  # the output of leaky_relu: where it is positive, that of relu is
    weights: Array  # without the axis of the channels


def _problem(job: Job, memory: _Memory) -> _Problem:
    plain = problem(job.case, job.layout, memory.plain)
    plain.gamma = np.copysign(abs(plain.gamma) + np.float32(0.5), plain.gamma)  # which is divided by
    residual, dresidual, y = (a.reshape(plain.x.shape) for a in (memory.residual, memory.dresidual, memory.y))
    weights = np.ones([plain.x.shape[axis] for axis in plain.reduced], bool)
    weights[..., -max(1, weights.shape[-1] // 8) :] = False  # as padding has it
    return _Problem(**vars(plain), residual=residual, dresidual=dresidual, y=y, weights=weights)


def _measure(job: Job, memory: _Memory, peer: Peer | None, settings: Settings, emit: Emit) -> dict[str, object]:
    bn.set_num_threads(job.threads)
    given = _problem(job, memory)
    calls = _variants(given, job.task)
    fused = _checked_variants(given, job.task, calls)
    for name, half in memory.halves.items():
        halved = replace(problem(job.case, job.layout, half), gamma=given.gamma, beta=given.beta)
        calls[name] = _plain(halved, job.task)
        channels = checked_channels(halved)
        halved.out.fill(float("nan"))
        _check(halved, name, _results(calls[name]), reference(halved, job.task, channels), channels)
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


def _plain(given: Problem, task: Task) -> Call:
    """The call that others are measured by; parameters and given statistics are float32."""
    x, gamma, beta = given.x, given.gamma, given.beta
    common: dict[str, Any] = {"axis": given.axis, "eps": EPS, "out": given.out}
    forward = partial(bn.batch_norm, x, gamma, beta, **common)
    if task == "forward":
        return forward
    if task == "inference":
        mean, var = (values.astype(gamma.dtype) for values in (given.mean, given.var))
        return partial(bn.batch_norm_inference, x, mean, var, gamma, beta, **common)
    return partial(bn.batch_norm_backward, given.dy, x, forward()[1], gamma, out=given.out)


def _variants(given: _Problem, task: Task) -> dict[str, Call]:
    """All of batchnorm's float32 calls."""
    plain = _plain(given, task)
    fused: dict[str, Any] = {"activation": "relu", "residual": given.residual}
    if task == "inference":
        return {"plain": plain, "residual + relu": partial(plain, **fused)}
    if task == "forward":
        return {
            "plain": plain,
            "relu": partial(plain, activation="relu"),
            "residual + relu": partial(plain, **fused),
            "weights": partial(plain, weights=given.weights),
            f"groups of {_GROUP}": partial(plain, group_size=_GROUP),
        }
    dy, x, y, gamma, beta = given.dy, given.x, given.y, given.gamma, given.beta
    forward = _plain(given, "forward")
    _, masked = forward(activation="relu")
    _, saved = forward(activation="leaky_relu", negative_slope=_SLOPE, out=y)
    relu = partial(bn.batch_norm_backward, dy, x, masked, gamma, out=given.out)
    return {
        "plain": plain,
        "relu": relu,
        "relu + dresidual": partial(relu, need_dresidual=True, out=(given.out, given.dresidual)),
        "from the output": partial(bn.batch_norm_backward_from_output, dy, y, saved, gamma, beta, out=given.out),
    }


def _expected(given: _Problem, task: Task, channels: list[int]) -> dict[str, Results]:
    """What each of them should give for these channels, from NumPy in float64."""
    plain = reference(given, task, channels)
    if task == "backward":
        let_through = given.y > 0
        relu = np.where(let_through, given.dy, 0)
        masked = reference(replace(given, dy=relu), task, channels)
        leaky = np.where(let_through, given.dy, np.float32(_SLOPE) * given.dy)
        return {
            "plain": plain,
            "relu": masked,
            "relu + dresidual": {**masked, "dresidual": np.take(relu, channels, given.axis)},
            "from the output": reference(replace(given, dy=leaky), task, channels),
        }
    y = plain["y"]
    groups = [
        reference(replace(given, x=given.x[start : start + _GROUP]), "forward", channels)["y"]
        for start in range(0, given.case.n, _GROUP)
    ]
    return {
        "plain": plain,
        "relu": {"y": np.maximum(y, 0)},
        "residual + relu": {"y": np.maximum(y + np.take(given.residual, channels, given.axis), 0)},
        "weights": {"y": _weighted(given, channels)},
        f"groups of {_GROUP}": {"y": np.concatenate(groups)},
    }


def _weighted(given: _Problem, channels: list[int]) -> Array:
    x, w = np.take(given.x, channels, given.axis).astype(np.float64), np.expand_dims(given.weights, given.axis)
    gamma, beta = (given.across(values[channels].astype(np.float64)) for values in (given.gamma, given.beta))
    from_mean = x - (w * x).sum(given.reduced, keepdims=True) / w.sum()
    var = (w * from_mean * from_mean).sum(given.reduced, keepdims=True) / w.sum()
    y: Array = from_mean / np.sqrt(var + EPS) * gamma + beta
    return y


def _checked_variants(given: _Problem, task: Task, calls: dict[str, Call]) -> Results:
    """What the fused one returned; all were found right."""
    channels = checked_channels(given)
    if task == "backward":
        y = reference(given, "forward", channels)["y"]
        _check(given, "leaky_relu", {"y": given.y}, {"y": np.where(y > 0, y, _SLOPE * y)}, channels)
    expected = _expected(given, task, channels)
    fused: Results = {}
    for name, call in calls.items():
        given.out.fill(float("nan"))
        given.dresidual.fill(float("nan"))
        results = _results(call)
        _check(given, name, results, expected[name], channels)
        if name == _FUSED[task]:
            fused = {part: array.copy() for part, array in results.items()}  # the others write to the same outputs
    return fused


def _results(call: Call) -> Results:
    made = call()
    if isinstance(made, bn.Grads):
        return {name: array for name, array in made._asdict().items() if array is not None}
    return {"y": made[0] if isinstance(made, tuple) else made}


def _check(given: Problem, name: str, results: Results, expected: Results, channels: list[int]) -> None:
    tolerance = _FROM_OUTPUT if name == "from the output" else _TOLERANCES[given.x.dtype.name]
    for part, want in expected.items():
        allowed = tolerance if want.ndim == given.x.ndim else min(tolerance, _SUMS)
        compare_channels(given, f"batchnorm, {name}", results, {part: want}, channels, allowed)


def _several_calls(peer: Peer, given: _Problem, job: Job) -> Contestant:
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
