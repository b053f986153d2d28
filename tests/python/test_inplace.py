"""batch_norm_inplace, and backward from the output: the same bits of y, gradients as close to those from x as the
output tells it, and one activation tensor in memory."""

import ctypes

import numpy as np
import pytest
import reference
from cases import DTYPES, PATHS, SMALL, VIEWS, path_input, small_input, viewed
from checks import random_like, random_params, same_bits
from child import output_of
from test_epilogues import like, spread_weights, weights_of
from test_memory import MEASURE

import batchnorm as bn

SETTINGS = {
    "plain": {},
    "leaky_relu": {"activation": "leaky_relu"},
    "slope of 2": {"activation": "leaky_relu", "negative_slope": 2},
}


def twin(x):
    """A copy of x with the same strides, and of what lies between its elements."""
    low, high = np.lib.array_utils.byte_bounds(x)
    memory = bytearray(ctypes.string_at(low, high - low))
    return np.ndarray(x.shape, x.dtype, memory, x.ctypes.data - low, x.strides)


def gradients(x, axis, gamma, beta, settings, dy, threads=1):
    """y, and the gradients from it and from x."""
    want, saved = bn.batch_norm(x, gamma, beta, axis=axis, threads=threads, **settings)
    y = twin(x)
    own = bn.batch_norm_inplace(y, gamma, beta, axis=axis, threads=threads, **settings)
    assert same_bits(y, want)
    for name in ("mean", "var", "inv_std", "count"):
        assert same_bits(getattr(own, name), getattr(saved, name)), name
    assert own.mask is None
    from_output = bn.batch_norm_backward_from_output(dy, y, own, gamma, beta, threads=threads)
    assert from_output.dresidual is None
    return y, own, from_output, bn.batch_norm_backward(dy, x, saved, gamma, threads=threads)


def check(x, axis, settings, gamma, beta, threads=1):
    dy = like(x, 2)
    y, saved, got, want = gradients(x, axis, gamma, beta, settings, dy, threads)

    # From the output x is known by xhat = (z - beta) / gamma, up to an error of eps * (1 + abs(beta / gamma)) and the
    # roundings that forward made in y: of gamma * xhat and beta, four times.
    kept = reference.kept_axes(x, axis)
    gamma, beta = (
        np.ones([n if a in kept else 1 for a, n in enumerate(x.shape)]) * default
        if p is None
        else np.reshape(p, [n if a in kept else 1 for a, n in enumerate(x.shape)] if np.ndim(p) else ()).astype(float)
        for p, default in ((gamma, 1), (beta, 0))
    )
    size = settings.get("group_size") or x.shape[0] if x.ndim else 1
    slope = settings.get("negative_slope", 0.01) if "activation" in settings else 1
    reduced = tuple(a for a in range(x.ndim) if a not in kept)
    u = np.finfo(x.dtype).eps / 2
    w_all = spread_weights(settings.get("weights"), x, axis)
    totals = [0, 0]
    for g, at in enumerate(reference.groups_of(x, size) if x.ndim else [...]):
        part, part_dy = x[at].astype(float), dy[at].astype(float)
        w = np.ones(part.shape) if w_all is None else w_all[at].astype(float)
        stat = [s[g] if settings.get("group_size") else s for s in (saved.mean, saved.inv_std)]
        mean, inv_std = (np.reshape(s, [n if a in kept else 1 for a, n in enumerate(part.shape)]) for s in stat)
        xhat = (part - mean) * inv_std
        part_dy = np.where(y[at] > 0, part_dy, part_dy * slope)
        condition = np.abs(mean) * inv_std
        xhat_error = 10 * u * (np.abs(xhat) + np.abs(beta / gamma)) + 2.0**-50 * (1 + condition) * (1 + np.abs(xhat))
        total_w = np.maximum(w.sum(reduced, keepdims=True), 1e-300)
        sums_error = np.sum(np.abs(part_dy) * xhat_error, reduced, keepdims=True)
        dy_xhat = np.sum(np.abs(part_dy * xhat), reduced, keepdims=True) / total_w
        dy_mean = np.sum(np.abs(part_dy), reduced, keepdims=True) / total_w
        error = w * (xhat_error * dy_xhat + np.abs(xhat) * sums_error / total_w)
        error = error + 20 * u * (np.abs(part_dy) + w * dy_mean + w * np.abs(xhat) * dy_xhat)
        error = error * np.abs(gamma) * inv_std
        assert np.all(np.abs(got.dx[at] - want.dx[at].astype(float)) <= error)
        sizes = np.sum(np.abs(part_dy * xhat), reduced, keepdims=True), np.sum(np.abs(part_dy), reduced, keepdims=True)
        totals = [totals[0] + sums_error + 4 * u * sizes[0], totals[1] + 4 * u * sizes[1]]
    for name, bound in zip(("dgamma", "dbeta"), totals, strict=True):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype
        assert np.all(np.abs(a.astype(float) - b) <= np.reshape(bound, b.shape)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layout", SMALL)
def test_layouts(layout, settings, dtype):
    x, axis = small_input(layout, dtype)
    gamma, beta = random_params(x, axis)
    assert gamma.size < 5 or (np.any(gamma < 0) and np.any(gamma > 0))
    settings = SETTINGS[settings]
    check(x, axis, settings, gamma, beta)
    check(x, axis, settings, None, None)
    check(x, axis, settings, -2.0, beta * 30)
    check(x, axis, settings | {"weights": weights_of("numbers", x, axis)}, gamma, beta)
    if 0 not in reference.kept_axes(x, axis):
        check(x, axis, settings | {"group_size": 5}, gamma, beta)
        check(x, axis, settings | {"group_size": 5, "weights": weights_of("mask", x, axis)}, gamma, beta)


@pytest.mark.parametrize("path", [p for p in PATHS if np.prod(PATHS[p][0]) < 2_000_000])
def test_paths(path):
    x, axis = path_input(path)
    gamma, beta = random_params(x, axis)
    check(x, axis, SETTINGS["leaky_relu"], gamma, beta, threads=2)


@pytest.mark.parametrize("path", ["row, groups", "lane, groups", "row, packed", "lane, rows with gaps"])
def test_bits_for_any_number_of_threads(path):
    x, axis = path_input(path)
    gamma, beta = random_params(x, axis)
    dy = like(x, 2)
    settings = SETTINGS["leaky_relu"] | {"weights": weights_of("numbers", x, axis)}
    want = gradients(x, axis, gamma, beta, settings, dy)
    for threads in (2, 3, 7):
        got = gradients(x, axis, gamma, beta, settings, dy, threads)
        assert same_bits(got[0], want[0])
        assert all(map(same_bits, got[2][:3], want[2][:3]))


@pytest.mark.parametrize(
    "view", [v for v in VIEWS if "repeated" not in v and v not in ("one value for all", "sliding windows", "read-only")]
)
def test_views(view):
    """What lies between the elements stays as it is."""
    for dtype in DTYPES:
        x = viewed(view, dtype)
        base = x if x.base is None else x.base
        outside = np.ones(base.nbytes, bool) if isinstance(base, np.ndarray) else None
        before = bytes(base) if outside is None else base.tobytes("A")
        gamma, beta = random_params(x, 1)
        want = bn.batch_norm(x, gamma, beta, activation="leaky_relu")[0]
        saved = bn.batch_norm_inplace(x, gamma, beta, activation="leaky_relu")
        assert same_bits(x, want)
        dy = random_like(x)
        grads = bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta)
        assert same_bits(bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta, out=dy).dx, grads.dx)
        assert np.all(np.isfinite(grads.dx))
        x[...] = viewed(view, dtype)
        after = bytes(base) if outside is None else base.tobytes("A")
        assert after == before


@pytest.mark.parametrize("layout", SMALL)
def test_dx_in_the_place_of_the_output(layout):
    x, axis = small_input(layout, np.float32)
    gamma, beta = random_params(x, axis)
    dy = like(x, 2)
    saved = bn.batch_norm_inplace(x, gamma, beta, axis=axis, activation="leaky_relu")
    want = bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta)
    again = like(x, 2)
    got = bn.batch_norm_backward_from_output(again, x, saved, gamma, beta, out=again)
    assert got.dx is again
    assert all(map(same_bits, got[:3], want[:3]))
    got = bn.batch_norm_backward_from_output(dy, x, saved, gamma, beta, out=x)
    assert got.dx is x
    assert all(map(same_bits, got[:3], want[:3]))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    for layout in ("NCHW", "NHWC"):
        x, _ = small_input(layout, np.float32)
        gamma, beta = random_params(x, 1)
        dy = like(x, 2)
        want, _, grads, _ = gradients(x, 1, gamma, beta, SETTINGS["leaky_relu"], dy)
        t = torch.from_numpy(x)
        saved = bn.batch_norm_inplace(t, torch.from_numpy(gamma), torch.from_numpy(beta), activation="leaky_relu")
        assert same_bits(t.numpy(), want)
        got = bn.batch_norm_backward_from_output(
            torch.from_numpy(dy), t, saved, torch.from_numpy(gamma), torch.from_numpy(beta)
        )
        assert all(same_bits(a.numpy(), b) for a, b in zip(got[:3], grads[:3], strict=True))


def test_backward_takes_the_saved_of_batch_norm():
    x, _ = small_input("NCHW", np.float32)
    gamma, beta = random_params(x, 1)
    dy = like(x, 2)
    y, saved = bn.batch_norm(x, gamma, beta, activation="leaky_relu")
    want = gradients(x, 1, gamma, beta, SETTINGS["leaky_relu"], dy)[2]
    assert all(map(same_bits, bn.batch_norm_backward_from_output(dy, y, saved, gamma, beta)[:3], want[:3]))


@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 8, 3, 3)])
def test_an_output_need_not_lie_as_its_input_did(shape):
    """The mask of batch_norm follows x; backward takes the output's sign for it."""
    wide = np.random.default_rng(0).standard_normal((*shape[:-1], shape[-1] + 2)).astype(np.float32)
    dy = like(wide[..., :-2].copy(), 1)
    gamma, beta = random_params(dy, 1)
    for x in (wide[..., :-2], wide[..., ::-1][..., 2:], np.asfortranarray(wide[..., :-2])):
        out = np.empty(shape, np.float32)
        y, saved = bn.batch_norm(x, gamma, beta, activation="leaky_relu", out=out)
        got = bn.batch_norm_backward_from_output(dy, y, saved, gamma, beta)
        want = bn.batch_norm_backward(dy, x, saved, gamma)
        # The error of xhat, in each term of the sums.
        error = np.finfo(np.float32).eps * (1 + np.abs(beta / gamma).max())
        scales = np.abs(gamma).max() * np.asarray(saved.inv_std).max() * np.abs(dy).max(), *2 * [np.abs(dy).sum()]
        for a, b, scale in zip(got[:3], want[:3], scales, strict=True):
            assert np.abs(a - b).max() < error * scale


def test_refused_again_after_a_failure():
    """A refused call leaves x as it was, to be normalized by batch_norm."""
    x, _ = small_input("NCHW", np.float32)
    before = x.copy()
    with pytest.raises(ValueError, match="use batch_norm there"):
        bn.batch_norm_inplace(x, [1, 0, 2])
    assert same_bits(x, before)


# ------------------------------------------------------------------------------------------------------------- memory

ARRAYS = "x = array(32, 64, 160, 160); g = np.full(64, 1.5, np.float32); b = np.full(64, 0.5, np.float32)"
# Forward, the loss' gradient in its place (ones here, which takes a tensor anyhow), backward.
PLAIN = """
y, saved = bn.batch_norm(x, g, b, threads=2)
dy = np.ones_like(x)
bn.batch_norm_backward(dy, x, saved, g, out=dy, threads=2)
"""
INPLACE = """
saved = bn.batch_norm_inplace(x, g, b, activation="leaky_relu", threads=2)
dy = np.ones_like(x)
bn.batch_norm_backward_from_output(dy, x, saved, g, b, out=dy, threads=2)
"""


def more_memory_than_x(step):
    indented = step.strip().replace("\n", "\n    ")
    return float(output_of(MEASURE.format(arrays=ARRAYS, calls=indented)))


def test_a_step_in_place_holds_one_activation():
    """x itself, which becomes y; and dy, which becomes dx. A plain step holds y as well."""
    assert more_memory_than_x(INPLACE) < 1.01
    assert more_memory_than_x(PLAIN) > 1.9


def test_a_mask_takes_a_bit_for_each_element():
    step = 'out = np.empty_like(x); y, saved = bn.batch_norm(x, g, b, activation="relu", out=out, threads=2)'
    without = more_memory_than_x(step.replace(', activation="relu"', ""))
    assert 1 / 32 - 0.01 < more_memory_than_x(step) - without < 1 / 32 + 0.01
