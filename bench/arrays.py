"""The arrays of one tensor, the same for every library: inputs, one output, and given statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import batchnorm as bn

from .cases import Case, Layout

Array = npt.NDArray[Any]

EPS = 1e-5
_PAGE = 4096
# Distances from a page boundary. Where two arrays lie alike modulo 4 KiB, a load waits for an earlier store to the
# other one, which costs a copy 12 %; these lie apart, by whole cache lines.
_X, _DY, _OUT = 0, 21 * 64, 43 * 64
BETWEEN = 10 * 64, 32 * 64, 53 * 64  # for up to three more
_RANDOM = (1 << 20) + 7  # so many random values, repeated: no power of two, and soon made


def aligned(size: int, dtype: npt.DTypeLike, offset: int) -> Array:
    """A flat array of zeros, already touched, that starts offset bytes after a page boundary."""
    count = size * np.dtype(dtype).itemsize
    buffer = np.empty(count + 2 * _PAGE, np.uint8)
    start = -buffer.ctypes.data % _PAGE + offset
    array = buffer[start : start + count].view(dtype)
    array[...] = 0
    return array


@dataclass
class Buffers:
    """The memory of x, dy and out, which both layouts of a case share."""

    x: Array
    dy: Array
    out: Array


def buffers(case: Case, dtype: npt.DTypeLike, past: int = 0) -> Buffers:
    """Allocate and fill; so many bytes past a cache line."""
    x, dy, out = (aligned(case.size, dtype, offset + past) for offset in (_X, _DY, _OUT))
    for seed, array in enumerate((x, dy)):
        values = np.random.default_rng(seed).standard_normal(min(_RANDOM, case.size), np.float32).astype(dtype)
        for start in range(0, case.size, _RANDOM):
            part = array[start : start + _RANDOM]
            part[...] = values[: len(part)]
    return Buffers(x, dy, out)


def reserve_pages(case: Case, dtype: str) -> None:
    """Leave the allocator pages for a few more tensors of the size, where it keeps what it is given back.

    Else results of libraries that take no output would now and then grow the heap within a timed call.
    """
    tensors = [aligned(case.size, dtype, 0) for _ in range(8)]
    del tensors


@dataclass
class Problem:
    """What a library is given. Results go to out where it can take an output."""

    case: Case
    layout: Layout
    x: Array
    dy: Array
    out: Array
    gamma: Array
    beta: Array
    # The statistics of x, float64: given ones for inference, forward's for backward.
    mean: Array
    var: Array
    inv_std: Array

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.layout == "first" else self.x.ndim - 1

    @property
    def reduced(self) -> tuple[int, ...]:
        """All the other axes."""
        return tuple(a for a in range(self.x.ndim) if a != self.axis)

    def across(self, values: Array) -> Array:
        """Values of the channels, in a shape that broadcasts with x."""
        return values.reshape([-1 if a == self.axis else 1 for a in range(self.x.ndim)])


def problem(case: Case, layout: Layout, buffers: Buffers) -> Problem:
    """The case in one layout, over buffers."""
    rng = np.random.default_rng(2)
    dtype = buffers.x.dtype
    gamma, beta = (rng.standard_normal(case.c).astype(dtype) for _ in range(2))
    x, dy, out = (array.reshape(case.dimensions(layout)) for array in (buffers.x, buffers.dy, buffers.out))
    moments = bn.moments(x, axis=1 if layout == "first" else -1)
    var = moments.var()
    return Problem(case, layout, x, dy, out, gamma, beta, moments.mean, var, 1 / np.sqrt(var + EPS))
