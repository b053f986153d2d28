"""Numbers that batch norm usually goes wrong on."""

import numpy as np
import pytest
import reference
from checks import check_all, random_like, random_params, same_bits
from reference import Value, assert_matches

import batchnorm as bn

DTYPES = (np.float32, np.float64)

# name: (shape, axis); M is a multiple of 4
LAYOUTS = {
    "NCHW": ((8, 5, 7, 7), 1),
    "NHWC": ((4, 7, 7, 37), -1),
    "NC": ((36, 70), 1),
    "one statistic": ((4, 9, 5), ()),
    "large planes": ((2, 2, 150, 222), 1),
    "many small planes": ((9000, 2, 4), 1),
    "many rows": ((4000, 33), 1),
}


def normal(layout, mean=0.0, std=1.0, dtype=np.float32, seed=0):
    shape, axis = LAYOUTS[layout]
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype), axis


def from_channels(channels, shape, axis):
    """An array of that shape from (statistics, M) values."""
    kept = reference.kept_axes(np.empty(shape), axis)
    reduced = [a for a in range(len(shape)) if a not in kept]
    order = [*kept, *reduced]
    values = channels.reshape([shape[a] for a in order])
    return np.ascontiguousarray(values.transpose(np.argsort(order)))


# ------------------------------------------------------------------------------------------------- exact arithmetic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_input_gives_exact_output(layout, dtype):
    """As in oneDNN's benchdnn: integers whose sums, in any order, mean, variance and 1/sqrt(var + eps) are exact. Then
    so is all the rest, up to the mean of two million, and the threshold is 0."""
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(7)
    statistics = int(np.prod(reference.kept_shape(np.empty(shape), axis)))
    count = int(np.prod(shape)) // statistics
    # Fours of (x - mean, dy) in random order: var = 5, so that 1/sqrt(var + 11) = 1/4; mean(dy) = 1, and
    # mean(dy * xhat) = -1/4.
    pairs = np.tile([(-3, 2), (-1, -1), (1, 4), (3, -1)], (count // 4, 1))
    pairs = np.stack([rng.permutation(pairs) for _ in range(statistics)])
    mean = rng.integers(-(2**21), 2**21, (statistics, 1))
    xhat = from_channels(pairs[..., 0] / 4, shape, axis)
    x = from_channels(pairs[..., 0] + mean, shape, axis).astype(dtype)
    dy = from_channels(pairs[..., 1], shape, axis).astype(dtype)
    kept = reference.kept_shape(x, axis)
    gamma = rng.choice([-2, -0.5, 0.25, 1, 3], kept).astype(dtype)
    beta = rng.integers(-8, 8, kept).astype(dtype)
    wide_gamma, wide_beta = (from_channels(np.repeat(p.reshape(-1, 1), count, 1), shape, axis) for p in (gamma, beta))

    def assert_exact(got, want):
        # In float32: where x is cut into chunks, their own means are not exact.
        assert np.array_equal(np.float32(got), np.float32(np.broadcast_to(want, got.shape)))

    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, eps=11)
    assert_exact(saved.mean, mean.reshape(kept))
    assert_exact(saved.var, 5)
    assert_exact(saved.inv_std, 0.25)
    assert_exact(y, wide_gamma * xhat + wide_beta)
    assert_exact(bn.batch_norm_inference(x, saved.mean, saved.var, gamma, beta, axis=axis, eps=11), y)

    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_exact(grads.dbeta, count)
    assert_exact(grads.dgamma, -count / 4)
    assert_exact(grads.dx, wide_gamma / 4 * (dy - 1 + xhat / 4))

    grads = bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var, gamma, axis=axis, eps=11)
    assert_exact(grads.dbeta, count)
    assert_exact(grads.dgamma, -count / 4)
    assert_exact(grads.dx, wide_gamma / 4 * dy)


# --------------------------------------------------------------------------------------------- means far from zero


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "std"), [(1e6, 1), (-1e3, 1e-3), (1, 1e-6)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_far_above_the_deviation(layout, mean, std, dtype):
    x, axis = normal(layout, mean, std, dtype)
    check_all(x, axis, eps=1e-6 * std**2)  # all bounds hold as they do around a mean of 0
    y, saved = bn.batch_norm(x, axis=axis, eps=1e-6 * std**2)
    want = reference.forward(x, axis, eps=1e-6 * std**2)
    assert np.max(np.abs(y - want.y.exact)) <= 5e-7 * np.max(np.abs(y))
    assert_within_promises(saved, want)


def assert_within_promises(saved, want):
    """DESIGN, section 4."""
    size = np.maximum(np.abs(want.mean.exact), np.sqrt(want.var.exact))
    assert np.all(np.abs(saved.mean - want.mean.exact) <= 1e-7 * size)
    assert np.all(np.abs(saved.inv_std - want.inv_std.exact) <= 1e-6 * want.inv_std.exact)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_mean_far_above_its_deviation(layout):
    x, axis = normal(layout)
    dy = random_like(x) + np.float32(1e6)
    gamma, _ = random_params(x, axis)
    saved = bn.batch_norm(x, axis=axis)[1]
    dx = bn.batch_norm_backward(dy, x, saved, gamma).dx
    want = reference.backward(dy, x, axis, gamma).dx
    assert_matches(dx, want)
    # What is left of dy without its mean is about 1: an error of the size of dy's own rounding would be 1/16.
    assert np.max(np.abs(dx - want.exact)) < 1e-6 * np.max(np.abs(want.exact))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_sums_error_is_small_beside_their_terms(layout):
    x, axis = normal(layout, 1e5)
    dy = random_like(x) + 100
    saved = bn.batch_norm(x, axis=axis)[1]
    sums = bn.grad_sums(dy, x, saved)
    for got, want in zip((sums.sum_dy, sums.sum_dy_xmu), reference.grad_sums(dy, x, saved.mean, axis), strict=True):
        assert_matches(got, want)  # tighter than DESIGN's 1e-7 * sum(|terms|)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outlier", [1e4, -1e6, 1e9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outlier_comes_first(layout, outlier, dtype):
    """Differences are taken from the first element: what a bad choice would cost most."""
    x, axis = normal(layout, dtype=dtype)
    first = tuple(slice(None) if a in reference.kept_axes(x, axis) else 0 for a in range(x.ndim))
    x[first] = outlier
    y, saved = bn.batch_norm(x, axis=axis)
    want = reference.forward(x, axis)
    # The differences are D = outlier, the deviation is D / sqrt(n): of a sum of n squares D**2, with errors of one
    # sign of up to n / 2 * D**2 * 2**-53 in each addition, n * var = D**2 is left.
    bound = 2.0**-53 * want.count**2
    std = np.sqrt(want.var.exact)
    assert_matches(saved.mean, Value(want.mean.exact, bound * std), "mean")
    assert_matches(saved.var, Value(want.var.exact, bound * want.var.exact), "var")
    assert_within_promises(saved, want)
    largest = np.max(np.abs(want.y.exact))
    assert_matches(y, Value(want.y.exact, np.full(x.shape, (2 * np.finfo(dtype).eps + bound) * largest)), "y")


# ------------------------------------------------------------------------------------------------------- constants

VALUES = [0.0, -0.0, 1.0, 0.1, -1 / 3, 1e-40, 1e30, -3e38, 16777217.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels(layout, value, dtype):
    shape, axis = LAYOUTS[layout]
    x = np.full(shape, value, dtype)
    gamma, beta = random_params(x, axis)
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    assert np.all(saved.var == 0)
    assert np.all(saved.mean == x.flat[0])
    assert np.all(saved.inv_std == 1 / np.sqrt(1e-5))
    wide_beta = beta.reshape([n if a in reference.kept_axes(x, axis) else 1 for a, n in enumerate(shape)])
    assert np.array_equal(y, np.broadcast_to(wide_beta, shape))
    grads = bn.batch_norm_backward(random_like(x), x, saved, gamma)
    assert np.all(grads.dgamma == 0)
    assert_matches(grads.dx, reference.backward(random_like(x), x, axis, gamma).dx)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("gamma", "eps"), [(2e36, 1e-5), (10, 1e-76)])
def test_constant_channels_whose_factor_no_float32_holds(gamma, eps, dtype):
    x = np.full((8, 2, 16), 3.25, dtype)
    y, saved = bn.batch_norm(x, [gamma, -gamma], [1.5, 2.5], eps=eps)
    assert np.all(y == np.array([1.5, 2.5])[:, None])
    dy = np.ones_like(x)
    assert np.all(bn.batch_norm_backward(dy, x, saved, [gamma, -gamma]).dx == 0)
    for activation in (None, "relu"):
        frozen = bn.batch_norm_inference_backward(
            0 * dy, x, x[0, :, 0], np.zeros(2), [gamma, -gamma], eps=eps, activation=activation, y=y
        )
        assert np.all(frozen.dx == 0)
    v = random_like(x)
    assert np.all(bn.batch_norm_double_backward(v, v, x, saved, [gamma, -gamma]).dx == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_variance_is_never_negative(layout, dtype):
    """Channels constant but for one element that differs in its last bit."""
    shape, axis = LAYOUTS[layout]
    count = int(np.prod(shape)) // int(np.prod(reference.kept_shape(np.empty(shape), axis)))
    for value in VALUES[2:]:
        for place in (0, 1, count // 2, count - 1):
            channels = np.full((int(np.prod(shape)) // count, count), value, dtype)
            channels[:, place] = np.nextafter(channels[:, place], dtype(np.inf))
            m = bn.moments(from_channels(channels, shape, axis), axis=axis)
            step = float(channels[0, place]) - float(channels[0, place - 1])
            assert np.all(m.m2 >= 0)
            # Chunks (of at least 100 values here) may have lost what step / 100 adds to their means.
            assert np.allclose(m.m2, step * (step * (1 - 1 / count)), rtol=1e-2, atol=0)


# ------------------------------------------------------------------------------------------------ large and small


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e30, 1e18, 1e-30])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_and_small_values(layout, scale, dtype):
    x, axis = normal(layout, 0.5 * scale, scale, dtype)
    check_all(x, axis, eps=1e-60 if scale < 1 else 1e-5)  # so small that it does not hide the variance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_values_and_gradients(layout):
    x, axis = normal(layout, 1e30, 1e30)
    gamma, beta = random_params(x, axis)
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    assert_matches(y, reference.forward(x, axis, gamma, beta).y)
    for size in (1e30, 1e6, 1e-6):
        dy = random_like(x) * np.float32(size)
        grads, want = bn.batch_norm_backward(dy, x, saved, gamma), reference.backward(dy, x, axis, gamma)
        for name in ("dx", "dgamma", "dbeta"):
            assert_matches(getattr(grads, name), getattr(want, name), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_denormals(layout, dtype):
    shape, axis = LAYOUTS[layout]
    smallest = np.finfo(dtype).smallest_subnormal
    x = (np.random.default_rng(0).integers(-1000, 1000, shape) * smallest).astype(dtype)
    y, saved = bn.batch_norm(x, axis=axis)
    want = reference.forward(x, axis)
    assert_matches(y, want.y, "y")
    assert np.max(np.abs(y)) > 100 * np.max(np.abs(x))  # nobody took them for zeros
    assert_matches(bn.batch_norm_backward(random_like(x), x, saved).dx, reference.backward(random_like(x), x, axis).dx)
    if dtype == np.float32:  # sums are of float64, where these are ordinary numbers
        check_all(x, axis, dy=x)


# ----------------------------------------------------------------------------------------------------- NaN and Inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bad", "place"), [(np.nan, 0), (np.inf, 3), (-np.inf, 0), (np.nan, -1)])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one statistic"])
def test_nan_and_inf_stay_in_their_channel(layout, place, bad, dtype):
    x, axis = normal(layout, dtype=dtype)
    dy = random_like(x)
    gamma, beta = random_params(x, axis)
    channel = 1
    hit = np.moveaxis(np.arange(x.size).reshape(x.shape), axis, 0)[channel].ravel()
    bad_x, bad_dy = x.copy(), dy.copy()
    bad_x.flat[hit[place]] = bad_dy.flat[hit[place]] = bad
    others = np.arange(x.shape[axis]) != channel

    def run(x, dy):
        y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
        return y, saved, bn.batch_norm_backward(dy, x, saved, gamma)

    def rest(array):
        return np.moveaxis(array, axis if array.ndim > 1 else 0, 0)[others]

    def own(array):
        return np.moveaxis(array, axis if array.ndim > 1 else 0, 0)[channel]

    y, saved, grads = run(x, dy)
    bad_y, bad_saved, bad_grads = run(bad_x, dy)
    pairs = [(bad_y, y), (bad_saved.mean, saved.mean), (bad_saved.var, saved.var)]
    for got, want in [*pairs, *zip(bad_grads[:3], grads[:3], strict=True)]:
        assert same_bits(rest(got), rest(want))
    assert np.all(np.isnan(own(bad_y)))
    assert np.isnan(own(bad_saved.var))
    assert not np.isfinite(own(bad_saved.mean))
    assert np.all(np.isnan(own(bad_grads.dx)))

    bad_grads = run(x, bad_dy)[2]
    for got, want in zip(bad_grads[:3], grads[:3], strict=True):
        assert same_bits(rest(got), rest(want))
    assert not np.any(np.isfinite(own(bad_grads.dx)))
    assert not np.isfinite(own(bad_grads.dbeta))


def test_nan_in_gamma_and_beta_stays_in_its_channel():
    x, axis = normal("NC")
    gamma, beta = random_params(x, axis)
    y = bn.batch_norm(x, gamma, beta)[0]
    gamma[3] = beta[5] = np.nan
    bad_y = bn.batch_norm(x, gamma, beta)[0]
    assert np.array_equal(np.isnan(bad_y).all(0), np.isin(np.arange(70), (3, 5)))
    assert np.array_equal(np.isnan(bad_y).any(0), np.isin(np.arange(70), (3, 5)))
    clean = ~np.isnan(bad_y)
    assert np.array_equal(bad_y[clean], y[clean])
