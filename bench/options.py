"""batchnorm's float32 calls with each of its options, and what each should give.

NumPy tells that, in float64, from the formulas in the functions' docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import batchnorm as bn

from .arrays import EPS, Array, Problem
from .cases import Task
from .check import Results, reference

Call = Callable[..., Any]

GROUP = 8  # samples
SLOPE = 0.01  # of leaky_relu, which backward from the output takes back


@dataclass
class OptionProblem(Problem):
    """What options are given besides."""

    residual: Array
    dresidual: Array
    y: Array  # the output of leaky_relu: where it is positive, that of relu is
    weights: Array  # without the axis of the channels


@dataclass(frozen=True)
class Option:
    """A call with an option, or the plain one."""

    name: str
    call: Call
    expected: Callable[[list[int]], Results]  # for these channels
    works_in_place: bool = False  # on x in the place of out

    def prepare(self, given: OptionProblem) -> None:
        """What outputs hold before a call that is to be checked."""
        given.out[...] = given.x if self.works_in_place else np.nan
        given.dresidual.fill(np.nan)

    def results(self) -> Results:
        """Call once."""
        return results_of(self.call)


def results_of(call: Call) -> Results:
    """Call once; the arrays by their names."""
    made = call()
    if isinstance(made, bn.Grads | bn.DoubleGrads):
        return {name: array for name, array in made._asdict().items() if array is not None}
    return {"y": made[0] if isinstance(made, tuple) else made}


def with_options(plain: Problem, residual: Array, dresidual: Array, y: Array) -> OptionProblem:
    """With the memory of three more tensors; the residual is filled."""
    plain.gamma = np.copysign(abs(plain.gamma) + np.float32(0.5), plain.gamma)  # which is divided by
    weights = np.ones([plain.x.shape[axis] for axis in plain.reduced], bool)
    weights[..., -max(1, weights.shape[-1] // 8) :] = False  # as padding has it
    residual, dresidual, y = (array.reshape(plain.x.shape) for array in (residual, dresidual, y))
    return OptionProblem(**vars(plain), residual=residual, dresidual=dresidual, y=y, weights=weights)


def plain_call(given: Problem, task: Task) -> Call:
    """The call that others are measured by; parameters and given statistics are float32."""
    x, gamma, beta = given.x, given.gamma, given.beta
    common: dict[str, Any] = {"axis": given.axis, "eps": EPS, "out": given.out}
    forward = partial(bn.batch_norm, x, gamma, beta, **common)
    if task == "forward":
        return forward
    if task == "inference":
        mean, var = _statistics(given)
        return partial(bn.batch_norm_inference, x, mean, var, gamma, beta, **common)
    return partial(bn.batch_norm_backward, given.dy, x, forward()[1], gamma, out=given.out)


def _statistics(given: Problem) -> tuple[Array, Array]:
    return given.mean.astype(given.gamma.dtype), given.var.astype(given.gamma.dtype)


def options(given: OptionProblem, task: Task) -> list[Option]:
    """Of this task; the plain one is the first."""
    if task == "backward":
        return _backward(given)
    return [*_both(given, task), *(_training(given) if task == "forward" else [])]


def _output(given: OptionProblem, task: Task, channels: list[int]) -> Array:
    return reference(given, task, channels)["y"]


def _both(given: OptionProblem, task: Task) -> list[Option]:
    """What training forward and inference can do."""
    plain = plain_call(given, task)

    def with_residual(channels: list[int]) -> Results:
        return {"y": np.maximum(_output(given, task, channels) + _some(given.residual, given, channels), 0)}

    return [
        Option("plain", plain, lambda channels: {"y": _output(given, task, channels)}),
        Option("residual + relu", partial(plain, activation="relu", residual=given.residual), with_residual),
    ]


def _training(given: OptionProblem) -> list[Option]:
    """What forward can do besides."""
    plain = plain_call(given, "forward")
    leaky: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": SLOPE}

    def in_place() -> tuple[Array, bn.Saved]:
        return given.out, bn.batch_norm_inplace(given.out, given.gamma, given.beta, axis=given.axis, eps=EPS, **leaky)

    def output(channels: list[int]) -> Array:
        return _output(given, "forward", channels)

    def leaky_output(channels: list[int]) -> Results:
        y = output(channels)
        return {"y": np.where(y > 0, y, SLOPE * y)}

    return [
        Option("relu", partial(plain, activation="relu"), lambda channels: {"y": np.maximum(output(channels), 0)}),
        Option("leaky_relu", partial(plain, **leaky), leaky_output),
        Option(
            "weights",
            partial(plain, weights=given.weights),
            lambda channels: {"y": _Weighted(given, channels).output()},
        ),
        Option(
            f"groups of {GROUP}",
            partial(plain, group_size=GROUP),
            lambda channels: {"y": np.concatenate([_output(g, "forward", channels) for g in _groups(given)])},
        ),
        Option("leaky_relu, in place", in_place, leaky_output, works_in_place=True),
    ]


def _backward(given: OptionProblem) -> list[Option]:
    dy, x, y, gamma, beta = given.dy, given.x, given.y, given.gamma, given.beta
    forward = plain_call(given, "forward")
    _, saved = forward()
    _, masked = forward(activation="relu")
    _, weighted = forward(weights=given.weights)
    _, grouped = forward(group_size=GROUP)
    mean, var = _statistics(given)
    _, invertible = forward(activation="leaky_relu", negative_slope=SLOPE, out=y)
    relu = partial(bn.batch_norm_backward, dy, x, masked, gamma, out=given.out)

    def gradients(channels: list[int], dy: Array = dy) -> Results:
        return reference(replace(given, dy=dy), "backward", channels)

    def through_relu(channels: list[int]) -> Results:
        return gradients(channels, np.where(y > 0, dy, 0))

    def through_leaky_relu(channels: list[int]) -> Results:
        return gradients(channels, np.where(y > 0, dy, np.float32(SLOPE) * dy))

    def with_residual(channels: list[int]) -> Results:
        return {**through_relu(channels), "dresidual": _some(np.where(y > 0, dy, 0), given, channels)}

    return [
        Option("plain", partial(bn.batch_norm_backward, dy, x, saved, gamma, out=given.out), gradients),
        Option("relu", relu, through_relu),
        Option(
            "leaky_relu",
            partial(bn.batch_norm_backward, dy, x, invertible, gamma, out=given.out),
            through_leaky_relu,
        ),
        Option("relu + dresidual", partial(relu, need_dresidual=True, out=(given.out, given.dresidual)), with_residual),
        Option(
            "weights",
            partial(bn.batch_norm_backward, dy, x, weighted, gamma, out=given.out),
            lambda channels: _Weighted(given, channels).gradients(),
        ),
        Option(
            f"groups of {GROUP}",
            partial(bn.batch_norm_backward, dy, x, grouped, gamma, out=given.out),
            lambda channels: _of_all_groups([reference(g, "backward", channels) for g in _groups(given)]),
        ),
        Option(
            "from the output",
            partial(bn.batch_norm_backward_from_output, dy, y, invertible, gamma, beta, out=given.out),
            through_leaky_relu,
        ),
        Option(
            "of inference",
            partial(bn.batch_norm_inference_backward, dy, x, mean, var, gamma, axis=given.axis, eps=EPS, out=given.out),
            lambda channels: _of_inference(given, channels),
        ),
        Option(
            "jvp",
            partial(bn.batch_norm_jvp, given.residual, x, saved, gamma, out=given.out),
            # The same factor of a channel times a symmetric matrix, as backward's.
            lambda channels: {"y": gradients(channels, given.residual)["dx"]},
        ),
        Option(
            "double backward",
            partial(
                bn.batch_norm_double_backward, given.residual, dy, x, saved, gamma, out=(given.out, given.dresidual)
            ),
            lambda channels: _of_backward(given, channels),
        ),
    ]


def _some(array: Array, given: Problem, channels: list[int]) -> Array:
    return np.take(array, channels, given.axis).astype(np.float64)


def _groups(given: OptionProblem) -> list[OptionProblem]:
    return [
        replace(given, x=given.x[start : start + GROUP], dy=given.dy[start : start + GROUP])
        for start in range(0, given.case.n, GROUP)
    ]


def _of_all_groups(parts: list[Results]) -> Results:
    return {
        "dx": np.concatenate([part["dx"] for part in parts]),
        **{name: np.sum([part[name] for part in parts], axis=0) for name in ("dgamma", "dbeta")},
    }


class _Weighted:
    """Forward and backward with weights, of some channels."""

    def __init__(self, given: OptionProblem, channels: list[int]) -> None:
        self.given = given
        self.w = np.expand_dims(given.weights, given.axis).astype(np.float64)
        self.dy = _some(given.dy, given, channels)
        self.gamma, self.beta = (given.across(p[channels].astype(np.float64)) for p in (given.gamma, given.beta))
        x = _some(given.x, given, channels)
        self.xhat = x - self._mean(self.w * x)
        self.inv_std = 1 / np.sqrt(self._mean(self.w * self.xhat * self.xhat) + EPS)
        self.xhat *= self.inv_std

    def _mean(self, values: Array) -> Array:
        mean: Array = values.sum(self.given.reduced, keepdims=True) / self.w.sum()
        return mean

    def output(self) -> Array:
        y: Array = self.xhat * self.gamma + self.beta
        return y

    def gradients(self) -> Results:
        terms = self._mean(self.dy) + self.xhat * self._mean(self.dy * self.xhat)
        return {
            "dx": self.gamma * self.inv_std * (self.dy - self.w * terms),
            "dgamma": (self.dy * self.xhat).sum(self.given.reduced),
            "dbeta": self.dy.sum(self.given.reduced),
        }


def _of_inference(given: OptionProblem, channels: list[int]) -> Results:
    dy, x = (_some(array, given, channels) for array in (given.dy, given.x))
    mean, var, gamma = (given.across(p[channels].astype(np.float64)) for p in (given.mean, given.var, given.gamma))
    inv_std = 1 / np.sqrt(var + EPS)
    return {
        "dx": gamma * inv_std * dy,
        "dgamma": (dy * (x - mean) * inv_std).sum(given.reduced),
        "dbeta": dy.sum(given.reduced),
    }


def _of_backward(given: OptionProblem, channels: list[int]) -> Results:
    """From the derivatives of sum(ddx * dx) = gamma * inv_std * M * k with respect to dy, x and gamma."""
    ddx, dy, x = (_some(array, given, channels) for array in (given.residual, given.dy, given.x))
    gamma = given.across(given.gamma[channels].astype(np.float64))
    count = x.size // len(channels)

    def mean(values: Array) -> Array:
        means: Array = values.mean(given.reduced, keepdims=True)
        return means

    xhat, ddx, dy = x - mean(x), ddx - mean(ddx), dy - mean(dy)
    inv_std = 1 / np.sqrt(mean(xhat * xhat) + EPS)
    xhat *= inv_std
    p, q = mean(ddx * xhat), mean(dy * xhat)
    k = mean(ddx * dy) - p * q
    return {
        "ddy": gamma * inv_std * (ddx - xhat * p),
        "dx": gamma * inv_std**2 * (xhat * (2 * p * q - k) - q * ddx - p * dy),
        "dgamma": (count * inv_std * k).reshape(-1),
    }
