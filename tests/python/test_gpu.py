"""What takes a real GPU, and PyTorch to hold its memory: graphs, streams, races for memory, large tensors.

`test_cuda.py` has the numbers, there and on an emulation.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import batchnorm as bn

if not bn.cuda.is_available():
    pytest.skip(f"no GPU: {bn.cuda.unavailable_because()}", allow_module_level=True)
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("PyTorch has no CUDA", allow_module_level=True)

LAYOUTS = {"NCHW": ((32, 48, 28, 28), 1), "NHWC": ((32, 28, 28, 48), -1), "planes": ((64, 128, 7, 7), 1)}


@pytest.fixture(params=LAYOUTS)
def tensors(request):
    """x, dy, gamma, beta and axis."""
    shape, axis = LAYOUTS[request.param]
    generator = torch.Generator("cuda").manual_seed(1)
    x, dy = (torch.randn(shape, device="cuda", generator=generator) for _ in range(2))
    gamma, beta = (torch.rand(shape[axis], device="cuda", generator=generator) for _ in range(2))
    return x, dy, gamma, beta, axis


def step(x, dy, gamma, beta, axis, y, dx):
    """Forward and backward: all that they write."""
    _, saved = bn.batch_norm(x, gamma, beta, axis=axis, activation="relu", out=y)
    grads = bn.batch_norm_backward(dy, x, saved, gamma, out=dx)
    return y, dx, grads.dgamma, grads.dbeta, saved.mean, saved.var


def bits(results):
    return [r.cpu().numpy().tobytes() for r in results]


def test_bits_of_20_runs(tensors):
    x = tensors[0]
    first = bits(step(*tensors, torch.empty_like(x), torch.empty_like(x)))
    for _ in range(19):
        assert bits(step(*tensors, torch.empty_like(x), torch.empty_like(x))) == first


def test_graph(tensors):
    """A captured step replays on new data, with the bits of a call."""
    x, y, dx = tensors[0], torch.empty_like(tensors[0]), torch.empty_like(tensors[0])
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        step(*tensors, y, dx)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*tensors, y, dx)
    for seed in (2, 3):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        torch.cuda.synchronize()
        replayed = bits(results)
        assert replayed == bits(step(*tensors, torch.empty_like(x), torch.empty_like(x)))


def test_two_streams_at_once(tensors):
    x = tensors[0]
    expected = bits(step(*tensors, torch.empty_like(x), torch.empty_like(x)))
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(step(*tensors, torch.empty_like(x), torch.empty_like(x)))
    torch.cuda.synchronize()
    for one in results:
        assert bits(one) == expected


def test_a_producer_that_is_late():
    """The call is put on the stream that still computes x."""
    stream = torch.cuda.Stream()
    values = torch.randn(32, 16, 20, 20)
    expected, _ = bn.batch_norm(values.numpy())
    with torch.cuda.stream(stream):
        x = torch.zeros(values.shape, device="cuda")
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        x.copy_(values.pin_memory(), non_blocking=True)
        y, _ = bn.batch_norm(x)
    stream.synchronize()
    np.testing.assert_allclose(y.cpu().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [1, -1])
def test_more_than_2_to_the_31_elements(axis):
    shape = (2**16 + 3, 8, 64, 64) if axis == 1 else (2**16 + 3, 64, 64, 8)
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("takes 14 GB of the GPU's memory")
    x = torch.ones(shape, dtype=torch.bfloat16, device="cuda")
    x[-1] = 3
    y, saved = bn.batch_norm(x, axis=axis, out=torch.empty_like(x))
    share = 1 / shape[0]
    np.testing.assert_allclose(saved.mean.cpu(), np.full(8, 1 + 2 * share), rtol=1e-9)
    expected = 2 * (1 - share) / np.sqrt(4 * share * (1 - share) + 1e-5)
    assert float(y[-1, 0, 0, 0]) == pytest.approx(expected, rel=0.01)
    assert float(y[-1].float().std()) == 0


def test_out_of_memory_leaves_the_context_usable():
    x = torch.randn(64, 64, device="cuda")
    torch.cuda.empty_cache()
    large = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.6), dtype=torch.uint8, device="cuda")
    large = large[: large.numel() // 128 * 128].view(torch.float16).view(-1, 64)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        bn.batch_norm(large)
    del large
    y, _ = bn.batch_norm(x, axis=-1)
    assert torch.isfinite(y).all()


SANITIZED = """
import torch, batchnorm as bn
for shape, axis in (((4, 6, 30, 31), 1), ((40, 16, 7, 7), 1), ((300, 24), -1), ((300, 5), -1)):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape, device="cuda").to(dtype)
        y, saved = bn.batch_norm(x, axis=axis, activation="relu", residual=x)
        bn.batch_norm_backward(x, x, saved, need_dresidual=True)
        bn.normalize(x, bn.moments(x, axis=axis), axis=axis)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool):
    sanitizer = shutil.which("compute-sanitizer") or pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
