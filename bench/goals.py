"""What the traffic of each task is at least, and what is to be reached, in copies of the tensor.

A copy reads x once and writes y once. Inference is that. Training forward is that too, channels first, if a channel
stays in cache between its two readings; channels last, or where one channel is larger than all caches, all of x is read
before anything is written: 1.5. Backward reads dy and x and writes dx, 1.5, or reads both twice, 2.5.
"""

from __future__ import annotations

from .cases import LAYOUTS, TASKS, Layout, Task

# What variants are to take on large tensors, in the time of another call.
_VARIANTS: dict[tuple[str, str], tuple[float, tuple[Layout, ...]]] = {
    ("forward", "residual + relu / plain"): (1.60, ("first",)),
    ("forward", "residual + relu / PyTorch"): (0.50, LAYOUTS),
    ("backward", "relu / plain"): (1.15, LAYOUTS),
    **{(task, f"{half} / plain"): (0.60, LAYOUTS) for task in TASKS for half in ("float16", "bfloat16")},
}

WORST = 1.35  # no single large case may be above so many times its goal


def is_read_once(task: Task, layout: Layout, channel_bytes: int, cache: int) -> bool:
    """Whether what statistics were taken of can still be in cache when it is read again; inference takes none."""
    operands = 2 if task == "backward" else 1
    return layout == "first" and operands * channel_bytes <= cache


def floor(task: Task, read_once: bool) -> float:
    """The least traffic, in copies."""
    once = {"forward": 1.0, "inference": 1.0, "backward": 1.5}[task]
    twice = {"forward": 1.5, "inference": 1.0, "backward": 2.5}[task]
    return once if read_once else twice


def goal(task: Task, read_once: bool, plane: int) -> tuple[float, str]:
    """The time to reach, in copies, and the group of cases that have this goal."""
    if task == "inference":
        return 1.05, "inference"
    if not read_once:
        return (1.60 if task == "forward" else 2.50), f"{task}, channels-last"
    if task == "forward":
        if plane < 100:
            return 1.60, "forward, channels-first, planes below 100"
        if plane < 56 * 56:
            return 1.15, "forward, channels-first, planes to 28x28"
        return 1.25, "forward, channels-first, planes of 56x56 and more"
    if plane <= 28 * 28:
        return 1.65, "backward, channels-first, planes to 28x28"
    if plane < 112 * 112:
        return 1.80, "backward, channels-first, planes of 56x56"
    return 2.00, "backward, channels-first, planes of 112x112 and more"


def variant_goal(task: Task, ratio: str, layout: Layout) -> float | None:
    """The largest ratio of two times to reach, if there is one."""
    aim, layouts = _VARIANTS.get((task, ratio), (None, ()))
    return aim if layout in layouts else None
