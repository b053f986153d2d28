"""Batch renormalization: training outputs that depend on the batch less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import Saved
from .arguments import number
from .layers import BatchNorm
from .parts import Corrected, Packed, Parts
from .running import Exponential, Running

Limit = float | Callable[[int], float]

EXPONENTIAL = "the averages of batch renormalization are exponential"


class BatchRenorm(Corrected):
    """A `BatchNorm` whose training outputs come near those of inference, for small batches or ones that are not alike.

    In training, with the batch's mean and s = sqrt(var + eps), and moving averages of both::

        r = clip(s / renorm_std, rmin, rmax)
        d = clip((mean - renorm_mean) / renorm_std, -dmax, dmax)
        y = activation(((x - mean) / s * r + d) * gamma + beta + residual)

    r and d are constants in backward, so that dx is that of a BatchNorm with gamma * r. Then all averages move:
    renorm_mean and renorm_std by renorm_momentum (the share of the new batch), and by momentum what inference uses,
    running_mean and the square root of running_var + eps; var is the biased one. With rmax = 1 and dmax = 0 training is
    batch norm.

    rmax (at least 1) and dmax (at least 0) are numbers, or functions of num_batches_tracked: training starts as batch
    norm while the averages are not known. The paper's schedule is ``lambda n: np.interp(n, [5000, 40000], [1, 3])`` and
    ``lambda n: np.interp(n, [5000, 25000], [0, 5])``. rmin is 1 / rmax, as in the paper, or a number; Keras has 0.

    All other arguments, and use, are BatchNorm's, except group_size, running and convention, which it does not take.
    state_dict has renorm_mean and renorm_std too. `accumulate` takes the layer.

    S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", NeurIPS 2017,
    arXiv:1702.03275.
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        rmax: Limit = 3.0,
        dmax: Limit = 5.0,
        rmin: float | None = None,
        renorm_momentum: float = 0.01,
        **options: Any,
    ) -> None:
        if options.get("group_size") is not None:
            raise ValueError(
                f"group_size must be None, got {options['group_size']}: r and d are those of a whole batch"
            )
        for name, usual in (("running", None), ("convention", "torch")):
            if options.get(name, usual) != usual:
                raise ValueError(f"{name} must be {usual!r}, got {options[name]!r}: {EXPONENTIAL}")
        super().__init__(num_features, **options)
        if not 0 <= number("renorm_momentum", renorm_momentum) <= 1:
            raise ValueError(f"renorm_momentum must be from 0 to 1, got {renorm_momentum}")
        self.rmax, self.dmax, self.rmin = rmax, dmax, rmin
        self.renorm_momentum = renorm_momentum
        self.renorm_mean = np.zeros_like(self.running_mean)
        self.renorm_std = np.ones_like(self.running_var)
        self._last_correction: tuple[Any, Any] = 1.0, 0.0
        self._exchange = _WholeBatch()
        if not callable(rmax) and not callable(dmax):
            self._limits()

    def _limits(self) -> tuple[float, float, float]:
        """Rmin, rmax and dmax of the next batch."""
        batches = int(self.num_batches_tracked)
        limits = {"rmax": self.rmax, "dmax": self.dmax}
        rmax, dmax = (number(name, v(batches) if callable(v) else v) for name, v in limits.items())
        if not rmax >= 1:
            raise ValueError(f"rmax must be at least 1, got {rmax}")
        if not dmax >= 0:
            raise ValueError(f"dmax must not be negative, got {dmax}")
        rmin = 1 / rmax if self.rmin is None else number("rmin", self.rmin)
        if not 0 <= rmin <= 1:
            raise ValueError(f"rmin must be from 0 to 1, got {rmin}")
        return rmin, rmax, dmax

    def _correction(self, mean: Any, var: Any, new: bool) -> tuple[Any, Any]:
        if new:
            rmin, rmax, dmax = self._limits()
            # As in Keras: before anything is known, and in a constant channel, renorm_std might be 0.
            std = np.maximum(self.renorm_std.astype(np.float64), np.sqrt(self.eps))
            r = np.clip(np.sqrt(var + self.eps) / std, rmin, rmax)
            self._last_correction = r, np.clip((mean - self.renorm_mean) / std, -dmax, dmax)
        return self._last_correction

    def _check_running(self, policy: Running) -> None:
        if not isinstance(policy, Exponential) or policy.sense != "torch" or policy.corrected:
            raise ValueError(
                f"running must be a plain bn.Exponential in PyTorch's sense, got {policy!r}: {EXPONENTIAL}"
            )

    def reset_running_statistics(self) -> None:
        """Set the running statistics, and those of renormalization, to those of a new layer."""
        super().reset_running_statistics()
        self.renorm_mean[...] = 0
        self.renorm_std[...] = 1

    def _track(self, x: Any, saved: Saved, effective: Any = None) -> None:
        assert self.momentum is not None
        count = np.asarray(0.0 if saved.count is None else saved.count)
        if not count.any():
            return
        some, mean = count > 0, np.asarray(saved.mean)
        std = np.sqrt(np.asarray(saved.var) + self.eps)

        def moved(average: Any, value: Any, momentum: float) -> Any:
            return np.where(some, (1 - momentum) * average.astype(np.float64) + momentum * value, average)

        self.renorm_mean[...] = moved(self.renorm_mean, mean, self.renorm_momentum)
        self.renorm_std[...] = moved(self.renorm_std, std, self.renorm_momentum)
        self.running_mean[...] = moved(self.running_mean, mean, self.momentum)
        running_std = moved(np.sqrt(self.running_var.astype(np.float64) + self.eps), std, self.momentum)
        self.running_var[...] = np.maximum(running_std**2 - self.eps, 0)
        self.num_batches_tracked += 1

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        return {**super()._state(), "renorm_mean": self.renorm_mean, "renorm_std": self.renorm_std}

    def __repr__(self) -> str:
        rmin = "" if self.rmin is None else f"rmin={self.rmin}, "
        own = f"rmax={self.rmax}, dmax={self.dmax}, {rmin}renorm_momentum={self.renorm_momentum}, dtype="
        return super().__repr__().replace("BatchNorm(", "BatchRenorm(", 1).replace("dtype=", own)


class _WholeBatch(Parts):
    """The only part: r and d are wanted between the halves."""

    def moments(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, bool]:
        return measure(), True

    def sums(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, Packed]:
        sums = measure()
        return sums, sums
