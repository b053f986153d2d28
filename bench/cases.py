"""The tensors that are measured, and the jobs that they make: one table for all parts of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Layout = Literal["first", "last"]
Task = Literal["forward", "inference", "backward"]
Pages = Literal["kept", "fresh"]

LAYOUTS: tuple[Layout, ...] = ("first", "last")
TASKS: tuple[Task, ...] = ("forward", "inference", "backward")
DTYPES = ("float32", "float64")
PAGES: tuple[Pages, ...] = ("kept", "fresh")


@dataclass(frozen=True)
class Case:
    """A tensor of n samples with c channels, and the networks that have it."""

    n: int
    c: int
    spatial: tuple[int, ...]
    networks: tuple[str, ...]
    quick: bool = False

    @property
    def shape(self) -> str:
        """As 32x64x56x56, channels first."""
        return "x".join(map(str, (self.n, self.c, *self.spatial)))

    @property
    def label(self) -> str:
        """What --case is looked for in."""
        return f"{self.shape} {', '.join(self.networks)}"

    @property
    def plane(self) -> int:
        """Elements of one channel of one sample."""
        count = 1
        for size in self.spatial:
            count *= size
        return count

    @property
    def size(self) -> int:
        """Elements."""
        return self.n * self.c * self.plane

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """NC has one: its channels are last, and contiguous."""
        return LAYOUTS if self.spatial else ("last",)

    def dimensions(self, layout: Layout) -> tuple[int, ...]:
        """The shape of the array."""
        return (self.n, self.c, *self.spatial) if layout == "first" else (self.n, *self.spatial, self.c)


def _square(n: int, *channels_and_sides: tuple[int, int]) -> list[tuple[int, ...]]:
    return [(n, c, side, side) for c, side in channels_and_sides]


# N, C, and the sizes of the space that the channels fill.
_NETWORKS: dict[str, list[tuple[int, ...]]] = {
    "ResNet-50": [
        *_square(32, (64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)),
        *_square(256, (512, 7), (2048, 7)),
    ],
    "VGG-16": [*_square(16, (64, 224)), *_square(32, (128, 112), (256, 56), (512, 28), (512, 14))],
    "DenseNet-121": _square(32, (96, 56), (160, 56), (512, 28), (1024, 14), (992, 7)),
    "MobileNetV2": _square(32, (32, 112), (96, 112), (144, 56), (192, 28), (576, 14), (960, 7)),
    "GoogLeNet": _square(32, (64, 112), (192, 56), (480, 14), (832, 7)),
    "U-Net 3-D": [(2, 32, 64, 128, 128), (2, 64, 32, 64, 64), (1, 128, 16, 32, 32), (1, 320, 8, 8, 8)],
    "dense layer": [(32, 16), (128, 128), (64, 2048), (4096, 1024)],
    "one channel": [(64, 1, 28, 28), (16, 1, 512, 512), (1, 1, 10_000_000)],
    "three channels": [(64, 3, 32, 32), (32, 3, 224, 224)],
    "one sample": [(1, 64, 56, 56), (1, 512, 28, 28), (1, 256, 128, 128)],
    "3x3 planes": [(64, 512, 3, 3), (512, 2048, 3, 3)],
    "13x13 planes": [(32, 384, 13, 13), (256, 384, 13, 13)],
    "fits L1": [(2, 8, 8, 8)],
    "fits L2": [(4, 32, 14, 14), (8, 32, 28, 28)],
    "fits L3": [(16, 64, 28, 28), (16, 128, 28, 28)],
}

# With --quick: one of each kind.
_QUICK = {(128, 128), (32, 64, 56, 56), (32, 512, 28, 28), (32, 2048, 7, 7), (8, 32, 28, 28)}


def _table() -> list[Case]:
    networks: dict[tuple[int, ...], list[str]] = {}
    for network, shapes in _NETWORKS.items():
        for shape in shapes:
            networks.setdefault(shape, []).append(network)
    return [Case(n, c, tuple(s), tuple(names), (n, c, *s) in _QUICK) for (n, c, *s), names in networks.items()]


CASES: list[Case] = _table()


@dataclass(frozen=True)
class Settings:
    """What of all that is asked for, and how it is measured."""

    case: tuple[str, ...]  # shapes, or parts of labels, any of which must match; () for all
    tasks: tuple[Task, ...]
    layouts: tuple[Layout, ...]
    dtypes: tuple[str, ...]
    threads: tuple[int, ...]
    peers: tuple[str, ...]
    runs: int
    quick: bool
    large_numpy: bool
    wait: float  # seconds, for a quiet machine, before each row
    past: int  # bytes past a cache line, where arrays start


@dataclass(frozen=True)
class Job:
    """One row of the report."""

    case: Case
    dtype: str
    layout: Layout
    task: Task
    threads: int


def chosen_cases(settings: Settings) -> list[Case]:
    """The cases that the settings ask for."""
    return [case for case in matching(CASES, settings.case) if case.quick or not settings.quick]


def matching(cases: list[Case], texts: tuple[str, ...]) -> list[Case]:
    """Those of which a text is the shape, or part of the label; all, if there is no text."""
    return [case for case in cases if not texts or any(_matches(case, text, cases) for text in texts)]


def _matches(case: Case, text: str, cases: list[Case]) -> bool:
    if any(text == other.shape for other in cases):
        return text == case.shape
    return text.lower() in case.label.lower()


def jobs(settings: Settings, pages: Pages) -> Iterator[Job]:
    """All rows, those of one tensor together; of fresh pages, only those in which a peer cannot take an output."""
    for case in chosen_cases(settings):
        for dtype in settings.dtypes:
            for layout in case.layouts:
                for task in settings.tasks:
                    for threads in settings.threads:
                        if layout in settings.layouts and (pages == "kept" or task == "backward"):
                            yield Job(case, dtype, layout, task, threads)
