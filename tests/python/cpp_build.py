"""Builds of the C++ library, and running what they made."""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# cmake and ninja may have been installed beside Python, which need not be activated.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
JOBS = str(len(os.sched_getaffinity(0)))


def tool(name):
    """The path of a program; without it the test is skipped."""
    return shutil.which(name, path=PATH) or pytest.skip(f"{name} is not installed")


def run(*command, **variables):
    """Standard output of a command that must succeed, with no settings of ours but those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BATCHNORM_")}
    environment = {**inherited, "PATH": PATH, **variables}
    result = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout


def cmake_build(source, build, *options):
    run(tool("cmake"), "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options)
    run(tool("cmake"), "--build", build)
    return build


def rebuilt(build, copy, *options):
    """A build with other options, of a copy: what they do not change is not compiled again."""
    shutil.copytree(build, copy)
    (copy / "CMakeCache.txt").unlink()  # which is bound to its folder
    return cmake_build(ROOT, copy, *options)


_made = {}


def dev(tmp_path_factory):
    """The Debug build with warnings as errors, made once for all tests of a session."""
    if "dev" not in _made:
        _made["dev"] = cmake_build(ROOT, tmp_path_factory.mktemp("dev"), "--preset", "dev")
    return _made["dev"]


def ctest(build, *options, **variables):
    run(
        tool("ctest"), "--test-dir", build, "--no-tests=error", "--output-on-failure", "-j", JOBS, *options, **variables
    )


def isas():
    """The instruction sets that this processor has, best first, by its own account."""
    if platform.machine() == "aarch64":
        return ["neon", "scalar"]
    if platform.machine() != "x86_64":
        return ["scalar"]
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    needs = {"avx512": {"avx2", "fma", "avx512f", "avx512vl"}, "avx2": {"avx2", "fma"}, "scalar": set()}
    return [isa for isa, needed in needs.items() if needed <= flags]
