"""No function copies an array: the process' peak memory does not grow by more than a small part of x.

Also arrays of more than 2**31 elements.
"""

import numpy as np
import pytest
from child import output_of

import batchnorm as bn

# Each in a process of its own. Not ru_maxrss, which begins with that of the process that started it: the kernel's
# high-water mark, set back once the arrays are there.
MEASURE = """
    import numpy as np, batchnorm as bn
    def status(field):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
    values = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    def array(*shape):
        return np.resize(values, shape)
    def out_like(x):
        out = np.empty_like(x)
        out[...] = 0  # now its pages are there
        return out
    warm = array(4, 8, 5, 6)
    bn.batch_norm_backward(warm, warm, bn.batch_norm(warm, threads=2)[1], threads=2)
    {arrays}
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    {calls}
    print((status("VmHWM") - before) / x.nbytes)
    """

FORWARD = "y, saved = bn.batch_norm(x, out=out, threads=2); m = bn.moments(x, threads=2); bn.normalize(x, m, out=out); "
FORWARD += "bn.batch_norm_inference(x, saved.mean, saved.var, out=out, threads=2)"
BACKWARD = "saved = bn.batch_norm(x, out=out)[1]; bn.batch_norm_backward(dy, x, saved, out=out, threads=2); "
BACKWARD += "bn.input_grad(dy, x, saved, bn.grad_sums(dy, x, saved), out=out); "
BACKWARD += "bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var, out=out)"

# name: how the arrays are made, x of about 200 MB
CASES = {
    "NCHW": "x = array(32, 64, 160, 160); dy = x; out = out_like(x)",
    "NHWC": "x = array(32, 160, 160, 64).transpose(0, 3, 1, 2); dy = x; out = out_like(x)",
    "columns": "x = array(32, 64, 160, 320)[..., ::2]; dy = x; out = out_like(x)",
    "channel slice": "x = array(32, 80, 160, 160)[:, 8:72]; dy = x; out = out_like(x)",
    "repeated": "x = np.broadcast_to(array(1, 64, 160, 160), (32, 64, 160, 160)); dy = x; out = out_like(x)",
    "strided out": "x = array(32, 64, 160, 160); dy = x; out = out_like(array(32, 64, 160, 320))[..., ::2]",
    "dy of another order": "x = array(32, 64, 160, 160); dy = array(32, 160, 160, 64).transpose(0, 3, 1, 2); "
    "out = out_like(dy)",
    "misaligned": "x = np.frombuffer(b'abc' + array(32, 64, 160, 160).tobytes(), np.float32, offset=3).reshape"
    "(32, 64, 160, 160); dy = x; out = out_like(x)",
    "in place": "x = array(32, 64, 160, 160); dy = x; out = x",
}


@pytest.mark.parametrize("calls", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_copied(case, calls):
    # The statistics of 64 channels, and the threads' scratch tiles of some 64 KB, are far below 1 %.
    assert float(output_of(MEASURE.format(arrays=CASES[case], calls=calls))) < 0.01


def test_the_measure_sees_a_copy():
    assert float(output_of(MEASURE.format(arrays=CASES["NCHW"], calls="y = x * 1"))) > 0.9


EVERYTHING = "s = dict(activation='leaky_relu', residual=dy, weights=w, group_size=5, threads=2); "
EVERYTHING += "y, saved = bn.batch_norm(x, out=out, **s); "
EVERYTHING += "bn.batch_norm_backward(dy, x, saved, need_dresidual=True, out=(out, other), threads=2); "
EVERYTHING += (
    "bn.batch_norm_inference_backward(dy, x, 0, 1, y=y, activation='relu', need_dresidual=True, out=(out, other))"
)


@pytest.mark.parametrize("case", ["NCHW", "columns", "dy of another order", "strided out"])
def test_nothing_is_copied_with_everything_on(case):
    """But there is a mask of one bit for each element."""
    weights = "; w = np.ones((32, 1, x.shape[2], x.shape[3]), np.float32); other = out_like(x)"
    assert float(output_of(MEASURE.format(arrays=CASES[case] + weights, calls=EVERYTHING))) < 1 / 32 + 0.01


def test_torch_tensors_are_not_copied():
    pytest.importorskip("torch")
    arrays = "import torch; x = torch.from_numpy(array(32, 64, 160, 160)); dy = x; out = torch.zeros_like(x)"
    arrays += "; bn.batch_norm(torch.from_numpy(warm))"
    assert float(output_of(MEASURE.format(arrays=arrays, calls=FORWARD + "; " + BACKWARD))) < 0.01


# ------------------------------------------------------------------------------------------------ 2**31 elements


@pytest.mark.parametrize("lanes", [False, True])
def test_more_than_two_to_the_31_elements(lanes):
    """A repeated row takes no memory."""
    row = np.arange(-(2**15), 2**15, dtype=np.float32).reshape(2, -1)
    copies = 2**15 + 5
    x = np.broadcast_to(row.T if lanes else row, (copies, *(row.T if lanes else row).shape))
    assert x.size > 2**31
    m = bn.moments(x, axis=-1 if lanes else 1)
    assert m.count == copies * 2**15
    wide = row.astype(float)
    # Sums of 2**30 values: a random walk of 2**15 steps, times what far pivots cost.
    assert np.allclose(m.mean, wide.mean(1), rtol=1e-10, atol=0)
    assert np.allclose(m.var(), wide.var(1), rtol=1e-10, atol=0)


def test_more_than_two_to_the_31_elements_in_one_axis():
    x = np.broadcast_to(np.float32(3), (2**31 + 7,))
    m = bn.moments(x, axis=())
    assert m.count == 2**31 + 7
    assert m.mean == 3
    assert m.m2 == 0


@pytest.mark.slow
def test_batch_norm_of_more_than_two_to_the_31_elements():
    """8.6 GB, written in place."""
    code = """
        import numpy as np, batchnorm as bn
        x = np.empty((2, 2**30 + 3), np.float32)
        for i in range(0, x.shape[1], 2**24):
            part = x[:, i : i + 2**24]
            part[...] = np.arange(part.shape[1]) % 8 + 10
        last = x[:, -3:].copy()
        y, saved = bn.batch_norm(x, [1, -2], [0, 5], axis=0, out=x)
        assert y is x and saved.count == 2**30 + 3
        mean, var = saved.mean[0], saved.var[0]
        assert abs(mean - 13.5) < 1e-7 and abs(var - 5.25) < 1e-6
        for at in (slice(None, 8), slice(-3, None)):
            source = np.arange(8) + 10 if at.stop == 8 else last[0]
            xhat = (source - mean) / np.sqrt(var + 1e-5)
            assert np.allclose(y[0, at], xhat, rtol=1e-5) and np.allclose(y[1, at], 5 - 2 * xhat, rtol=1e-5)
        print("done")
        """
    assert output_of(code, timeout=600) == "done"
