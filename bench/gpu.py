"""On an NVIDIA GPU: PyTorch's tensors, its own kernels and cuDNN's, and the device's copy, in the same turns.

Times are between two CUDA events around several calls, which were put on the stream while the device was kept busy:
so they are the device's, without what the host takes for a call, which is measured apart. Each call takes the next of
several equal copies of its tensors, more than four times what the L2 cache holds.

PyTorch's operators are called themselves, without autograd: native_batch_norm and native_batch_norm_backward, which is
what its functions come to where cuDNN is disabled, and cudnn_batch_norm and cudnn_batch_norm_backward. cuDNN's and
both backward ones return new tensors, from PyTorch's allocator, which costs the device nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import batchnorm as bn

from .arrays import EPS
from .cases import CASES, LAYOUTS, TASKS, Case, Layout, matching
from .gpu_report import COPY, DEVICE_COPY, NAME, GpuTask, Row, Table, file_name, markdown, row, summary
from .progress import Progress

Call = Callable[[], object]
Clock = Callable[[Call, int, float], tuple[float, float]]  # see CudaClock
Emit = Callable[[str, Any], None]
Tensor = Any  # torch.Tensor: PyTorch is imported where it is needed

DTYPES = ("float32", "bfloat16")
RESULTS = Path("bench", "results")  # in a checkout

_RESNET = [case for case in CASES if case.n == 32 and "ResNet-50" in case.networks]
GPU_CASES = [
    *(replace(case, n=n, networks=("ResNet-50",), quick=False) for n in (32, 256) for case in _RESNET),
    Case(32, 64, (224, 224), ("large",)),
    Case(2, 64, (64, 128, 128), ("large",)),
    Case(64, 64, (256, 256), ("large",)),
]
# With --quick, and what is compiled: a compilation takes seconds.
_FEW = ("32x512x28x28", "256x2048x7x7", "256x256x56x56", "64x64x256x256")

_BATCH = 1e-3  # seconds that a batch of calls lasts at least, unless it is
_MOST = 100  # calls: the queue of a stream holds 1024 kernels
_PER_CACHE = 4  # times the L2 cache, the copies of x together
_CHECKED = 1 << 24  # elements compared at a time

# Largest errors allowed: of y and dx in their largest value, PyTorch's three calls round 16 bits three times; of dgamma
# and dbeta in values summed.
_TOLERANCES = {"float32": 2e-5, "bfloat16": 2.0**-7}
_SUMS = 1e-5


@dataclass(frozen=True)
class Wanted:
    """What of all that is asked for."""

    cases: tuple[Case, ...]
    tasks: tuple[GpuTask, ...]
    layouts: tuple[Layout, ...]
    dtypes: tuple[str, ...]
    runs: int
    compiled: tuple[str, ...]  # shapes for torch.compile

    @property
    def rows(self) -> int:
        """How many there will be."""
        return len(self.cases) * len(self.dtypes) * len(self.layouts) * len(self.tasks)


@dataclass(frozen=True)
class Device:
    """Where tensors are, and how calls on them are timed."""

    name: str
    clock: Clock
    cache: int  # bytes of L2
    copied: int = 1 << 30  # bytes of the copy that tells the bandwidth


class CudaClock:
    """Times calls on the current stream."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call, repeats: int, head_start: float) -> tuple[float, float]:
        """The device's and the host's seconds for so many calls; the device waits before, for about head_start."""
        self._torch.cuda.synchronize()
        self._torch.cuda._sleep(int(head_start * 2.5e9))  # cycles, of more than most GPUs have in a second
        self._start.record()
        begin = perf_counter()
        for _ in range(repeats):
            call()
        host = perf_counter() - begin
        self._stop.record()
        self._stop.synchronize()
        return 1e-3 * self._start.elapsed_time(self._stop), host


def take_turns(calls: Mapping[str, Call], runs: int, clock: Clock) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The device's seconds for a call of each in each turn, A B C A B C, and the host's least."""
    repeats, head_starts = {}, {}
    for name, call in calls.items():
        clock(call, 1, 0.0)
        device, host = (seconds / 3 for seconds in clock(call, 3, 0.0))
        repeats[name] = min(_MOST, max(1, math.ceil(_BATCH / max(device, 1e-7))))
        head_starts[name] = min(2 * host * repeats[name] + 1e-4, 0.05)
    times: dict[str, list[float]] = {name: [] for name in calls}
    hosts: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            device, host = clock(call, repeats[name], head_starts[name])
            times[name].append(device / repeats[name])
            hosts[name].append(host / repeats[name])
    return times, {name: min(values) for name, values in hosts.items()}


# ------------------------------------------------------------------------------------------------------------ tensors


@dataclass(frozen=True)
class Tensors:
    """What a call takes, and where its output goes."""

    x: Tensor
    dy: Tensor
    residual: Tensor
    out: Tensor


@dataclass(frozen=True)
class Memory:
    """The same memory as batchnorm is given it, and as PyTorch, whose second dimension is the channels' always."""

    ours: Tensors
    theirs: Tensors


@dataclass(frozen=True)
class Problem:
    """One case in one layout: equal tensors, as many as it takes, and parameters of float32."""

    case: Case
    dtype: str
    axis: int
    copies: list[Memory]
    gamma: Tensor
    beta: Tensor
    mean: Tensor  # given statistics, for inference
    var: Tensor


def copies_needed(tensor: int, cache: int) -> int:
    """So many of x, of so many bytes, are more than four times what the cache holds; one is, if it is large."""
    return _PER_CACHE * cache // tensor + 1


def flat_tensors(case: Case, dtype: str, device: Device) -> list[Tensors]:
    """The memory, which both layouts share: random values, the same in each copy."""
    import torch

    kind = getattr(torch, dtype)
    random = torch.Generator(device.name).manual_seed(0)
    x, dy, residual = (
        torch.randn(case.size, generator=random, device=device.name).add_(shift).to(kind) for shift in (0.5, 0, 0)
    )
    first = Tensors(x, dy, residual, torch.empty_like(x))
    count = copies_needed(x.nbytes, device.cache)
    return [first, *(Tensors(x.clone(), dy.clone(), residual.clone(), torch.empty_like(x)) for _ in range(1, count))]


def problem(case: Case, layout: Layout, dtype: str, flat: list[Tensors], device: Device) -> Problem:
    """The case in one layout, over that memory."""
    import torch

    axis = 1 if layout == "first" else len(case.spatial) + 1
    copies = []
    for tensors in flat:
        ours = Tensors(*(tensor.view(case.dimensions(layout)) for tensor in vars(tensors).values()))
        copies.append(Memory(ours, Tensors(*(tensor.movedim(axis, 1) for tensor in vars(ours).values()))))
    random = torch.Generator(device.name).manual_seed(1)
    gamma, beta, mean, var = (torch.randn(case.c, generator=random, device=device.name) for _ in range(4))
    return Problem(case, dtype, axis, copies, gamma, beta, mean, var.abs_().add_(0.5))


# -------------------------------------------------------------------------------------------------------- contestants


@dataclass(frozen=True)
class Contestant:
    """A library's call on one of the copies: it returns its results, or a tuple that begins with them."""

    name: str
    call: Callable[[Memory], Any]
    axis: int = 1  # of the channels, in results


def ours(given: Problem, task: GpuTask) -> Contestant:
    """batchnorm's, into outputs that exist already."""
    gamma, beta, mean, var = given.gamma, given.beta, given.mean, given.var
    common: dict[str, Any] = {"axis": given.axis, "eps": EPS}
    calls: dict[GpuTask, Callable[[Tensors], Any]] = {
        "forward": lambda t: bn.batch_norm(t.x, gamma, beta, **common, out=t.out),
        "inference": lambda t: bn.batch_norm_inference(t.x, mean, var, gamma, beta, **common, out=t.out),
        "fused": lambda t: bn.batch_norm(t.x, gamma, beta, **common, activation="relu", residual=t.residual, out=t.out),
    }
    if task == "backward":
        _, saved = calls["forward"](given.copies[0].ours)
        calls["backward"] = lambda t: bn.batch_norm_backward(t.dy, t.x, saved, gamma, out=t.out)
    call = calls[task]
    return Contestant(NAME, lambda memory: call(memory.ours), given.axis)


def pytorch(given: Problem, task: GpuTask) -> Contestant:
    """PyTorch's own kernels; fused is three calls, the last two in place."""
    import torch

    gamma, beta, mean, var = given.gamma, given.beta, given.mean, given.var
    saved = torch.empty_like(mean), torch.empty_like(mean)
    unused = mean.new_empty(0), mean.new_empty(0)
    native = torch.ops.aten.native_batch_norm

    def forward(t: Tensors) -> Any:
        return native.out(
            t.x, gamma, beta, None, None, True, 0.1, EPS, out=t.out, save_mean=saved[0], save_invstd=saved[1]
        )

    def inference(t: Tensors) -> Any:
        return native.out(
            t.x, gamma, beta, mean, var, False, 0.1, EPS, out=t.out, save_mean=unused[0], save_invstd=unused[1]
        )

    def backward(t: Tensors) -> Any:
        return torch.ops.aten.native_batch_norm_backward(
            t.dy, t.x, gamma, None, None, *saved, True, EPS, [True, True, True]
        )

    def fused(t: Tensors) -> Any:
        forward(t)
        return t.out.add_(t.residual).relu_()

    if task == "backward":
        forward(given.copies[0].theirs)
    call = {"forward": forward, "inference": inference, "backward": backward, "fused": fused}[task]
    return Contestant("PyTorch", lambda memory: call(memory.theirs))


def cudnn(given: Problem, task: GpuTask) -> Contestant:
    """cuDNN's kernels, as PyTorch calls them; fused is three calls, the last two in place."""
    import torch

    gamma, beta, mean, var = given.gamma, given.beta, given.mean, given.var

    def forward(t: Tensors) -> Any:
        return torch.ops.aten.cudnn_batch_norm(t.x, gamma, beta, None, None, True, 0.1, EPS)

    def inference(t: Tensors) -> Any:
        return torch.ops.aten.cudnn_batch_norm(t.x, gamma, beta, mean, var, False, 0.1, EPS)

    _, *saved, reserve = forward(given.copies[0].theirs) if task == "backward" else [None] * 4

    def backward(t: Tensors) -> Any:
        return torch.ops.aten.cudnn_batch_norm_backward(t.x, t.dy, gamma, None, None, *saved, EPS, reserve)

    def fused(t: Tensors) -> Any:
        return forward(t)[0].add_(t.residual).relu_()

    call = {"forward": forward, "inference": inference, "backward": backward, "fused": fused}[task]
    return Contestant("cuDNN", lambda memory: call(memory.theirs))


def compiled(given: Problem, task: GpuTask) -> Contestant:
    """torch.compile of the three calls."""
    import torch

    def fused(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor) -> Tensor:
        y = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
        return torch.relu(y + residual)

    torch.compiler.reset()  # a function is compiled again only so many times
    call = torch.compile(fused, dynamic=False)
    gamma, beta = given.gamma, given.beta
    return Contestant("compiled", lambda memory: call(memory.theirs.x, gamma, beta, memory.theirs.residual))


# -------------------------------------------------------------------------------------------------------------- checks


def reference(given: Problem, task: GpuTask, start: int, count: int) -> dict[str, Tensor]:
    """What the task should give for these channels, in float64."""
    t = given.copies[0].theirs
    x, dy, residual = (tensor.narrow(1, start, count).double() for tensor in (t.x, t.dy, t.residual))
    others = [dim for dim in range(x.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    gamma, beta, mean, var = (
        values.narrow(0, start, count).double().view(shape)
        for values in (given.gamma, given.beta, given.mean, given.var)
    )
    if task != "inference":
        mean = x.mean(others, keepdim=True)
        var = (x - mean).square().mean(others, keepdim=True)
    inv_std = (var + EPS).rsqrt()
    xhat = (x - mean) * inv_std
    if task == "backward":
        dbeta, dgamma = dy.sum(others), (dy * xhat).sum(others)
        m = x.numel() // count
        dx = gamma * inv_std * (dy - dbeta.view(shape) / m - xhat * dgamma.view(shape) / m)
        return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    y = xhat * gamma + beta
    return {"y": (y + residual).relu() if task == "fused" else y}


def check(given: Problem, task: GpuTask, contestant: Contestant) -> None:
    """Raise ArithmeticError where a result is wrong, in any channel."""
    first = given.copies[0]
    first.ours.out.fill_(float("nan"))
    made = contestant.call(first)
    results = list(made) if isinstance(made, tuple) else [made]
    channels = given.case.c
    step = max(1, _CHECKED * channels // given.case.size)
    for start in range(0, channels, step):
        count = min(step, channels - start)
        for (name, want), got in zip(reference(given, task, start, count).items(), results, strict=False):
            whole = want.ndim > 1
            values = got.movedim(contestant.axis, 1) if whole else got
            shape = first.theirs.x.shape if whole else (channels,)
            if tuple(values.shape) != tuple(shape):
                raise ArithmeticError(f"{contestant.name}'s {name} has shape {tuple(values.shape)}")
            error = float((values.narrow(1 if whole else 0, start, count).double() - want).abs().max())
            unit = float(want.abs().max()) if whole else given.case.size / channels
            allowed = (_TOLERANCES[given.dtype] if whole else _SUMS) * unit
            if not error <= allowed:  # not (error > allowed): NaN is wrong, too
                raise ArithmeticError(f"{contestant.name}'s {name} is off by {error:.1e}, allowed are {allowed:.1e}")


# --------------------------------------------------------------------------------------------------------------- rows


def measure(wanted: Wanted, device: Device, emit: Emit) -> None:
    """Emit a row of each job, notes, and as "wrong" what of batchnorm's results is."""
    import torch

    source = torch.zeros(device.copied, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    peers: list[Callable[[Problem, GpuTask], Contestant]] = [pytorch]
    if device.name == "cuda" and torch.backends.cudnn.is_available():
        peers.append(cudnn)
    failed: set[str] = set()
    for case in wanted.cases:
        for dtype in wanted.dtypes:
            try:
                flat = flat_tensors(case, dtype, device)
                for layout in wanted.layouts:
                    given = problem(case, layout, dtype, flat, device)
                    for task in wanted.tasks:
                        compiles = task == "fused" and case.shape in wanted.compiled and "compiled" not in failed
                        makers = [*peers, compiled] if compiles else peers
                        where = f"{case.shape} {dtype}, {task}, channels {layout}"
                        contestants = list(_checked(given, task, makers, where, failed, emit))
                        if contestants:
                            calls = _rotated(contestants, given.copies)
                            calls[DEVICE_COPY] = lambda: target.copy_(source)
                            times, host = take_turns(calls, wanted.runs, device.clock)
                            tensor = given.copies[0].ours.x.nbytes
                            emit("row", row(case, dtype, layout, task, tensor, times, host, source.nbytes))
            except torch.cuda.OutOfMemoryError:
                emit("note", f"{case.shape} {dtype} is skipped: it does not fit the device's memory")
            flat = given = contestants = calls = None  # type: ignore[assignment]


def _checked(
    given: Problem,
    task: GpuTask,
    peers: list[Callable[[Problem, GpuTask], Contestant]],
    where: str,
    failed: set[str],
    emit: Emit,
) -> Iterator[Contestant]:
    """batchnorm and the peers that can take part, if batchnorm is right."""
    own = ours(given, task)
    try:
        check(given, task, own)
    except ArithmeticError as error:
        emit("wrong", f"WRONG: {where}: {error}")
        return
    yield own
    for peer in peers:
        try:
            contestant = peer(given, task)
            check(given, task, contestant)
        except ArithmeticError as error:
            emit("note", f"not timed: {where}: {error}")
        except Exception as error:  # torch.compile may fail in any way; the others say what they do not take
            failed.add(peer.__name__)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            emit("note", f"{peer.__name__} takes no part in {task}, {given.dtype}: {what}")
        else:
            yield contestant


def _rotated(contestants: list[Contestant], copies: list[Memory]) -> dict[str, Call]:
    """Each call takes the copy after that of the call before, whosever it was: all others were used since it was."""
    following = cycle(copies)

    def through(call: Callable[[Memory], Any]) -> Call:
        return lambda: call(next(following))

    plain = Contestant(COPY, lambda memory: memory.ours.out.copy_(memory.ours.x))
    return {contestant.name: through(contestant.call) for contestant in [*contestants, plain]}


# ---------------------------------------------------------------------------------------------------------------- run


def unavailable() -> str | None:
    """Why there is nothing to measure, if so."""
    try:
        cuda: Any = getattr(bn, "cuda", None) or importlib.import_module("batchnorm.cuda")
    except ImportError:
        return "this batchnorm has no CUDA part"
    if not cuda.is_available():
        because = getattr(cuda, "unavailable_because", None) or getattr(cuda, "unavailable_reason", None)
        return str((because() if callable(because) else because) or "batchnorm finds none")
    try:
        import torch
    except ImportError as error:
        return f"tensors come from PyTorch: {error}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds none"
    return None


def wanted_of(arguments: argparse.Namespace) -> Wanted:
    """What the command line asks for."""
    quick = arguments.quick
    cases = [
        case for case in matching(GPU_CASES, tuple(arguments.case)) if arguments.case or not quick or case.shape in _FEW
    ]
    tasks = tuple(arguments.task or TASKS)
    compiles = arguments.compile and not quick
    return Wanted(
        cases=tuple(cases),
        tasks=(*tasks, "fused") if "forward" in tasks else tasks,
        layouts=tuple(arguments.layout or LAYOUTS),
        dtypes=tuple(arguments.dtype or DTYPES),
        runs=arguments.runs or (5 if quick else 9),
        compiled=tuple(case.shape for case in cases if arguments.case or case.shape in _FEW) if compiles else (),
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; the exit status."""
    if arguments.past:
        print("--past is for calls on the CPU, not for --gpu")
        return 2
    unknown = set(arguments.dtype or ()) - set(DTYPES)
    if unknown:
        print(f"--gpu measures {' and '.join(DTYPES)}, not {', '.join(sorted(unknown))}")
        return 2
    wanted = wanted_of(arguments)
    if not wanted.cases:
        print("no case matches: --case takes part of a shape, such as 256x64x56x56, ResNet-50, or large")
        return 2
    if arguments.save is not None and not arguments.save.is_dir():
        print(f"--save: there is no folder {arguments.save}; run it where a checkout has one, or name another")
        return 2
    reason = unavailable()
    if reason is not None:
        print(f"--gpu needs an NVIDIA GPU: {reason}")
        return 2
    return report(*measured(wanted, cuda_device(), describe()), arguments)


def measured(wanted: Wanted, device: Device, machine: dict[str, object]) -> tuple[Row, bool]:
    """Everything that was found, printed as it came, and whether all went well."""
    found: Row = {"settings": asdict(wanted), "machine": machine, "notes": [], "gpu": []}
    table, well = Table(), True
    with Progress(wanted.rows) as progress:

        def emit(kind: str, value: Any) -> None:
            nonlocal well
            if kind == "row":
                found["gpu"].append(value)
                progress.write(table.line(value))
                progress.step()
            elif value not in found["notes"]:
                well &= kind != "wrong"
                found["notes"].append(value)
                progress.write(value)

        try:
            measure(wanted, device, emit)
        except KeyboardInterrupt:
            well = False
            progress.write("interrupted; what follows is of the rows above")
    return found, well


def report(found: Row, well: bool, arguments: argparse.Namespace) -> int:
    """The summary, and the files that are asked for; the exit status."""
    print(summary(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if arguments.save is not None and not well:
        print("nothing is saved of a run that did not go well")
    elif arguments.save is not None:
        (arguments.save / file_name(found["machine"])).write_text(markdown(found), encoding="utf-8")
    return 0 if well else 1


def show(found: Row, arguments: argparse.Namespace) -> int:
    """What --json wrote before, again."""
    table = Table()
    for value in found["gpu"]:
        print(table.line(value))
    return report(found, True, arguments)


def cuda_device() -> Device:
    """The current one."""
    import torch

    cache = int(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0)) or 64 << 20
    return Device("cuda", CudaClock(), cache)


def describe() -> dict[str, object]:
    """The GPU, versions and the date; nothing that names the machine or its user."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "GPU": properties.name,
        "date": datetime.date.today().isoformat(),
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "PyTorch": str(torch.__version__),
        "batchnorm": bn.__version__,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "L2": f"{getattr(properties, 'L2_cache_size', 0) / 2**20:.0f} MiB",
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        loaded = Path("/proc/driver/nvidia/version")
        printed = loaded.read_text(encoding="utf-8") if loaded.exists() else ""
    version = re.search(r"\d+\.\d+(\.\d+)?", printed)
    return version[0] if version else "unknown"
