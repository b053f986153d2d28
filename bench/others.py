"""How busy other processes keep the machine: beside them no figure means much."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.1  # processors' worth of other work from which on a row is marked

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Processor time used by all processes; 0 where the system does not say."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, _STAT.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + soft_irq + steal) / _TICKS


class Others:
    """Started when made."""

    def __init__(self) -> None:
        self._busy, self._own, self._start = _busy_seconds(), time.process_time(), time.perf_counter()

    def processors(self) -> float:
        """How many processors others have used since, on average."""
        busy, own = _busy_seconds() - self._busy, time.process_time() - self._own
        return max(0.0, busy - own) / max(time.perf_counter() - self._start, 1e-9)


def wait_until_quiet(seconds: float) -> None:
    """Return when others do next to nothing for a moment, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        others = Others()
        time.sleep(0.2)
        if others.processors() < BUSY:
            return
