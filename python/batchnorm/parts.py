"""A layer's training on one part of the batch: the two halves, with the statistics of all parts in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from .functional import batch_norm, batch_norm_backward, grad_sums, input_grad, moments, normalize
from .layers import BatchNorm, Context, _beside
from .running import effective_count, merged_effective_count
from .statistics import Grads, GradSums, Moments

Packed = npt.NDArray[np.float64]
"""[count, effective count, mean, m2], or [sum of dy, of dy * (x - mean)]: each of the kept axes' shape."""


class Corrected(BatchNorm):
    """A layer that puts xhat * r + d in the place of xhat, r and d constants in backward."""

    def _correction(self, mean: Any, var: Any, new: bool) -> tuple[Any, Any]:
        """R and d from the whole batch's statistics; if they are not new, those of the last call."""
        raise NotImplementedError


class PartContext(Context):
    """A `Context` with r and d, if there are any."""

    correction: tuple[Any, Any] | None = None


class Parts:
    """The layers' `Exchange` by way of two methods, which say where the other parts are."""

    def moments(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, bool]:
        """The statistics of all parts, from a function that gives those of this one; and whether they are new."""
        raise NotImplementedError

    def sums(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, Packed]:
        """The gradient sums of this part and of all, from a function that gives those of this one."""
        raise NotImplementedError

    def forward(self, layer: BatchNorm, x: Any, *, residual: Any, weights: Any, out: Any) -> tuple[Any, Context]:
        """Normalize x by the statistics of all parts."""
        total, new = self.moments(layer, lambda: _measured(layer, x, weights, residual, out))
        counts, effective, mean, m2 = total
        count: Any = _same(counts)
        if weights is None and count == 1:
            raise ValueError(
                f"x of shape {tuple(x.shape)}, with all other parts of the batch, has one value per channel, "
                "expected at least 2: a variance does not exist"
            )
        gamma, beta, correction = layer.gamma, layer.beta, None
        if isinstance(layer, Corrected) and counts.any():
            correction = r, d = layer._correction(mean, m2 / (counts + (counts == 0)), new)
            scaled = 1.0 if gamma is None else gamma.astype(np.float64)
            gamma, beta = scaled * r, scaled * d + (0.0 if beta is None else beta)
        parameters = _beside(x, gamma), _beside(x, beta)
        options = {
            "weights": weights,
            "residual": residual,
            "out": out,
            "threads": layer.threads,
            **layer._settings(),
        }
        if not counts.any():
            y, saved = batch_norm(x, *parameters, **options)
        else:
            if weights is not None or count is None:
                count = _beside(x, counts)
            whole = Moments(_beside(x, mean), _beside(x, m2), count)
            y, saved = normalize(x, whole, *parameters, **options)
        if new:
            layer._track(x, saved, effective)
        context = PartContext(layer, x, saved, None, False, residual is not None, exchange=self, out=out)
        context.correction = correction
        return y, context

    def backward(self, layer: BatchNorm, context: Context, dy: Any, *, out: Any) -> Grads:
        """Dx by the sums of all parts; dgamma and dbeta are this part's share, as in every other layer."""
        x, saved = context._x, context._statistics
        own, total = self.sums(layer, lambda: _summed(layer, context, dy, out))
        correction = context.correction if isinstance(context, PartContext) else None
        gamma = layer.gamma
        if correction is not None:
            gamma = correction[0] if gamma is None else gamma * correction[0]
        gamma = _beside(x, gamma)
        need = context._residual
        if saved.count is None or not np.any(np.asarray(saved.count)):
            grads = batch_norm_backward(dy, x, saved, gamma, need_dresidual=need, out=out, threads=layer.threads)
        else:
            sums = GradSums(saved.count, _beside(x, total[0]), _beside(x, total[1]))
            grads = input_grad(dy, x, saved, sums, gamma, need_dresidual=need, out=out, threads=layer.threads)
        dtype = layer.running_mean.dtype
        with np.errstate(over="ignore", invalid="ignore"):
            dgamma, dbeta = own[1] * np.asarray(saved.inv_std), own[0]
            if correction is not None:
                dgamma = dgamma * correction[0] + dbeta * correction[1]
            return Grads(grads.dx, dgamma.astype(dtype), dbeta.astype(dtype), grads.dresidual)


def merged_moments(parts: Iterable[Packed]) -> Packed:
    """Those of all parts, merged in the order given: the same bits wherever that is done."""
    parts = list(parts)
    counts = [_same(part[:2]) for part in parts]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays in its channel
        total = Moments.merge(
            Moments(part[2], part[3], part[0] if count is None else count)
            for part, count in zip(parts, counts, strict=True)
        )
    effective = total.count
    if None in counts:
        effective = merged_effective_count(*np.stack([part[:2] for part in parts], axis=1))
    return _packed(parts[0][0].shape, total.count, effective, total.mean, total.m2)


def merged_sums(parts: Iterable[Packed]) -> Packed:
    """The sum, added in the order given."""
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce(add, parts)


def _measured(layer: BatchNorm, x: Any, weights: Any, residual: Any, out: Any) -> Packed:
    layer._check_features(x)
    m = moments(x, axis=layer.axis, weights=weights, threads=layer.threads)
    if residual is not None or out is not None:
        _check(normalize, x, Moments(0.0, 0.0, -1.0), axis=layer.axis, residual=residual, out=out)
    effective = m.count if weights is None else effective_count(x.shape, weights, layer.axis)
    return _packed(layer._shape, m.count, effective, m.mean, m.m2)


def _summed(layer: BatchNorm, context: Context, dy: Any, out: Any) -> Packed:
    x, saved = context._x, context._statistics
    sums = grad_sums(dy, x, saved, threads=layer.threads)
    if out is not None:
        _check(input_grad, dy, x, saved, GradSums(-1.0, 0.0, 0.0), need_dresidual=context._residual, out=out)
    return _packed(tuple(sums.sum_dy.shape), sums.sum_dy, sums.sum_dy_xmu)


def _check(second_half: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Raise what the second half of a call would, while other parts can still be told.

    Nothing is written: a count of -1 is refused, after all else.
    """
    try:
        second_half(*arguments, **options)
    except ValueError as error:
        if "count must" not in str(error):
            raise


def _packed(shape: tuple[int, ...], *rows: Any) -> Packed:
    return np.stack([np.broadcast_to(np.asarray(row, np.float64), shape) for row in rows])


def _same(counts: Packed) -> float | None:
    """The number that all counts are, None if they differ: a merge leaves the statistics of an empty part out then."""
    return float(counts.flat[0]) if counts.size and (counts == counts.flat[0]).all() else None
