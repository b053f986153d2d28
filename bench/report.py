"""The table in the terminal, and the summary below it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .cases import TASKS
from .goals import WORST, variant_goal
from .others import BUSY

Row = dict[str, Any]

LAYOUT_NAMES = {"first": "channels-first", "last": "channels-last"}
_SHOWN = ("PyTorch", "oneDNN", "oneDNN blocked", "JAX", "NumPy")

# Geometric means over all cases that PyTorch's time is to be, in batchnorm's.
_AHEAD = {
    ("forward", "first"): 4.0,
    ("forward", "last"): 1.7,
    ("backward", "first"): 1.5,
    ("backward", "last"): 1.6,
    ("inference", "first"): 1.1,
    ("inference", "last"): 1.1,
}
STEP_AHEAD = 3.0
SMALL_CALL = 3.0  # microseconds


class Table:
    """Lines of the table; the heading comes before the first one."""

    def __init__(self) -> None:
        self._headed = False

    def line(self, row: Row) -> str:
        """One row."""
        ratios = row["ratios"]
        cells = [
            f"{row['case']:20}",
            f"{row['task'] + (', fresh' if row['pages'] == 'fresh' else ''):15}",
            f"{row['layout']:5}",
            f"{row['dtype'][0] + row['dtype'][-2:]:3}",
            f"{row['threads']:3}",
            f"{row['bytes'] / 1e6:8.3g}",
            f"{row['floor']:5.1f}",
            f"{row['goal']:5.2f}",
            f"{row['copy']:12}",
            _with_quartiles(ratios["batchnorm/copy"]),
            *(_number(ratios.get(f"{name}/copy")) for name in _SHOWN),
            _with_quartiles(ratios.get("PyTorch/batchnorm")),
            _number(ratios.get("oneDNN/batchnorm")),
            *([f"  others: {row['others']:.1f} processors"] if row["others"] >= BUSY else []),
        ]
        line = " ".join(cells)
        if self._headed:
            return line
        self._headed = True
        return f"{_heading()}\n{line}"


def _heading() -> str:
    first = (
        f"{'':20} {'':15} {'':5} {'':3} {'':3} {'':8} {'':5} {'':5} {'fastest':12} {'in copies:':17} "
        f"{'':7} {'':7} {'oneDNN':>7} {'':7} {'':7} {'in batchnorm:':17}"
    )
    second = (
        f"{'case':20} {'task':15} {'chan.':5} {'':3} {'thr':>3} {'MB':>8} {'floor':>5} {'goal':>5} {'copy':12} "
        f"{'batchnorm':17} {'PyTorch':>7} {'oneDNN':>7} {'blocked':>7} {'JAX':>7} {'NumPy':>7} {'PyTorch':17} "
        f"{'oneDNN':>7}"
    )
    return f"{first.rstrip()}\n{second}"


def _with_quartiles(ratio: Sequence[float] | None) -> str:
    if ratio is None:
        return f"{'-':>17}"
    low, middle, high = ratio
    return f"{_digits(middle):>5} {f'({_digits(low)}-{_digits(high)})':11}"


def _number(ratio: Sequence[float] | None) -> str:
    return f"{'-' if ratio is None else _digits(ratio[1]):>7}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def step_line(step: Row) -> str:
    """One row of the training steps."""
    ms = {name: 1e3 * statistics.median(values) for name, values in step["seconds"].items()}
    return (
        f"{step['case']:20} training step {LAYOUT_NAMES[step['layout']]:15} {step['bytes'] / 1e6:6.4g} MB  "
        f"batchnorm {ms['batchnorm']:8.3f} ms  PyTorch {ms['PyTorch']:8.3f} ms  "
        f"PyTorch / batchnorm {_with_quartiles(step['ratio'])}"
    )


def variant_lines(variant: Row) -> str:
    """The variants of one task on one tensor, a line each."""
    ms = 1e3 * statistics.median(variant["seconds"]["plain"])
    busy = f"  others: {variant['others']:.1f} processors" if variant["others"] >= BUSY else ""
    return "\n".join(
        [
            f"{variant['case']:20} {variant['task']:10} {LAYOUT_NAMES[variant['layout']]:15} "
            f"{variant['bytes'] / 1e6:6.4g} MB  plain {ms:8.3f} ms{busy}",
            *(f"  {name:30} {_with_quartiles(ratio)}" for name, ratio in variant["ratios"].items()),
        ]
    )


def summary(found: Row) -> str:
    """What the figures of the whole amount to."""
    rows, steps, variants = found["rows"], found["steps"], found.get("variants", [])
    kept = [row for row in rows if row["pages"] == "kept"]
    parts = [
        *_against_pytorch(kept, "whose allocator keeps its pages"),
        *_against_pytorch([row for row in rows if row["pages"] == "fresh"], "as users get it, with fresh pages"),
        *_behind(kept, "PyTorch", "interquartile range wholly behind PyTorch", 2),
        *_behind(kept, "oneDNN", "median behind oneDNN in a plain layout", 1),
        *_goals(_float32_with_all_threads(kept)),
        *_in_caches(_float32_with_all_threads(kept)),
        *_steps(steps),
        *_variants(variants),
        *_disturbed([*rows, *variants]),
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(["", *parts])


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _against_pytorch(rows: list[Row], how: str) -> list[str]:
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if "PyTorch/batchnorm" in row["ratios"]:
            groups[row["task"], row["layout"]].append(row["ratios"]["PyTorch/batchnorm"][1])
    if not groups:
        return []
    lines = [f"PyTorch / batchnorm, geometric mean over the cases, PyTorch {how}:"]
    for (task, layout), ratios in groups.items():
        aim = _AHEAD[task, layout]
        mean = geometric_mean(ratios)
        lines.append(
            f"  {task:10} {LAYOUT_NAMES[layout]:15} {mean:6.2f}  (goal {aim}: {_reached(mean >= aim)}; "
            f"{len(ratios)} rows from {min(ratios):.2f} to {max(ratios):.2f})"
        )
    return lines


def _behind(rows: list[Row], peer: str, what: str, quartile: int) -> list[str]:
    compared = [row for row in rows if f"{peer}/batchnorm" in row["ratios"]]
    if not compared:
        return []
    behind = [row for row in compared if row["ratios"][f"{peer}/batchnorm"][quartile] < 1]
    lines = [f"{what}: {len(behind)} of {len(compared)} rows"]
    return lines + [f"  {_name(row)}: {_with_quartiles(row['ratios'][f'{peer}/batchnorm']).strip()}" for row in behind]


def _goals(rows: list[Row]) -> list[str]:
    """The table of goals: float32, all threads, tensors beyond the last-level cache, and 7x7 planes of any size."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["large"]:
            groups[row["group"]].append(row)
        if row["case"].endswith("x7x7") and row["group"].startswith("forward, channels-first"):
            groups["forward, channels-first, 7x7 planes, in cache or not"].append(row)
    if not groups:
        return []
    lines = ["Large tensors (beyond the last-level cache), float32, all threads, in copies:"]
    for group, members in groups.items():
        medians = _medians(members)
        middle, aim = statistics.median(medians), members[0]["goal"]
        lines.append(
            f"  {group:52} {middle:5.2f}  (goal {aim:.2f}: {_reached(middle <= aim)}; {len(members)} cases from "
            f"{min(medians):.2f} to {max(medians):.2f})"
        )
    above = [row for row in rows if row["large"] and row["ratios"]["batchnorm/copy"][1] > WORST * row["goal"]]
    lines.append(f"  above {WORST} times the goal: {len(above)} rows")
    return lines + [f"    {_name(row)}: {_with_quartiles(row['ratios']['batchnorm/copy']).strip()}" for row in above]


def _in_caches(rows: list[Row]) -> list[str]:
    """The rest: what caches hold, whose calls cost more than their traffic."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["fits"] != "memory":
            groups[row["fits"], row["task"], row["layout"]].append(row)
    if not groups:
        return []
    lines = ["Smaller tensors, by the cache that holds x and y, float32, all threads, in copies:"]
    for (fits, task, layout), members in sorted(groups.items()):
        medians = _medians(members)
        lines.append(
            f"  {fits} {task:10} {LAYOUT_NAMES[layout]:15} {statistics.median(medians):5.2f}  "
            f"({len(members)} cases from {min(medians):.2f} to {max(medians):.2f})"
        )
    lines.append(f"Calls on what L1 holds, in microseconds (goal {SMALL_CALL}):")
    for row in rows:
        if row["fits"] == "L1":
            times = {name: 1e6 * statistics.median(row["seconds"][name]) for name in row["seconds"]}
            peers = ", ".join(f"{name} {times[name]:.1f}" for name in _SHOWN if name in times)
            lines.append(
                f"  {row['case']:10} {row['task']:10} {LAYOUT_NAMES[row['layout']]:15} "
                f"{times['batchnorm']:5.2f}  ({peers})"
            )
    return lines


def _medians(rows: list[Row]) -> list[float]:
    return [row["ratios"]["batchnorm/copy"][1] for row in rows]


def _float32_with_all_threads(rows: list[Row]) -> list[Row]:
    threads = max((row["threads"] for row in rows), default=0)
    return [row for row in rows if row["dtype"] == "float32" and row["threads"] == threads]


def _steps(steps: list[Row]) -> list[str]:
    if not steps:
        return []
    lines = ["A training step without out=, PyTorch / batchnorm, over all shapes of ResNet-50:"]
    for layout, name in LAYOUT_NAMES.items():
        members = [step for step in steps if step["layout"] == layout]
        if members:
            total = {
                library: sum(statistics.median(step["seconds"][library]) for step in members)
                for library in members[0]["seconds"]
            }
            whole = total["PyTorch"] / total["batchnorm"]
            mean = geometric_mean(step["ratio"][1] for step in members)
            lines.append(
                f"  {name:15} {whole:5.2f} in their sum, {mean:5.2f} geometric mean  "
                f"(goal {STEP_AHEAD}: {_reached(min(whole, mean) >= STEP_AHEAD)})"
            )
    return lines


def _variants(variants: list[Row]) -> list[str]:
    """Medians over the tensors; goals are for large ones."""
    groups: dict[tuple[bool, Any, Any, str], list[float]] = defaultdict(list)
    for variant in sorted(variants, key=lambda variant: (not variant["large"], TASKS.index(variant["task"]))):
        for ratio, (_, middle, _) in variant["ratios"].items():
            groups[variant["large"], variant["task"], variant["layout"], ratio].append(middle)
    lines = []
    for (large, task, layout, ratio), medians in groups.items():
        size = "beyond the last-level cache" if large else "within the last-level cache"
        heading = f"Variants, tensors {size}, times as ratios:"
        if heading not in lines:
            lines.append(heading)
        middle, aim = statistics.median(medians), variant_goal(task, ratio, layout) if large else None
        goal = "" if aim is None else f"goal {aim:.2f}: {_reached(middle <= aim)}; "
        lines.append(
            f"  {task:10} {LAYOUT_NAMES[layout]:15} {ratio:30} {middle:5.2f}  "
            f"({goal}{len(medians)} cases from {min(medians):.2f} to {max(medians):.2f})"
        )
    return lines


def _disturbed(rows: list[Row]) -> list[str]:
    busy = sum(row["others"] >= BUSY for row in rows)
    if not busy:
        return []
    return [f"{busy} of {len(rows)} rows were measured beside other work, and mean little; try --wait"]


def _reached(is_reached: bool) -> str:
    return "reached" if is_reached else "MISSED"


def _name(row: Row) -> str:
    return f"{row['case']} {row['task']} {LAYOUT_NAMES[row['layout']]} {row['dtype']} {row['threads']} threads"
