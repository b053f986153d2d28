"""weights: what they may be, what they mean, and what an element of weight 0 may hold. The products of settings are in
test_epilogues.py."""

import numpy as np
import pytest
import reference
from cases import DTYPES, SMALL, small_input
from checks import random_like, random_params, same_bits
from reference import assert_matches
from test_epilogues import like, spread_weights, weights_of
from test_gradients import assert_same, slopes
from test_numbers import assert_within_promises

import batchnorm as bn


def results(x, weights, axis=1, gamma=None, beta=None, **settings):
    """All arrays of forward, backward and moments."""
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, weights=weights, **settings)
    m = bn.moments(x, axis=axis, weights=weights)
    grads = bn.batch_norm_backward(like(x, 2), x, saved, gamma)
    return [y, saved.mean, saved.var, saved.inv_std, saved.count, m.mean, m.m2, m.count, *grads[:3]]


def assert_all_same(got, want):
    assert all(map(same_bits, got, want))


def roundings(x, count):
    """A bound for two results of `count` roundings of terms in x's type, and of statistics' (reference.py)."""
    return count * np.finfo(x.dtype).eps + 2 * 2.0**-53 * 17 * (8 + np.sqrt(x.size))


def assert_close_statistics(got, want, tolerance):
    """mean, var and inv_std."""
    scale = np.max(np.abs(want[0]) + np.sqrt(want[1]))
    assert np.max(np.abs(got[0] - want[0])) <= tolerance * scale
    assert_close(got[1:3], want[1:3], tolerance)


def assert_close(got, want, tolerance):
    """To a few roundings of the largest value."""
    for a, b in zip(got, want, strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


# ---------------------------------------------------------------------------------------------------- what they may be


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_types(dtype, x_dtype):
    x = small_input("NCHW", x_dtype)[0]
    weights = np.random.default_rng(0).integers(0, 2 if dtype is bool else 4, (5, 4, 5))
    want = results(x, weights.astype(x_dtype))
    assert_all_same(results(x, weights.astype(dtype)), want)
    assert_all_same(results(x, weights.astype(dtype).tolist()), want)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x = small_input("NHWC", np.float32)[0]
    weights = np.random.default_rng(0).integers(0, 2, (5, 3, 2))
    want = results(x, weights)
    t = torch.from_numpy(x)
    for dtype in (torch.bool, torch.int32, torch.float16, torch.float32, torch.float64):
        y, saved = bn.batch_norm(t, weights=torch.from_numpy(weights).to(dtype))
        grads = bn.batch_norm_backward(torch.from_numpy(like(x, 2)), t, saved)
        arrays = [y, saved.mean, saved.count, *grads[:3]]
        for got, wanted in zip(arrays, [want[i] for i in (0, 1, 4, 8, 9, 10)], strict=True):
            assert same_bits(got.numpy(), wanted)
    assert same_bits(bn.batch_norm(t, weights=weights.tolist())[0].numpy(), want[0])
    with pytest.raises(TypeError, match="weights is complex"):
        bn.batch_norm(t, weights=torch.ones((5, 3, 2), dtype=torch.complex64))
    with pytest.raises(TypeError, match="weights is a NumPy array, expected a torch tensor"):
        bn.batch_norm(t, weights=weights)
    with pytest.raises(TypeError, match="weights requires grad"):
        bn.batch_norm(t, weights=torch.ones((5, 3, 2), requires_grad=True))


BROADCAST = [
    # x's shape, axis, weights' shapes
    ((4, 3, 5, 2), 1, [(4, 5, 2), (4, 1, 5, 2), (4, 1, 1, 1), (1, 1, 5, 1), (1, 1, 1, 2), (4, 3, 1, 1), (1, 3, 1, 1),
                       (4, 3, 5, 2), (1, 1, 1, 1), (1, 3, 5, 2)]),
    ((4, 5, 2, 3), -1, [(4, 5, 2), (4, 5, 2, 1), (4, 1, 1, 1), (1, 5, 1, 3), (1, 1, 1, 1)]),
    ((4, 3, 5, 2), (0, 1), [(5, 2), (4, 1, 5, 2), (1, 1, 5, 2), (4, 3, 5, 2), (4, 1, 1, 2), (1, 3, 5, 1)]),
    ((4, 5, 2, 3), (0, 3), [(5, 2), (4, 5, 2, 1), (1, 5, 2, 1), (1, 1, 2, 3)]),
    ((6, 10), 0, [(10,), (1, 10), (6, 10), (6, 1), (1, 1)]),
    ((4, 3, 5), (), [(4, 3, 5), (1, 3, 5), (4, 1, 1), (1, 1, 1)]),
    ((9,), (), [(9,), (1,)]),
    ((5, 1, 4), 1, [(5, 4), (5, 1, 4), (1, 1, 4)]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis", "shapes"), BROADCAST)
def test_shapes(shape, axis, shapes, dtype):
    rng = np.random.default_rng(3)
    x = rng.normal(1, 2, shape).astype(dtype)
    for of in shapes:
        weights = (rng.integers(1, 9, of) / 4).astype(dtype)
        spread = spread_weights(weights, x, axis)
        want = results(x, spread.copy(), axis)
        assert_all_same(results(x, weights, axis), want)
        assert_all_same(results(x, np.asfortranarray(weights), axis), want)
        assert_all_same(results(x, np.repeat(weights, 2, 0)[::2], axis), want)
        full = reference.forward(x, axis, weights=spread)
        assert_matches(want[0], full.y)
        assert_matches(want[1], full.mean)
        assert_matches(want[2], full.var)


# ----------------------------------------------------------------------------------------------------- what they mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", SMALL)
def test_ones_are_no_weights(layout, dtype):
    x, axis = small_input(layout, dtype)
    gamma, beta = random_params(x, axis)
    with_ones = results(x, np.ones(x.shape), axis, gamma, beta)
    without = results(x, None, axis, gamma, beta)
    assert np.all(with_ones[4] == without[4])
    assert_close_statistics(with_ones[1:4], without[1:4], roundings(x, 0))
    assert_close([with_ones[0], *with_ones[8:]], [without[0], *without[8:]], roundings(x, 8))


@pytest.mark.parametrize("factor", [0.25, 3, 1e-30, 1e30])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC, folded", "packed", "instances"])
def test_scaling_them_all_changes_nothing(layout, factor):
    for dtype in DTYPES:
        x, axis = small_input(layout, dtype)
        weights = np.asarray(np.random.default_rng(0).uniform(0.5, 2, x.shape), dtype)
        want, got = results(x, weights, axis), results(x, weights * dtype(factor), axis)
        # Each weight is rounded again, by up to half an ulp: what moves the statistics by so much.
        assert_close_statistics(got[1:4], want[1:4], roundings(x, 2))
        assert_close([got[0], *got[8:]], [want[0], *want[8:]], roundings(x, 16))
        assert_close([got[4]], [want[4] * float(dtype(factor))], roundings(x, 1))


def test_a_sum_of_at_most_one():
    """W need not be above 1: it is no number of values."""
    x = small_input("NCHW", np.float64)[0]
    for total in (1, 0.125, 1e-6):
        weights = np.full((5, 4, 5), total / 100)
        saved = bn.batch_norm(x, weights=weights)[1]
        assert np.allclose(saved.count, total, rtol=1e-12, atol=0)
        assert np.allclose(saved.var, x.var((0, 2, 3)), rtol=1e-12, atol=0)
    one = np.zeros((5, 4, 5))
    one[2, 1, 3] = 0.5  # one value alone: a variance of 0
    y, saved = bn.batch_norm(x, None, [1.0, 2, 3], weights=one)
    assert np.array_equal(saved.mean, x[2, :, 1, 3])
    assert np.all(saved.var == 0)
    assert np.array_equal(y[2, :, 1, 3], [1, 2, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("distance", [1e4, 1e6, 1e8, 1e10])
def test_first_elements_of_next_to_no_weight(distance, axis, dtype):
    """They are pivots, far from all that counts."""
    x = np.random.default_rng(0).standard_normal((64, 3, 16)).astype(dtype)
    weights = np.ones((64, 1, 16), dtype)
    x[0, :, 0], weights[0, 0, 0] = distance, 1e-30
    if axis == -1:
        x, weights = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (x, weights))
    saved = bn.batch_norm(x, weights=weights, axis=axis)[1]
    assert_within_promises(saved, reference.forward(x, axis, weights=np.broadcast_to(weights, x.shape)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_of_next_to_no_weight(dtype):
    """Its mean is far from that of all, and must not be what the others are added to."""
    x = np.random.default_rng(0).standard_normal((1, 1, 2**16)).astype(dtype)
    weights = np.ones_like(x)
    x[..., : 2**15] += dtype(1e10)
    weights[..., : 2**15] = 1e-30
    saved = bn.batch_norm(x, weights=weights)[1]
    assert_within_promises(saved, reference.forward(x, 1, weights=weights))


@pytest.mark.parametrize("layout", SMALL)
def test_masked_statistics_are_those_of_the_compressed_array(layout):
    for dtype in DTYPES:
        x, axis = small_input(layout, dtype)
        kept = reference.kept_axes(x, axis)
        mask = weights_of("mask", x, axis)
        flat = np.moveaxis(x, kept, range(len(kept))).reshape(*reference.kept_shape(x, axis), -1)
        compressed = flat[..., np.flatnonzero(mask)]
        own = tuple(range(len(kept)))
        want, want_saved = bn.batch_norm(compressed, axis=own)
        y, saved = bn.batch_norm(x, axis=axis, weights=mask)
        assert np.array_equal(saved.count, np.full(saved.mean.shape, mask.sum()))
        stats = ([s.mean, s.var, s.inv_std] for s in (saved, want_saved))
        assert_close_statistics(*stats, roundings(x, 0))
        y_flat = np.moveaxis(y, kept, range(len(kept))).reshape(flat.shape)[..., np.flatnonzero(mask)]
        assert_close([y_flat], [want], roundings(x, 4))
        dy = like(x, 2) * spread_weights(mask, x, axis)
        dy_flat = np.moveaxis(dy, kept, range(len(kept))).reshape(flat.shape)[..., np.flatnonzero(mask)]
        grads = bn.batch_norm_backward(dy, x, saved)
        wants = bn.batch_norm_backward(dy_flat, compressed, want_saved)
        dx_flat = np.moveaxis(grads.dx, kept, range(len(kept))).reshape(flat.shape)
        assert_close([dx_flat[..., np.flatnonzero(mask)]], [wants.dx], roundings(x, 8))
        assert np.all(dx_flat[..., np.flatnonzero(~mask.ravel())] == 0)
        assert_close(grads[1:3], wants[1:3], roundings(x, 8))


@pytest.mark.parametrize("layout", SMALL)
def test_integer_weights_are_repetitions(layout):
    x, axis = small_input(layout, np.float64)
    kept = reference.kept_axes(x, axis)
    weights = np.random.default_rng(1).integers(0, 4, [n for a, n in enumerate(x.shape) if a not in kept])
    flat = np.moveaxis(x, kept, range(len(kept))).reshape(*reference.kept_shape(x, axis), -1)
    repeated = bn.moments(np.repeat(flat, weights.ravel(), -1), axis=tuple(range(len(kept))))
    m = bn.moments(x, axis=axis, weights=weights)
    assert np.all(m.count == repeated.count)
    assert np.allclose(m.mean, repeated.mean, rtol=1e-13, atol=1e-14)
    assert np.allclose(m.m2, repeated.m2, rtol=1e-13, atol=0)


@pytest.mark.parametrize("settings", [{}, {"group_size": 2}, {"activation": "leaky_relu", "negative_slope": 0.3}])
@pytest.mark.parametrize("layout", ["NCHW", "NCHW, planes as lanes", "NHWC", "one statistic", "instances"])
def test_gradients(layout, settings):
    x, axis = small_input(layout, np.float64)
    if "group_size" in settings and layout == "instances":
        settings = {}
    x = x[:4, :3].copy("K")
    weights = np.random.default_rng(4).integers(0, 5, x.shape) / 4
    dy = random_like(x, 7)
    gamma, beta = map(np.asarray, random_params(x, axis))

    def loss():
        return np.sum(dy * bn.batch_norm(x, gamma, beta, axis=axis, weights=weights, **settings)[0])

    saved = bn.batch_norm(x, gamma, beta, axis=axis, weights=weights, **settings)[1]
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_same(grads.dx, slopes(loss, x), "dx")
    assert_same(grads.dgamma, slopes(loss, gamma), "dgamma")
    assert_same(grads.dbeta, slopes(loss, beta), "dbeta")


# --------------------------------------------------------------------------------------------------------- weight zero

BAD_VALUES = [np.nan, np.inf, -np.inf, 1e38, -3e38]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", SMALL)
def test_weight_zero_leaves_out_anything(layout, dtype):
    """Where the first element of a channel, its usual pivot, is bad as well."""
    clean, axis = small_input(layout, dtype)
    group_sizes = (None,) if 0 in reference.kept_axes(clean, axis) else (None, 5)
    for kind, group_size in ((k, g) for k in ("mask", "numbers") for g in group_sizes):
        weights = weights_of(kind, clean, axis).copy()
        weights[(0,) * weights.ndim] = 0
        at = spread_weights(weights, clean, axis) == 0
        assert at.any()
        x, dy = small_input(layout, dtype)[0], like(clean, 2)
        x[at] = np.resize(BAD_VALUES, at.sum())
        dy[at] = 0
        gamma, beta = random_params(x, axis)
        settings = {"axis": axis, "weights": weights, "group_size": group_size}
        want_m, m = bn.moments(clean, **settings), bn.moments(x, **settings)
        assert_all_same([m.mean, m.m2, m.count], [want_m.mean, want_m.m2, want_m.count])
        want, want_saved = bn.batch_norm(clean, gamma, beta, **settings)
        y, saved = bn.batch_norm(x, gamma, beta, **settings)
        assert same_bits(y[~at], want[~at])
        assert_all_same([saved.mean, saved.var, saved.inv_std], [want_saved.mean, want_saved.var, want_saved.inv_std])
        # y is written there all the same.
        with np.errstate(invalid="ignore", over="ignore"):
            nan = np.isnan(x) & at
            assert np.all(np.isnan(y[nan]))
            assert np.all(np.isinf(y[np.isinf(x) & at]))
        for s, values in ((want_saved, clean), (saved, x)):
            grads = bn.batch_norm_backward(dy, values, s, gamma)
            sums = bn.grad_sums(dy, values, s)
            again = bn.input_grad(dy, values, s, sums, gamma)
            assert_all_same(again[:3], grads[:3])
            if values is clean:
                wants = grads
        assert_all_same(grads[:3], wants[:3])
        # dy counts there, and reaches dx by gamma * inv_std alone, whatever x is.
        dy[at] = like(clean, 5)[at]
        grads = bn.batch_norm_backward(dy, x, saved, gamma)
        assert np.all(np.isfinite(grads.dx[at]))
        assert np.all(np.isfinite(grads.dbeta))
        wants = bn.batch_norm_backward(dy, clean, want_saved, gamma)
        assert same_bits(grads.dx[at], wants.dx[at])
        assert same_bits(grads.dbeta, wants.dbeta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", SMALL)
def test_no_weight_at_all(layout, dtype):
    """Everywhere, or in one statistic."""
    x, axis = small_input(layout, dtype)
    gamma, beta = random_params(x, axis)
    kept = reference.kept_axes(x, axis)
    shape = reference.kept_shape(x, axis)
    for everywhere in (True, False):
        own = np.ones(shape, bool)
        if not everywhere:
            own[...] = False
            own.flat[-1] = True
            if own.size == 1:
                continue
        spread = np.broadcast_to(own.reshape([n if a in kept else 1 for a, n in enumerate(x.shape)]), x.shape)
        y, saved = bn.batch_norm(x, gamma, beta, axis=axis, weights=~spread)
        assert np.all(saved.count[own] == 0)
        assert np.all(saved.count[~own] == x.size / own.size)
        assert np.all(saved.mean[own] == 0)
        assert np.all(saved.var[own] == 0)
        assert np.all(saved.inv_std[own] == 1 / np.sqrt(1e-5))
        want = reference.inference(x, np.zeros(shape), np.zeros(shape), axis, gamma, beta)
        assert np.all(np.abs(y - want.exact)[spread] <= want.error[spread])
        dy = like(x, 2)
        grads = bn.batch_norm_backward(dy, x, saved, gamma)
        frozen = reference.inference_backward(dy, x, np.zeros(shape), np.zeros(shape), axis, gamma)
        assert np.all(np.abs(grads.dx - frozen.dx.exact)[spread] <= frozen.dx.error[spread])
        for got, value in ((grads.dgamma, frozen.dgamma), (grads.dbeta, frozen.dbeta)):
            assert np.all(np.abs(got - value.exact)[own] <= value.error[own])
        m = bn.moments(x, axis=axis, weights=~spread)
        assert np.all(m.m2[own] == 0)
        assert np.all(np.isfinite(m.var()))
        if everywhere:
            continue
        ones = bn.batch_norm(x, gamma, beta, axis=axis, weights=np.ones(x.shape))
        assert same_bits(y[~spread], ones[0][~spread])
        want = bn.batch_norm_backward(dy, x, ones[1], gamma)
        assert same_bits(grads.dx[~spread], want.dx[~spread])
        assert same_bits(grads.dgamma[~own], want.dgamma[~own])


def test_no_weight_in_one_sample_or_group():
    x, _ = small_input("NCHW", np.float32)
    weights = np.ones((5, 4, 5))
    weights[3] = 0
    saved = bn.batch_norm(x, axis=(0, 1), weights=np.moveaxis(weights[:, None], 0, 0))[1]
    assert np.all((saved.count == 0) == (np.arange(5) == 3)[:, None])
    weights[2] = 0
    saved = bn.batch_norm(x, weights=weights, group_size=2)[1]
    assert saved.count.tolist() == [[40.0] * 3, [0.0] * 3, [20.0] * 3]
    assert np.all(saved.mean[1] == 0)
    assert np.all(np.isfinite(bn.batch_norm_backward(x, x, saved).dx))


# ----------------------------------------------------------------------------------------------------- adding them up


@pytest.mark.parametrize("axis", [1, (), (1, 2)])
def test_moments_merge(axis):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (9, 4, 6))
    weights = rng.integers(0, 4, (9, 4, 6)) / 2
    weights[:2, 1:] = 0  # nothing behind some of the first part
    weights[5:, :1] = 0  # and of the last
    whole = bn.moments(x, axis=axis, weights=weights)
    for cuts in ([2], [5], [2, 5], [1, 2, 3, 4, 5, 6, 7, 8]):
        parts = [
            bn.moments(x[i:j], axis=axis, weights=weights[i:j]) for i, j in zip([0, *cuts], [*cuts, 9], strict=True)
        ]
        for merged in (sum(parts), bn.Moments.merge(parts), sum(parts[::-1])):
            assert np.array_equal(merged.count, whole.count)
            assert np.allclose(merged.mean, whole.mean, rtol=1e-14, atol=1e-15)
            assert np.allclose(merged.m2, whole.m2, rtol=1e-13, atol=1e-13)
            y, saved = bn.normalize(x, merged, axis=axis, weights=weights)
            want, want_saved = bn.batch_norm(x, axis=axis, weights=weights)
            assert np.allclose(y, want, rtol=1e-12, atol=1e-12)
            dy = random_like(x)
            sums = sum(
                bn.grad_sums(dy[i:j], x[i:j], bn.normalize(x[i:j], merged, axis=axis, weights=weights[i:j])[1])
                for i, j in zip([0, *cuts], [*cuts, 9], strict=True)
            )
            whole_sums = bn.grad_sums(dy, x, saved)
            assert np.allclose(sums.sum_dy, whole_sums.sum_dy, rtol=1e-12, atol=1e-12)
            assert np.allclose(sums.sum_dy_xmu, whole_sums.sum_dy_xmu, rtol=1e-12, atol=1e-11)
            grads = bn.batch_norm_backward(dy, x, saved)
            wanted = bn.batch_norm_backward(dy, x, want_saved)
            assert np.allclose(grads.dx, wanted.dx, rtol=1e-11, atol=1e-12)


def test_unbiased_variance_of_a_mask():
    x, _ = small_input("NCHW", np.float64)
    mask = np.random.default_rng(0).random((5, 4, 5)) < 0.5
    m = bn.moments(x, weights=mask)
    want = x.transpose(1, 0, 2, 3)[:, mask].var(1, ddof=1)
    assert np.allclose(m.var(correction=1), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("empty", [slice(None, 400), slice(300, 700), slice(600, None)])
def test_a_chunk_of_no_weight(empty, lanes):
    """Of several that are merged; the values are so large that their squares overflow."""
    x = np.random.default_rng(0).normal(1, 2, (1000, 3, 150))
    x[:, 1] = -1e200
    axis = 1
    if lanes:
        x, axis = np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1
    weights = np.ones((1000, 150), bool)
    weights[empty] = False
    m = bn.moments(x, axis=axis, weights=weights, threads=2)
    rest = np.delete(x, np.arange(1000)[empty], 0)
    want = bn.moments(rest, axis=axis)
    assert np.all(m.count == want.count)
    assert m.mean[1] == -1e200
    assert m.m2[1] == 0
    assert np.allclose(m.mean, want.mean, rtol=1e-13, atol=0)
    assert np.allclose(m.m2, want.m2, rtol=1e-13, atol=0)
    y = bn.batch_norm(x, None, [0.0, 7, 0], axis=axis, weights=weights)[0]
    assert np.all((y[..., 1] if lanes else y[:, 1]) == 7)
