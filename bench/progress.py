"""A progress bar below the lines that are printed, if tqdm is installed and someone is watching."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """How many of total steps are done."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, smoothing=0.1, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def step(self) -> None:
        """One more is done."""
        if self._bar is not None:
            self._bar.update()
