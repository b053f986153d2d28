"""Arrays on a GPU through the functions: PyTorch's, CuPy's and JAX's."""

import copy
import pickle

import gpu_arrays
import masks
import ml_dtypes
import numpy as np
import pytest
import reference
from checks import random_params, same_bits
from reference import assert_matches

import batchnorm as bn

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)

# name: (shape, axis, view of an array of that shape, on the GPU and on the CPU)
CASES = {
    "NCHW": ((4, 3, 5, 6), 1, None),
    "NHWC": ((4, 5, 6, 3), -1, None),
    "NC": ((33, 7), 1, None),
    "two kept axes": ((4, 3, 5, 6), (0, 2), None),
    "every other channel": ((4, 9, 5, 6), 1, lambda lib, x: x[:, ::2]),
    "channels-last": ((4, 5, 6, 9), 1, lambda lib, x: lib.transpose(x, (0, 3, 1, 2))),
    "packed": ((4, 3, 5, 12), 1, lambda lib, x: x[..., ::2]),
    "rows of several chunks": ((3, 2, 90, 91), 1, None),
    "lanes of several chunks": ((1500, 9), 1, None),
    "crop": ((4, 3, 7, 8), 1, lambda lib, x: x[:, :, 1:-1, 2:-1]),
}
PLAIN = "NCHW"


class Host:
    @staticmethod
    def transpose(array, axes):
        return array.transpose(axes)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(reference, "on_gpu", True)


@pytest.fixture(params=gpu_arrays.LIBRARIES)
def lib(request):
    return gpu_arrays.arrays_of(request.param)


@pytest.fixture(params=("torch", "cupy"))
def writable(request):
    return gpu_arrays.arrays_of(request.param)


def inputs(lib, case=PLAIN, dtype=np.float32, seed=0):
    """x and dy on the GPU, x and dy on the CPU, the axis."""
    shape, axis, view = CASES[case]
    if view and not lib.writable:
        pytest.skip("JAX's arrays have no strides")
    rng = np.random.default_rng(seed)
    arrays = [(rng.normal(mean, 2, shape)).astype(dtype) for mean in (3, 0)]
    view = view or (lambda lib, x: x)
    return (*(view(lib, lib.put(a)) for a in arrays), *(view(Host, a) for a in arrays), axis)


def on_gpu(lib, array, like=None, device=0):
    """Whether it is a fresh array of the library on the device; its values."""
    assert lib.is_array(array)
    assert lib.device(array) == device
    return lib.host(array)


def check(lib, got, want, name):
    got = on_gpu(lib, got)
    assert_matches(got, want, name)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("case", CASES)
def test_all_functions(lib, case, dtype):
    x, dy, hx, hdy, axis = inputs(lib, case, dtype)
    host_gamma, host_beta = random_params(hx, axis)
    gamma, beta = lib.put(host_gamma), lib.put(host_beta)
    want = reference.forward(hx, axis, host_gamma, host_beta)
    want_grads = reference.backward(hdy, hx, axis, host_gamma)

    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    if lib.writable:
        assert lib.strides(y) == np.empty_like(hx).strides
    host_y = check(lib, y, want.y, "y")
    for name in ("mean", "var", "inv_std"):
        assert check(lib, getattr(saved, name), getattr(want, name), name).dtype == np.float64
    assert saved.count == want.count

    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    for name in ("dx", "dgamma", "dbeta"):
        got = check(lib, getattr(grads, name), getattr(want_grads, name), name)
        assert got.dtype == np.dtype(dtype)

    m = bn.moments(x, axis=axis)
    assert m.count == want.count
    check(lib, m.mean, want.mean, "moments.mean")
    y_split, saved_split = bn.normalize(x, m, gamma, beta, axis=axis)
    assert same_bits(on_gpu(lib, y_split), host_y)
    assert same_bits(lib.host(saved_split.inv_std), lib.host(saved.inv_std))
    assert saved_split.count == want.count
    sums = bn.grad_sums(dy, x, saved)
    assert sums.count == want.count
    for name, value in zip(
        ("sum_dy", "sum_dy_xmu"), reference.grad_sums(hdy, hx, lib.host(saved.mean), axis), strict=True
    ):
        check(lib, getattr(sums, name), value, name)
    split = bn.input_grad(dy, x, saved, sums, gamma)
    assert all(same_bits(on_gpu(lib, a), lib.host(b)) for a, b in zip(split[:3], grads[:3], strict=True))

    mean, var = lib.host(saved.mean), lib.host(saved.var)
    y = bn.batch_norm_inference(x, saved.mean, saved.var, gamma, beta, axis=axis)
    check(lib, y, reference.inference(hx, mean, var, axis, host_gamma, host_beta), "inference")
    grads = bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var, gamma, axis=axis)
    want_grads = reference.inference_backward(hdy, hx, mean, var, axis, host_gamma)
    for name in ("dx", "dgamma", "dbeta"):
        check(lib, getattr(grads, name), getattr(want_grads, name), name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("case", ["NCHW", "NHWC", "channels-last"])
def test_inplace_and_backward_from_the_output(writable, case, dtype):
    lib = writable
    x, dy, hx, hdy, axis = inputs(lib, case, dtype)
    host_gamma, host_beta = random_params(hx, axis)
    gamma, beta = lib.put(host_gamma), lib.put(host_beta)
    y = bn.batch_norm(x, gamma, beta, axis=axis)[0]
    want = reference.backward(hdy, hx, axis, host_gamma)
    saved = bn.batch_norm_inplace(x, gamma, beta, axis=axis)
    assert same_bits(lib.host(x), lib.host(y))
    grads = bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta)
    scale = np.abs(host_beta / host_gamma).max() + 1
    for name in ("dx", "dgamma", "dbeta"):
        exact = getattr(want, name).exact
        error = np.abs(on_gpu(lib, getattr(grads, name)) - exact).max()
        assert error <= 50 * np.finfo(dtype).eps * scale * np.abs(exact).max()
    same = bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta, out=dy)
    assert same.dx is dy
    assert same_bits(lib.host(dy), lib.host(grads.dx))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("case", ["NCHW", "NHWC", "NC", "channels-last"])
def test_residual_activation_and_mask(lib, case, dtype, activation):
    x, dy, hx, hdy, axis = inputs(lib, case, dtype)
    residual = inputs(lib, case, dtype, seed=1)[0]
    slope = 0.0 if activation == "relu" else 0.25
    options = {"axis": axis, "residual": residual}
    host_gamma, host_beta = random_params(hx, axis)
    gamma, beta = lib.put(host_gamma), lib.put(host_beta)
    z = lib.host(bn.batch_norm(x, gamma, beta, **options)[0])
    y, saved = bn.batch_norm(x, gamma, beta, activation=activation, negative_slope=0.25, **options)
    want, through = reference.through_activation(z, activation, slope, np.float32)
    got = on_gpu(lib, y)
    assert np.all(np.abs(got - want) <= np.finfo(dtype).eps * np.abs(want))
    assert same_bits(on_gpu(lib, saved.mask), masks.packed(through, hx, axis))
    assert saved.activation == activation

    grads = bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True)
    want_grads = reference.backward(hdy, hx, axis, host_gamma, through=through, slope=slope)
    for name in ("dx", "dgamma", "dbeta"):
        check(lib, getattr(grads, name), getattr(want_grads, name), name)
    want_dresidual = np.where(through, hdy, (slope * hdy.astype(np.float32)).astype(dtype))
    assert np.array_equal(on_gpu(lib, grads.dresidual), want_dresidual)

    by_hand = bn.Saved(
        saved.mean, saved.inv_std, axis=axis, activation=activation, negative_slope=0.25, mask=saved.mask
    )
    for again in (by_hand, pickle.loads(pickle.dumps(saved)) if lib.writable else by_hand):
        assert same_bits(lib.host(bn.batch_norm_backward(dy, x, again, gamma).dx), lib.host(grads.dx))

    settings = {"axis": axis, "activation": activation, "negative_slope": 0.25}
    y = bn.batch_norm_inference(x, saved.mean, saved.var, gamma, beta, residual=residual, **settings)
    grads = bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var, gamma, y=y, **settings)
    let_through = ~(lib.host(y) <= 0)
    scaled = np.where(let_through, hdy, (slope * hdy.astype(np.float32))).astype(np.float64)
    want_dx = reference.inference_backward(
        scaled, hx.astype(np.float64), lib.host(saved.mean), lib.host(saved.var), axis, host_gamma
    ).dx.exact
    eps = np.finfo(dtype).eps
    assert np.all(np.abs(on_gpu(lib, grads.dx) - want_dx) <= 4 * eps * np.abs(want_dx) + eps**2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: np.dtype(dtype).name)
def test_weights(lib, dtype):
    x, dy, hx, hdy, axis = inputs(lib, dtype=dtype)
    rng = np.random.default_rng(5)
    sums = {}
    for name, host_weights in {
        "bools": rng.random(hx.shape[:1] + hx.shape[2:]) < 0.5,
        "ints": rng.integers(0, 3, hx.shape[:1] + hx.shape[2:]),
        "floats": rng.random(hx.shape[:1] + hx.shape[2:]),
        "broadcast": rng.random((hx.shape[0], 1, 1, 1)),
    }.items():
        wide = host_weights if host_weights.ndim == hx.ndim else host_weights[:, None]
        wide = wide.astype(dtype if np.dtype(dtype).itemsize == 8 else np.float32)
        weights = lib.put(host_weights)
        y, saved = bn.batch_norm(x, axis=axis, weights=weights)
        want = reference.forward(hx, axis, weights=wide)
        check(lib, y, want.y, "y")
        check(lib, saved.mean, want.mean, "mean")
        assert np.allclose(on_gpu(lib, saved.count), want.count, rtol=1e-12)
        dx = bn.batch_norm_backward(dy, x, saved).dx
        check(lib, dx, reference.backward(hdy, hx, axis, weights=wide, grad_dtype=np.float64).dx, "dx")
        m = bn.moments(x, axis=axis, weights=weights)
        assert np.allclose(on_gpu(lib, m.count), want.count, rtol=1e-12)
        if lib.writable:
            assert same_bits(lib.host(bn.normalize(x, m, axis=axis, weights=weights)[0]), lib.host(y))
            s = bn.grad_sums(dy, x, saved)
            assert same_bits(lib.host(bn.input_grad(dy, x, saved, s).dx), lib.host(dx))
        sums[name] = lib.host(saved.mean)
    assert not same_bits(sums["bools"], sums["floats"])
    # Sequences are put on the GPU.
    y = bn.batch_norm(x, axis=axis, weights=wide.tolist())[0]
    assert same_bits(lib.host(y), lib.host(bn.batch_norm(x, axis=axis, weights=lib.put(wide))[0]))


@pytest.mark.parametrize("group_size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", ["NCHW", "NHWC"])
def test_group_size(lib, case, group_size):
    x, dy, hx, hdy, axis = inputs(lib, case)
    host_gamma, host_beta = random_params(hx, axis)
    gamma, beta = lib.put(host_gamma), lib.put(host_beta)
    want = reference.forward(hx, axis, host_gamma, host_beta, group_size=group_size)
    _y, saved = bn.batch_norm(x, gamma, beta, axis=axis, group_size=group_size, activation="leaky_relu")
    z = bn.batch_norm(x, gamma, beta, axis=axis, group_size=group_size)[0]
    check(lib, z, want.y, "y")
    check(lib, saved.mean, want.mean, "mean")
    assert np.array_equal(on_gpu(lib, saved.count), want.count)
    through = ~(lib.host(z) <= 0)
    assert same_bits(lib.host(saved.mask), masks.packed(through, hx, axis, group_size))
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    want = reference.backward(hdy, hx, axis, host_gamma, group_size=group_size, through=through, slope=0.01)
    for name in ("dx", "dgamma", "dbeta"):
        check(lib, getattr(grads, name), getattr(want, name), name)


def test_statistics_add_up(writable):
    lib = writable
    x, dy, hx, hdy, _ = inputs(lib)
    parts = [bn.moments(x[:1]), bn.moments(x[1:])]
    m = sum(parts)
    want = reference.forward(hx)
    check(lib, m.mean, want.mean, "mean")
    check(lib, m.var(), want.var, "var")
    assert m.count == want.count
    with pytest.raises(ValueError, match="needs a larger count"):
        m.var(correction=want.count)
    saved = [bn.normalize(part, m)[1] for part in (x[:1], x[1:])]
    assert saved[0].count == want.count
    sums = bn.grad_sums(dy[:1], x[:1], saved[0]) + bn.grad_sums(dy[1:], x[1:], saved[1])
    dx = bn.input_grad(dy[1:], x[1:], saved[1], bn.GradSums(m.count, sums.sum_dy, sums.sum_dy_xmu)).dx
    want_dx = reference.backward(hdy, hx).dx
    check(lib, dx, reference.Value(want_dx.exact[1:], want_dx.error[1:]), "dx")
    for count in (0, -1.0):
        with pytest.raises(ValueError, match=f"normalize: count must be positive, got {count:g}"):
            bn.normalize(x, bn.Moments(m.mean, m.m2, count))
        with pytest.raises(ValueError, match=f"input_grad: sums.count must be positive, got {count:g}"):
            bn.input_grad(dy, x, bn.batch_norm(x)[1], bn.GradSums(count, sums.sum_dy, sums.sum_dy_xmu))
    weights = np.arange(120).reshape(4, 5, 6) % 3
    merged = sum(bn.moments(x[i : i + 2], weights=lib.put(weights[i : i + 2])) for i in (0, 2))
    want = reference.forward(hx, weights=weights[:, None])
    check(lib, merged.mean, want.mean, "mean")
    check(lib, merged.var(), want.var, "var")
    # All of one statistic, of rank 0.
    whole = bn.moments(x, axis=(), weights=lib.put(weights[:, None]))
    assert lib.is_array(whole.count)
    assert lib.is_array(bn.normalize(x, whole, axis=())[1].count)


def test_kinds_of_parameters(lib):
    x, dy, _hx, _hdy, _axis = inputs(lib)
    gamma, beta = [0.5, -1.5, 2.0], [1.0, 2.0, 3.0]
    y, saved = bn.batch_norm(x, gamma, beta)
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):  # which hold these exactly
        params = (lib.put(np.array(p, dtype)) for p in (gamma, beta))
        assert same_bits(lib.host(bn.batch_norm(x, *params)[0]), lib.host(y))
        grads = bn.batch_norm_backward(dy, x, saved, lib.put(np.array(gamma, dtype)))
        assert on_gpu(lib, grads.dgamma).dtype == on_gpu(lib, grads.dbeta).dtype == np.dtype(dtype)
    assert lib.host(bn.batch_norm_backward(dy, x, saved, gamma).dgamma).dtype == np.float32
    one = bn.batch_norm(x, 2.0, np.float64(0.5))[0]
    assert same_bits(lib.host(one), lib.host(bn.batch_norm(x, [2.0] * 3, [0.5] * 3)[0]))
    frozen = bn.batch_norm_inference(x, [1.0, 2.0, 3.0], 4.0)
    same = bn.batch_norm_inference(x, lib.put(np.array([1.0, 2.0, 3.0])), lib.put(np.array([4.0] * 3)))
    assert same_bits(lib.host(frozen), lib.host(same))


def test_outputs(writable):
    lib = writable
    x, dy, hx, _, _ = inputs(lib)
    y, saved = bn.batch_norm(x)
    out = lib.put(np.zeros_like(hx))
    got, _ = bn.batch_norm(x, out=out)
    assert got is out
    assert same_bits(lib.host(out), lib.host(y))
    into_x = lib.put(hx)
    assert bn.batch_norm(into_x, out=into_x)[0] is into_x
    assert same_bits(lib.host(into_x), lib.host(y))
    pair = lib.put(np.zeros_like(hx)), lib.put(np.zeros_like(hx))
    want = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
    got = bn.batch_norm_backward(dy, x, saved, need_dresidual=True, out=pair)
    assert (got.dx, got.dresidual) == pair or (got.dx is pair[0] and got.dresidual is pair[1])
    assert same_bits(lib.host(pair[0]), lib.host(want.dx))
    assert same_bits(lib.host(pair[1]), lib.host(want.dresidual))
    with pytest.raises(ValueError, match="out overlaps x"):
        bn.batch_norm(x[1:], out=x[:-1])
    with pytest.raises(ValueError, match="out has shape"):
        bn.batch_norm(x, out=out[1:])


def test_results_are_the_same_from_run_to_run(lib):
    x, dy, _, _, axis = inputs(lib, "NHWC")
    results = []
    for _ in range(3):
        y, saved = bn.batch_norm(x, axis=axis)
        results.append([lib.host(y), lib.host(saved.var), lib.host(bn.batch_norm_backward(dy, x, saved).dgamma)])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


@pytest.mark.parametrize("shape", [(0, 3, 4), (4, 0, 3)])
def test_empty(lib, shape):
    x = lib.put(np.zeros(shape, np.float32))
    y, saved = bn.batch_norm(x)
    assert y.shape == x.shape
    assert not np.any(on_gpu(lib, saved.mean))
    grads = bn.batch_norm_backward(x, x, saved)
    assert np.array_equal(on_gpu(lib, grads.dgamma), np.zeros(shape[1], np.float32))
    assert on_gpu(lib, bn.moments(x).m2).shape == shape[1:2]


def test_saved(writable):
    lib = writable
    x, dy, hx, hdy, _axis = inputs(lib)
    _, saved = bn.batch_norm(x, activation="relu")
    assert "Saved(mean=" in repr(saved)
    for again in (pickle.loads(pickle.dumps(saved)), copy.deepcopy(saved)):
        for name in ("mean", "var", "inv_std", "mask"):
            assert same_bits(on_gpu(lib, getattr(again, name)), lib.host(getattr(saved, name)))
    by_hand = bn.Saved(saved.mean, lib.host(saved.inv_std).tolist())
    assert same_bits(on_gpu(lib, by_hand.inv_std), lib.host(saved.inv_std))
    assert by_hand.var is None
    assert by_hand.count is None
    counted = bn.Saved(saved.mean, saved.inv_std, saved.var, lib.put(np.full(3, 120.0)))
    assert np.all(on_gpu(lib, counted.count) == 120)
    with pytest.raises(ValueError, match="inv_std has shape"):
        bn.Saved(saved.mean, saved.inv_std[1:])
    with pytest.raises(ValueError, match="mask is on the CPU"):
        bn.Saved(saved.mean, saved.inv_std, mask=np.zeros(60, np.uint8))
    with pytest.raises(TypeError, match="mask has dtype"):
        bn.Saved(saved.mean, saved.inv_std, mask=saved.mean)
    with pytest.raises(ValueError, match="saved is on the CPU, expected cuda:0, as x is"):
        bn.batch_norm_backward(dy, x, bn.Saved(lib.host(saved.mean), lib.host(saved.inv_std)))
    with pytest.raises(ValueError, match="saved is on cuda:0, expected the CPU, as x is"):
        bn.batch_norm_backward(hdy, hx, saved)


# ------------------------------------------------------------------------------------------------------------ streams


def test_streams(writable):
    lib = writable
    x, dy, _, _, _ = inputs(lib)
    want, saved = bn.batch_norm(x, [1.0, 2.0, 3.0])
    stream = lib.new_stream()
    lib.synchronize()
    objects = [stream] if hasattr(stream, "__cuda_stream__") else []  # of newer versions
    for given in (*objects, lib.handle(stream), WithStream((0, lib.handle(stream))), 0, np.int64(0)):
        y, again = bn.batch_norm(x, [1.0, 2.0, 3.0], stream=given)
        grads = bn.batch_norm_backward(dy, x, again, stream=given)
        m = bn.moments(x, stream=given)
        lib.synchronize()
        assert same_bits(lib.host(y), lib.host(want))
        assert same_bits(lib.host(grads.dx), lib.host(bn.batch_norm_backward(dy, x, saved).dx))
        assert same_bits(lib.host(m.mean), lib.host(saved.mean))
    with lib.current(stream):
        y = bn.batch_norm(x, [1.0, 2.0, 3.0])[0]
    lib.synchronize()
    assert same_bits(lib.host(y), lib.host(want))


@pytest.mark.skipif(not gpu_arrays.FAKE, reason="the stand-ins alone tell whose memory an array is")
def test_new_arrays_are_the_stream_s():
    for name in ("torch", "cupy"):
        lib = gpu_arrays.arrays_of(name)
        x, *_ = inputs(lib)
        stream = lib.new_stream()
        y, saved = bn.batch_norm(x, activation="relu", stream=stream)
        for array in (y, saved.mean, saved.var, saved.inv_std, saved.mask):
            assert array.stream == lib.handle(stream)
            if name == "torch":
                assert set(array.recorded) == {0, lib.handle(stream)}
        with pytest.raises(ValueError, match="gamma has shape"):
            bn.batch_norm(x, [1.0, 2.0], stream=stream)
        assert bn.batch_norm(x)[0].stream == 0
        with lib.current(stream):
            assert bn.batch_norm(x)[0].stream == lib.handle(stream)


class WithStream:
    def __init__(self, answer):
        self.answer = answer

    def __cuda_stream__(self):
        return self.answer


def test_what_is_no_stream(lib):
    x, _, hx, _, _ = inputs(lib)
    for stream, error, message in (
        ("0", TypeError, "stream is str, expected an int"),
        (1.5, TypeError, "stream is float, expected an int"),
        (True, TypeError, "stream is bool, expected an int"),
        (-1, ValueError, "stream is -1"),
        (2**64, ValueError, "stream is 18446744073709551616"),
        (WithStream((1, 0)), ValueError, r"__cuda_stream__\(\) gives \(1, 0\), expected \(0, handle\)"),
        (WithStream((0,)), ValueError, "expected"),
    ):
        with pytest.raises(error, match=message):
            bn.batch_norm(x, stream=stream)
    lib.host(bn.batch_norm(x, stream=WithStream((0, 0)))[0])
    with pytest.raises(ValueError, match="stream is given, but x is on the CPU"):
        bn.batch_norm(hx, stream=0)


@pytest.mark.skipif(not gpu_arrays.FAKE, reason="the stand-in alone tells")
def test_jax_is_waited_for():
    lib = gpu_arrays.arrays_of("jax")
    x, *_ = inputs(lib)
    waited_by = lib.module.waited_by
    waited_by.clear()
    bn.batch_norm(x)
    assert waited_by[0] == 1  # the default stream
    waited_by.clear()
    bn.batch_norm(x, stream=2)
    assert waited_by[0] == 2


# ------------------------------------------------------------------------------------------------------------- errors


def test_other_kinds_of_array(lib):
    x, dy, hx, hdy, _ = inputs(lib)
    _y, saved = bn.batch_norm(x)
    kind = {"torch": "a torch tensor", "cupy": "a CuPy array", "jax": "a JAX array"}[lib.name]
    for arguments in ({"gamma": hx[0, :, 0, 0]}, {"residual": hx}, {"weights": hx[:, 0]}, {"out": hx.copy()}):
        with pytest.raises(TypeError, match=f"{next(iter(arguments))} is a NumPy array, expected {kind}, as x is"):
            bn.batch_norm(x, **arguments)
    with pytest.raises(TypeError, match=f"dy is a NumPy array, expected {kind}"):
        bn.batch_norm_backward(hdy, x, saved)
    with pytest.raises(TypeError, match=f"dy is {kind}, expected a NumPy array"):
        bn.batch_norm_backward(dy, hx, bn.batch_norm(hx)[1])
    with pytest.raises(TypeError, match=r"x has dtype int32, expected float32|x has dtype torch\.int32"):
        bn.batch_norm(lib.put(hx.astype(np.int32)))
    with pytest.raises(TypeError, match=r"gamma has dtype .*int32, expected a float type"):
        bn.batch_norm(x, lib.put(np.ones(3, np.int32)))
    with pytest.raises(TypeError, match=r"weights (has dtype complex64|is complex)"):
        bn.batch_norm(x, weights=lib.put(np.ones((4, 5, 6), np.complex64)))
    with pytest.raises(ValueError, match="gamma has shape"):
        bn.batch_norm(x, lib.put(np.ones(4, np.float32)))
    with pytest.raises(ValueError, match="threads is not taken on a GPU"):
        bn.batch_norm(x, threads=1)


def test_devices(lib):
    if not gpu_arrays.FAKE and bn.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x, _dy, hx, hdy, _ = inputs(lib)
    other = lib.put(hx, 1)
    _, saved = bn.batch_norm(x)
    for arguments in (
        {"gamma": lib.put(np.ones(3), 1)},
        {"residual": other},
        {"weights": lib.put(np.ones((4, 5, 6)), 1)},
        *([{"out": other}] if lib.writable else []),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} is on cuda:1, expected cuda:0, as x is"):
            bn.batch_norm(x, **arguments)
    with pytest.raises(ValueError, match="dy is on cuda:1, expected cuda:0"):
        bn.batch_norm_backward(other, x, saved)
    if bn.cuda.device_count() < 2:
        return
    with pytest.raises(ValueError, match="saved is on cuda:0, expected cuda:1"):
        bn.batch_norm_backward(lib.put(hdy, 1), other, saved)
    y, there = bn.batch_norm(other)
    grads = bn.batch_norm_backward(lib.put(hdy, 1), other, there, [1.0, 2.0, 3.0])
    for array in (y, there.mean, there.var, grads.dx, grads.dgamma):
        assert lib.device(array) == 1
    again = bn.batch_norm(x)[0]  # where the thread was before
    assert lib.device(again) == 0
    assert same_bits(lib.host(y), lib.host(again))


def test_a_tensor_on_the_cpu_beside_one_on_the_gpu():
    lib = gpu_arrays.arrays_of("torch")
    torch = pytest.importorskip("torch")
    x, dy, hx, _, _ = inputs(lib)
    _, saved = bn.batch_norm(x)
    there = torch.from_numpy(hx)
    with pytest.raises(ValueError, match="gamma is on the CPU, expected cuda:0, as x is"):
        bn.batch_norm(x, torch.ones(3))
    with pytest.raises(ValueError, match="dy is on the CPU, expected cuda:0, as x is"):
        bn.batch_norm_backward(there, x, saved)
    with pytest.raises(ValueError, match="dy is on cuda:0, expected the CPU, as x is"):
        bn.batch_norm_backward(dy, there, bn.batch_norm(there)[1])
    with pytest.raises(TypeError, match="x requires grad"):
        bn.batch_norm(x.clone().requires_grad_())


def test_arrays_that_cannot_be_written_to():
    lib = gpu_arrays.arrays_of("jax")
    x, _, hx, _, _ = inputs(lib)
    with pytest.raises(ValueError, match="out is a JAX array, which cannot be written to"):
        bn.batch_norm(x, out=lib.put(hx))
    with pytest.raises(ValueError, match="x is a JAX array, which cannot be written to"):
        bn.batch_norm_inplace(x)


def test_what_computes_on_the_cpu_alone(lib):
    x, dy, _, _, _ = inputs(lib)
    _, saved = bn.batch_norm(x)
    with pytest.raises(RuntimeError, match="batch_norm_jvp computes on the CPU alone, and x is on cuda:0"):
        bn.batch_norm_jvp(dy, x, saved)
    with pytest.raises(RuntimeError, match="batch_norm_double_backward computes on the CPU alone, and x is on cuda:0"):
        bn.batch_norm_double_backward(dy, dy, x, saved)
    if lib.name == "jax":
        return
    for layer in (bn.BatchNorm(3), bn.BatchNorm(3).eval(), bn.BatchNorm(3).freeze()):
        with pytest.raises(RuntimeError, match="x is on a GPU, and layers compute on the CPU alone"):
            layer(x)
    with pytest.raises(RuntimeError, match="population_statistics computes on the CPU alone"):
        bn.population_statistics(1, [x])
