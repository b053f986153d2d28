"""float16 and bfloat16: every value, every rounding, and sums that start in float32."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import reference
from cases import misaligned
from checks import all_results, check_all, random_like, random_params, same_bits
from reference import assert_matches, finfo
from test_numbers import LAYOUTS, assert_within_promises, from_channels
from test_traversals import ALL, Guarded, assert_same, inputs, placed

import batchnorm as bn

BF16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BF16]
ALL_BITS = np.arange(2**16, dtype=np.uint16)


def normal(layout, mean, std, dtype, seed=0):
    shape, axis = LAYOUTS[layout]
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype), axis


# ---------------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("shape", [(1, 1, 2**16), (2**16, 1), (2**13, 8), (2**10, 64), (7, 1, 9363), (2185, 2, 15)])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_value_is_read_and_written(dtype, shape):
    """(x - 0) * 1 + 0."""
    bits = np.resize(ALL_BITS, shape)
    x = bits.view(dtype)
    y = bn.batch_norm_inference(x, 0, 1 - 2.0**-10, eps=2.0**-10)
    number = ~np.isnan(x.astype(np.float32))
    assert np.array_equal(y[number].astype(np.float32), x[number].astype(np.float32))
    assert np.all(np.isnan(y[~number].astype(np.float32)))
    quiet = {HALVES[0]: 0x200, BF16: 0x40}[dtype]
    assert np.all(y.view(np.uint16)[~number] & quiet)


def roundings(dtype):
    """float32 numbers at all ties between two values, beside them, at their quarters, and any others."""
    bits = ALL_BITS[np.isfinite(ALL_BITS.view(dtype).astype(np.float32))]
    values = bits.view(dtype).astype(np.float64)
    largest = float(finfo(dtype).max)
    # The next value up in magnitude; after the largest, the number that would follow.
    following = (bits + 1).astype(np.uint16).view(dtype).astype(np.float64)
    overflow = np.abs(values) == largest
    step = largest - np.sort(np.unique(np.abs(values)))[-2]
    following[overflow] = np.sign(values[overflow]) * (largest + step)
    with np.errstate(over="ignore", invalid="ignore"):
        ties = ((values + following) / 2).astype(np.float32)
        quarters = (values + (following - values) / 4).astype(np.float32)
        random = np.random.default_rng(0).integers(0, 2**32, 20000, np.uint32).view(np.float32)
        ends = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, -3.4028235e38, 1e-38])
        beside = [np.nextafter(ties, np.float32(0)), np.nextafter(ties, ties * 2)]
        return np.concatenate([ties, *beside, quarters, random, ends])


@pytest.mark.parametrize("pattern", ["lane", "row"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_rounding_is_to_nearest_even(dtype, pattern):
    """0 * 1 + beta, as NumPy and ml_dtypes round it."""
    beta = roundings(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        want = beta.astype(dtype)
    x = np.zeros((2, beta.size) if pattern == "lane" else (1, beta.size, 21), dtype)
    y = bn.batch_norm_inference(x, 0, 1, beta=beta)
    nan = np.isnan(beta)
    want[beta == 0] = 0  # 0 + -0 is 0
    for row in y if pattern == "lane" else y[0].T[[0, 15, 16, 20]]:
        assert np.array_equal(np.ascontiguousarray(row).view(np.uint16)[~nan], want.view(np.uint16)[~nan])
        assert np.all(np.isnan(row[nan].astype(np.float32)))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_parameters_of_every_value(dtype):
    x = np.ones((2, 2**16), np.float32)
    params = ALL_BITS.view(dtype)
    with np.errstate(invalid="ignore"):
        wide = params.astype(np.float64)
    number = np.isfinite(wide)
    zeros = np.zeros(2**16)
    want = bn.batch_norm_inference(x, zeros, 1, wide, zeros)
    assert same_bits(bn.batch_norm_inference(x, zeros, 1, params, zeros)[:, number], want[:, number])
    assert np.all(np.isnan(bn.batch_norm_inference(x, params, 1)[:, np.isnan(wide)]))
    assert same_bits(bn.batch_norm_inference(x, misaligned(params), 1), bn.batch_norm_inference(x, params, 1))


# ------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_parameters_are_rounded_once(dtype, sign):
    """From float64, beside the middle of two values by less than a float32 tells: which of them it is decides."""
    ulp = float(finfo(dtype).eps)
    beside = np.array([0.5, 1.5, 2.5]) * ulp
    x = np.zeros((4, 2, 3))
    x[0, 0], x[0, 1] = 1 + beside + 2.0**-40, 1 + beside - 2.0**-40
    saved = bn.Saved(np.zeros((2, 3)), np.ones((2, 3)), axis=(1, 2))
    grads = bn.batch_norm_backward(sign * x, x, saved, np.ones((2, 3), dtype))
    assert grads.dbeta.dtype == dtype
    assert np.all(grads.dbeta.astype(float) == sign * (1 + np.array([[1, 2, 3], [0, 1, 2]]) * ulp))


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 1e-3), (300, 1), (-1, 1e-3), (0, 1e3), (1000, 0.1)])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_within_the_promises(layout, dtype, mean, std):
    for seed in range(3):
        x, axis = normal(layout, mean, std, dtype, seed)
        check_all(x, axis, eps=1e-9)
        check_all(x, axis, eps=1e-9, dy=(x.astype(np.float64) - mean).astype(dtype))  # products of one sign
        saved = bn.batch_norm(x, axis=axis, eps=1e-9)[1]
        assert_within_promises(saved, reference.forward(x, axis, eps=1e-9))


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize(("dtype", "outlier"), [(d, o) for d in HALVES for o in (100, -6e4)] + [(BF16, 1e9)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outlier(layout, dtype, outlier, place):
    """As the first element it is the pivot, from which all differences are taken."""
    x, axis = normal(layout, 0, 1, dtype)
    at = tuple(slice(None) if a in reference.kept_axes(x, axis) else place for a in range(x.ndim))
    x[at] = outlier
    assert_within_promises(bn.batch_norm(x, axis=axis)[1], reference.forward(x, axis))
    if outlier < 1e9:  # else a gradient sum is one term, rounded with each that comes after it: up to 3e-7
        check_all(x, axis)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "lanes"])
def test_first_elements_far_from_the_mean(layout, dtype):
    """By 5 standard deviations; and with bits below those of the others, which all differences then have."""
    rng = np.random.default_rng(0)
    shape, axis = ((1, 256, 512), 1) if layout == "rows" else ((512, 256), 1)
    first = (slice(None), slice(None), 0) if layout == "rows" else (0,)
    for mean, std in ((8, 1.65), (0, 1), (30, 3)):
        for value in (mean - 4.9 * std, mean + 1.4 * std, 0.004, 0.0003):
            x = rng.normal(mean, std, shape)
            x[first] = value
            x = x.astype(dtype)
            assert_within_promises(bn.batch_norm(x, axis=axis)[1], reference.forward(x, axis))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 512), (1, 1, 77), (512, 1)])
def test_one_large_term_of_a_gradient_sum(shape, dtype):
    """It is rounded with those that are added to it in float: at most three of them."""
    large = 2.0**15
    dy = np.full(shape, large * 2.0**-24)
    dy.ravel()[0] = large
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    dy = dy.astype(dtype)
    sums = bn.grad_sums(dy, x, bn.batch_norm(x)[1])
    assert sums.sum_dy == pytest.approx(dy.astype(float).sum(), rel=3 * 2.0**-24, abs=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_far_pivot_leaves_other_channels_alone(dtype):
    for shape, axis in (((64, 70), 1), ((8, 5, 600), 1), ((300, 3, 4), 1)):
        x = np.random.default_rng(0).normal(0, 1, shape).astype(dtype)
        far = x.copy()
        far[(0, 1, *([0] * (x.ndim - 2)))] = 1000
        rest = np.arange(x.shape[axis]) != 1
        for name in ("mean", "var"):
            got, want = (getattr(bn.batch_norm(a, axis=axis)[1], name) for a in (far, x))
            assert same_bits(got[rest], want[rest])
            assert not np.array_equal(got, want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_input_gives_exact_output(layout, dtype):
    """Integers whose sums are exact in any order and in float32: var = 5, mean(dy) = 1, mean(dy * xhat) = -1/4."""
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(7)
    statistics = int(np.prod(reference.kept_shape(np.empty(shape), axis)))
    count = int(np.prod(shape)) // statistics
    pairs = np.tile([(-3, 2), (-1, -1), (1, 4), (3, -1)], (count // 4, 1))
    pairs = np.stack([rng.permutation(pairs) for _ in range(statistics)])
    mean = rng.integers(-120, 120, (statistics, 1))
    x = from_channels(pairs[..., 0] + mean, shape, axis).astype(dtype)
    dy = from_channels(pairs[..., 1], shape, axis).astype(dtype)
    xhat = from_channels(pairs[..., 0] / 4, shape, axis)
    y, saved = bn.batch_norm(x, axis=axis, eps=11)
    kept = reference.kept_shape(x, axis)
    # float32 for what chunks merge to.
    assert np.array_equal(saved.mean.astype(np.float32), mean.reshape(kept))
    assert np.all(saved.var.astype(np.float32) == 5)
    assert np.array_equal(y.astype(np.float64), xhat)
    grads = bn.batch_norm_backward(dy, x, saved)
    assert grads.dbeta.dtype == grads.dgamma.dtype == np.float32
    assert np.all(grads.dbeta == count)
    assert np.all(grads.dgamma == -count / 4)
    assert np.array_equal(grads.dx, ((dy.astype(np.float64) - 1 + xhat / 4) / 4).astype(np.float32).astype(dtype))


# --------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.1, -1 / 3, 6e-8, 65504, 1e30, -3e38])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels(layout, value, dtype):
    if value > float(finfo(dtype).max) or value < float(finfo(dtype).min):
        return
    shape, axis = LAYOUTS[layout]
    x = np.full(shape, value, dtype)
    gamma, beta = random_params(x, axis)
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    assert np.all(saved.var == 0)
    assert np.all(saved.mean == float(x.flat[0]))
    wide_beta = beta.reshape([n if a in reference.kept_axes(x, axis) else 1 for a, n in enumerate(shape)])
    assert np.array_equal(y, np.broadcast_to(wide_beta, shape))
    grads = bn.batch_norm_backward(random_like(x), x, saved, gamma)
    assert np.all(grads.dgamma == 0)


@pytest.mark.parametrize("scale", [1e30, 1e18, 1e-18])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_and_small_values(layout, scale):
    """Squares of bfloat16 overflow float32, or come near its least number."""
    x, axis = normal(layout, 0.5 * scale, scale, BF16)
    eps = 1e-60 if scale < 1 else 1e-5
    check_all(x, axis, eps=eps)
    assert_within_promises(bn.batch_norm(x, axis=axis, eps=eps)[1], reference.forward(x, axis, eps=eps))
    saved = bn.batch_norm(x, axis=axis, eps=eps)[1]
    for size in (1e30, 1e-6):
        dy = (random_like(x).astype(np.float64) * size).astype(BF16)
        sums = bn.grad_sums(dy, x, saved)
        for got, want in zip((sums.sum_dy, sums.sum_dy_xmu), reference.grad_sums(dy, x, saved.mean, axis), strict=True):
            assert_matches(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_that_overflow_in_one_run(layout):
    """float16 at its largest; bfloat16 where a few squares alone overflow, and where sums of dy do."""
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(1)
    check_all((rng.choice([-1, 1], shape) * 6e4).astype(np.float16), axis)
    x = rng.normal(0, 1, shape).astype(BF16)
    x.flat[:: max(x.size // 7, 1)] = 3e19
    m, want = bn.moments(x, axis=axis), reference.forward(x, axis)
    assert_matches(m.mean, want.mean)
    assert_matches(m.var(), want.var)
    dy = np.full(shape, 3e38, BF16)
    m = bn.Saved(np.zeros(m.mean.shape), np.ones(m.mean.shape), axis=axis)
    x = rng.normal(0, 1, shape).astype(BF16)
    sums = bn.grad_sums(dy, x, m)
    for got, value in zip((sums.sum_dy, sums.sum_dy_xmu), reference.grad_sums(dy, x, m.mean, axis), strict=True):
        assert_matches(got, value)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("bad", "place"), [(np.nan, 0), (np.inf, 3), (-np.inf, 0), (np.nan, -1)])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one statistic"])
def test_nan_and_inf_stay_in_their_channel(layout, place, bad, dtype):
    x, axis = normal(layout, 0, 1, dtype)
    dy = random_like(x)
    hit = np.moveaxis(np.arange(x.size).reshape(x.shape), axis, 0)[1].ravel()[place]
    bad_x, bad_dy = x.copy(), dy.copy()
    bad_x.flat[hit] = bad_dy.flat[hit] = bad

    def run(x, dy):
        y, saved = bn.batch_norm(x, axis=axis)
        return [y, saved.mean, saved.var, *bn.batch_norm_backward(dy, x, saved)[:3]]

    def part(array, own):
        return np.moveaxis(array, axis if array.ndim > 1 else 0, 0)[(np.arange(x.shape[axis]) == 1) == own]

    clean, bad_of_x, bad_of_dy = run(x, dy), run(bad_x, dy), run(x, bad_dy)
    for got in (bad_of_x, bad_of_dy):
        for a, b in zip(got, clean, strict=True):
            assert same_bits(part(a, False), part(b, False))
    for i, array in enumerate(bad_of_x):
        if i != 5:  # dbeta does not know x
            assert not np.any(np.isfinite(part(array, True).astype(np.float64)))
    assert not np.any(np.isfinite(part(bad_of_dy[3], True).astype(np.float32)))
    assert not np.isfinite(part(bad_of_dy[5], True))


# -------------------------------------------------------------------------------------------------------- traversals


@pytest.mark.parametrize("name", ALL)
def test_every_way_through_the_box(name):
    """Numbers, and the same bits for any number of threads, any alignment and a packed copy."""
    dtype = HALVES[len(name) % 2]
    x, dy, axis = inputs(ALL[name], dtype)
    check_all(x, axis, dy=dy, threads=2)
    fused, split, rest = all_results(x, axis, 1)
    assert_same([split], [fused])
    for threads in (2, 5):
        assert_same(all_results(x, axis, threads), (fused, fused, rest), threads)
    for offset in (2, 34, 1):
        assert_same(all_results(placed(x, offset), axis, 2), (fused, fused, rest), offset)
    wide = np.repeat(x, 2, -1)[..., ::2]
    assert same_bits(wide, x)
    if ALL[name][2] is None:
        assert_same(all_results(wide, axis, 2), (fused, fused, rest), "packed")
    for offset in (0, 2, 36, 3):
        place = Guarded(x, offset)
        bn.batch_norm(x, axis=axis, out=place.array)
        assert same_bits(place.array, bn.batch_norm(x, axis=axis)[0])
        assert place.untouched_around()


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_outputs_past_the_caches(dtype, axis):
    x = np.resize(np.random.default_rng(0).standard_normal(1_000_003, np.float32).astype(dtype), (70, 64, 56, 64))
    assert x.nbytes > 24 << 20
    y, saved = bn.batch_norm(x, axis=axis)
    dx = bn.batch_norm_backward(x, x, saved).dx
    m = bn.moments(x, axis=axis)
    sums = bn.grad_sums(x, x, saved)
    for at in (slice(0, 4), slice(41, 45)):
        assert same_bits(y[at], bn.normalize(x[at], m, axis=axis)[0])
        assert same_bits(dx[at], bn.input_grad(x[at], x[at], saved, sums).dx)


# ----------------------------------------------------------------------------------------------------- Python's types


def test_outputs_are_of_the_type_of_x():
    for dtype in HALVES:
        for shape in ((4, 3, 5), (64, 64, 32, 32)):  # the latter in memory that is used again
            x = np.zeros(shape, dtype)
            y, saved = bn.batch_norm(x)
            assert y.dtype == dtype
            assert type(y) is np.ndarray
            assert y.strides == x.strides
            assert bn.batch_norm_backward(x, x, saved).dx.dtype == dtype
            assert bn.batch_norm(x, out=y)[0] is y


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layer(dtype):
    x, dy = np.random.default_rng(0).normal(2, 3, (2, 8, 3, 50)).astype(dtype)
    layer = bn.BatchNorm(3)
    for _ in range(2):
        y = layer(x)
        dx = layer.backward(dy)
    assert y.dtype == dx.dtype == dtype
    assert layer.gamma.dtype == layer.dgamma.dtype == layer.running_mean.dtype == np.float32
    assert_matches(layer.dgamma, reference.backward(dy, x, grad_dtype=np.float32).dgamma)
    assert layer.eval()(x).dtype == dtype
    assert layer.freeze()(x).dtype == layer.backward(dy).dtype == dtype


def test_ml_dtypes_is_not_imported():
    code = """
        import sys, numpy as np, batchnorm as bn
        bn.batch_norm(np.ones((4, 3), np.float16))
        try:
            bn.batch_norm(np.ones((4, 3), int))
        except TypeError as error:
            print(error)
        print("ml_dtypes" in sys.modules)
        """
    lines = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "expected float32, float64, float16 or bfloat16" in lines[0]
    assert lines[1] == "False"


# ---------------------------------------------------------------------------------------------------------- epilogues


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activation_residual_and_weights(layout, dtype):
    """As in float32, within what rounding y and dx to 16 bits may add, also with a run that is not finite."""
    x, axis = normal(layout, 1, 2, dtype)
    dy, residual = random_like(x, 5), random_like(x, 6)
    gamma, beta = (p.astype(np.float32) for p in random_params(x, axis))
    shape = [1 if a in reference.kept_axes(x, axis) else n for a, n in enumerate(x.shape)]
    weights = np.random.default_rng(8).integers(0, 3, shape).astype(np.float32)
    wide_x, wide_dy, wide_residual = (a.astype(np.float32) for a in (x, dy, residual))
    for activation, weighting in ((None, weights), ("relu", None), ("leaky_relu", weights)):
        options = {"axis": axis, "activation": activation, "weights": weighting}
        y, saved = bn.batch_norm(x, gamma, beta, residual=residual, **options)
        want, want_saved = bn.batch_norm(wide_x, gamma, beta, residual=wide_residual, **options)
        step = float(finfo(dtype).eps)
        assert np.allclose(saved.mean, want_saved.mean, rtol=1e-7, atol=2e-7)
        assert np.allclose(saved.inv_std, want_saved.inv_std, rtol=1e-6)
        assert np.allclose(y.astype(np.float32), want, rtol=step, atol=1e-5)
        grads = bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True)
        want = bn.batch_norm_backward(wide_dy, wide_x, want_saved, gamma, need_dresidual=True)
        assert grads.dx.dtype == grads.dresidual.dtype == dtype
        near = np.abs(grads.dx.astype(np.float32) - want.dx) <= step * np.abs(want.dx) + 1e-5
        assert np.mean(near) > 0.999  # a sum of about 0 may round to the other side of an activation
        assert np.allclose(grads.dgamma, want.dgamma, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_of_any_bits_stays_one(layout, dtype, bits):
    """Its lower half must not be rounded into infinity, nor over the sign into 0."""
    x, axis = normal(layout, 0, 1, dtype)
    nan = np.array(bits, np.uint32).view(np.float32)
    statistics = reference.kept_shape(x, axis)
    some = np.ones(statistics, np.float32)
    some.flat[-1] = nan
    kept = reference.kept_axes(x, axis)
    along_x = np.isnan(some).reshape([n if a in kept else 1 for a, n in enumerate(x.shape)])
    is_nan = np.broadcast_to(along_x, x.shape)
    saved = bn.batch_norm(x, axis=axis)[1]
    for result in (
        bn.batch_norm(x, some, axis=axis)[0],
        bn.batch_norm(x, None, some, axis=axis)[0],
        bn.batch_norm_inference(x, some, np.ones_like(some), axis=axis),
        bn.batch_norm_backward(x, x, saved, some)[0],
    ):
        assert np.array_equal(np.isnan(result), is_nan)
