"""Projects that use the C++ library: from an installed wheel, from an install prefix, and as a part of themselves."""

import platform
import subprocess
import sys

import pytest
from cpp_build import ROOT, cmake_build, run, tool

CONSUMER = ROOT / "tests" / "consumer"


def check_installed(build, package):
    """Finds the package there and nowhere else."""
    found = cmake_build(CONSUMER / "installed", build, f"-Dbatchnorm_DIR:PATH={package}")
    assert f"batchnorm_DIR:PATH={package}\n" in (build / "CMakeCache.txt").read_text()
    output = run(found / "installed")
    assert output.startswith("batchnorm 0.")
    assert "off by" in output


def test_wheel(tmp_path):
    package = run(sys.executable, "-m", "batchnorm", "--cmake-dir").strip()
    check_installed(tmp_path, package)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder to build the library in, for all: its kernels are the same for both kinds of library."""
    return tmp_path_factory.mktemp("library")


@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_install_prefix(library, tmp_path, shared):
    options = {
        "BUILD_SHARED_LIBS": shared,
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_BUILD_TYPE": "Debug",
        "BATCHNORM_CUDA": "OFF",
    }
    build = cmake_build(ROOT, library, *(f"-D{name}={value}" for name, value in options.items()))
    prefix = tmp_path / "prefix"
    run(tool("cmake"), "--install", build, "--prefix", prefix)
    assert (prefix / "lib" / ("libbatchnorm.so" if shared == "ON" else "libbatchnorm.a")).exists()
    check_installed(tmp_path / "consumer", prefix / "lib" / "cmake" / "batchnorm")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts glibc's allocations")
def test_embedded(tmp_path):
    """Built without exceptions, it runs on its own threads and memory and allocates nothing."""
    engine = cmake_build(CONSUMER / "embedded", tmp_path, "-DBATCHNORM_CUDA=OFF") / "embedded"
    assert "0 allocations" in run(engine)
    planted = subprocess.run([engine, "planted"], capture_output=True, text=True, check=False)
    assert planted.returncode == 1
    assert "2 allocations" in planted.stdout
