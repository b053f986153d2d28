"""The picture: a bar for each case, beside the floor of its traffic and what other libraries take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # to files alone: no display is asked for

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .cases import LAYOUTS, TASKS
from .report import LAYOUT_NAMES, Row

_TASK_NAMES = {"forward": "training forward", "inference": "inference", "backward": "backward"}
_END = {"forward": 10.0, "inference": 5.0, "backward": 10.0}  # of the axis, in copies; what is beyond lies on its edge
_BAR, _WITHIN_GOAL = "#b9c7d6", "#5b8db8"
_MARKERS: dict[str, dict[str, Any]] = {
    "PyTorch": {"marker": "o", "color": "#d1603d"},
    "oneDNN": {"marker": "D", "color": "#3a7d44"},
    "oneDNN blocked": {"marker": "D", "color": "#3a7d44", "markerfacecolor": "white"},
}
_BOUNDARY: dict[str, Any] = {"color": "#888888", "linewidth": 0.9, "linestyle": (0, (6, 4))}
_LINE = 0.19  # inches for a case


def draw(found: Row, file: Path) -> None:
    """Write the picture of the float32 rows with all threads, or of what there is instead."""
    rows, dtype, threads = _shown(found["rows"])
    panels = [(layout, [row for row in rows if row["layout"] == layout]) for layout in LAYOUTS]
    panels = [(layout, members) for layout, members in panels if members]
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    if not panels:
        return
    heights = [len({row["case"] for row in members}) for _, members in panels]
    figure = Figure(figsize=(3 + 4 * len(tasks), sum(heights) * _LINE + 1.0 * len(panels) + 1.4), layout="constrained")
    axes = figure.subplots(len(panels), len(tasks), squeeze=False, sharey="row", height_ratios=heights)
    for (layout, members), line in zip(panels, axes, strict=True):
        for task, panel in zip(tasks, line, strict=True):
            _draw_panel(panel, [row for row in members if row["task"] == task], task, layout)
        _name_cases(line[0], members)
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name in _MARKERS)
    figure.suptitle(
        f"Batch normalization, {dtype}, {threads} threads of {machine['processor']} ({machine['instruction set']})\n"
        f"batchnorm {machine['versions']['batchnorm']}" + (f" beside {versions}" if versions else ""),
        fontsize=12,
    )
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(file, format="png", dpi=110)


def _shown(rows: list[Row]) -> tuple[list[Row], str, int]:
    kept = [row for row in rows if row["pages"] == "kept"] or rows
    dtype = min((row["dtype"] for row in kept), default="float32")
    threads = max((row["threads"] for row in kept), default=1)
    return [row for row in kept if row["dtype"] == dtype and row["threads"] == threads], dtype, threads


def _by_size(rows: list[Row]) -> list[Row]:
    """One row of each case, the largest tensor first."""
    cases = {row["case"]: row for row in rows}
    return sorted(cases.values(), key=lambda row: -row["bytes"])


def _draw_panel(panel: Axes, rows: list[Row], task: str, layout: str) -> None:
    end = _END[task]
    for place, row in enumerate(_by_size(rows)):
        low, middle, high = row["ratios"]["batchnorm/copy"]
        color = _WITHIN_GOAL if middle <= row["goal"] else _BAR
        panel.barh(place, min(middle, end), height=0.72, color=color, zorder=2)
        panel.plot([min(low, end), min(high, end)], [place, place], color="#2b3a4a", linewidth=1, zorder=3)
        panel.plot([row["floor"]] * 2, [place - 0.45, place + 0.45], color="black", linewidth=1.6, zorder=4)
        for name, style in _MARKERS.items():
            if f"{name}/copy" in row["ratios"]:
                ratio = row["ratios"][f"{name}/copy"][1]
                panel.plot(min(ratio, end), place, markersize=4.5, linestyle="", clip_on=False, zorder=5, **style)
    large = sum(row["large"] for row in rows)
    if 0 < large < len(rows):
        panel.axhline(large - 0.5, **_BOUNDARY)
    panel.set_xlim(0, end)
    panel.set_title(f"{_TASK_NAMES[task]}, {LAYOUT_NAMES[layout]}", fontsize=10, loc="left")
    panel.set_xlabel(f"time, in copies of the tensor (from {end:.0f} on: on the edge)", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _name_cases(panel: Axes, rows: list[Row]) -> None:
    ordered = _by_size(rows)
    panel.set_yticks(range(len(ordered)), [f"{row['case']}  {_size(row['bytes'])}" for row in ordered], fontsize=7.5)
    panel.set_ylim(len(ordered) - 0.4, -0.6)  # the first one on top


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} KB"


def _legend(rows: list[Row]) -> list[Line2D | Patch]:
    present = {name for row in rows for name in _MARKERS if f"{name}/copy" in row["ratios"]}
    return [
        Patch(color=_WITHIN_GOAL, label="batchnorm, within its goal"),
        Patch(color=_BAR, label="above it"),
        Line2D([], [], color="#2b3a4a", linewidth=1, label="quartiles"),
        Line2D([], [], color="black", marker="|", markersize=9, linestyle="", label="floor of the traffic"),
        Line2D([], [], label="above: larger than the last-level cache", **_BOUNDARY),
        *(Line2D([], [], linestyle="", label=name, **style) for name, style in _MARKERS.items() if name in present),
    ]
