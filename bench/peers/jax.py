"""JAX: jitted functions on the CPU. Its arrays are immutable, so that every call makes new ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import batchnorm as bn

from ..arrays import EPS, Array, Problem
from ..cases import Task
from ..contestant import Contestant, UnavailableError

jax.config.update("jax_enable_x64", True)  # else float64 becomes float32


class Library:
    """JAX, which uses all processors."""

    name = "JAX"
    version = str(jax.__version__)

    def __init__(self) -> None:
        self._all = bn.get_num_threads()

    def contestants(self, problem: Problem, task: Task, threads: int) -> Iterable[Contestant]:
        """The formulas under jit, compiled before anything is timed."""
        if threads != self._all:
            raise UnavailableError(
                "JAX is skipped where not all threads are asked for: its own thread pool has them all"
            )
        reduced, across = problem.reduced, problem.across
        dtype = problem.x.dtype
        count = problem.case.size // problem.case.c
        x, dy, gamma, beta, mean, var, inv_std = (
            jnp.asarray(a.astype(dtype, copy=False))
            for a in (
                problem.x,
                problem.dy,
                across(problem.gamma),
                across(problem.beta),
                across(problem.mean),
                across(problem.var),
                across(problem.inv_std),
            )
        )

        def inference(x: Any, mean: Any, var: Any) -> Any:
            return ((x - mean) * (gamma * jax.lax.rsqrt(var + EPS)) + beta,)

        def forward(x: Any) -> Any:
            mean = x.mean(reduced, keepdims=True)
            var = x.var(reduced, keepdims=True)
            return (*inference(x, mean, var), mean, var)

        def backward(dy: Any, x: Any) -> Any:
            xhat = (x - mean) * inv_std
            dbeta = dy.sum(reduced, keepdims=True)
            dgamma = (dy * xhat).sum(reduced, keepdims=True)
            return gamma * inv_std * (dy - dbeta / count - xhat * (dgamma / count)), dgamma, dbeta

        function: Any = {"forward": forward, "inference": inference, "backward": backward}[task]
        operands = {"forward": (x,), "inference": (x, mean, var), "backward": (dy, x)}[task]
        compiled = jax.jit(function)

        def call() -> Any:
            return jax.block_until_ready(compiled(*operands))

        def results() -> dict[str, Array]:
            arrays = [np.asarray(a) for a in call()]
            if task != "backward":
                return {"y": arrays[0]}
            return {"dx": arrays[0], "dgamma": arrays[1].reshape(-1), "dbeta": arrays[2].reshape(-1)}

        return [Contestant(self.name, call, results)]
