"""Every function against the reference: every rank, axis, size, layout and type."""

import itertools
import tempfile

import ml_dtypes
import numpy as np
import pytest
import reference
from cases import PATHS, VIEWS, misaligned, path_input, viewed
from checks import check_all, check_inference, random_like, random_params, same_bits, writers
from reference import assert_matches

import batchnorm as bn

HALVES = (np.float16, ml_dtypes.bfloat16)
DTYPES = (np.float32, np.float64, *HALVES)


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(dtype)


def memory_order(array):
    """The axes from slowest to fastest, those of one element left out."""
    return sorted((a for a in range(array.ndim) if array.shape[a] > 1), key=lambda a: -abs(array.strides[a]))


# ------------------------------------------------------------------------------------------------ shapes and axes

AXES = [
    (shape, axes)
    for shape in [(), (9,), (4, 5), (4, 5, 3), (3, 4, 5, 2), (3, 2, 4, 2, 5)]
    for count in range(len(shape) + 1)
    for axes in itertools.combinations(range(len(shape)), count)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes"), AXES)
def test_every_set_of_axes(shape, axes, dtype):
    check_all(normal(shape, dtype), axes)


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -2, -4, (-1, 0), (3, 1), (2, -4), [1, 2], np.int64(1)])
def test_axis_spellings(axis):
    x = normal((3, 4, 5, 2))
    canonical = tuple(sorted(int(a) % 4 for a in np.atleast_1d(axis)))
    y, saved = bn.batch_norm(x, axis=axis)
    want, want_saved = bn.batch_norm(x, axis=canonical)
    assert same_bits(y, want)
    assert same_bits(saved.mean, want_saved.mean)
    grads, want_grads = bn.batch_norm_backward(x, x, saved), bn.batch_norm_backward(x, x, want_saved)
    assert all(same_bits(a, b) for a, b in zip(grads[:3], want_grads[:3], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [*range(1, 71), 251, 322])
def test_channels(channels, dtype):
    if dtype in HALVES and 35 < channels < 60:
        return  # enough of vectors and their tails
    check_all(normal((11, channels), dtype), axis=-1)
    check_all(normal((3, channels, 5), dtype), axis=1)
    check_all(normal((channels, 7), dtype), axis=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65, 196])
def test_inner_sizes(inner, dtype):
    check_all(normal((4, 3, inner), dtype), axis=1)
    check_all(normal((2, 5, inner), dtype), axis=(0, 1))
    check_all(normal((3, 5, inner), dtype), axis=(0, 2))


@pytest.mark.parametrize("eps", [1e-3, 1e-12, 10])
def test_eps(eps):
    check_all(normal((6, 5, 4)), eps=eps)


@pytest.mark.parametrize("path", PATHS)
def test_paths(path):
    x, axis = path_input(path)
    check_all(x, axis)


@pytest.mark.parametrize("path", [p for p in PATHS if np.prod(PATHS[p][0]) < 400_000])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_paths_in_other_types(path, dtype):
    x, axis = path_input(path, dtype)
    check_all(x, axis)


# -------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [1, -1, (), (0, 2)])
@pytest.mark.parametrize("view", VIEWS)
def test_views(view, axis, dtype):
    x = viewed(view, dtype)
    before = np.array(x, subok=False)
    check_all(x, axis, dy=viewed(view, dtype, seed=5))
    assert same_bits(x, before)


@pytest.mark.parametrize("dy_view", ["Fortran order", "channels last", "HWCN", "all reversed", "misaligned"])
@pytest.mark.parametrize("x_view", ["C order", "channels last", "packed records"])
def test_dy_of_another_memory_order(x_view, dy_view):
    for axis in (1, 3, (1, 2)):
        check_all(viewed(x_view), axis, dy=viewed(dy_view, seed=5))


@pytest.mark.parametrize("view", ["misaligned", "packed records"])
def test_memory_layout_does_not_change_the_bits(view):
    x, moved = viewed("C order"), viewed(view)
    dy = random_like(x)
    y, saved = bn.batch_norm(x)
    moved_y, moved_saved = bn.batch_norm(moved)
    assert same_bits(moved_y, y)
    assert same_bits(bn.batch_norm_backward(dy, moved, moved_saved).dx, bn.batch_norm_backward(dy, x, saved).dx)
    for other in (np.asfortranarray(dy), misaligned(dy), dy[::-1].copy()[::-1]):
        assert same_bits(bn.batch_norm_backward(other, x, saved).dx, bn.batch_norm_backward(dy, x, saved).dx)


@pytest.mark.parametrize(
    "view", [v for v in VIEWS if "repeated" not in v and v not in ("one value for all", "sliding windows")]
)
def test_outputs_have_the_memory_order_of_x(view):
    x = viewed(view)
    y, saved = bn.batch_norm(x)
    dy = random_like(x)
    stats = saved.mean, saved.var
    outputs = {
        "batch_norm": y,
        "normalize": bn.normalize(x, bn.moments(x))[0],
        "inference": bn.batch_norm_inference(x, *stats),
        "backward": bn.batch_norm_backward(dy, x, saved).dx,
        "inference_backward": bn.batch_norm_inference_backward(dy, x, *stats).dx,
        "input_grad": bn.input_grad(dy, x, saved, bn.grad_sums(dy, x, saved)).dx,
    }
    for name, output in outputs.items():
        assert type(output) is np.ndarray, name
        assert memory_order(output) == memory_order(x), name
        assert output.flags.writeable, name
        assert not np.shares_memory(output, x), name


def test_memmap():
    with tempfile.TemporaryFile() as file:
        file.write(normal((4, 5, 6)).tobytes())
        file.flush()
        x = np.memmap(file, np.float32, "r", shape=(4, 5, 6))
        assert not x.flags.writeable
        check_all(x)


# ------------------------------------------------------------------------------------------------------------ out


WRITERS = list(writers(normal((2, 3, 4)), normal((2, 3, 4))))
OUTS = ["C order", "Fortran order", "channels last", "swapped", "all reversed", "column step", "sample step",
        "step on every axis", "misaligned", "packed records", "subclass"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_view", OUTS)
@pytest.mark.parametrize("name", WRITERS)
def test_out(name, out_view, dtype):
    out = viewed(out_view, dtype)
    for x in (normal(out.shape, dtype), np.asfortranarray(normal(out.shape, dtype))):
        dy = random_like(x)
        write = writers(x, dy)[name]
        result = write(x, dy, out)
        assert result is out
        assert same_bits(result, write(x, dy, None))


@pytest.mark.parametrize("view", ["C order", "channels last", "column step", "reversed columns"])
@pytest.mark.parametrize("name", WRITERS)
def test_out_is_an_input(name, view):
    def inputs():
        return viewed(view), viewed(view, seed=5)

    x, dy = inputs()
    write = writers(x, dy)[name]
    want = write(x, dy, None)
    assert same_bits(write(x, dy, x), want)
    x, dy = inputs()
    assert same_bits(write(x, dy, dy), want)
    x, dy = inputs()
    assert same_bits(write(x, dy, x.view()), want)  # another array object of the same memory


@pytest.mark.parametrize("path", ["row, channels larger than cache", "lane, larger than cache", "lane, packed"])
@pytest.mark.parametrize("name", WRITERS)
def test_large_out_is_an_input(name, path):
    x, axis = path_input(path)
    x = x.swapaxes(1, axis)
    dy = np.flip(x, 0).copy("K")
    write = writers(x, dy)[name]
    want = write(x, dy, None)
    assert same_bits(write(x.copy("K"), dy, None), want)
    in_dy = dy.copy("K")
    assert same_bits(write(x, in_dy, in_dy), want)
    assert same_bits(write(x, dy, x), want)


def shifted(shape, nbytes):
    """An array of sevens that starts nbytes past a multiple of 64."""
    buffer = np.full(int(np.prod(shape)) * 4 + 128, 7, np.uint8)
    start = -buffer.ctypes.data % 64 + nbytes
    return buffer[start : start + int(np.prod(shape)) * 4].view(np.float32).reshape(shape)


LARGE_OUTS = {
    "aligned": lambda shape: shifted(shape, 0),
    "one element on": lambda shape: shifted(shape, 4),
    "one byte on": lambda shape: shifted(shape, 1),
    "rows with gaps": lambda shape: np.full((*shape[:-1], shape[-1] + 3), 7, np.float32)[..., 1:-2],
    "another order": lambda shape: np.full((shape[1], shape[0], *shape[2:]), 7, np.float32).swapaxes(0, 1),
}


@pytest.mark.parametrize("out", LARGE_OUTS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((11, 8, 224, 224), 1),
        ((11, 8, 223, 221), 1),
        ((450, 200, 7, 7), 1),
        ((70000, 64), 1),
        ((65000, 67), 1),
        ((1030, 4099), 1),
    ],
)
def test_large_outputs(shape, axis, out):
    """Those that do not fit in a cache (cpp/src/plan.cpp) have the bits of their small parts."""
    x = np.resize(normal((1_000_003,)), shape)
    assert x.nbytes > 16 << 20
    dy = x[::-1]
    gamma, beta = random_params(x, axis)
    m = bn.moments(x, axis=axis)
    y, saved = bn.normalize(x, m, gamma, beta, axis=axis, out=LARGE_OUTS[out](shape))
    sums = bn.grad_sums(dy, x, saved)
    dx = bn.input_grad(dy, x, saved, sums, gamma, out=LARGE_OUTS[out](shape)).dx
    frozen = bn.batch_norm_inference_backward(dy, x, m.mean, m.var(), gamma, axis=axis, out=LARGE_OUTS[out](shape)).dx
    for part in np.array_split(np.arange(shape[0]), 10):
        at = slice(part[0], part[-1] + 1)
        assert same_bits(y[at], bn.normalize(x[at], m, gamma, beta, axis=axis)[0])
        assert same_bits(dx[at], bn.input_grad(dy[at], x[at], saved, sums, gamma).dx)
        grads = bn.batch_norm_inference_backward(dy[at], x[at], m.mean, m.var(), gamma, axis=axis)
        assert same_bits(frozen[at], grads.dx)
    base = y.base if out == "rows with gaps" else None
    assert base is None or (np.all(base[..., 0] == 7) and np.all(base[..., -2:] == 7))


def test_out_leaves_the_gaps_of_a_view_alone():
    x = normal((4, 6, 5))
    buffer = np.full((8, 6, 10), 7, np.float32)
    saved = bn.batch_norm(x, out=buffer[::2, :, 1::2])[1]
    bn.batch_norm_backward(x, x, saved, out=buffer[1::2, :, ::2])
    buffer[::2, :, 1::2] = buffer[1::2, :, ::2] = 7
    assert np.all(buffer == 7)


# ----------------------------------------------------------------------------------------------------- parameters

FLOATS = [np.float16, np.float32, np.float64, np.longdouble, ml_dtypes.bfloat16, np.dtype(">f4")]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_parameters_of_any_float_type(x_dtype, dtype):
    x = normal((6, 4, 5), x_dtype)
    dy = random_like(x)
    gamma, beta, mean, var = np.array([[1.5, -0.5, 2, 1], [0, 1, -3, 0.25], [1, 2, 3, 4], [4, 0, 1, 0.5]]).astype(dtype)
    exact = [p.astype(np.float64) for p in (gamma, beta, mean, var)]

    y, saved = bn.batch_norm(x, gamma, beta)
    assert same_bits(y, bn.batch_norm(x, *exact[:2])[0])
    y = bn.batch_norm_inference(x, mean, var, gamma, beta)
    assert same_bits(y, bn.batch_norm_inference(x, exact[2], exact[3], *exact[:2]))

    for grads, want in [
        (bn.batch_norm_backward(dy, x, saved, gamma), bn.batch_norm_backward(dy, x, saved, exact[0])),
        (
            bn.batch_norm_inference_backward(dy, x, mean, var, gamma),
            bn.batch_norm_inference_backward(dy, x, exact[2], exact[3], exact[0]),
        ),
    ]:
        assert same_bits(grads.dx, want.dx)
        # gamma's type; a foreign byte order is the same type
        assert grads.dgamma.dtype == grads.dbeta.dtype == np.dtype(dtype)
        assert np.array_equal(grads.dgamma, want.dgamma.astype(dtype))
        assert np.array_equal(grads.dbeta, want.dbeta.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [None, [1.5, -2, 3], (1, 2, 3), 2, -0.5, np.float32(2), np.float64(3), [1, 2, 3]])
def test_gamma_without_an_array(gamma, dtype):
    x = normal((4, 3, 5), dtype)
    dy = random_like(x)
    y, saved = bn.batch_norm(x, gamma, gamma)
    assert_matches(y, reference.forward(x, 1, gamma, gamma).y)
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    want = reference.backward(dy, x, 1, gamma, grad_dtype=np.float32 if dtype in HALVES else dtype)
    assert_matches(grads.dx, want.dx)
    # The data's, or for 16 bits that of the arithmetic.
    assert grads.dgamma.dtype == grads.dbeta.dtype == (np.float32 if dtype in HALVES else dtype)
    assert_matches(grads.dgamma, want.dgamma)
    assert_matches(grads.dbeta, want.dbeta)


@pytest.mark.parametrize("gamma", [None, [2.0, -1, 0.5]])
@pytest.mark.parametrize("beta", [None, [0.5, 3, -1]])
def test_gamma_or_beta_alone(gamma, beta):
    x = normal((4, 3, 5))
    dy = random_like(x)
    check_inference(x, dy, 1, gamma, beta, 1e-5, {})
    assert_matches(bn.batch_norm(x, gamma, beta)[0], reference.forward(x, 1, gamma, beta).y)


@pytest.mark.parametrize("stat", [0.5, [0.5, 2, 1], (1, 2, 3), np.float32(3), np.array(2.0, np.float32)])
def test_mean_and_var_without_an_array(stat):
    x = normal((4, 3, 5))
    want = reference.inference(x, stat, stat)
    assert_matches(bn.batch_norm_inference(x, stat, stat), want)


def test_parameters_in_any_layout():
    x = normal((3, 4, 6, 5))
    gamma, beta = random_params(x, (1, 2))
    want = bn.batch_norm(x, gamma, beta, axis=(1, 2))[0]
    wide = np.zeros((8, 12), np.float32)
    wide[::-2, ::2] = gamma
    for view in (np.asfortranarray(gamma), wide[::-2, ::2], misaligned(gamma), gamma.astype(">f4")):
        assert same_bits(bn.batch_norm(x, view, beta, axis=(1, 2))[0], want)
    zero_stride = np.broadcast_to(np.float32(2), (4, 6))
    assert same_bits(bn.batch_norm(x, zero_stride, axis=(1, 2))[0], bn.batch_norm(x, 2, axis=(1, 2))[0])


def test_float64_parameters_keep_their_digits():
    # gamma and beta of float64 enter the coefficients before those are rounded to the data's type.
    x = normal((50, 3))
    gamma, beta = np.random.default_rng(0).normal(0, 1, (2, 3))
    assert_matches(bn.batch_norm(x, gamma, beta)[0], reference.forward(x, 1, gamma, beta).y)
    saved = bn.batch_norm(x)[1]
    dgamma = bn.batch_norm_backward(x, x, saved, gamma).dgamma
    assert dgamma.dtype == np.float64
    assert_matches(dgamma, reference.backward(x, x, 1, gamma, grad_dtype=np.float64).dgamma)
