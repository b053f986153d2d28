"""The tests of arrays on a GPU where there is none: the CUDA part built for the CPU, and arrays that say they are
there."""

import shutil
from pathlib import Path

import cpp_build
import pytest
from child import run_python

import batchnorm as bn

HERE = Path(__file__).parent
NOTHING_THERE = """
import {fake}, numpy as np
import batchnorm as bn, gpu_arrays
x = gpu_arrays.arrays_of("{name}").put(np.ones((4, 3), np.float32))
for function in (bn.batch_norm, bn.moments, lambda x: bn.Saved(x[0], x[0])):
    try:
        function(x)
    except RuntimeError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """A folder with a copy of the installed package."""
    folder = tmp_path_factory.mktemp("emulated")
    # Not for this processor: with no instruction set but the scalar one, which is built in no time.
    options = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "generic",
        "BUILD_SHARED_LIBS": "ON",
        "BATCHNORM_CUDA": "ON_CPU",
    }
    build = cpp_build.cmake_build(cpp_build.ROOT, folder / "build", *(f"-D{k}={v}" for k, v in options.items()))
    package = folder / "site" / "batchnorm"
    shutil.copytree(Path(bn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "bench"))
    for library in ("libbatchnorm.so", "libbatchnorm_cuda.so"):
        shutil.copy(build / "cpp" / library, package / "lib" / library)
    return package.parent


def test_arrays(emulated):
    pytest.importorskip("torch")
    done = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_cuda.py")),
        modules=emulated,
        GPU_ARRAYS="fake",
        CUDA_ON_CPU_DEVICES="2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_devices(emulated):
    code = "import batchnorm as bn; print(bn.cuda.is_available(), bn.cuda.device_count()); bn.show_config()"
    done = run_python("-c", code, modules=emulated, CUDA_ON_CPU_DEVICES="2")
    assert done.stdout.startswith("True 2\n"), done.stderr
    done = run_python("-c", code, modules=emulated, CUDA_ON_CPU_DEVICES="0")
    assert done.stdout.startswith("False 0\n"), done.stderr
    assert "not available: " in done.stdout


@pytest.mark.parametrize("name", ["torch", "cupy", "jax"])
def test_no_gpu(name):
    """Arrays on a GPU, which another library may have, where this one has none."""
    if bn.cuda.is_available():
        pytest.skip("there is one")
    pytest.importorskip("torch")  # which gpu_arrays' stand-ins all come with
    code = NOTHING_THERE.format(fake=f"fake_{name}", name=name)
    done = run_python("-c", code, modules=HERE, GPU_ARRAYS="fake")
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"x is on cuda:0: {bn.cuda.unavailable_because()}"] * 2, done.stderr
    if name != "jax":
        assert lines[2] == f"mean is on cuda:0: {bn.cuda.unavailable_because()}"
