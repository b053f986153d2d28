"""What takes part in the turns of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .arrays import Array, Problem
from .cases import Task


class UnavailableError(Exception):
    """A peer is not installed, or cannot take part in a job; the message says why."""


@dataclass
class Contestant:
    """A name, the call to time, and a function that makes the call and returns its results as NumPy arrays.

    Results are y, or dx, dgamma and dbeta, in the shapes of the problem's arrays.
    """

    name: str
    call: Callable[[], object]
    results: Callable[[], dict[str, Array]]


class Peer(Protocol):
    """A library to compare with."""

    name: str
    version: str

    def contestants(self, problem: Problem, task: Task, threads: int) -> Iterable[Contestant]:
        """One or more, with threads set and everything prepared that need not be timed; else UnavailableError."""
