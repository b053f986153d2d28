"""Gradient accumulation in which batch norm sees the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from .arguments import type_name
from .layers import BatchNorm
from .parts import Packed, Parts, merged_moments, merged_sums

Part = TypeVar("Part")
Result = TypeVar("Result")


def accumulate(step: Callable[[Part], Result], parts: Iterable[Part], layers: Iterable[BatchNorm]) -> list[Result]:
    """Run a training step on the parts of a batch, its batch norm layers on the statistics of all of it.

    ``step(part)`` runs a network forward and backward on one part (a micro-batch) and returns what it likes; the result
    is the list of that for each part. layers are the network's batch norm layers. With equal weight of all samples in
    the loss, the parts' gradients add up to those of the whole batch, up to rounding, and the running statistics move
    once, by the whole batch; parts may be uneven, and empty. No more than one part's activations are in memory.

    The price is time: a layer's statistics need all parts, and so does its sum of gradients. So step runs 2 L + 1 times
    on each part for L layers in training, and all but the last of these end, by an exception that is not an
    `Exception`, in the layer that they are for. So:

    - What step does after its last backward, such as adding up gradients, happens once for each part. In between, a
      layer may only overwrite (a dgamma of these layers, with ``accumulate=True`` too, gets nothing added but in the
      last run).
    - step must do the same on the same part each time: draw the mask of a dropout from the part's own seed.
    - parts are gone through several times: a list, or an object whose ``__iter__`` starts afresh.
    - Each layer has one forward and one backward in step. Layers in eval and freeze mode need no statistics, no run.

    layer.dgamma and layer.dbeta are the part's share, as the gradients of all other layers are.
    """
    if isinstance(parts, Iterator):
        raise TypeError(f"parts is an iterator ({type(parts).__name__}), which ends after one run; pass list(parts)")
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers is {type_name(layers)}, expected a list of bn.BatchNorm")
    layers = list(layers)
    for i, layer in enumerate(layers):
        if not isinstance(layer, BatchNorm):
            raise TypeError(f"layers[{i}] is {type_name(layer)}, expected bn.BatchNorm, not a module of PyTorch")
        if layer.group_size is not None:
            raise ValueError(
                f"layers[{i}] has group_size {layer.group_size}, so statistics of each group: leave it out of layers, "
                "and let each part be whole groups"
            )
    if len({id(layer) for layer in layers}) != len(layers):
        raise ValueError("layers has a layer twice, expected each once")

    with _MicroBatches([layer for layer in layers if layer.mode == "train"]) as batch:
        for _ in range(2 * len(batch.layers)):
            batch.collect(step, parts)
        return batch.finish(step, parts)


class _Stop(BaseException):
    """Ends a run of step in the layer that it was for. `except Exception` in step does not catch it."""


class _Layer:
    """What is known of a layer: the statistics of the whole batch, and the gradient sums of parts and whole."""

    def __init__(self, layer: BatchNorm) -> None:
        self.layer = layer
        self.outer = layer._exchange  # where the batch is itself a part, of a batch over several processes
        self.moments: Packed | None = None
        self.own_sums: list[Packed] = []
        self.sums: Packed | None = None
        self.tracked = False
        self.calls = 0


class _MicroBatches(Parts):
    def __init__(self, layers: list[BatchNorm]) -> None:
        self.layers = {id(layer): _Layer(layer) for layer in layers}
        self.count: int | None = None  # of parts
        self.part = 0
        self.last = False
        self.target: tuple[_Layer, str] | None = None
        self.collected: list[Packed] = []

    def __enter__(self) -> _MicroBatches:
        for known in self.layers.values():
            known.layer._exchange = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for known in self.layers.values():
            known.layer._exchange = known.outer
            known.layer._context = None  # of a run that ended early, or of an error

    def collect(self, step: Callable[[Part], Any], parts: Iterable[Part]) -> None:
        """Run step as far as the next layer that lacks statistics or sums, on all parts, and merge those."""
        self.target, self.collected = None, []
        for part in self._each(parts):
            try:
                step(part)
            except _Stop:
                if len(self.collected) == self.part + 1:
                    continue
                raise
            raise RuntimeError(f"step returned without {self._missing()}, or caught what ends its earlier runs")
        if self.target is None:
            raise ValueError("parts is empty, expected at least one part, which may have no samples")
        known, what = self.target
        if what == "forward":
            total = merged_moments(self.collected)
            outer = known.outer
            known.moments = outer.moments(known.layer, lambda: total)[0] if isinstance(outer, Parts) else total
        else:
            known.own_sums = self.collected
            total = merged_sums(self.collected)
            outer = known.outer
            known.sums = outer.sums(known.layer, lambda: total)[1] if isinstance(outer, Parts) else total

    def finish(self, step: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        """Run step to its end, on all parts."""
        self.last = True
        return [step(part) for part in self._each(parts)]

    def moments(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, bool]:
        known = self.layers[id(layer)]
        known.calls += 1
        if known.calls > 1:
            raise RuntimeError(f"step called {layer} twice on one part; accumulate needs a layer for each call")
        if known.moments is None:
            self._take(known, "forward", measure())
        assert known.moments is not None
        new, known.tracked = not known.tracked, True
        return known.moments, new

    def sums(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, Packed]:
        known = self.layers[id(layer)]
        if known.sums is None:
            self._take(known, "backward", measure())
        assert known.sums is not None
        return known.own_sums[self.part] if self.last else np.zeros_like(known.sums), known.sums

    def _take(self, known: _Layer, what: str, value: Packed) -> None:
        if self.target is None:
            self.target = known, what
        elif self.target != (known, what):
            first, direction = self.target
            raise RuntimeError(
                f"step came to {what} of {known.layer} first, on the parts before to {direction} of {first.layer}; "
                "it must call the layers in the same order on all parts"
            )
        self.collected.append(value)
        raise _Stop

    def _each(self, parts: Iterable[Part]) -> Iterator[Part]:
        count = 0
        for self.part, part in enumerate(parts):
            for known in self.layers.values():
                known.calls = 0
            yield part
            count += 1
        if self.count is None:
            self.count = count
        if count != self.count:
            raise RuntimeError(f"parts had {self.count} parts in the first run, {count} in a later one")

    def _missing(self) -> str:
        for known in self.layers.values():
            if known.moments is None or known.sums is None:
                return f"{'forward' if known.moments is None else 'backward'} of {known.layer}"
        return "a layer"
