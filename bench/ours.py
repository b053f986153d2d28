"""batchnorm's own calls."""

from __future__ import annotations

import batchnorm as bn

from .arrays import EPS, Array, Problem
from .cases import Task
from .contestant import Contestant

NAME = "batchnorm"


def contestant(problem: Problem, task: Task, threads: int) -> Contestant:
    """The public functions with out=, and as many of the threads as they find worth it."""
    x, dy, out, gamma, beta, axis = problem.x, problem.dy, problem.out, problem.gamma, problem.beta, problem.axis
    saved = bn.Saved(problem.mean, problem.inv_std, axis=axis)
    mean, var = problem.mean.astype(x.dtype), problem.var.astype(x.dtype)
    bn.set_num_threads(threads)

    def forward() -> object:
        return bn.batch_norm(x, gamma, beta, axis=axis, eps=EPS, out=out)

    def inference() -> object:
        return bn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, eps=EPS, out=out)

    def backward() -> bn.Grads:
        return bn.batch_norm_backward(dy, x, saved, gamma, out=out)

    if task == "backward":

        def gradients() -> dict[str, Array]:
            grads = backward()
            return {"dx": grads.dx, "dgamma": grads.dgamma, "dbeta": grads.dbeta}

        return Contestant(NAME, backward, gradients)

    call = forward if task == "forward" else inference

    def output() -> dict[str, Array]:
        call()
        return {"y": out}

    return Contestant(NAME, call, output)
