"""The picture: a bar for each case, against the floor of its traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(found: dict[str, Any], file: Path) -> None:
    """To do."""
