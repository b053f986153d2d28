"""Every example of the README and of docs/ is run: Python blocks one after the other, C++ blocks compiled."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from batchnorm.config import cmake_dir

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[tuple[str, str, int]]:
    """(code, package it requires, line) of each block of a language."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"^```{language}(?: requires=(\w+))?\n(.*?)^```$", re.M | re.S)
    return [(m[2], m[1] or "", text.count("\n", 0, m.start()) + 2) for m in pattern.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples(page: Path) -> None:
    namespace: dict[str, object] = {}
    missing = set()
    for code, requires, line in blocks(page, "python"):
        if requires and importlib.util.find_spec(requires) is None:
            missing.add(requires)
            continue
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    if missing:
        pytest.skip(f"all but the examples that need {', '.join(missing)} passed")


def test_cpp_example(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    [(code, _, _)] = blocks(ROOT / "README.md", "cpp")
    (tmp_path / "example.cpp").write_text(code, encoding="utf-8")
    prefix = cmake_dir().parents[2]
    lib = prefix / "lib"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{prefix / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
    subprocess.run([compiler, "example.cpp", *flags, "-lbatchnorm", "-o", "example"], cwd=tmp_path, check=True)
    printed = subprocess.run(["./example"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    mean, running = printed.splitlines()
    assert mean.startswith("mean 7.")
    assert float(running.removeprefix("running mean ")) == pytest.approx(0.1 * float(mean.split()[1][:-1]), abs=1e-3)


def test_readme_names_the_commands_that_ci_runs() -> None:
    command = next(code for code, _, _ in blocks(ROOT / "README.md", "sh") if "pytest" in code).strip()
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
