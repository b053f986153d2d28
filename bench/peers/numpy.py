"""The formulas as one writes them in NumPy, with out=, on its one thread. Large tensors only where it was asked for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..arrays import EPS, Array, Problem
from ..cases import Task
from ..contestant import Contestant, UnavailableError

_LARGE = 8 << 20  # bytes


class Library:
    """NumPy."""

    name = "NumPy"
    version = np.__version__

    def __init__(self, large: bool) -> None:
        self.large = large

    def contestants(self, problem: Problem, task: Task, threads: int) -> Iterable[Contestant]:
        """Straightforward expressions."""
        del threads
        if problem.x.nbytes > _LARGE and not self.large:
            raise UnavailableError("NumPy is skipped above 8 MB, unless --large-numpy is given")
        x, dy, out, reduced, across = problem.x, problem.dy, problem.out, problem.reduced, problem.across
        dtype = x.dtype
        gamma, beta, given_mean, given_var, inv_std = (
            across(a.astype(dtype)) for a in (problem.gamma, problem.beta, problem.mean, problem.var, problem.inv_std)
        )
        count = dtype.type(problem.case.size // problem.case.c)

        def normalize(mean: Array, var: Array) -> dict[str, Array]:
            np.subtract(x, mean, out=out)
            np.multiply(out, gamma / np.sqrt(var + dtype.type(EPS)), out=out)
            np.add(out, beta, out=out)
            return {"y": out}

        def forward() -> dict[str, Array]:
            return normalize(x.mean(reduced, keepdims=True), x.var(reduced, keepdims=True))

        def inference() -> dict[str, Array]:
            return normalize(given_mean, given_var)

        def backward() -> dict[str, Array]:
            np.subtract(x, given_mean, out=out)
            np.multiply(out, inv_std, out=out)  # xhat
            dbeta, dgamma = dy.sum(reduced), (dy * out).sum(reduced)
            np.multiply(out, across(dgamma / -count), out=out)
            np.add(out, dy, out=out)
            np.subtract(out, across(dbeta / count), out=out)
            np.multiply(out, gamma * inv_std, out=out)
            return {"dx": out, "dgamma": dgamma, "dbeta": dbeta}

        call = {"forward": forward, "inference": inference, "backward": backward}[task]
        return [Contestant(self.name, call, call)]
