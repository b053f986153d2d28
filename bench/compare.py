"""Training forward and backward against PyTorch and against copying the tensor, interleaved, in one run.

Every library works on the same arrays with the same threads and writes to outputs that exist already. PyTorch's
backward takes no outputs: run it with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 as well, so that its
allocator keeps its pages, or page faults are measured instead of kernels. Nothing is timed before it was checked.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

import batchnorm as bn

EPS = 1e-5


def copies(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """Reading x once and writing y once with all threads, by PyTorch's copy (memcpy's speed, threaded)."""
    source, target = torch.from_numpy(x.reshape(-1)), torch.from_numpy(y.reshape(-1))
    return lambda: target.copy_(source)


def cases(shape: tuple[int, ...], channels_last: bool, threads: int) -> dict[str, dict[str, Callable[[], object]]]:
    """{task: {contestant: call}}, checked against each other."""
    rng = np.random.default_rng(0)
    n, c, h, w = shape
    x, dy = (rng.standard_normal((n, h, w, c) if channels_last else shape, np.float32) for _ in range(2))
    gamma, beta = rng.standard_normal(c, np.float32), rng.standard_normal(c, np.float32)
    axis = -1 if channels_last else 1
    y, dx, copied = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)

    def as_torch(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).permute(0, 3, 1, 2) if channels_last else torch.from_numpy(array)

    tx, tdy, ty = as_torch(x), as_torch(dy), as_torch(np.zeros_like(x))
    tg, tb = torch.from_numpy(gamma), torch.from_numpy(beta)
    tmean, tinv = torch.empty(c), torch.empty(c)
    _, saved = bn.batch_norm(x, gamma, beta, axis=axis, eps=EPS, out=y)

    def torch_forward() -> None:
        torch.native_batch_norm(tx, tg, tb, None, None, True, 0.1, EPS, out=(ty, tmean, tinv))

    def torch_backward() -> tuple[torch.Tensor, ...]:
        return torch.ops.aten.native_batch_norm_backward(
            tdy, tx, tg, None, None, tmean, tinv, True, EPS, [True, True, True]
        )

    tasks: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {
            "copy": copies(x, copied),
            "batchnorm": lambda: bn.batch_norm(x, gamma, beta, axis=axis, eps=EPS, out=y, threads=threads),
            "PyTorch": torch_forward,
        },
        "backward": {
            "copy": copies(x, copied),
            "batchnorm": lambda: bn.batch_norm_backward(dy, x, saved, gamma, out=dx, threads=threads),
            "PyTorch": torch_backward,
        },
    }
    torch_forward()
    np.testing.assert_allclose(as_torch(y), ty, atol=1e-4)
    bn.batch_norm_backward(dy, x, saved, gamma, out=dx)
    np.testing.assert_allclose(as_torch(dx), torch_backward()[0], atol=1e-4)
    return tasks


def measure(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in tqdm(range(runs + 2), leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run >= 2:  # the first runs warm up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(numerator: list[float], denominator: list[float]) -> str:
    """Median and quartiles of the pairwise ratios."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(numerator, denominator, strict=True)], n=4)
    return f"{middle:5.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=(32, 256, 56, 56), metavar=("N", "C", "H", "W"))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=bn.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    shape = "x".join(map(str, arguments.shape))
    print(f"{shape} f32, {arguments.threads} threads, {arguments.runs} runs: median (quartiles)")
    print(f"{'':28}{'batchnorm / copy':>20}{'PyTorch / copy':>20}{'PyTorch / batchnorm':>22}")
    for channels_last in (False, True):
        for task, calls in cases(tuple(arguments.shape), channels_last, arguments.threads).items():
            seconds = measure(calls, arguments.runs)
            ours, theirs, copy = seconds["batchnorm"], seconds["PyTorch"], seconds["copy"]
            layout = "channels-last" if channels_last else "channels-first"
            print(
                f"{layout + ' ' + task:28}{quartiles(ours, copy):>20}{quartiles(theirs, copy):>20}"
                f"{quartiles(theirs, ours):>22}"
            )


if __name__ == "__main__":
    main()
