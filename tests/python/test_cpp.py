"""The C++ tests: on each instruction set, without OpenMP, under sanitizers and on emulated processors."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import cpp_build
import pytest
from cpp_build import JOBS, ROOT, cmake_build, ctest, isas, rebuilt, run, tool


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    return cpp_build.dev(tmp_path_factory)


@pytest.mark.parametrize("isa", isas())
def test_instruction_set(dev, isa):
    """All cases with the best one; fewer with the others, which test_isa.py runs through the Python tests besides."""
    fewer = {} if isa == isas()[0] else {"BATCHNORM_TEST_QUICK": "1"}
    ctest(dev, "-E", "bench_kernels", BATCHNORM_ISA=isa, BATCHNORM_TEST_ISA=isa, **fewer)


def test_best_instruction_set_is_the_default(dev):
    """The library finds what the processor has, and uses the best."""
    lines = run(dev / "tests/cpp/test_batchnorm_hpp").splitlines()
    assert f"isa {isas()[0]}, available: {' '.join(isas())}" in lines
    assert "threads by OpenMP" in lines


def test_unknown_instruction_set_is_refused(dev):
    assert ", 0 failed" in run(dev / "tests/cpp/test_unavailable", BATCHNORM_ISA="nonsense")


def test_failures_are_failures(dev):
    """A test binary does not pass on another instruction set than the one asked for."""
    with pytest.raises(AssertionError, match=r"scalar instead of other"):
        run(dev / "tests/cpp/test_batchnorm_hpp", BATCHNORM_ISA="scalar", BATCHNORM_TEST_ISA="other")


def test_posix_threads(dev, tmp_path):
    build = rebuilt(dev, tmp_path / "build", "--preset", "dev", "-DBATCHNORM_OPENMP=OFF")
    assert "threads by POSIX threads" in run(build / "tests/cpp/test_batchnorm_hpp")
    ctest(build, "-E", "bench_kernels", BATCHNORM_TEST_QUICK="1")


def test_sanitizers(tmp_path):
    program = tmp_path / "empty.cpp"
    program.write_text("int main() {}")
    flags = ["-fsanitize=address,undefined", "-o", tmp_path / "empty"]
    if subprocess.run([tool("g++"), program, *flags], capture_output=True, check=False).returncode != 0:
        pytest.skip("the compiler has no sanitizer runtime")
    build = cmake_build(ROOT, tmp_path / "build", "--preset", "asan")
    ctest(build, "-E", "bits")
    ctest(build, "-R", "bits", BATCHNORM_TEST_QUICK="1")  # the same traversals of large arrays, over and over


def test_emulated_gpu(dev, tmp_path):
    """The CUDA part, compiled for the CPU."""
    build = rebuilt(dev, tmp_path / "build", "--preset", "dev", "-DBATCHNORM_CUDA=ON_CPU")
    ctest(build, "-R", "cuda")
    # The example of the documentation.
    [code] = re.findall(r"^```cpp\n(.*?)^```$", (ROOT / "docs" / "cuda.md").read_text(), re.M | re.S)
    (tmp_path / "example.cpp").write_text(code)
    libraries = [f"-L{build / 'cpp'}", "-lbatchnorm", "-lbatchnorm_cuda", "-fopenmp", "-ldl"]
    includes = ["-I", ROOT / "cpp" / "include", "-I", ROOT / "tests" / "cuda_on_cpu"]
    flags = ["-std=c++20", "-Wall", "-Wextra", *includes, "-o", tmp_path / "example"]
    run(tool("g++"), tmp_path / "example.cpp", *flags, *libraries)
    assert run(tmp_path / "example", LD_LIBRARY_PATH=str(build / "cpp")) == "mean 7.855\n"


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A static build for 64-bit ARM, whose tests ctest runs under the emulator."""
    return cmake_build(
        ROOT,
        tmp_path_factory.mktemp("arm"),
        "--preset=release",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={tool('aarch64-linux-gnu-g++')}",
        f"-DCMAKE_CROSSCOMPILING_EMULATOR={tool('qemu-aarch64')}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
        "-DBATCHNORM_OPENMP=OFF",
    )


@pytest.mark.parametrize("isa", ["neon", "scalar"])
def test_arm(arm, isa):
    ctest(arm, BATCHNORM_ISA=isa, BATCHNORM_TEST_ISA=isa, BATCHNORM_TEST_QUICK="1")


def test_processor_without_avx2(dev):
    """An illegal instruction would end a process here; asking for AVX2 is refused."""
    if "avx2" not in isas():
        pytest.skip("not an x86-64 build")
    nehalem = [tool("qemu-x86_64"), "-cpu", "Nehalem"]

    def emulate(binary):
        if binary.name == "test_unavailable":
            run(*nehalem, binary, BATCHNORM_ISA="avx2")
        else:
            run(*nehalem, binary, BATCHNORM_TEST_ISA="scalar", BATCHNORM_TEST_QUICK="1")

    binaries = sorted((dev / "tests/cpp").glob("test_*"))
    assert len(binaries) > 1
    with ThreadPoolExecutor(int(JOBS)) as pool:
        list(pool.map(emulate, binaries))
