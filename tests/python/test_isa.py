"""Every instruction set that this machine has, each in a process of its own, since a process uses one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from child import output_of, run_python

from batchnorm import _core

HERE = Path(__file__).parent
ISAS = _core.available_isas()


def test_the_best_one_is_used():
    assert "scalar" in ISAS
    assert output_of("from batchnorm import _core; print(_core.isa())") == ISAS[0]
    assert output_of("from batchnorm import _core; print(_core.isa())", BATCHNORM_ISA="") == ISAS[0]


# Of the files that depend on the instruction set, what another than the best must pass; the best has them whole, here.
OPTIONS = (
    "test_product or test_mask or test_special or test_weight_zero or test_no_weight or test_one_group or test_layouts"
    " or test_each_way or test_what_does_not or test_operands"
)
RUNS = {
    "functions and numbers": (("functions", "numbers", "halves"), ""),
    "options": (("epilogues", "weights", "groups", "inplace"), OPTIONS),
    "traversals": (("traversals",), "test_numbers or test_bits or test_the_first_output"),
}


def run_tests(run, isa, plugin):
    """The tests of these files whose names match; the plugin says which instruction set did the work."""
    files, names = RUNS[run]
    return run_python(
        *("-m", "pytest", "-q", "-x", "-p", "says_isa", "-p", "no:cacheprovider"),
        *("-c", str(HERE.parents[1] / "pyproject.toml"), "--rootdir", str(HERE.parents[1])),
        *(*(str(HERE / f"test_{file}.py") for file in files), "-k", names),
        timeout=900,
        modules=plugin,
        BATCHNORM_ISA=isa,
        BATCHNORM_NUM_THREADS="1",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All of them, side by side: each is one process of one thread, but for the tests that name a number of threads."""
    plugin = tmp_path_factory.mktemp("plugin")
    (plugin / "says_isa.py").write_text(
        "from batchnorm import _core\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    terminalreporter.write_line(f'computed with {_core.isa()}')\n"
    )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {(run, isa): pool.submit(run_tests, run, isa, plugin) for isa in ISAS[1:] for run in RUNS}


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("run", RUNS)
def test_other_instruction_sets(runs, run, isa):
    done = runs[run, isa].result()
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"computed with {isa}\n" in done.stdout
    assert "skipped" not in done.stdout


def test_unknown_name():
    code = """
        import numpy as np, batchnorm as bn
        x = np.zeros((4, 3), np.float32)
        out = np.full((4, 3), 7, np.float32)
        calls = [
            lambda: bn.batch_norm(x, out=out),
            lambda: bn.batch_norm_backward(x, x, bn.Saved([0, 0, 0], [1, 1, 1]), out=out),
            lambda: bn.batch_norm_inference(x, 0, 1, out=out),
            lambda: bn.batch_norm_inference_backward(x, x, 0, 1, out=out),
            lambda: bn.moments(x),
            lambda: bn.normalize(x, bn.Moments(np.zeros(3), np.ones(3), 4.0), out=out),
            lambda: bn.grad_sums(x, x, bn.Saved([0, 0, 0], [1, 1, 1])),
            lambda: bn.BatchNorm(3)(x, out=out),
        ]
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                print(error)
        assert np.all(out == 7)
        """
    lines = output_of(code, BATCHNORM_ISA="nonsense").splitlines()
    assert len(lines) == 8
    for line in lines:
        assert "BATCHNORM_ISA=nonsense" in line
        assert line.endswith(", ".join(ISAS))


def test_unknown_name_is_shown_by_info():
    text = run_python("-m", "batchnorm", "info", BATCHNORM_ISA="nonsense").stdout
    assert "BATCHNORM_ISA names one that is not available" in text
    assert ", ".join(ISAS) in text
