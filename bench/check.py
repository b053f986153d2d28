"""Nothing is timed before it was checked: batchnorm against a float64 reference, the others against batchnorm."""

from __future__ import annotations

import numpy as np

from .arrays import EPS, Array, Problem
from .cases import Task

Results = dict[str, Array]

_WHOLE = 1 << 20  # a tensor of up to so many elements is checked against the reference entirely
_CHUNK = 1 << 20  # elements compared at a time, so that no temporary array is large

# Largest errors allowed, by type: of y and dx in their largest value, of dgamma and dbeta in values summed.
_OURS = {"float32": 1e-6, "float64": 1e-13}
_PEERS = {"float32": 2e-5, "float64": 1e-12}


def checked_channels(problem: Problem) -> list[int]:
    """All channels of a small tensor, else the first, a middle and the last one."""
    c = problem.case.c
    return list(range(c)) if problem.case.size <= _WHOLE else sorted({0, c // 2, c - 1})


def reference(problem: Problem, task: Task, channels: list[int]) -> Results:
    """What the task should give for these channels, in float64."""
    x, dy = (np.take(a, channels, problem.axis).astype(np.float64) for a in (problem.x, problem.dy))
    gamma, beta = (problem.across(a[channels].astype(np.float64)) for a in (problem.gamma, problem.beta))
    mean = x.mean(problem.reduced, keepdims=True)
    xhat = x - mean
    inv_std = 1 / np.sqrt((xhat * xhat).mean(problem.reduced, keepdims=True) + EPS)
    xhat *= inv_std
    if task != "backward":
        return {"y": xhat * gamma + beta}
    dbeta, dgamma = dy.sum(problem.reduced), (dy * xhat).sum(problem.reduced)
    count = x.size // len(channels)
    dx = gamma * inv_std * (dy - problem.across(dbeta / count) - xhat * problem.across(dgamma / count))
    return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}


def check_against_reference(problem: Problem, task: Task, results: Results) -> None:
    """Raise ArithmeticError where batchnorm's own results are wrong."""
    channels = checked_channels(problem)
    compare_channels(
        problem, "batchnorm", results, reference(problem, task, channels), channels, _OURS[problem.x.dtype.name]
    )


def compare_channels(
    problem: Problem, contestant: str, results: Results, expected: Results, channels: list[int], tolerance: float
) -> None:
    """Raise ArithmeticError where results are off what is expected of these channels."""
    for name, want in expected.items():
        got = np.take(results[name], channels, problem.axis if want.ndim == problem.x.ndim else 0)
        _compare(contestant, name, got, want, tolerance * _unit(problem, want))


def check_against(problem: Problem, contestant: str, results: Results, expected: Results) -> None:
    """Raise ArithmeticError where another library's results are not batchnorm's."""
    if results.keys() != expected.keys():
        raise ArithmeticError(f"{contestant} returned {sorted(results)}, expected {sorted(expected)}")
    # Others sum in the data's own type, oneDNN one value after the other: what they find loses digits as counts grow.
    growth = 1 + _count(problem) / 50_000
    for name, want in expected.items():
        allowed = _PEERS[problem.x.dtype.name] * growth * _unit(problem, want)
        _compare(contestant, name, results[name], want, allowed)


def check_copy(way: str, y: Array, x: Array) -> None:
    """Raise ArithmeticError where a copy is none."""
    if not np.array_equal(y, x):
        raise ArithmeticError(f"the {way} copy is not equal to what it copied")


def _count(problem: Problem) -> float:
    return problem.case.size / problem.case.c


def _unit(problem: Problem, want: Array) -> float:
    """What errors are measured in."""
    return float(abs(want).max()) if want.ndim == problem.x.ndim else max(1.0, _count(problem))


def _compare(contestant: str, name: str, got: Array, want: Array, allowed: float) -> None:
    if got.shape != want.shape:
        raise ArithmeticError(f"{contestant}'s {name} has shape {got.shape}, expected {want.shape}")
    flat, wanted = got.reshape(-1), want.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        error = float(abs(flat[start : start + _CHUNK] - wanted[start : start + _CHUNK]).max())
        if not error <= allowed:  # not (error > allowed): NaN is wrong, too
            raise ArithmeticError(f"{contestant}'s {name} is off by {error:.1e}, allowed are {allowed:.1e}")
