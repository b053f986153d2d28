"""The example runs, prints its table and draws its curves; only its full run compares the two networks."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.py"


def test_digits(tmp_path):
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}")
    drawing = tmp_path / "digits.png"
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--seeds=1", "--epochs=4", f"--output={drawing}"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1", "MPLCONFIGDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr

    rows = re.findall(r"^ +([\d.]+)   (with|without) +([\d.]+|-) +(-|([\d.]+) ± +[\d.]+)", done.stdout, re.MULTILINE)
    assert [(float(rate), name) for rate, name, *_ in rows] == [
        (rate, name) for rate in (0.03, 0.1, 0.3, 1) for name in ("without", "with")
    ], done.stdout
    accuracy = {(float(rate), name): float(final or 0) for rate, name, _, _, final in rows}
    assert accuracy[0.1, "with"] > 90, done.stdout
    assert accuracy[0.3, "with"] > 90, done.stdout

    content = drawing.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 800
    assert height > 200
