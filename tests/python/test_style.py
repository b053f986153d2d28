"""Format, lint and types of the sources, with the tools that the `test` extra brings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CXX = sorted(
    path
    for folder in ("cpp", "python/src", "tests", "bench", "examples")
    for pattern in ("*.cpp", "*.hpp", "*.h", "*.cu", "*.cuh")
    for path in (ROOT / folder).rglob(pattern)
    if "build" not in path.relative_to(ROOT).parts
)


def run(tool, *arguments):
    program = Path(sys.executable).with_name(tool)
    program = str(program) if program.exists() else shutil.which(tool)
    if not program:
        pytest.skip(f"{tool} is not installed: pip install batchnorm[test]")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check():
    run("ruff", "check", "--no-cache", ".")


def test_ruff_format():
    run("ruff", "format", "--no-cache", "--check", ".")


def test_mypy():
    run("mypy")


def test_clang_format():
    assert len(CXX) > 40
    run("clang-format", "--dry-run", "-Werror", *map(str, CXX))
