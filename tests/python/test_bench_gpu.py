"""The benchmark on a GPU: all of it but the times, on the CPU, whose tensors the same calls take."""

import argparse
import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
from child import run_python

import batchnorm as bn
from batchnorm.bench import cli, gpu, gpu_report
from batchnorm.bench.cases import CASES, LAYOUTS, Case

ROOT = Path(__file__).parents[2]
TASKS = ("forward", "inference", "backward", "fused")
SHAPES = tuple(case.shape for case in gpu.GPU_CASES)
SMALL = Case(4, 6, (5, 7), ("ResNet-50",))
DEEP = Case(3, 4, (2, 3, 5), ("large",))


def parsed(*options):
    parser = argparse.ArgumentParser()
    cli.add_options(parser)
    return parser.parse_args(["--gpu", *options])


def wanted(*options):
    return gpu.wanted_of(parsed(*options))


# ------------------------------------------------------------------------------------------------------------- options


def test_cases_are_those_of_resnet_and_three_large_ones():
    shapes = [case.shape for case in gpu.GPU_CASES]
    assert len(set(shapes)) == len(shapes) == 2 * 9 + 3
    resnet = [case for case in gpu.GPU_CASES if "ResNet-50" in case.networks]
    assert {case.n for case in resnet} == {32, 256}
    assert {case.shape for case in CASES if "ResNet-50" in case.networks} <= {case.shape for case in resnet}
    large = [case for case in gpu.GPU_CASES if "large" in case.networks]
    assert all(128e6 <= case.size * size <= 2**30 for case in large for size in (2, 4))
    assert set(gpu._FEW) <= set(shapes)


def test_everything_is_wanted_unless_less_is():
    everything = wanted()
    assert everything.cases == tuple(gpu.GPU_CASES)
    assert (everything.tasks, everything.layouts, everything.dtypes) == (TASKS, LAYOUTS, gpu.DTYPES)
    assert everything.rows == 21 * 4 * 2 * 2
    assert (everything.runs, everything.compiled) == (9, tuple(s for s in SHAPES if s in gpu._FEW))
    assert wanted("--no-compile").compiled == ()


def test_less_is_wanted():
    quick = wanted("--quick")
    assert {case.shape for case in quick.cases} == set(gpu._FEW)
    assert (quick.runs, quick.compiled) == (5, ())
    few = wanted(
        "--case=32x64x56x56", "--case=LARGE", "--task=backward", "--layout=last", "--dtype=bfloat16", "--runs=3"
    )
    assert [case.shape for case in few.cases] == ["32x64x56x56", *SHAPES[-3:]]
    assert (few.tasks, few.layouts, few.dtypes, few.runs) == (("backward",), ("last",), ("bfloat16",), 3)
    assert wanted("--task=forward").tasks == ("forward", "fused")
    assert wanted("--case=32x64x56x56").compiled == ("32x64x56x56",)


def test_options():
    assert parsed().save is None
    assert parsed("--save").save == Path("bench/results")
    assert parsed("--save", "here").save == Path("here")
    with pytest.raises(SystemExit):
        parsed("--step")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype=float64"], "--gpu measures float32 and bfloat16, not float64"),
        (["--past=16"], "--past is for calls on the CPU"),
        (["--case=none such"], "no case matches"),
        (["--save=none such"], "there is no folder none such"),
    ],
)
def test_wrong_options(options, message, capsys):
    assert gpu.run(parsed(*options)) == 2
    assert message in capsys.readouterr().out


def test_bfloat16_is_for_the_gpu():
    done = run_python("-m", "batchnorm", "bench", "--dtype=bfloat16")
    assert done.returncode == 1
    assert "--dtype=bfloat16 is for --gpu" in done.stderr


# ----------------------------------------------------------------------------------------------------------- without it


def test_without_a_gpu_one_sentence_says_so():
    if gpu.unavailable() is None:
        pytest.skip("there is one")
    done = run_python("-m", "batchnorm", "bench", "--gpu")
    assert done.returncode == 2, done.stderr
    [line] = done.stdout.splitlines()
    assert line == f"--gpu needs an NVIDIA GPU: {gpu.unavailable()}"


def with_cuda(monkeypatch, available, because="no driver was found"):
    part = types.SimpleNamespace(is_available=lambda: available, unavailable_because=lambda: because)
    monkeypatch.setattr(bn, "cuda", part, raising=False)


def test_reasons(monkeypatch):
    with_cuda(monkeypatch, False)
    assert gpu.unavailable() == "no driver was found"
    with_cuda(monkeypatch, False, None)
    assert gpu.unavailable() == "batchnorm finds none"
    with_cuda(monkeypatch, True)
    torch = types.SimpleNamespace(__version__="9", cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert gpu.unavailable() == "PyTorch 9 finds none"
    torch.cuda.is_available = lambda: True
    assert gpu.unavailable() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.unavailable().startswith("tensors come from PyTorch")
    monkeypatch.setattr(bn, "cuda", None)
    monkeypatch.setitem(sys.modules, "batchnorm.cuda", None)
    assert gpu.unavailable() == "this batchnorm has no CUDA part"


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_bytes():
    assert [gpu_report.floor_bytes(task, 10) for task in TASKS] == [20, 20, 30, 30]
    assert [gpu_report.two_pass_bytes(task, 10) for task in TASKS] == [30, 20, 50, 40]


def test_goals_of_shares():
    sizes = (1e9, 128e6, 127e6, 8e6, 7e6)
    assert [gpu_report.share_goal(size) for size in sizes] == [0.85, 0.85, 0.60, 0.60, None]


def row(case=SMALL, dtype="float32", layout="first", task="forward", tensor=2 * 10**8, us=100.0, **others):
    """The copy of 1 GB takes 1 ms: 2 TB/s."""
    times = {"batchnorm": us, "copy": 50.0, "copy of 1 GB": 1000.0} | others
    seconds = {name: [1e-6 * value] * 3 for name, value in times.items()}
    return gpu_report.row(case, dtype, layout, task, tensor, seconds, {"batchnorm": 5e-6, "PyTorch": 15e-6}, 10**9)


def test_a_row():
    # 3 * 200 MB at 2 TB/s are 300 us.
    found = row(us=400.0, PyTorch=600.0, cuDNN=500.0)
    assert found["share"] == pytest.approx([0.75] * 3)
    assert found["bandwidth"] == pytest.approx(2e12)
    assert (found["bytes"], found["floor"], found["two passes"], found["goal"]) == (200e6, 400e6, 600e6, 0.85)
    ratios = {name: values[1] for name, values in found["ratios"].items()}
    assert ratios == pytest.approx({"batchnorm/copy": 8, "PyTorch/batchnorm": 1.5, "cuDNN/batchnorm": 1.25})
    assert row(task="backward", us=500.0)["share"] == pytest.approx([1] * 3)


def test_shares_are_taken_within_a_turn():
    seconds = {"batchnorm": [4e-4, 4e-3, 4e-4], "copy": [1e-4] * 3, "copy of 1 GB": [1e-3, 1e-2, 1e-3]}
    found = gpu_report.row(SMALL, "float32", "first", "forward", 2 * 10**8, seconds, {}, 10**9)
    assert found["share"] == pytest.approx([0.75] * 3)


def summary_of(*rows):
    return gpu_report.summary({"gpu": list(rows), "machine": {"GPU": "Some GPU"}, "notes": ["something"]})


def test_summary():
    other = dataclasses.replace(SMALL, networks=("large",))
    text = summary_of(
        row(us=100.0, PyTorch=100.0, cuDNN=200.0), row(us=100.0, PyTorch=400.0), row(other, us=1.0, PyTorch=900.0)
    )
    assert "Some GPU: a copy of 1 GB at 2000 GB/s" in text
    # The geometric mean of 1 and 4; the third one is no shape of ResNet-50.
    assert "forward   PyTorch  2.00 (goal 1.3: reached; 2 shapes)  cuDNN  2.00 (1 shapes)" in text
    assert "1 of 1 goals reached" in text
    assert "note: something" in text
    assert "batchnorm 5.0, PyTorch 15.0" in text


def test_summary_by_type_layout_and_pass():
    rows = [
        row(dtype=dtype, layout=layout, task=task, PyTorch=us)
        for dtype, us in (("float32", 120.0), ("bfloat16", 140.0))
        for layout in LAYOUTS
        for task in TASKS
    ]
    text = summary_of(*rows)
    assert text.count("PyTorch  1.20 (goal 1.3: MISSED; 1 shapes)") == 8
    assert text.count("PyTorch  1.40 (goal 1.3: reached; 1 shapes)") == 8
    assert "8 of 16 goals reached" in text


def test_every_large_tensor_is_to_reach_its_share():
    slow = row(dataclasses.replace(SMALL, n=9), us=600.0)  # 0.5
    text = summary_of(row(us=300.0), slow, row(us=310.0), row(tensor=10**7, us=20.0), row(tensor=10**6, us=900.0))
    large, middle = text.split("x of 8 to 128 MB")
    assert f"0.97  (goal 0.85: MISSED by 1 of 3; least 0.50, {slow['case']})" in large
    assert "2 of 3 rows reach 0.85" in large
    assert "0.75  (goal 0.60: reached; least 0.75" in middle
    assert "1 of 1 rows reach 0.60" in middle


def test_summary_of_nothing():
    assert gpu_report.summary({"gpu": [], "machine": {}, "notes": []}) == ""


def test_table():
    table = gpu_report.Table()
    heading, first = table.line(row(us=400.0, PyTorch=600.0)).splitlines()
    assert heading.split()[:4] == ["case", "pass", "channels", "type"]
    assert "400.0" in first
    assert "0.75 (0.75-0.75)" in first
    assert first.split()[-3:] == ["1.50", "-", "-"]
    second = table.line(row(gpu.GPU_CASES[-1], "bfloat16", "last", "inference", 2**30, us=2000.0, compiled=5000.0))
    assert len(second.splitlines()) == 1
    assert len(first) == len(second)  # of columns, whatever is in them
    assert second.split()[-1] == "2.50"


def test_markdown():
    machine = {"GPU": "NVIDIA H200 (80GB)", "date": "2026-01-31", "driver": "1.2.3"}
    found = {"gpu": [row(PyTorch=200.0)], "machine": machine, "notes": []}
    assert gpu_report.file_name(machine) == "nvidia-h200-80gb-2026-01-31.md"
    lines = gpu_report.markdown(found).splitlines()
    assert lines[0] == "# NVIDIA H200 (80GB), 2026-01-31"
    assert "| driver | 1.2.3 |" in lines
    assert "Times of others" in "\n".join(lines)
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert tables == [3] * 5 + [len(gpu_report._COLUMNS) + 1] * 3
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").count("\n## On a GPU\n") == 1


# --------------------------------------------------------------------------------------------------------------- turns


def test_turns():
    """A B A B, in batches of a millisecond or a hundred calls."""
    called, batches = [], []

    def clock(call, repeats, head_start):
        call()
        name = called[-1]
        batches.append((name, repeats, head_start))
        return repeats * {"A": 4e-4, "B": 1e-6}[name], repeats * 1e-5

    times, host = gpu.take_turns({name: lambda name=name: called.append(name) for name in "AB"}, 2, clock)
    assert times == {"A": pytest.approx([4e-4] * 2), "B": pytest.approx([1e-6] * 2)}
    assert host == pytest.approx({"A": 1e-5, "B": 1e-5})
    assert [name for name, _, _ in batches] == list("AABBABAB")
    assert [repeats for _, repeats, _ in batches] == [1, 3, 1, 3, 3, 100, 3, 100]
    assert [ahead for _, _, ahead in batches[-2:]] == pytest.approx([6e-5 + 1e-4, 2e-3 + 1e-4])


def test_the_device_waits_until_the_calls_are_there(monkeypatch):
    did = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            did.append("event")

        def synchronize(self):
            did.append("wait")

        def elapsed_time(self, other):
            assert other is not self
            return 3.0  # ms

    cuda = types.SimpleNamespace(
        Event=Event, synchronize=lambda: did.append("idle"), _sleep=lambda cycles: did.append(cycles)
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    device, host = gpu.CudaClock()(lambda: did.append("call"), 2, 1e-3)
    assert did == ["idle", 2500000, "event", "call", "call", "event", "wait"]
    assert device == pytest.approx(3e-3)
    assert host > 0


@pytest.mark.parametrize(("tensor", "count"), [(1, 401), (40, 11), (399, 2), (400, 2), (401, 1), (10**9, 1)])
def test_copies_are_more_than_four_caches(tensor, count):
    assert gpu.copies_needed(tensor, 100) == count
    assert count * tensor > 400


def test_calls_take_one_copy_after_the_other():
    used = []
    contestants = [gpu.Contestant(name, lambda memory, name=name: used.append((name, memory))) for name in "AB"]
    calls = gpu._rotated(contestants, [1, 2, 3])
    for name in "AABBAA":
        calls[name]()
    assert [memory for _, memory in used] == [1, 2, 3, 1, 2, 3]
    assert "".join(name for name, _ in used) == "AABBAA"
    assert list(calls) == ["A", "B", "copy"]


# --------------------------------------------------------------------------------------------- calls and their checks


def clock(call, repeats, head_start):
    """Times of nothing, each time others."""
    for _ in range(min(repeats, 2)):
        call()
    clock.count += 1
    return repeats * (1e-3 + 1e-6 * clock.count), repeats * 1e-5


clock.count = 0


@pytest.fixture
def device():
    pytest.importorskip("torch")
    return gpu.Device("cpu", clock, cache=2000, copied=1 << 12)


def a_problem(device, case=SMALL, layout="first", dtype="float32"):
    return gpu.problem(case, layout, dtype, gpu.flat_tensors(case, dtype, device), device)


@pytest.mark.parametrize("dtype", gpu.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [SMALL, DEEP], ids=lambda case: case.shape)
def test_tensors(device, case, layout, dtype):
    given = a_problem(device, case, layout, dtype)
    assert len(given.copies) == gpu.copies_needed(case.size * (4 if dtype == "float32" else 2), 2000) > 1
    places = set()
    for memory in given.copies:
        for name, tensor in vars(memory.ours).items():
            seen = getattr(memory.theirs, name)
            assert tensor.is_contiguous()
            assert tuple(tensor.shape) == case.dimensions(layout)
            assert tuple(seen.shape) == case.dimensions("first")
            assert seen.data_ptr() == tensor.data_ptr()
            assert str(tensor.dtype) == f"torch.{dtype}"
            places.add(tensor.data_ptr())
            if name != "out":
                assert tensor.equal(getattr(given.copies[0].ours, name))
    assert len(places) == 4 * len(given.copies)
    assert str(given.gamma.dtype) == "torch.float32"
    if layout == "last" and case is SMALL:
        import torch

        assert given.copies[0].theirs.x.is_contiguous(memory_format=torch.channels_last)


def of_cudnn(monkeypatch):
    """PyTorch's own description of cuDNN's operators, in others: the arguments, and what comes out of them."""
    import torch
    from torch._decomp import decomposition_table

    for name in ("cudnn_batch_norm", "cudnn_batch_norm_backward"):
        operator = getattr(torch.ops.aten, name).default
        monkeypatch.setattr(torch.ops.aten, name, decomposition_table[operator])


def of_compile(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)


CONTESTANTS = [(maker, task) for maker in (gpu.ours, gpu.pytorch, gpu.cudnn) for task in TASKS]
CONTESTANTS.append((gpu.compiled, "fused"))


@pytest.mark.parametrize(("maker", "task"), CONTESTANTS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("dtype", gpu.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_contestants_are_right(device, monkeypatch, maker, task, layout, dtype):
    of_cudnn(monkeypatch)
    of_compile(monkeypatch)
    for case in (SMALL, DEEP):
        given = a_problem(device, case, layout, dtype)
        contestant = maker(given, task)
        assert contestant.name == {"ours": "batchnorm", "pytorch": "PyTorch", "cudnn": "cuDNN"}.get(
            maker.__name__, "compiled"
        )
        gpu.check(given, task, contestant)
        for memory in given.copies[1:3]:
            contestant.call(memory)
        # What another task gives is found to be wrong.
        for other in set(TASKS) - {task}:
            if {task, other} != {"forward", "fused"} or maker is not gpu.compiled:
                with pytest.raises(ArithmeticError):
                    gpu.check(given, other, maker(given, task))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels_at_once", [1, 4, 6])
def test_checks_find_what_is_wrong(device, monkeypatch, task, layout, channels_at_once):
    monkeypatch.setattr(gpu, "_CHECKED", channels_at_once * SMALL.size // SMALL.c)
    given = a_problem(device, layout=layout)
    right = gpu.ours(given, task)
    gpu.check(given, task, right)
    results = right.call(given.copies[0])
    results = [result.clone() for result in (results[:3] if task == "backward" else [given.copies[0].ours.out])]
    for number, result in enumerate(results):
        nan, wrong = result.clone(), result.clone()
        nan.view(-1)[-1] = float("nan")
        wrong.view(-1)[-1] += 0.01
        for spoilt in (nan, wrong, result[:1]):
            made = (*results[:number], spoilt, *results[number + 1 :])
            with pytest.raises(ArithmeticError, match="some's"):
                gpu.check(given, task, dataclasses.replace(right, name="some", call=lambda memory, made=made: made))
    if task != "backward":  # what is not written
        with pytest.raises(ArithmeticError, match="off by nan"):
            gpu.check(given, task, dataclasses.replace(right, call=lambda memory: memory.ours.out))


SOME = gpu.Wanted((SMALL, DEEP), TASKS, LAYOUTS, gpu.DTYPES, runs=3, compiled=(SMALL.shape,))
MACHINE = {"GPU": "Some GPU", "date": "2026-01-31"}


def test_a_whole_run(device, monkeypatch, capsys, tmp_path):
    of_compile(monkeypatch)
    found, well = gpu.measured(SOME, device, MACHINE)
    assert well
    assert found["notes"] == []
    assert [(row["case"], row["dtype"], row["layout"], row["task"]) for row in found["gpu"]] == [
        (case.shape, dtype, layout, task)
        for case in (SMALL, DEEP)
        for dtype in gpu.DTYPES
        for layout in LAYOUTS
        for task in TASKS
    ]
    for row in found["gpu"]:
        compiled = {"compiled"} if row["task"] == "fused" and row["case"] == SMALL.shape else set()
        assert set(row["seconds"]) == {"batchnorm", "PyTorch", "copy", "copy of 1 GB"} | compiled
        assert all(len(times) == 3 for times in row["seconds"].values())
        assert row["share"][0] <= row["share"][1] <= row["share"][2]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + SOME.rows

    # What is written can be shown and saved again.
    file = tmp_path / "found.json"
    assert gpu.report(found, True, parsed(f"--json={file}", f"--save={tmp_path}")) == 0
    summary = capsys.readouterr().out
    page = tmp_path / "some-gpu-2026-01-31.md"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    assert cli.run(parsed(f"--from={file}", f"--save={tmp_path}")) == 0
    assert capsys.readouterr().out == "\n".join(printed) + "\n" + summary
    assert page.read_text(encoding="utf-8") == text
    assert json.loads(file.read_text(encoding="utf-8"))["machine"] == MACHINE


def test_wrong_results_are_not_timed(device, monkeypatch, capsys, tmp_path):
    right = gpu.ours
    spoilt = gpu.Contestant("batchnorm", lambda memory: memory.ours.out.zero_())
    monkeypatch.setattr(gpu, "ours", lambda given, task: spoilt if task == "inference" else right(given, task))
    some = dataclasses.replace(SOME, cases=(SMALL,), tasks=("inference", "backward"), dtypes=("float32",))
    found, well = gpu.measured(some, device, MACHINE)
    assert not well
    assert [row["task"] for row in found["gpu"]] == ["backward"] * 2
    assert len(found["notes"]) == 2
    assert all(note.startswith("WRONG: 4x6x5x7 float32, inference") for note in found["notes"])
    assert gpu.report(found, well, parsed(f"--save={tmp_path}")) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "nothing is saved" in printed
    assert not list(tmp_path.iterdir())


def test_peers_that_fail_are_noted(device, monkeypatch):
    import torch

    def no_compiler(function, dynamic):
        raise RuntimeError("no compiler\nand more")

    def no_bfloat16(given, task):
        if given.dtype == "bfloat16":
            raise RuntimeError("not of this type")
        return gpu.Contestant("PyTorch", lambda memory: memory.ours.out.zero_())

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(gpu, "pytorch", no_bfloat16)
    some = dataclasses.replace(SOME, cases=(SMALL,), tasks=("fused",), layouts=("first",))
    found, well = gpu.measured(some, device, MACHINE)
    assert well
    assert [set(row["ratios"]) for row in found["gpu"]] == [{"batchnorm/copy"}] * 2
    notes = "\n".join(found["notes"])
    assert "not timed: 4x6x5x7 float32, fused, channels first: PyTorch's y is off" in notes
    assert "no_bfloat16 takes no part in fused, bfloat16: not of this type" in notes
    assert "compiled takes no part in fused, float32: no compiler" in notes
    assert len(found["notes"]) == 3  # it is not compiled again


def test_what_does_not_fit_is_skipped(device, monkeypatch):
    import torch

    tensors = gpu.flat_tensors

    def too_large(case, dtype, device):
        if case is DEEP:
            raise torch.cuda.OutOfMemoryError("too large")
        return tensors(case, dtype, device)

    monkeypatch.setattr(gpu, "flat_tensors", too_large)
    found, well = gpu.measured(dataclasses.replace(SOME, compiled=(), dtypes=("float32",)), device, MACHINE)
    assert well
    assert {row["case"] for row in found["gpu"]} == {SMALL.shape}
    assert found["notes"] == [f"{DEEP.shape} float32 is skipped: it does not fit the device's memory"]


def test_interrupted(device, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    found, well = gpu.measured(SOME, dataclasses.replace(device, clock=interrupt), MACHINE)
    assert not well
    assert found["gpu"] == []
    assert "interrupted" in capsys.readouterr().out


def test_driver(monkeypatch):
    def run(answer):
        def started(command, **options):
            if answer is None:
                raise FileNotFoundError(command[0])
            return types.SimpleNamespace(stdout=answer)

        monkeypatch.setattr(gpu.subprocess, "run", started)
        return gpu._driver()

    assert run("580.65.06\n580.65.06\n") == "580.65.06"
    assert run("") == "unknown"


# -------------------------------------------------------------------------------------------------------------- results


def test_results_stay_out_of_the_package():
    assert not (Path(gpu.__file__).parent / "results").exists()
    assert "<gpu>-<date>.md" in (ROOT / "bench" / "results" / "README.md").read_text(encoding="utf-8")
