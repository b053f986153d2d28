"""What --gpu makes of its times: bytes, shares of the copy's bandwidth, goals, and the tables of them.

A copy of 1 GB in the same turns says what bandwidth the device has. A share is how much of it a call would need if it
made two passes: statistics of what it reads in one, its output in the other. A call that keeps x on the chip, or finds
it in the L2 cache again, can have a share above 1.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from .cases import Case, Layout
from .measure import Quartiles, quartiles_of_ratios, rounded
from .report import LAYOUT_NAMES, geometric_mean

GpuTask = Literal["forward", "inference", "backward", "fused"]
Row = dict[str, Any]

NAME, COPY, DEVICE_COPY = "batchnorm", "copy", "copy of 1 GB"
PEERS = ("PyTorch", "cuDNN", "compiled")

# Tensors that are read or written: each once, and in two passes. fused is forward with a residual and relu; the bits
# of its mask are not counted, since PyTorch's calls write none.
_FLOOR: dict[GpuTask, int] = {"forward": 2, "inference": 2, "backward": 3, "fused": 3}
_TWO_PASSES: dict[GpuTask, int] = {"forward": 3, "inference": 2, "backward": 5, "fused": 4}

# What is to be reached: shares, by the least bytes of x, the largest first; and PyTorch's time in batchnorm's.
SHARES = ((128e6, 0.85), (8e6, 0.60))
AHEAD = 1.3


def floor_bytes(task: GpuTask, tensor: int) -> int:
    """Traffic of a call whose tensors have so many bytes each, if nothing is read twice."""
    return _FLOOR[task] * tensor


def two_pass_bytes(task: GpuTask, tensor: int) -> int:
    """Traffic of a call that reads for its sums, and then again for its output."""
    return _TWO_PASSES[task] * tensor


def share_goal(tensor: int) -> float | None:
    """The least share of the copy's bandwidth to reach, if there is a goal for tensors of so many bytes."""
    return next((share for least, share in SHARES if tensor >= least), None)


def row(
    case: Case,
    dtype: str,
    layout: Layout,
    task: GpuTask,
    tensor: int,
    seconds: Mapping[str, Sequence[float]],
    host: Mapping[str, float],
    copied: int,
) -> Row:
    """One row of the report, from the seconds of each contestant in each turn."""
    two = two_pass_bytes(task, tensor)
    ours, device = seconds[NAME], seconds[DEVICE_COPY]
    ratios = {f"{name}/{NAME}": quartiles_of_ratios(seconds[name], ours) for name in PEERS if name in seconds}
    return {
        "case": case.shape,
        "networks": case.networks,
        "dtype": dtype,
        "layout": layout,
        "task": task,
        "bytes": tensor,
        "floor": floor_bytes(task, tensor),
        "two passes": two,
        # two / ours over 2 * copied / device: reading and writing so many bytes
        "share": [value * two / (2 * copied) for value in quartiles_of_ratios(device, ours)],
        "goal": share_goal(tensor),
        "ratios": {f"{NAME}/{COPY}": quartiles_of_ratios(ours, seconds[COPY]), **ratios},
        "bandwidth": 2 * copied / statistics.median(device),
        "seconds": {name: rounded(values) for name, values in seconds.items()},
        "host": {name: float(f"{value:.3g}") for name, value in host.items()},
    }


# ------------------------------------------------------------------------------------------------------------- tables

_COLUMNS = (
    ("case", 20), ("pass", 9), ("channels", 8), ("type", 8), ("MB of x", 8), ("us", 9), ("floor MB", 8),
    ("2-pass MB", 9), ("share", 16), ("goal", 4), ("in copies", 9), ("PyTorch", 7), ("cuDNN", 7), ("compiled", 8),
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    ratios = row["ratios"]
    return [
        row["case"],
        row["task"],
        row["layout"],
        row["dtype"],
        f"{row['bytes'] / 1e6:.4g}",
        f"{1e6 * statistics.median(row['seconds'][NAME]):.1f}",
        f"{row['floor'] / 1e6:.4g}",
        f"{row['two passes'] / 1e6:.4g}",
        _with_quartiles(row["share"]),
        "" if row["goal"] is None else f"{row['goal']:.2f}",
        f"{ratios[f'{NAME}/{COPY}'][1]:.2f}",
        *(f"{ratios[key][1]:.2f}" if (key := f"{name}/{NAME}") in ratios else "-" for name in PEERS),
    ]


def _with_quartiles(values: Quartiles) -> str:
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _padded(cells: Sequence[str]) -> str:
    text = [
        f"{cell:{'<' if number < 4 or heading == 'share' else '>'}{width}}"
        for number, (cell, (heading, width)) in enumerate(zip(cells, _COLUMNS, strict=True))
    ]
    return " ".join(text).rstrip()


class Table:
    """Lines of the table; the heading comes before the first one."""

    def __init__(self) -> None:
        self._headed = False

    def line(self, row: Row) -> str:
        """One row."""
        line = _padded(_cells(row))
        if self._headed:
            return line
        self._headed = True
        return "\n".join([_padded([heading for heading, _ in _COLUMNS]), line])


def summary(found: Row) -> str:
    """What the figures of the whole amount to, and whether goals are reached."""
    rows = found["gpu"]
    parts = [
        *(
            [f"{_named(found['machine'])}: a copy of 1 GB at {_bandwidth(rows):.0f} GB/s, read and written"]
            if rows
            else []
        ),
        *_against_others(rows),
        *_shares(rows),
        *_host(rows),
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(["", *parts])


def _bandwidth(rows: list[Row]) -> float:
    return float(statistics.median(row["bandwidth"] for row in rows)) / 1e9


def _groups(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """By type, layout and pass."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["dtype"], row["layout"], row["task"]].append(row)
    for (dtype, layout, task), members in groups.items():
        yield f"{dtype:8} {LAYOUT_NAMES[layout]:14} {task:9}", members


def _against_others(rows: list[Row]) -> list[str]:
    """Geometric means over the shapes of ResNet-50; those of torch.compile are over all that were compiled."""
    lines, reached = [], []
    for group, members in _groups(rows):
        cells = []
        for name in PEERS:
            key = f"{name}/{NAME}"
            shapes = [row for row in members if key in row["ratios"]]
            if name != "compiled":
                shapes = [row for row in shapes if "ResNet-50" in row["networks"]]
            if not shapes:
                continue
            mean = geometric_mean(row["ratios"][key][1] for row in shapes)
            goal = ""
            if name == "PyTorch":
                reached.append(mean >= AHEAD)
                goal = f"goal {AHEAD}: {_reached(reached[-1])}; "
            cells.append(f"{name} {mean:5.2f} ({goal}{len(shapes)} shapes)")
        if cells:
            lines.append(f"  {group} {'  '.join(cells)}")
    if not lines:
        return []
    return [
        "Times of others in batchnorm's, geometric means over the shapes of ResNet-50:",
        *lines,
        f"  PyTorch: {sum(reached)} of {len(reached)} goals reached",
    ]


def _shares(rows: list[Row]) -> list[str]:
    """Every tensor of a size is to reach the share; the worst one is named."""
    lines = []
    above = float("inf")
    for least, aim in SHARES:
        sizes = f"x of {least / 1e6:.0f} MB and more" if above == float("inf") else f"x of 8 to {above / 1e6:.0f} MB"
        behind = total = 0
        part = []
        for group, members in _groups([row for row in rows if least <= row["bytes"] < above]):
            shares = [row["share"][1] for row in members]
            missed = sum(share < aim for share in shares)
            behind, total = behind + missed, total + len(shares)
            worst = min(members, key=lambda row: row["share"][1])
            verdict = "reached" if not missed else f"MISSED by {missed} of {len(shares)}"
            part.append(
                f"  {group} {statistics.median(shares):5.2f}  (goal {aim:.2f}: {verdict}; least "
                f"{min(shares):.2f}, {worst['case']})"
            )
        if part:
            lines += [
                f"Share of the copy's bandwidth that two passes take, {sizes}, medians:",
                *part,
                f"  {total - behind} of {total} rows reach {aim:.2f}",
            ]
        above = least
    return lines


def _host(rows: list[Row]) -> list[str]:
    """Times above are the device's own: what its host takes for a call is hidden there, as in a network that keeps
    the device busy."""
    names = [name for name in (NAME, *PEERS) if any(name in row["host"] for row in rows)]
    if not names:
        return []
    medians = {name: statistics.median(row["host"][name] for row in rows if name in row["host"]) for name in names}
    return [
        "Microseconds of the host for a call, medians: "
        + ", ".join(f"{name} {1e6 * value:.1f}" for name, value in medians.items())
    ]


def _reached(is_reached: bool) -> str:
    return "reached" if is_reached else "MISSED"


def _named(machine: Mapping[str, Any]) -> str:
    return str(machine.get("GPU", "GPU"))


# ----------------------------------------------------------------------------------------------------------- Markdown


def file_name(machine: Mapping[str, Any]) -> str:
    """As nvidia-h200-2026-01-31.md."""
    gpu = re.sub(r"[^a-z0-9]+", "-", _named(machine).lower()).strip("-")
    return f"{gpu}-{machine['date']}.md"


def markdown(found: Row) -> str:
    """The whole as a page."""
    machine = found["machine"]
    rows = [_cells(row) for row in found["gpu"]]
    return "\n".join(
        [
            f"# {_named(machine)}, {machine['date']}",
            "",
            "Measured with `python -m batchnorm bench --gpu`; how, and what the columns are:",
            '[performance.md](../../docs/performance.md), "On a GPU".',
            "",
            *_markdown_table(("", ""), [[name, str(value)] for name, value in machine.items()]),
            "",
            "```text",
            summary(found).strip(),
            "```",
            "",
            *_markdown_table([heading for heading, _ in _COLUMNS], rows),
            "",
        ]
    )


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
