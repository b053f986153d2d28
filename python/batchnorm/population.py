"""The statistics of a whole population, from one pass over its batches."""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from .functional import Axis, moments
from .layers import BatchNorm
from .running import Batch, Population, PopulationStatistics, effective_count
from .statistics import refuse_gpu

_END = object()


def population_statistics(
    layer_or_axis: BatchNorm | Axis,
    batches: Iterable[Any] | None = None,
    *,
    weights: Iterable[Any] | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> PopulationStatistics:
    """Mean and variance of all batches: Algorithm 2 of the paper, beside the exact ones of all values together.

    batches is any iterable of arrays, a generator or slices of an `np.memmap` too, and is gone through once: what the
    layer gets as x, or arrays that keep an axis. weights is an iterable beside it, of the weights that `moments` takes.
    Empty batches say nothing. A batch with one value of a channel has no variance there, and so no part in Algorithm 2,
    but in the exact statistics. The results of parts add up.

    Nothing is written into the layer: `PopulationStatistics.store` does that. Without batches the statistics are those
    that a layer with the policy `Population` has gathered in training.

    With progress, a bar is drawn on stderr where that is a terminal.
    """
    layer = layer_or_axis if isinstance(layer_or_axis, BatchNorm) else None
    axis = layer.axis if isinstance(layer_or_axis, BatchNorm) and layer else layer_or_axis
    if batches is None:
        if layer is None or not isinstance(layer.running, Population):
            raise ValueError(f"batches is needed, since {layer_or_axis!r} is no layer with the policy Population")
        return PopulationStatistics.from_arrays({key: array.copy() for key, array in layer._memory.items()})
    if hasattr(batches, "shape") or not isinstance(batches, Iterable):
        raise TypeError(f"batches is one {type(batches).__name__}, expected an iterable of arrays, each one a batch")
    if threads is None and layer is not None:
        threads = layer.threads
    beside = None if weights is None else iter(weights)
    parts = None
    with _Bar(operator.length_hint(batches), progress) as bar:
        for number, x in enumerate(batches):
            w = None if beside is None else next(beside, _END)
            if w is _END:
                raise ValueError(f"weights ended after {number} batches, expected one for each batch")
            try:
                if layer is not None:
                    layer._check_features(x)
                part = PopulationStatistics.of_batch(_batch(x, axis, w, threads))
                parts = part if parts is None else parts + part
            except (TypeError, ValueError) as error:
                raise type(error)(f"batch {number} of batches: {error}") from error
            bar.step()
    if beside is not None and next(beside, _END) is not _END:
        raise ValueError("weights has more items than batches, expected one for each batch")
    if parts is None or (parts.pooled.mean.size and not parts.pooled.count.any()):
        raise ValueError("batches has no values, expected at least one batch with some")
    return parts


def _batch(x: Any, axis: Any, weights: Any, threads: int | None) -> Batch:
    refuse_gpu(x, "population_statistics computes on")
    m = moments(x, axis=axis, weights=weights, threads=threads)
    mean, m2 = np.asarray(m.mean), np.asarray(m.m2)
    count = np.broadcast_to(np.asarray(m.count, np.float64), mean.shape)
    values = count if weights is None else np.broadcast_to(effective_count(x.shape, weights, axis), mean.shape)
    return Batch(mean, m2 / (count + (count == 0)), count, values)


class _Bar:
    """How many batches are done, of how many (0: unknown), on stderr if someone is watching."""

    def __init__(self, total: int, wanted: bool) -> None:
        self._total = total
        self._done = 0
        self._shown = wanted and sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._draw("\n")

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._shown and time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            self._draw("")

    def _draw(self, end: str) -> None:
        seconds = time.monotonic() - self._start
        of, bar, left = "", "", ""
        if self._total:
            filled = min(30 * self._done // self._total, 30)
            of, bar = f"/{self._total}", f" |{'#' * filled:30}|"
            left = f", {seconds / max(self._done, 1) * max(self._total - self._done, 0):.0f} s left"
        text = f"\r{self._done}{of} batches{bar} {seconds:.0f} s{left}\x1b[K"
        print(text, end=end, file=sys.stderr, flush=True)
