"""Policies of running statistics: what a layer makes of the statistics of its training batches.

Each is a frozen value without arrays, so that many layers may share one; what it must remember beside running_mean and
running_var, the layer keeps, saves and loads. A channel without any weight in a batch is left as it was, also in what
is remembered. With M values of a channel in a batch (``(sum w)^2 / sum(w^2)`` with weights), s is the batch's mean, or
its unbiased variance ``M / (M - 1) * var``, which stays biased where M is not above 1, and everywhere if the layer's
convention says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .arguments import integer, number, type_name
from .statistics import Moments, to_numpy

FloatArray = npt.NDArray[np.float64]
Memory = dict[str, npt.NDArray[Any]]


class Batch(NamedTuple):
    """What a policy sees of a batch: float64 arrays of the statistics' shape.

    var is biased. weight is sum(w), or M without weights; effective_count is M. Where weight is 0 there is nothing.
    Both may be one float for all channels.
    """

    mean: FloatArray
    var: FloatArray
    weight: Any
    effective_count: Any
    biased: bool = False  # whether running variances are

    def whole(self) -> Batch:
        """With a weight and an effective count for each channel."""
        weight, effective_count = (np.broadcast_to(n, self.mean.shape) for n in (self.weight, self.effective_count))
        return Batch(self.mean, self.var, weight, effective_count, self.biased)

    def statistic(self) -> FloatArray:
        """The variance that goes into running variances."""
        return self.var if self.biased else self.unbiased()

    def unbiased(self) -> FloatArray:
        """Var * M / (M - 1), biased where M is not above 1."""
        return np.asarray(unbiased(self.var, self.effective_count))


class Running:
    """A policy of running statistics: `Exponential`, `Cumulative`, `Window` or `Population`."""

    def memory(self, shape: tuple[int, ...]) -> Memory:
        """The arrays to remember from batch to batch, by the keys under which they are saved; at the start."""
        return {}

    def restart(self, memory: Memory, batches: int) -> None:
        """Set memory to what follows from so many batches, when running statistics come from elsewhere."""
        for array in memory.values():
            array[...] = 0

    def to_save(self, memory: Memory, batches: int) -> Memory:
        """What of memory `restart` does not find by itself."""
        return memory

    def step(self, memory: Memory, mean: Any, var: Any, batch: Batch) -> tuple[Any, Any]:
        """Take in a batch: memory in place, and the new values of running_mean and running_var."""
        raise NotImplementedError

    @property
    def _plain_share(self) -> float | None:
        """Of an exponential average without anything else, the new batch's share: what `update_running` takes."""
        return None

    def __repr__(self) -> str:
        values = [(field, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        shown = [f"{field.name}={value!r}" for field, value in values if value != field.default]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Exponential(Running):
    """Exponential average: ``running <- keep * running + (1 - keep) * s``.

    momentum is the share of the new batch, 1 - keep, in PyTorch's sense ("torch"), and keep itself in Keras' sense
    ("keras"), which Flax, ONNX and Caffe share.

    std_eps above 0 averages sqrt(var + std_eps) instead of the variance, as MatConvNet does.

    corrected takes the start (0 and 1) out of the average, as Caffe's scale factor and Adam's bias correction do: with
    ``c <- keep * c + 1`` from 0, the share of the new batch is 1 / c, so that the first batch counts wholly. c is saved
    as scale_factor.
    """

    momentum: float = 0.1
    sense: Literal["torch", "keras"] = "torch"
    corrected: bool = False
    std_eps: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.momentum, str) or not 0 <= number("momentum", self.momentum) <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {self.momentum!r}")
        if self.sense not in ("torch", "keras"):
            raise ValueError(f"sense {self.sense!r} is unknown, expected 'torch' or 'keras'")
        if not (math.isfinite(self.std_eps) and self.std_eps >= 0):
            raise ValueError(f"std_eps must be finite and not negative, got {self.std_eps}")

    def _shares(self) -> tuple[float, float]:
        m = self.momentum
        return (1 - m, m) if self.sense == "torch" else (m, 1 - m)

    @property
    def _plain_share(self) -> float | None:
        return None if type(self) is not Exponential or self.corrected or self.std_eps > 0 else self._shares()[1]

    def memory(self, shape: tuple[int, ...]) -> Memory:
        """The scale factor, if corrected."""
        return {"scale_factor": np.zeros(shape)} if self.corrected else {}

    def restart(self, memory: Memory, batches: int) -> None:
        """Set the scale factor to that after so many batches."""
        if self.corrected:
            keep, _ = self._shares()
            memory["scale_factor"][...] = scale_factor(keep, batches)

    def step(self, memory: Memory, mean: Any, var: Any, batch: Batch) -> tuple[Any, Any]:
        """Move by the share of a new batch."""
        keep: Any
        new: Any
        keep, new = self._shares()
        if self.corrected:
            factor = memory["scale_factor"]
            factor[...] = np.where(batch.weight > 0, keep * factor + 1, factor)
            new = 1 / np.maximum(factor, 1)
            keep = 1 - new
        mean, var = (np.asarray(one, np.float64) for one in (mean, var))
        if self.std_eps > 0:
            std = keep * np.sqrt(var + self.std_eps) + new * np.sqrt(batch.statistic() + self.std_eps)
            return keep * mean + new * batch.mean, np.maximum(std**2 - self.std_eps, 0)
        return keep * mean + new * batch.mean, keep * var + new * batch.statistic()


@dataclass(frozen=True, repr=False)
class Cumulative(Running):
    """Average of all batches: ``running <- running + (s - running) / n`` after n batches, PyTorch's ``momentum=None``.

    n is num_batches_tracked; only where weights left a channel out of a batch, n of each channel is saved too, as
    cumulative_batches.
    """

    def memory(self, shape: tuple[int, ...]) -> Memory:
        """How many batches each channel has had."""
        return {"cumulative_batches": np.zeros(shape, np.int64)}

    def restart(self, memory: Memory, batches: int) -> None:
        """All channels have had all batches."""
        memory["cumulative_batches"][...] = batches

    def to_save(self, memory: Memory, batches: int) -> Memory:
        """Nothing, so that the state is PyTorch's, unless channels differ."""
        return memory if (memory["cumulative_batches"] != batches).any() else {}

    def step(self, memory: Memory, mean: Any, var: Any, batch: Batch) -> tuple[Any, Any]:
        """Move by 1 / n."""
        n = memory["cumulative_batches"]
        n += batch.weight > 0
        new = 1 / np.maximum(n, 1)
        return (1 - new) * mean + new * batch.mean, (1 - new) * var + new * batch.statistic()


@dataclass(frozen=True, repr=False)
class Window(Running):
    """Average over the last `batches` batches, each with the same share: a finite impulse response.

    Nothing older has an influence, a NaN neither. pooled gives the mean and variance of all values in the
    window together instead of the average of the batches' own. Mean, variance and counts of the batches are saved as
    window_mean, window_var, window_weight and window_effective_count, oldest first.
    """

    batches: int
    pooled: bool = False

    def __post_init__(self) -> None:
        if integer("batches", self.batches) < 1:
            raise ValueError(f"batches must be at least 1, got {self.batches}")

    def memory(self, shape: tuple[int, ...]) -> Memory:
        """The statistics of the last batches; a weight of 0 where there is none yet."""
        return {f"window_{name}": np.zeros((self.batches, *shape)) for name in Batch._fields[:4]}

    def step(self, memory: Memory, mean: Any, var: Any, batch: Batch) -> tuple[Any, Any]:
        """Drop the oldest batch."""
        for array, new in zip(memory.values(), batch.whole()[:4], strict=True):
            array[...] = np.where(batch.weight > 0, np.concatenate([array[1:], new[None]]), array)
        mean, var, weight, effective_count = memory.values()
        last = Batch(mean, var, weight, effective_count, batch.biased)
        if self.pooled:
            pooled_mean, pooled_var, _ = pooled(last.mean, last.var, last.weight)
            if last.biased:
                return pooled_mean, pooled_var
            return pooled_mean, unbiased(pooled_var, merged_effective_count(last.weight, last.effective_count))
        there = last.weight > 0
        n = np.maximum(there.sum(0), 1)
        return last.mean.sum(0) / n, last.statistic().sum(0) / n


@dataclass(frozen=True, repr=False)
class Population(Running):
    """The population's mean and variance, as inference in the paper takes them (Algorithm 2)::

        mean = E[mean of a batch]      var = E[M / (M - 1) * biased variance of a batch]

    over all batches since the start, each with the same share (Ioffe and Szegedy, 2015). A batch without a variance
    (M not above 1) is left out of both. pooled gives the exact mean and unbiased variance of all values together
    instead, which also contain how the batches' means differ. Both are gathered: `population_statistics` of the layer
    has them. Unbiased with every convention. Saved under the keys of `PopulationStatistics`.
    """

    pooled: bool = False

    def memory(self, shape: tuple[int, ...]) -> Memory:
        """The sums behind both kinds of statistics."""
        return {key: np.array(value) for key, value in PopulationStatistics.empty(shape).to_arrays().items()}

    def step(self, memory: Memory, mean: Any, var: Any, batch: Batch) -> tuple[Any, Any]:
        """Merge the batch into what was gathered."""
        total = PopulationStatistics.from_arrays(memory) + PopulationStatistics.of_batch(batch)
        for array, new in zip(memory.values(), total.to_arrays().values(), strict=True):
            array[...] = new
        return (total.pooled_mean, total.pooled_var) if self.pooled else (total.mean, total.var)


@dataclass(frozen=True, eq=False)
class PopulationStatistics:
    """What batches say of the population they come from: sums that merge, with ``+`` and ``sum([...])``.

    Parts of a data set, from other processes or machines too, add up to the statistics of all of it. All arrays are
    float64 and of the statistics' shape.

    batches, batch_mean, batch_var
        The number of batches with a variance (M above 1), and the averages over them of the mean and of the unbiased
        variance M / (M - 1) * var.
    pooled
        The `Moments` of all values of all batches.
    effective_count
        The M of all values: their number, or (sum w)^2 / sum(w^2).
    """

    batches: Any
    batch_mean: Any
    batch_var: Any
    pooled: Moments
    effective_count: Any

    @property
    def mean(self) -> FloatArray:
        """Algorithm 2's mean: the average of the batch means (the pooled one where no batch has a variance)."""
        return np.asarray(np.where(self.batches > 0, self.batch_mean, self.pooled.mean))

    @property
    def var(self) -> FloatArray:
        """Algorithm 2's variance: the average of the unbiased batch variances (pooled where no batch has one)."""
        return np.asarray(np.where(self.batches > 0, self.batch_var, self.pooled_var))

    @property
    def pooled_mean(self) -> FloatArray:
        """The mean of all values."""
        return np.asarray(self.pooled.mean)

    @property
    def pooled_var(self) -> FloatArray:
        """The unbiased variance of all values around their mean; ``pooled.var()`` is the biased one."""
        return np.asarray(unbiased(self.pooled.var(), self.effective_count))

    def __add__(self, other: PopulationStatistics) -> PopulationStatistics:
        if not isinstance(other, PopulationStatistics):
            return NotImplemented
        pooled = self.pooled + other.pooled  # says if shapes differ
        batches = self.batches + other.batches
        share = other.batches / np.maximum(batches, 1)
        counts = np.stack([self.pooled.count, other.pooled.count])
        return PopulationStatistics(
            batches,
            self.batch_mean + share * (other.batch_mean - self.batch_mean),
            self.batch_var + share * (other.batch_var - self.batch_var),
            pooled,
            merged_effective_count(counts, np.stack([self.effective_count, other.effective_count])),
        )

    def __radd__(self, zero: int) -> PopulationStatistics:
        return self if zero == 0 else NotImplemented

    def store(self, layer: Any, *, pooled: bool = False) -> None:
        """Write mean and var (or pooled_mean and pooled_var) into the running statistics of a layer.

        Channels without any value keep theirs. A layer with the policy `Population` goes on from here; another policy
        from the number of batches alone.
        """
        if not isinstance(getattr(layer, "running", None), Running):
            raise TypeError(f"layer is {type_name(layer)}, expected bn.BatchNorm, not a module of PyTorch")
        mean, var = (self.pooled_mean, self.pooled_var) if pooled else (self.mean, self.var)
        if mean.shape != layer.running_mean.shape:
            raise ValueError(f"layer has statistics of shape {layer.running_mean.shape}, expected {mean.shape}")
        some = np.asarray(self.pooled.count) > 0
        state = {
            "running_mean": np.where(some, mean, layer.running_mean),
            "running_var": np.where(some, var, layer.running_var),
            "num_batches_tracked": np.asarray(self.batches.max(initial=0), np.int64),
        }
        if isinstance(layer.running, Population):
            state.update(self.to_arrays())
        layer.load_state_dict(state, strict=False)

    @staticmethod
    def empty(shape: tuple[int, ...]) -> PopulationStatistics:
        """The statistics of no batch."""
        nothing = np.zeros(shape)
        return PopulationStatistics.of_batch(Batch(nothing, nothing, nothing, nothing))

    @staticmethod
    def of_batch(batch: Batch) -> PopulationStatistics:
        """The statistics of one batch."""
        batch = batch.whole()
        proper = batch.effective_count > 1
        return PopulationStatistics(
            proper.astype(np.float64),
            np.where(proper, batch.mean, 0),
            np.where(proper, batch.unbiased(), 0),
            Moments(batch.mean, batch.var * batch.weight, batch.weight),
            batch.effective_count,
        )

    def to_arrays(self) -> dict[str, FloatArray]:
        """The arrays by the keys under which they are saved."""
        return {
            "population_batches": self.batches,
            "population_batch_mean": self.batch_mean,
            "population_batch_var": self.batch_var,
            "population_mean": self.pooled.mean,
            "population_m2": self.pooled.m2,
            "population_count": self.pooled.count,
            "population_effective_count": self.effective_count,
        }

    @staticmethod
    def from_arrays(arrays: Memory) -> PopulationStatistics:
        """The inverse of `to_arrays`."""
        batches, mean, var, pooled_mean, m2, count, effective = arrays.values()
        return PopulationStatistics(batches, mean, var, Moments(pooled_mean, m2, count), effective)


def scale_factor(keep: float, batches: int) -> float:
    """What c is after so many batches of ``c <- keep * c + 1``, from 0."""
    if keep == 0 or batches == 0:
        return float(batches > 0)
    return float(batches) if keep == 1 else -math.expm1(batches * math.log(keep)) / (1 - keep)


def effective_count(shape: tuple[int, ...], weights: Any, axis: int | tuple[int, ...]) -> Any:
    """(sum w)^2 / sum(w^2) of each statistic of an x of this shape; 0 where there is no weight."""
    weights = np.asarray(to_numpy(weights), np.float64)
    axes = axis if isinstance(axis, tuple) else (axis,)
    kept = {a % len(shape) for a in axes}
    reduced = tuple(a for a in range(len(shape)) if a not in kept)
    if weights.ndim < len(shape):
        weights = np.expand_dims(weights, tuple(sorted(kept)))
    weights = np.broadcast_to(weights, [1 if a in kept and weights.shape[a] == 1 else n for a, n in enumerate(shape)])
    largest = weights.max(reduced, initial=0, keepdims=True)
    shares = weights / (largest + (largest == 0))  # whose squares neither overflow nor vanish
    squares = (shares**2).sum(reduced)
    return shares.sum(reduced) ** 2 / (squares + (squares == 0))


def merged_effective_count(counts: Any, effective_counts: Any) -> Any:
    """That of all parts together, from sum(w) and the effective count of each, along the first axis."""
    total = counts.sum(0)
    shares = counts / (total + (total == 0))
    means = counts / (effective_counts + (effective_counts == 0))  # sum(w^2) / sum(w), which is 1 without weights
    most = means.max(0)
    mean = most + (shares * (means - most)).sum(0)  # exactly 1 where all are
    return total / (mean + (mean == 0))


def unbiased(var: Any, values: Any) -> Any:
    """Var * M / (M - 1); biased where M is not above 1. Of NumPy's arrays and of tensors."""
    if isinstance(values, float):
        return var * (values / (values - 1)) if values > 1 else var
    return var * (values / (values - 1.0 * (values > 1) + (values == 0)))


def pooled(mean: Any, var: Any, count: Any) -> tuple[Any, Any, Any]:
    """Mean, biased variance and count of all groups together, from those of each, along the first axis."""
    total = count.sum(0)
    shares = count / (total + (total == 0))
    pooled = (shares * mean).sum(0)
    apart = mean - pooled
    # In this order nothing overflows where a share is 0.
    return pooled, (shares * var + shares * apart * apart).sum(0), total
