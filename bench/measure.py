"""Timing in turns, A B C A B C, and the ratios within a turn: what else the machine does hits all of a turn alike."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from .cases import Settings
from .others import BUSY, Others, wait_until_quiet

Quartiles = tuple[float, float, float]

_SHORTEST = 1e-3  # seconds: a measurement repeats its call until it lasts so long


def take_turns(calls: Mapping[str, Callable[[], object]], runs: int, in_cache: bool) -> dict[str, list[float]]:
    """Seconds of a call of each, in each of so many turns.

    in_cache: caches can hold some of the data. Then each contestant first makes a call that is not timed, so that it
    finds there what itself has left, and not the others.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-1, runs):  # the first one only brings caches and pages to where turns leave them
            for name, call in calls.items():
                if in_cache:
                    call()
                time = _time(call, repeats[name]) / repeats[name]
                if turn >= 0:
                    seconds[name].append(time)
    finally:
        if collecting:
            gc.enable()
    return seconds


def undisturbed_turns(
    calls: Mapping[str, Callable[[], object]], settings: Settings, in_cache: bool
) -> tuple[dict[str, list[float]], float]:
    """The times, and how many processors others used meanwhile. Where it may wait, it tries up to three times."""
    for last in (False, False, True):
        wait_until_quiet(settings.wait)
        others = Others()
        seconds = take_turns(calls, settings.runs, in_cache)
        busy = others.processors()
        if last or busy < BUSY or not settings.wait:
            break
    return seconds, busy


def _time(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return perf_counter() - start


def _repeats(call: Callable[[], object]) -> int:
    call()  # the first one may set up threads and touch memory
    return max(1, math.ceil(_SHORTEST / max(_time(call, 1), 1e-7)))


def quartiles_of_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Quartiles:
    """Lower quartile, median and upper quartile of the ratios within each turn."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def fastest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The one of names with the least median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def rounded(seconds: Sequence[float]) -> list[float]:
    """With the digits that mean something."""
    return [float(f"{value:.5g}") for value in seconds]
