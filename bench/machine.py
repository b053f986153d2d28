"""The machine that figures are from, as far as it matters to them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np

import batchnorm as bn
from batchnorm import _core

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def caches() -> dict[str, int]:
    """Bytes of the first processor's data caches, as {"L1": 32768, ...}; empty where the system does not say."""
    found = {}
    for index in sorted(_CACHES.glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip()).groups()  # type: ignore[union-attr]
        found["L" + (index / "level").read_text().strip()] = int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
    return found


def last_level_cache() -> int:
    """Bytes; 32 MiB where the system does not say."""
    return max(caches().values(), default=32 << 20)


def holder(count: int, threads: int) -> str:
    """The least cache that holds so many bytes, as "L2", or "memory". Threads share the last one alone."""
    sizes = caches()
    last = max(sizes, default="")
    for name, size in sorted(sizes.items()):
        if count <= size * (1 if name == last else threads):
            return name
    return "memory"


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", lines, re.MULTILINE)
    return name[1] if name else platform.machine()


def describe() -> dict[str, object]:
    """Processor, caches, threads and versions; nothing that names the machine or its user."""
    return {
        "processor": processor(),
        "caches": caches(),
        "threads": bn.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"batchnorm": bn.__version__, "NumPy": np.__version__, "Python": platform.python_version()},
        "instruction set": _core.isa(),
        "threading": _core.threading(),
    }
