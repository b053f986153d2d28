"""The CUDA part as nvcc compiles it: without warnings, 16 bytes at a time, in registers, and not too many kernels."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from cpp_build import JOBS, ROOT, run

NVCC = shutil.which("nvcc")
SOURCES = ROOT / "cpp" / "src" / "cuda"
TYPES = ["f32", "f64", "f16", "bf16"]
TARGETS = ["sm_90"]
MOST_KERNELS = 150

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{type: PTX} and {(type, target): what the assembler reports}."""
    folder = tmp_path_factory.mktemp("cuda")
    cmake = (SOURCES / "CMakeLists.txt").read_text()
    flags = ["-std=c++17", "-O3", *re.findall(r"-fmad=false|--expt-relaxed-constexpr", cmake)]
    assert len(flags) == 4
    flags += [f"-I{ROOT / 'cpp/include'}", "-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings"]

    def compile_one(name):
        ptx = {}
        reports = {}
        for target in TARGETS:
            ptx[target] = folder / f"{name}.{target}.ptx"
            run(NVCC, *flags, f"-arch={target}", "-ptx", SOURCES / f"{name}.cu", "-o", ptx[target])
            command = [NVCC, f"-arch={target}", "-Xptxas=-v", "-cubin", ptx[target], "-o", folder / f"{name}.{target}"]
            reports[name, target] = run("sh", "-c", '"$@" 2>&1', "sh", *command)
        return ptx[TARGETS[-1]].read_text(), reports

    texts, reports = {}, {}
    with ThreadPoolExecutor(int(JOBS)) as pool:
        for name, (text, own) in zip(TYPES, pool.map(compile_one, TYPES), strict=True):
            texts[name] = text
            reports.update(own)
    return texts, reports


def functions(report):
    """(function, bytes that it stores and loads because registers were short) of what the assembler says."""
    pattern = r"(?:Compiling entry function|Function properties for) '?(\S+?)'?(?: for '\w+')?\n"
    parts = re.split(pattern, report)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if spilled := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text):
            yield name, int(spilled[1]) + int(spilled[2])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TYPES)
def test_nothing_spills(compiled, name, target):
    found = dict(functions(compiled[1][name, target]))
    assert len(found) >= 9
    assert {function: size for function, size in found.items() if size} == {}


@pytest.mark.parametrize("name", TYPES)
def test_loads_are_16_bytes_wide(compiled, name):
    """Those of tensors in the kernels for whole packs (their template's last argument is true)."""
    entries = re.split(r"\.visible \.entry ", compiled[0][name])[1:]
    packed = [entry for entry in entries if re.match(r"\S*(?:forward|backward)\S*Lb1E", entry)]
    assert len(packed) == 4
    for entry in packed:
        assert len(re.findall(r"\bld\.global\.(?:v4\.[a-z]32|v2\.[a-z]64)", entry)) >= 3
        assert len(re.findall(r"\bst\.global\.(?:v4\.[a-z]32|v2\.[a-z]64)", entry)) >= 1
        # No element of 16 bits by itself.
        assert not re.findall(r"\bld\.(?:global\.)?[ub]16", entry)


def test_number_of_kernels(compiled):
    assert sum(text.count(".visible .entry ") for text in compiled[0].values()) <= MOST_KERNELS
