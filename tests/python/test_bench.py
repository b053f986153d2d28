"""The benchmark: its table of cases, its arithmetic, its checks, and that it runs; no times."""

import dataclasses
import importlib.util
import json
import re
import sys

import cpp_build
import numpy as np
import pytest
from child import run_python

import batchnorm as bn
from batchnorm.bench import arrays, check, goals, measure, options, ours, report, variants
from batchnorm.bench.cases import CASES, DTYPES, LAYOUTS, TASKS, Job, Settings, chosen_cases, jobs
from batchnorm.bench.copies import Copies

ALL = Settings(
    case=(), tasks=TASKS, layouts=LAYOUTS, dtypes=DTYPES, threads=(1, 2), peers=(), runs=1, quick=False,
    large_numpy=False, wait=0, past=0,
)  # fmt: skip

PEERS = {"pytorch": ("torch", "PyTorch"), "jax": ("jax", "JAX"), "numpy": ("numpy", "NumPy")}


def case(shape):
    [found] = [case for case in CASES if case.shape == shape]
    return found


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = bn.get_num_threads()
    yield
    bn.set_num_threads(threads)


def small_problem(layout="first", dtype="float32"):
    return arrays.problem(case("2x8x8x8"), layout, arrays.buffers(case("2x8x8x8"), dtype))


# ------------------------------------------------------------------------------------------------------------- cases


def test_every_case_is_there_once_and_has_values():
    assert len({case.shape for case in CASES}) == len(CASES)
    assert all(case.size > 0 and case.networks and case.size > case.c for case in CASES)
    assert all(np.prod(case.dimensions(layout)) == case.size for case in CASES for layout in case.layouts)


@pytest.mark.parametrize(
    "network", ["ResNet-50", "VGG-16", "DenseNet-121", "MobileNetV2", "GoogLeNet", "U-Net 3-D", "dense layer"]
)
def test_networks(network):
    assert len([case for case in CASES if network in case.networks]) >= 4


def test_small_planes_few_channels_and_single_samples():
    assert {case.n for case in CASES if case.spatial == (7, 7)} == {32, 256}
    assert any(case.c == 1 for case in CASES)
    assert any(case.n == 1 for case in CASES)
    assert any(case.spatial == (3, 3) for case in CASES)


def test_a_shape_of_two_networks_is_measured_once():
    assert set(case("32x256x56x56").networks) == {"ResNet-50", "VGG-16"}


def test_filters():
    assert chosen_cases(ALL) == CASES
    assert {case.spatial for case in chosen_cases(dataclasses.replace(ALL, case=("7x7",)))} >= {(7, 7)}
    assert [case.shape for case in chosen_cases(dataclasses.replace(ALL, case=("128x128",)))] == ["128x128"]
    assert all("VGG-16" in case.networks for case in chosen_cases(dataclasses.replace(ALL, case=("vgg",))))
    assert 0 < len(chosen_cases(dataclasses.replace(ALL, quick=True))) < 10
    few = dataclasses.replace(ALL, case=("32x16",), tasks=("forward", "backward"), dtypes=("float64",))
    assert [(job.task, job.threads) for job in jobs(few, "kept")] == [
        (task, threads) for task in few.tasks for threads in (1, 2)
    ]
    assert {job.task for job in jobs(few, "fresh")} == {"backward"}


def test_variants_are_of_resnet_unless_others_are_asked_for():
    everything = list(variants.variant_jobs(ALL))
    assert len({job.case.shape for job in everything}) == 9
    assert all(job.case.n == 32 and "ResNet-50" in job.case.networks for job in everything)
    assert len(everything) == 9 * len(LAYOUTS) * len(TASKS)
    assert {(job.dtype, job.threads) for job in everything} == {("float32", 2)}
    quick = dataclasses.replace(ALL, quick=True)
    assert {job.case for job in variants.variant_jobs(quick)} == set(chosen_cases(quick))
    one = dataclasses.replace(ALL, case=("32x16",), tasks=("inference",))
    assert [(job.case.shape, job.layout, job.task) for job in variants.variant_jobs(one)] == [
        ("32x16", "last", "inference")
    ]


def test_goals_are_at_or_above_the_floor():
    for job in jobs(ALL, "kept"):
        for read_once in (True, False):
            aim, _ = goals.goal(job.task, read_once, job.case.plane)
            assert aim >= goals.floor(job.task, read_once)
    assert [goals.goal("forward", True, side * side)[0] for side in (7, 14, 28, 56)] == [1.6, 1.15, 1.15, 1.25]
    assert [goals.goal("backward", True, side * side)[0] for side in (28, 56, 112)] == [1.65, 1.8, 2.0]
    assert [goals.goal(task, False, 28 * 28)[0] for task in ("forward", "backward")] == [1.6, 2.5]


def test_a_channel_that_no_cache_holds_is_read_twice():
    assert goals.is_read_once("forward", "first", 10, cache=10)
    assert not goals.is_read_once("forward", "first", 11, cache=10)
    assert not goals.is_read_once("backward", "first", 6, cache=10)
    assert not goals.is_read_once("forward", "last", 1, cache=10)
    assert goals.floor("inference", True) == goals.floor("inference", False) == 1


# -------------------------------------------------------------------------------------------------------- arithmetic


def test_ratios_are_taken_within_a_turn():
    """Where every second turn is ten times as slow for both, their ratio is what it was."""
    slow = [1, 10, 1, 10, 1]
    assert measure.quartiles_of_ratios([3 * s for s in slow], slow) == (3, 3, 3)
    assert measure.quartiles_of_ratios([1, 2, 3, 4, 5], [1] * 5) == (2, 3, 4)
    assert measure.quartiles_of_ratios([6], [4]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="shorter"):
        measure.quartiles_of_ratios([1, 2], [1])


def test_fastest():
    assert measure.fastest({"a": [1, 9, 9], "b": [5, 5, 5], "c": [0, 0, 0]}, ["a", "b"]) == "b"


@pytest.mark.parametrize("in_cache", [False, True])
def test_turns(monkeypatch, in_cache):
    """A B A B; in caches, each after a call of its own that is not timed."""
    calls = []
    monkeypatch.setattr(measure, "_repeats", lambda call: 2)
    seconds = measure.take_turns({name: lambda name=name: calls.append(name) for name in "AB"}, 3, in_cache)
    each = 3 if in_cache else 2
    assert "".join(calls) == ("A" * each + "B" * each) * 4  # one turn to begin with, and three
    assert {name: len(times) for name, times in seconds.items()} == {"A": 3, "B": 3}


def row(**changes):
    base = {
        "case": "32x64x56x56", "networks": ["a"], "dtype": "float32", "layout": "first", "task": "forward",
        "threads": 2, "pages": "kept", "bytes": 10**8, "large": True, "fits": "memory", "floor": 1.0, "goal": 1.25,
        "group": "forward, first", "copy": "plain", "others": 0.0, "seconds": {},
        "ratios": {
            "batchnorm/copy": [1.1, 1.2, 1.3], "PyTorch/copy": [5, 6, 7], "oneDNN/copy": [5, 6, 7],
            "PyTorch/batchnorm": [3, 4, 5], "oneDNN/batchnorm": [3, 4, 5],
        },
    }  # fmt: skip
    ratios = base["ratios"] | changes.pop("ratios", {})
    return base | changes | {"ratios": ratios}


def summary_of(*rows):
    return report.summary({"rows": rows, "steps": [], "notes": ["something"]})


def test_summary():
    text = summary_of(row(), row(ratios={"PyTorch/batchnorm": [8, 9, 10]}))
    assert "6.00  (goal 4.0: reached" in text  # the geometric mean of 4 and 9
    assert "wholly behind PyTorch: 0 of 2" in text
    assert "above 1.35 times the goal: 0" in text
    assert "note: something" in text


def test_summary_names_what_is_behind():
    behind = row(case="1x2x3", ratios={"PyTorch/batchnorm": [0.5, 0.7, 0.9], "oneDNN/batchnorm": [0.8, 0.9, 1.1]})
    text = summary_of(row(), behind, row(ratios={"PyTorch/batchnorm": [0.5, 0.7, 1.1]}))
    assert "wholly behind PyTorch: 1 of 3" in text
    assert "behind oneDNN in a plain layout: 1 of 3" in text
    assert text.count("1x2x3") == 2


def test_summary_of_goals_is_about_large_float32_tensors_with_all_threads():
    slow = {"batchnorm/copy": [1.9, 2.0, 2.1]}
    others = [row(ratios=slow, large=False), row(ratios=slow, threads=1), row(ratios=slow, dtype="float64")]
    assert "above 1.35 times the goal: 0" in summary_of(row(), *others)
    assert "above 1.35 times the goal: 1" in summary_of(row(), row(ratios=slow))


def test_summary_of_small_tensors():
    seconds = {"batchnorm": [2e-6], "PyTorch": [2e-5]}
    text = summary_of(row(), row(large=False, fits="L1", seconds=seconds), row(large=False, fits="L2"))
    assert "in microseconds (goal 3.0)" in text
    assert " 2.00  (PyTorch 20.0)" in text


def variant(**changes):
    base = {
        "case": "32x64x112x112", "layout": "first", "task": "forward", "threads": 2, "bytes": 10**8, "large": True,
        "others": 0.0, "seconds": {"plain": [0.001, 0.002, 0.009]},
        "ratios": {
            "residual + relu / plain": [1.4, 1.5, 1.7], "residual + relu / PyTorch": [0.5, 0.6, 0.7],
            "groups of 8 / plain": [1.0, 1.1, 1.2],
        },
    }  # fmt: skip
    return base | changes


def test_summary_of_variants():
    faster = variant(ratios={"residual + relu / plain": [1.2, 1.3, 1.4]})
    halves = variant(task="backward", layout="last", ratios={"bfloat16 / plain": [0.6, 0.7, 0.8]})
    small = variant(large=False, ratios={"residual + relu / plain": [1.0, 9.0, 9.0]})
    found = {"rows": [], "steps": [], "notes": [], "variants": [small, variant(), halves, faster]}
    beyond, within = report.summary(found).split("within")
    assert "1.40  (goal 1.60: reached; 2 cases from 1.30 to 1.50)" in beyond
    assert "0.60  (goal 0.50: MISSED; 1 cases" in beyond
    assert "0.70  (goal 0.60: MISSED; 1 cases" in beyond
    assert "1.10  (1 cases" in beyond
    assert "9.00  (1 cases" in within
    assert "goal" not in within
    assert goals.variant_goal("forward", "residual + relu / plain", "last") is None
    assert goals.variant_goal("backward", "relu / plain", "last") == 1.15


def test_lines_of_variants():
    first, *others = report.variant_lines(variant(others=0.5)).splitlines()
    assert "plain    2.000 ms  others: 0.5 processors" in first
    assert len(others) == 3
    assert "residual + relu / plain" in others[0]
    assert "1.50 (1.40-1.70)" in others[0]


def test_table():
    table = report.Table()
    first, second = table.line(row()), table.line(row(pages="fresh", others=0.5))
    assert len(first.splitlines()) == 3
    assert "1.20 (1.10-1.30)" in first
    assert len(second.splitlines()) == 1
    assert "0.5 processors" in second


# ------------------------------------------------------------------------------------------------- copies and checks


def copies():
    try:
        return Copies()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 100_003])
def test_copies_copy(size, threads):
    library = copies()
    assert library.names == ["memcpy", "plain", "non-temporal", "prefetchw"]
    x = np.random.default_rng(0).integers(1, 256, size, np.uint8)
    source, target = arrays.aligned(size, np.uint8, 0), arrays.aligned(size + 64, np.uint8, 192)
    source[:] = x
    for name in library.names:
        target[:] = 0
        library.copy(name, target[:size], source, threads)
        assert np.array_equal(target[:size], x), name
        assert not target[size:].any(), name


def test_arrays_lie_apart_modulo_a_page():
    memory = arrays.buffers(case("2x8x8x8"), "float32")
    places = sorted(array.ctypes.data % 4096 for array in (memory.x, memory.dy, memory.out))
    assert all(place % 64 == 0 for place in places)
    assert min(b - a for a, b in zip(places, [*places[1:], places[0] + 4096], strict=True)) >= 1024
    places = sorted([*places, *arrays.BETWEEN])
    assert min(b - a for a, b in zip(places, [*places[1:], places[0] + 4096], strict=True)) >= 640


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", TASKS)
def test_checks_find_what_is_wrong(task, layout, dtype):
    problem = small_problem(layout, dtype)
    results = ours.contestant(problem, task, 1).results()
    check.check_against_reference(problem, task, results)
    check.check_against(problem, "another", results, results)
    for name, array in results.items():
        with_nan = array.copy()
        with_nan.flat[-1] = np.nan
        for wrong in (array * array.dtype.type(1.001), with_nan):
            with pytest.raises(ArithmeticError, match=name):
                check.check_against_reference(problem, task, results | {name: wrong})
            with pytest.raises(ArithmeticError, match=name):
                check.check_against(problem, "another", results | {name: wrong}, results)
    with pytest.raises(ArithmeticError):
        check.check_against(problem, "another", {}, results)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", TASKS)
def test_checks_of_variants_find_what_is_wrong(task, layout):
    job = Job(case("16x64x28x28"), "float32", layout, task, 1)
    given = variants._Memory(job.case, []).problem(job)
    calls = options.options(given, task)
    fused = variants._checked(given, task, calls)
    assert set(fused) == ({"dx", "dgamma", "dbeta", "dresidual"} if task == "backward" else {"y"})
    channels = list(range(job.case.c))
    found = {}
    for option in calls:
        option.prepare(given)
        found[option.name] = results = {part: array.copy() for part, array in option.results().items()}
        expected = option.expected(channels)
        assert results.keys() == expected.keys()
        for part, array in results.items():
            with_nan = array.copy()
            with_nan.flat[-1] = np.nan
            for wrong in (array * np.float32(1.001), with_nan):
                with pytest.raises(ArithmeticError, match=re.escape(f"{option.name}'s {part}")):
                    variants._check(given, option.name, results | {part: wrong}, expected, channels)
    # Each does something of its own: another one's results would be found.
    alike = {"relu", "relu + dresidual"}, {"leaky_relu", "leaky_relu, in place"}, {"leaky_relu", "from the output"}
    for option in calls:
        for other, results in found.items():
            if (
                other == option.name
                or {other, option.name} in alike
                or not results.keys() >= option.expected([0]).keys()
            ):
                continue
            with pytest.raises(ArithmeticError):
                variants._check(given, option.name, results, option.expected(channels), channels)


def test_a_large_tensor_is_checked_in_some_channels():
    problem = dataclasses.replace(small_problem(), case=case("32x256x56x56"))
    assert check.checked_channels(problem) == [0, 128, 255]


# ---------------------------------------------------------------------------------------------------------- it runs


def bench(*options, **environment):
    copies()
    return run_python("-m", "batchnorm", "bench", *options, timeout=300, BATCHNORM_NUM_THREADS="2", **environment)


def measured(tmp_path, *options):
    """What --json wrote, and what was printed."""
    file = tmp_path / "found.json"
    done = bench(f"--json={file}", *options)
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    assert sys.prefix not in text
    return json.loads(text), done.stdout


def test_quick_run(tmp_path):
    found, printed = measured(tmp_path, "--quick", "--case=32x16", "--case=2x8x8x8", "--peers=numpy", "--runs=3")
    assert [(row["case"], row["layout"], row["task"]) for row in found["rows"]] == [
        (shape, layout, task)
        for shape, layouts in (("32x16", ("last",)), ("2x8x8x8", LAYOUTS))
        for layout in layouts
        for task in TASKS
    ]
    for row in found["rows"]:
        assert set(row["ratios"]) == {"batchnorm/copy", "NumPy/copy", "NumPy/batchnorm"}
        assert set(row["seconds"]) == {"batchnorm", "NumPy", *copies().names}
        assert all(len(times) == 3 and min(times) > 0 for times in row["seconds"].values())
        assert all(low <= middle <= high for low, middle, high in row["ratios"].values())
        assert row["copy"] in copies().names
        assert (row["threads"], row["dtype"], row["pages"], row["large"]) == (2, "float32", "kept", False)
        assert row["case"] in printed
    assert found["machine"]["versions"]["NumPy"] == np.__version__
    assert found["machine"]["threads"] == 2
    assert found["settings"]["runs"] == 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_past_a_line(layout, dtype):
    small = case("2x8x8x8")
    given = arrays.problem(small, layout, arrays.buffers(small, dtype, 16))
    assert all(array.ctypes.data % 64 == 16 for array in (given.x, given.dy, given.out))
    for copy in copies().contestants(given, 2):
        given.out[...] = 0
        check.check_copy(copy.name, copy.results()["copy"], given.x)


def test_run_past_a_line(tmp_path):
    found, _ = measured(tmp_path, "--quick", "--case=2x8x8x8", "--peers=numpy", "--runs=1", "--past=16")
    assert found["settings"]["past"] == 16
    assert len(found["rows"]) == len(LAYOUTS) * len(TASKS)
    done = bench("--step", "--past=16")
    assert done.returncode != 0
    assert "--past is for calls of the functions" in done.stderr


@pytest.mark.parametrize("peer", [*PEERS, "onednn"])
def test_peers(tmp_path, peer):
    """Each peer that is installed takes part, in every task, layout and type that it has; a wrong result would not."""
    module, name = PEERS.get(peer, (None, "oneDNN"))
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    found, _ = measured(tmp_path, "--case=2x8x8x8", f"--peers={peer}", "--runs=1", "--threads=2")
    if peer == "onednn" and name not in found["machine"]["versions"]:
        pytest.skip(found["notes"][0])
    kept = [row for row in found["rows"] if row["pages"] == "kept"]
    assert len(kept) == len(DTYPES) * len(LAYOUTS) * len(TASKS)
    takes_part = [row for row in kept if f"{name}/batchnorm" in row["ratios"]]
    if peer == "onednn":
        assert [row["dtype"] for row in takes_part] == ["float32"] * (len(kept) // 2)
        assert all("oneDNN blocked/copy" in row["ratios"] for row in takes_part)
    else:
        assert takes_part == kept
    fresh = [row for row in found["rows"] if row["pages"] == "fresh"]
    assert len(fresh) == (len(DTYPES) * len(LAYOUTS) if peer == "pytorch" else 0)
    assert all("PyTorch/batchnorm" in row["ratios"] for row in fresh)


def test_missing_peers_are_skipped(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for module in ("torch", "jax"):
        (hidden / f"{module}.py").write_text(f"raise ImportError('no {module} here')")
    done = bench("--quick", "--case=32x16", "--peers=pytorch,jax", "--runs=1", "--pages=kept", modules=hidden)
    assert done.returncode == 0, done.stderr
    assert "pytorch is skipped: no torch here" in done.stdout
    assert "jax is skipped: no jax here" in done.stdout
    done = bench("--step", "--case=32x512x7x7", modules=hidden)
    assert done.returncode == 0, done.stderr
    assert "--step compares with PyTorch: no torch here" in done.stdout
    (hidden / "ml_dtypes.py").write_text("raise ImportError('no ml_dtypes here')")
    done = bench("--variants", "--case=32x16", "--task=inference", "--runs=1", modules=hidden)
    assert done.returncode == 0, done.stderr
    assert "pytorch is skipped: no torch here" in done.stdout
    assert "bfloat16 is skipped: no ml_dtypes here" in done.stdout


def test_a_failure_keeps_what_was_measured(tmp_path):
    """The rows before it are reported and written."""
    hidden = tmp_path / "torch.py"
    hidden.write_text("raise ArithmeticError('planted')")
    file = tmp_path / "found.json"
    done = bench("--case=32x16", "--peers=pytorch", f"--json={file}", modules=tmp_path)
    assert done.returncode == 1
    assert "planted" in done.stderr
    assert "ended with status 1" in done.stdout
    assert json.loads(file.read_text(encoding="utf-8"))["rows"] == []


def test_step(tmp_path):
    pytest.importorskip("torch")
    found, printed = measured(tmp_path, "--step", "--case=32x512x7x7", "--runs=2")
    assert [step["layout"] for step in found["steps"]] == list(LAYOUTS)
    assert all(set(step["seconds"]) == {"batchnorm", "PyTorch"} for step in found["steps"])
    assert "training step without out=" in printed


@pytest.fixture(scope="module")
def found_variants(tmp_path_factory):
    """Of one small case, with every library that there is, and what was printed."""
    return measured(tmp_path_factory.mktemp("variants"), "--variants", "--case=2x8x8x8", "--runs=2")


VARIANTS = {
    "forward": {
        "relu",
        "leaky_relu",
        "residual + relu",
        "weights",
        "groups of 8",
        "leaky_relu, in place",
    },
    "inference": {"residual + relu"},
    "backward": {
        "relu",
        "leaky_relu",
        "relu + dresidual",
        "weights",
        "groups of 8",
        "from the output",
        "of inference",
        "jvp",
        "double backward",
    },
}


def test_variants(found_variants):
    found, printed = found_variants
    assert [(row["layout"], row["task"]) for row in found["variants"]] == [(a, b) for a in LAYOUTS for b in TASKS]
    assert (found["rows"], found["steps"]) == ([], [])
    for row in found["variants"]:
        ours = VARIANTS[row["task"]]
        assert set(row["ratios"]) >= {f"{name} / plain" for name in ours}
        assert set(row["seconds"]) - {"PyTorch", "float16", "bfloat16"} == {"plain", *ours}
        assert all(len(times) == 2 and min(times) > 0 for times in row["seconds"].values())
        assert all(low <= middle <= high for low, middle, high in row["ratios"].values())
        assert (row["case"], row["threads"], row["bytes"], row["large"]) == ("2x8x8x8", 2, 4096, False)
    assert "tensors within the last-level cache" in printed
    assert "not timed" not in printed


def test_variants_beside_pytorch(found_variants):
    pytest.importorskip("torch")
    found, _ = found_variants
    fused = {"forward": "residual + relu", "inference": "residual + relu", "backward": "relu + dresidual"}
    assert all(f"{fused[row['task']]} / PyTorch" in row["ratios"] for row in found["variants"])


def needs_half(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    try:
        bn.moments(np.zeros((2, 1), dtype))
    except TypeError as error:
        pytest.skip(f"this build has no {dtype}: {error}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_checks_of_16_bits_find_what_is_wrong(task, dtype):
    needs_half(dtype)
    problem = dataclasses.replace(small_problem(dtype=dtype), gamma=np.float32([2] * 8), beta=np.float32([1] * 8))
    channels = check.checked_channels(problem)
    expected = check.reference(problem, task, channels)
    results = options.results_of(options.plain_call(problem, task))
    assert all(array.dtype.name == (dtype if array.ndim == 4 else "float32") for array in results.values())
    variants._check(problem, dtype, results, expected, channels)
    for part, array in results.items():
        with_nan = array.copy()
        with_nan.flat[-1] = np.nan
        for wrong in ((array.astype(np.float32) * np.float32(1.02)).astype(array.dtype), with_nan):
            with pytest.raises(ArithmeticError, match=part):
                variants._check(problem, dtype, results | {part: wrong}, expected, channels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_variants_of_16_bits(found_variants, dtype):
    needs_half(dtype)
    found, _ = found_variants
    assert all(f"{dtype} / plain" in row["ratios"] for row in found["variants"])


def test_earlier_results_and_their_picture(tmp_path):
    earlier = tmp_path / "earlier.json"
    machine = {"processor": "some", "instruction set": "avx2", "versions": {"batchnorm": "1", "PyTorch": "2"}}
    rows = [
        row(task=task, layout=layout, case=shape, bytes=count, large=count > 10**7)
        for task in TASKS
        for layout in LAYOUTS
        for shape, count in (("1x2x3", 10**8), ("4x5x6", 10**4))
    ]
    found = {"machine": machine, "notes": [], "rows": rows, "steps": [], "variants": [variant()], "settings": {}}
    earlier.write_text(json.dumps(found))
    drawing = tmp_path / "drawing.png"
    done = bench(f"--from={earlier}", f"--png={drawing}", MPLCONFIGDIR=str(tmp_path))
    assert done.stdout.count("4x5x6") >= len(TASKS) * len(LAYOUTS)
    assert "groups of 8 / plain" in done.stdout
    if importlib.util.find_spec("matplotlib") is None:
        assert done.returncode == 1
        pytest.skip("the picture needs matplotlib")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert drawing.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_wrong_options_say_what_is_wrong():
    nothing = bench("--case=no such case")
    assert nothing.returncode == 2
    assert "no case matches" in nothing.stdout
    assert "unknown peers tensorflow" in bench("--peers=tensorflow").stderr
    assert "must be at least 1" in bench("--threads=0").stderr
    assert "not allowed with argument" in bench("--step", "--variants").stderr


def test_kernels_alone(tmp_path_factory):
    build = cpp_build.dev(tmp_path_factory)
    lines = cpp_build.run(build / "bench" / "bench_kernels", "--quick").splitlines()
    # Sizes, types; kernels by row and by lane.
    assert [line.split()[0] for line in lines[2:]] == [isa for isa in cpp_build.isas() for _ in range(4 * 4 * (6 + 13))]
