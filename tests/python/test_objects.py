"""Each kernel object exports its kernel table and nothing else.

A weak symbol - an inline function, a template's instance - compiled with AVX-512 flags may be the one copy that the
linker keeps for the whole program, and crashes an older processor; so does a static initializer.
"""

import platform

import cpp_build
import pytest
from cpp_build import run, tool

WEAK = "WVwvu"
LOCAL_OR_UNDEFINED = "abdgnrstpiCU?"  # of nm's letters, those of symbols that no other object sees


def faults(path):
    """What is wrong with an object file, in words; and its exported symbols."""
    symbols = [line.split()[-2:] for line in run(tool("nm"), "--demangle=none", path).splitlines()]
    weak = [name for kind, name in symbols if kind in WEAK]
    exported = [name for kind, name in symbols if kind not in WEAK and kind not in LOCAL_OR_UNDEFINED]
    sections = run(tool("readelf"), "--sections", "--wide", path)
    initializers = [section for section in (".init_array", ".ctors", ".preinit_array") if section in sections]
    tables = [name for name in exported if name.endswith("_tableE")]
    found = [f"weak symbol {name}" for name in weak]
    found += [f"exported symbol {name}" for name in exported if name not in tables]
    found += [f"section {name}" for name in initializers]
    if len(tables) != 1:
        found.append(f"{len(tables)} kernel tables")
    return found


def test_kernel_objects(tmp_path_factory):
    build = cpp_build.dev(tmp_path_factory)
    objects = sorted(build.glob("cpp/CMakeFiles/batchnorm_kernels_*.dir/**/*.o"))
    expected = {"x86_64": ["avx2", "avx512", "avx512_wide", "scalar"], "aarch64": ["neon", "scalar"]}
    names = [path.name.removesuffix(".cpp.o") for path in objects]
    assert names == expected.get(platform.machine(), ["scalar"])
    assert {path.name: faults(path) for path in objects if faults(path)} == {}


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("inline int twice(int i) { return 2 * i; } int (*const twice_p)(int) = twice;", "weak symbol _Z5twicei"),
        ("template <class T> T same(T t) { return t; } template int same(int);", "weak symbol _Z4sameIiET_S0_"),
        ("int compute(); static int value = compute(); int read() { return value; }", "section .init_array"),
        ("int shared = 1;", "exported symbol shared"),
        ("", ""),
    ],
)
def test_checker_finds_what_is_planted(tmp_path, planted, fault):
    table = "namespace kernels { struct T { int i; }; extern const T some_table; const T some_table = {1}; }"
    source = tmp_path / "planted.cpp"
    source.write_text(f"{table}\n{planted}\n")
    # What is not referred to would not be there.
    run(tool("c++"), "-std=c++20", "-fPIC", "-fkeep-inline-functions", "-c", source, "-o", tmp_path / "planted.o")
    found = faults(tmp_path / "planted.o")
    assert (fault in found) if fault else found == []
