"""The installed package: stubs, metadata, command line, imports."""

import ast
import importlib.metadata
from pathlib import Path

import pytest
from child import output_of, run_python

import batchnorm as bn
from batchnorm import _core

PACKAGE = Path(bn.__file__).parent


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_stubs_have_the_module_s_names():
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stubs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(stubs) == public(dir(_core))
    members = {node.name for node in stubs["Saved"].body if isinstance(node, ast.FunctionDef)}
    assert public(members) == public(dir(_core.Saved))


def test_stubs_have_the_functions_arguments():
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        names = [argument.arg for argument in node.args.args]
        signature = getattr(_core, node.name).__doc__ or getattr(_core, node.name).__nb_signature__[0][0]
        assert all(f"{name}: " in signature for name in names), signature
        assert signature.split("->")[0].count(": ") == len(names), signature


def test_typed():
    assert (PACKAGE / "py.typed").exists()


def test_version():
    assert bn.__version__ == importlib.metadata.version("batchnorm") == _core.version()


def test_all():
    assert set(bn.__all__) <= set(dir(bn))
    assert len(set(bn.__all__)) == len(bn.__all__)
    assert public(bn.__all__) == public(dir(bn)) - {
        "accumulation",
        "arguments",
        "bench",
        "config",
        "conventions",
        "functional",
        "higher_order",
        "layers",
        "parts",
        "population",
        "renorm",
        "running",
        "statistics",
        "torch",  # where a test before has imported it, and what that imports
        "torch_operators",
        "torch_running",
    }


@pytest.mark.parametrize("name", public(bn.__all__))
def test_everything_public_says_what_it_is(name):
    item = getattr(bn, name)
    assert item.__doc__
    if isinstance(item, type):
        for member in public(vars(item)):
            assert getattr(item, member).__doc__, member


def info_lines(text):
    return {line[:16].strip(): line[16:].strip() for line in text.splitlines()}


def test_info():
    done = run_python("-m", "batchnorm", "info", BATCHNORM_NUM_THREADS="1")
    assert done.returncode == 0
    info = info_lines(done.stdout)
    assert info["batchnorm"] == bn.__version__
    available = _core.available_isas()
    assert info["instruction set"] == f"{available[0]} (available: {', '.join(available)})"
    assert info["threads"] == f"1, run by {_core.threading()}"
    assert info["CUDA"].startswith("not available: ") or bn.cuda.is_available()


def test_show_config(capsys):
    assert bn.show_config() is None
    info = info_lines(capsys.readouterr().out)
    assert info["batchnorm"] == bn.__version__
    assert info["instruction set"].startswith(_core.isa())
    assert info["threads"] == f"{bn.get_num_threads()}, run by {_core.threading()}"


def test_cuda():
    if bn.cuda.is_available():
        assert bn.cuda.unavailable_because() is None
        assert all(bn.cuda.device_name(i) for i in range(bn.cuda.device_count()))
    else:
        assert bn.cuda.unavailable_because()
        assert bn.cuda.device_count() == 0
    with pytest.raises(ValueError, match="device 1000 does not exist: "):
        bn.cuda.device_name(1000)


def test_cmake_dir():
    done = run_python("-m", "batchnorm", "--cmake-dir")
    assert done.returncode == 0
    directory = Path(done.stdout.rstrip("\n"))
    assert (directory / "batchnorm-config.cmake").is_file()
    assert (PACKAGE / "include" / "batchnorm" / "batchnorm.hpp").is_file()


def test_command_line_without_a_command_shows_help():
    done = run_python("-m", "batchnorm")
    assert done.returncode == 0
    assert "info" in done.stdout
    assert "--cmake-dir" in done.stdout
    assert run_python("-m", "batchnorm", "nonsense").returncode != 0


def test_import_needs_numpy_alone():
    code = """
        import sys, numpy
        before = {name.partition(".")[0] for name in sys.modules}
        import batchnorm, numpy as np
        batchnorm.BatchNorm(3)(np.zeros((4, 3), np.float32))
        print(*{name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names))
        """
    assert output_of(code) == "batchnorm"


def test_import_reads_no_environment_but_its_own():
    """Nothing at import starts threads or fails: a wrong instruction set is reported by the first call."""
    code = "import os, batchnorm; print(len(os.listdir('/proc/self/task')))"
    plain = output_of("import os, numpy; print(len(os.listdir('/proc/self/task')))")
    assert output_of(code, BATCHNORM_ISA="nonsense", BATCHNORM_NUM_THREADS="nonsense") == plain
