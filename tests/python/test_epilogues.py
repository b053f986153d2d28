"""Activations, residuals, weights and groups together: the whole product of them on small arrays of every layout, and
each way through the library, against the reference; what an activation keeps for backward; special values."""

import copy
import itertools
import pickle

import masks
import ml_dtypes
import numpy as np
import pytest
import reference
from cases import DTYPES, PATHS, SMALL, misaligned, packed_field, path_input, small_input
from checks import random_like, random_params, same_bits
from reference import assert_matches

import batchnorm as bn

SLOPES = {None: 0.01, "relu": 0.01, "leaky_relu": 0.2}  # relu takes no notice of its own
ACTIVATIONS = list(SLOPES)


def like(x, seed):
    """Numbers of x's shape, type and memory order."""
    array = np.empty_like(x)
    array[...] = random_like(x, seed)
    return array


def weights_of(kind, x, axis):
    """weights of a kind: None, a mask without the kept axes, or numbers broadcast to x, some of them 0."""
    if kind is None:
        return None
    rng = np.random.default_rng(8)
    kept = reference.kept_axes(x, axis)
    shape = [n for a, n in enumerate(x.shape) if a not in kept]
    if kind == "mask":
        mask = rng.random(shape) < 0.7
        mask.flat[:: max(1, mask.size // 3)] = True
        return mask
    return (rng.integers(0, 5, (1, *x.shape[1:]) if x.ndim > 2 else x.shape) / 4).astype(x.dtype)


def spread_weights(weights, x, axis):
    """As an array that broadcasts to x."""
    if weights is None or np.ndim(weights) == x.ndim:
        return None if weights is None else np.broadcast_to(weights, x.shape)
    kept = reference.kept_axes(x, axis)
    return np.broadcast_to(np.asarray(weights).reshape([1 if a in kept else n for a, n in enumerate(x.shape)]), x.shape)


def run(x, dy, axis, gamma, beta, residual, settings, threads):
    """Every array that the fused functions return, and those of the split ones."""
    moment_settings = {k: v for k, v in settings.items() if k in ("weights", "group_size")}
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, residual=residual, threads=threads, **settings)
    grads = bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True, threads=threads)
    m = bn.moments(x, axis=axis, threads=threads, **moment_settings)
    y_split, split = bn.normalize(x, m, gamma, beta, axis=axis, residual=residual, threads=threads, **settings)
    sums = bn.grad_sums(dy, x, split, threads=threads)
    grads_split = bn.input_grad(dy, x, split, sums, gamma, need_dresidual=True, threads=threads)
    arrays = [
        [a, s.mean, s.inv_std, s.var, np.asarray(s.count), *g, *(() if s.mask is None else (s.mask,))]
        for a, s, g in ((y, saved, grads), (y_split, split, grads_split))
    ]
    return saved, *arrays


def check(x, axis, activation, with_residual, weights, group_size, affine, threads=1, more_threads=()):
    """One combination, against the reference and in itself."""
    dy, residual = like(x, 2), like(x, 3) if with_residual else None
    gamma, beta = random_params(x, axis) if affine else (None, None)
    slope = SLOPES[activation]
    settings = {"weights": weights, "group_size": group_size}
    w = spread_weights(weights, x, axis)

    # Up to the activation by the reference, which knows rounding; from there to the bit.
    z = bn.batch_norm(x, gamma, beta, axis=axis, residual=residual, threads=threads, **settings)[0]
    want = reference.forward(x, axis, gamma, beta, weights=w, group_size=group_size, residual=residual)
    assert_matches(z, want.y, "z")
    want_y, through = reference.through_activation(z, activation, slope, x.dtype)

    settings |= {"activation": activation, "negative_slope": slope}
    saved, fused, split = run(x, dy, axis, gamma, beta, residual, settings, threads)
    y, grads = fused[0], fused[5:9]
    assert y.strides == bn.batch_norm(x, axis=axis, group_size=group_size)[0].strides
    assert np.array_equal(y, want_y)
    for name in ("mean", "var", "inv_std"):
        assert_matches(getattr(saved, name), getattr(want, name), f"saved.{name}")
    if weights is None:
        assert np.array_equal(saved.count, want.count)
    else:
        assert np.allclose(saved.count, want.count.astype(float), rtol=1e-14, atol=0)  # quarters: exact but for order
    if activation is None:
        assert saved.mask is None
        assert same_bits(grads[3], dy)
    else:
        assert same_bits(saved.mask, masks.packed(through, x, axis, group_size))
        scaled = np.zeros_like(dy) if activation == "relu" else dy * x.dtype.type(slope)
        assert np.array_equal(grads[3], np.where(through, dy, scaled))

    backward_slope = 0 if activation == "relu" else slope
    want = reference.backward(
        dy, x, axis, gamma, weights=w, group_size=group_size, through=through, slope=backward_slope
    )
    for name, got in zip(("dx", "dgamma", "dbeta"), grads, strict=False):
        assert_matches(got, getattr(want, name), name)

    assert all(map(same_bits, split, fused)), "split"
    for count in more_threads:
        again = run(x, dy, axis, gamma, beta, residual, settings, count)[1:]
        assert all(map(same_bits, again[0], fused)), count
        assert all(map(same_bits, again[1], fused)), count


# ----------------------------------------------------------------------------------------------------- the product


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", SMALL)
def test_product(layout, activation, dtype):
    x, axis = small_input(layout, dtype)
    groups = [None, *((5, 10) if np.prod(x.shape[1:]) == np.prod(reference.kept_shape(x, axis)) else (2, 4)), 100]
    groups = [None] if 0 in reference.kept_axes(x, axis) else groups
    for residual, weights, group_size, affine in itertools.product(
        (False, True), (None, "mask", "numbers"), groups, (False, True)
    ):
        try:
            check(x, axis, activation, residual, weights_of(weights, x, axis), group_size, affine)
        except AssertionError as error:
            raise AssertionError(f"{residual=} {weights=} {group_size=} {affine=}: {error}") from error


@pytest.mark.parametrize("path", PATHS)
def test_paths(path):
    """Everything at once, with one thread and several."""
    x, axis = path_input(path)
    n = x.shape[0]
    group_size = None if 0 in reference.kept_axes(x, axis) or n < 3 else n // 2 if n % 2 else n // 2 - 1
    everything = (True, weights_of("numbers", x, axis), group_size, True)
    check(x, axis, "leaky_relu", *everything, more_threads=(2, 3, 7) if x.size < 1_000_000 else (3,))


@pytest.mark.parametrize("path", ["row, packed", "lane, groups", "row, planes of 3", "lane, rows with gaps"])
def test_paths_in_float64(path):
    x, axis = path_input(path, np.float64)
    check(x, axis, "relu", True, weights_of("mask", x, axis), None, True, more_threads=(3,))


@pytest.mark.parametrize("path", PATHS)
def test_an_activation_alone(path):
    """Traversals are others where there are no weights."""
    x, axis = path_input(path)
    check(x, axis, "relu", False, None, None, True, threads=2, more_threads=(7,) if x.size < 1_000_000 else ())


# --------------------------------------------------------------------------------------------------------- the mask


def activated(x, axis=1, **settings):
    """The mask of relu, and what it should have let through: half of it, at random."""
    residual = like(x, 6) * 0 + np.where(np.random.default_rng(5).random(x.shape) < 0.5, 100, -100).astype(x.dtype)
    y, saved = bn.batch_norm(x, axis=axis, activation="relu", residual=residual, **settings)
    assert np.array_equal(y > 0, residual > 0)
    return saved.mask, residual > 0


def test_mask_of_planes():
    """NCHW: each plane's bits, the first in the lowest, from a whole byte on."""
    mask, through = activated(small_input("NCHW", np.float32)[0][:2])  # planes of 4 x 5
    assert mask.dtype == np.uint8
    want = []
    for plane in through.reshape(6, 20):
        for first in (0, 8, 16):
            want.append(sum(int(bit) << i for i, bit in enumerate(plane[first : first + 8])))
    assert mask.tolist() == want


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("samples", "plane"), [(1, 8), (2, 16), (19, 152), (20, 256)])
def test_mask_of_small_planes(samples, plane, dtype):
    """Planes of 8 elements for each sample, or up to 256 of 20 samples, make a row with their channels."""
    for elements, rows in ((plane, samples), (plane + 1, 5 * samples)):
        mask, through = activated(np.random.default_rng(0).normal(0, 1, (samples, 5, elements)).astype(dtype))
        assert np.array_equal(mask, np.packbits(through.reshape(rows, -1), axis=1, bitorder="little").ravel())


@pytest.mark.parametrize("channels", [2, 7, 8, 11, 16, 129])
def test_mask_of_channels_last(channels):
    mask, through = activated(np.random.default_rng(0).normal(0, 1, (5, 3, channels)), -1)
    bits = np.unpackbits(mask.reshape(15, -1), axis=1, bitorder="little")
    assert np.array_equal(bits[:, :channels].reshape(through.shape), through)
    assert not bits[:, channels:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_mask_of_long_rows(dtype):
    """Rows that start anywhere between two bytes of the mask, and between two lines of y, written by all ways."""
    rng = np.random.default_rng(0)
    lengths = [*range(530, 630), 729, 1023, 1025, 4099, 22201]
    for elements in lengths:
        x = rng.standard_normal((3, 4, elements), np.float32).astype(dtype)
        residual = np.where(rng.random(x.shape) < 0.5, 100, -100).astype(dtype)
        through = residual > 0
        want = np.packbits(through.reshape(12, -1), axis=1, bitorder="little").ravel()
        y, saved = bn.batch_norm(x, activation="relu", residual=residual, threads=2)
        assert np.array_equal(y > 0, through)
        assert np.array_equal(saved.mask, want), elements
        split = bn.normalize(x, bn.moments(x), activation="relu", residual=residual, threads=1)[1]
        assert np.array_equal(split.mask, want), elements
        dresidual = bn.batch_norm_backward(np.ones_like(x), x, saved, need_dresidual=True).dresidual
        assert np.array_equal(dresidual != 0, through), elements


@pytest.mark.parametrize("group_size", [None, 2, 3, 8, 9])
def test_mask_of_groups(group_size):
    """Planes of 9 elements make rows with their channels in groups of 2 samples and more."""
    mask, through = activated(np.random.default_rng(0).normal(0, 1, (17, 5, 3, 3)), group_size=group_size)
    bits = []
    samples = np.split(through, range(group_size or 17, 17, group_size or 17))
    for group in samples:
        shape = (len(group), 45) if len(group) >= 2 else (len(group) * 5, 9)
        bits.append(np.packbits(group.reshape(shape), axis=1, bitorder="little").ravel())
    assert np.array_equal(mask, np.concatenate(bits))


@pytest.mark.parametrize("layout", SMALL)
def test_mask_of_every_layout(layout):
    for dtype in DTYPES:
        x, axis = small_input(layout, dtype)
        for group_size in (None,) if 0 in reference.kept_axes(x, axis) else (None, 3, 8):
            if group_size and x.shape[0] % group_size == 1 and x.ndim <= 2:
                continue
            mask, through = activated(x, axis, group_size=group_size)
            assert same_bits(mask, masks.packed(through, x, axis, group_size)), group_size


@pytest.mark.parametrize("layout", SMALL)
def test_mask_made_by_hand(layout):
    x, axis = small_input(layout, np.float32)
    dy = like(x, 2)
    saved = bn.batch_norm(x, axis=axis, activation="leaky_relu", negative_slope=-0.5)[1]
    by_hand = bn.Saved(
        saved.mean,
        saved.inv_std,
        axis=axis,
        activation="leaky_relu",
        negative_slope=-0.5,
        mask=masks.packed(bn.batch_norm(x, axis=axis)[0] > 0, x, axis),
    )
    want = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
    assert all(map(same_bits, bn.batch_norm_backward(dy, x, by_hand, need_dresidual=True), want))
    # And from bits that no forward made.
    through = np.random.default_rng(9).random(x.shape) < 0.5
    mask = masks.packed(through, x, axis)
    for given in (mask, mask.reshape(-1, 1), np.repeat(mask, 2)[::2]):
        other = bn.Saved(saved.mean, saved.inv_std, axis=axis, activation="relu", mask=given)
        grads = bn.batch_norm_backward(dy, x, other, need_dresidual=True)
        assert np.array_equal(grads.dresidual, np.where(through, dy, 0))


def test_saved_knows_forwards_settings():
    x = small_input("NCHW", np.float32)[0]
    saved = bn.batch_norm(x, activation="leaky_relu", negative_slope=0.25, group_size=2, weights=np.ones((5, 4, 5)))[1]
    assert (saved.activation, saved.negative_slope, saved.group_size, saved.axis) == ("leaky_relu", 0.25, 2, 1)
    assert saved.mean.shape == saved.var.shape == saved.inv_std.shape == saved.count.shape == (3, 3)
    assert saved.count.tolist() == [[40.0] * 3, [40.0] * 3, [20.0] * 3]
    assert saved.mask.dtype == np.uint8
    text = repr(saved)
    for part in ("activation='leaky_relu'", "negative_slope=0.25", "group_size=2", "mask=array", "weights=array"):
        assert part in text
    plain = bn.batch_norm(x)[1]
    assert (plain.activation, plain.group_size, plain.mask, plain.weights, plain.count) == (None, None, None, None, 100)
    assert "activation" not in repr(plain)
    # In place there is no mask: the output tells.
    assert bn.batch_norm_inplace(x.copy(), activation="leaky_relu").mask is None


@pytest.mark.parametrize("way", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy])
def test_saved_travels(way):
    for layout in ("crop", "NHWC"):
        x, axis = small_input(layout, np.float32)
        settings = {"activation": "relu", "group_size": 2, "weights": weights_of("numbers", x, axis)}
        dy, saved = like(x, 2), bn.batch_norm(x, axis=axis, **settings)[1]
        arrived = way(saved)
        assert same_bits(arrived.mask, saved.mask)
        assert same_bits(arrived.count, saved.count)
        want = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
        assert all(map(same_bits, bn.batch_norm_backward(dy, x, arrived, need_dresidual=True), want))
        with pytest.raises(ValueError, match="x has not the shape and strides"):
            bn.batch_norm_backward(dy, np.asfortranarray(x), arrived)


# --------------------------------------------------------------------------------------------------- special values


SPECIAL = [np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.5, -3.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("slope", [0, 0.25, -2])
def test_special_values(slope, lanes, dtype):
    """Through the residual: x is constant, and the normalized values are 0."""
    x = np.ones((4, 5, 7) if lanes else (4, 5, 70), dtype)
    axis = -1 if lanes else 1
    values = np.resize(SPECIAL, x.shape).astype(dtype)
    for activation in ("relu", "leaky_relu"):
        y, saved = bn.batch_norm(x, axis=axis, activation=activation, negative_slope=slope, residual=values)
        factor = 0 if activation == "relu" else slope
        with np.errstate(invalid="ignore"):
            below = values * dtype(factor) if factor else np.zeros_like(values)
        through = (values > 0) | np.isnan(values)  # as torch.relu, which passes NaN on
        assert np.array_equal(y, np.where(through, values, below), equal_nan=True)
        assert same_bits(saved.mask, masks.packed(through, x, axis))
        inference = bn.batch_norm_inference(
            x, 1, 1, axis=axis, activation=activation, negative_slope=slope, residual=values
        )
        assert np.array_equal(inference, y, equal_nan=True)
        dy = np.roll(values, 3, -1)
        with np.errstate(invalid="ignore"):
            want = np.where(through, dy, dy * dtype(factor) if factor else 0)
        dresidual = bn.batch_norm_backward(dy, x, saved, need_dresidual=True).dresidual
        assert np.array_equal(dresidual, want, equal_nan=True)


@pytest.mark.parametrize("layout", SMALL)
def test_what_does_not_get_through_does_no_harm(layout):
    """NaN and infinities in dy where relu let nothing through: as if there were zeros."""
    for dtype in DTYPES:
        x, axis = small_input(layout, dtype)
        y, saved = bn.batch_norm(x, axis=axis, activation="relu")
        dy = like(x, 2)
        dy[y == 0] = 0
        want = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
        dy[y == 0] = np.resize([np.nan, np.inf, -np.inf], np.sum(y == 0))
        assert all(map(same_bits, bn.batch_norm_backward(dy, x, saved, need_dresidual=True), want))


# ------------------------------------------------------------------------------------------------ inference, and out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", SMALL)
def test_inference(layout, activation, dtype):
    x, axis = small_input(layout, dtype)
    slope = SLOPES[activation]
    options = {"axis": axis, "activation": activation, "negative_slope": slope}
    gamma, beta = random_params(x, axis)
    shape, rng = reference.kept_shape(x, axis), np.random.default_rng(1)
    mean, var = rng.normal(0, 1, shape), rng.uniform(0.5, 2, shape)
    for residual in (None, like(x, 3)):
        z = bn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, residual=residual)
        if residual is None:
            assert_matches(z, reference.inference(x, mean, var, axis, gamma, beta))
        else:
            plain = reference.inference(x, mean, var, axis, gamma, beta)
            exact = plain.exact + residual
            error = plain.error + np.finfo(dtype).eps * np.abs(exact)
            assert_matches(z, reference.Value(exact, error))
        want, through = reference.through_activation(z, activation, slope, dtype)
        y = bn.batch_norm_inference(x, mean, var, gamma, beta, residual=residual, **options)
        assert np.array_equal(y, want)
        dy = like(x, 2)
        passed = dy
        if through is not None:
            passed = np.where(through, dy, 0 if activation == "relu" else dy * dtype(slope))
        gave = like(x, 2)
        gave[...] = passed
        grads = bn.batch_norm_inference_backward(dy, x, mean, var, gamma, y=y, need_dresidual=True, **options)
        assert np.array_equal(grads.dresidual, passed)
        wanted = reference.inference_backward(gave, x, mean, var, axis, gamma)
        # The sums take dy times the slope before it is rounded.
        rounding = 0 if activation != "leaky_relu" else np.finfo(dtype).eps
        assert_matches(grads.dx, wanted.dx, "dx")
        inv_std = 1 / np.sqrt(var + 1e-5)
        reduced = tuple(a for a in range(x.ndim) if a not in reference.kept_axes(x, axis))
        spread = np.reshape(mean, [n if a in reference.kept_axes(x, axis) else 1 for a, n in enumerate(x.shape)])
        for got, value, terms in (
            (grads.dgamma, wanted.dgamma, np.abs(gave * (x - spread)).sum(reduced) * inv_std),
            (grads.dbeta, wanted.dbeta, np.abs(gave).sum(reduced)),
        ):
            assert_matches(got, reference.Value(value.exact, value.error + rounding * terms))


@pytest.mark.parametrize("layout", SMALL)
def test_outputs(layout):
    """In the place of inputs, and where the caller says."""
    x, axis = small_input(layout, np.float32)
    residual, dy = like(x, 3), like(x, 2)
    options = {"axis": axis, "activation": "leaky_relu"}
    want, saved = bn.batch_norm(x, residual=residual, **options)
    for target in (x.copy("K"), residual.copy("K")):
        source = target if np.array_equal(target, x) else x
        added = target if np.array_equal(target, residual) else residual
        y, _ = bn.batch_norm(source, residual=added, out=target, **options)
        assert y is target
        assert same_bits(y, want)
    wants = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
    stats = saved.mean, saved.var
    wants_frozen = bn.batch_norm_inference_backward(dy, x, *stats, y=want, need_dresidual=True, **options)
    for order in ("K", "F"):
        for in_dy in (False, True):
            for dx_first in (False, True):
                pair = [np.full_like(x, 7, order=order), dy.copy("K") if in_dy else np.full_like(x, 7)]
                if dx_first:
                    pair = pair[::-1]
                given = dy if not in_dy else pair[0] if dx_first else pair[1]
                grads = bn.batch_norm_backward(given, x, saved, need_dresidual=True, out=tuple(pair))
                assert grads.dx is pair[0]
                assert grads.dresidual is pair[1]
                assert all(map(same_bits, grads, wants))
                if in_dy:
                    given[...] = dy
                grads = bn.batch_norm_inference_backward(
                    given, x, *stats, y=want, need_dresidual=True, out=tuple(pair), **options
                )
                assert all(map(same_bits, grads, wants_frozen))
                if in_dy:
                    given[...] = dy
                sums = bn.grad_sums(given, x, saved)
                grads = bn.input_grad(given, x, saved, sums, need_dresidual=True, out=tuple(pair))
                assert all(map(same_bits, grads, wants))
    only = bn.batch_norm_backward(dy, x, saved, need_dresidual=True, out=pair[0])
    assert only.dx is pair[0]
    assert all(map(same_bits, only, wants))
    assert bn.batch_norm_backward(dy, x, saved).dresidual is None


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC, folded", "packed", "NCHW, planes of 17 x 16"])
def test_operands_of_other_layouts(layout):
    """Residual, dy, y and weights that do not lie as x does are packed: the same bits."""
    x, axis = small_input(layout, np.float32)
    residual, dy, weights = like(x, 3), like(x, 2), np.abs(like(x, 4))
    options = {"axis": axis, "activation": "leaky_relu"}
    y, saved = bn.batch_norm(x, residual=residual, weights=weights, **options)
    grads = bn.batch_norm_backward(dy, x, saved, need_dresidual=True)
    frozen = bn.batch_norm_inference_backward(dy, x, 0, 1, y=y, need_dresidual=True, **options)
    for move in (np.asfortranarray, misaligned, packed_field, lambda a: np.flip(np.flip(a, 0).copy(), 0)):
        moved = bn.batch_norm(x, residual=move(residual), weights=move(weights), **options)
        assert same_bits(moved[0], y)
        assert same_bits(moved[1].mask, saved.mask)
        assert all(map(same_bits, bn.batch_norm_backward(move(dy), x, moved[1], need_dresidual=True), grads))
        again = bn.batch_norm_inference_backward(
            move(dy), x, 0, 1, y=move(np.ascontiguousarray(y)), need_dresidual=True, **options
        )
        assert all(map(same_bits, again, frozen))


@pytest.mark.parametrize("layout", SMALL)
def test_bits_for_any_number_of_threads(layout):
    x, axis = small_input(layout, np.float32)
    group_size = None if 0 in reference.kept_axes(x, axis) else 5
    check(x, axis, "relu", True, weights_of("mask", x, axis), group_size, True, more_threads=(2, 3, 7))


def placed(like_this, offset):
    """Sevens in an array of that shape, `offset` bytes past a multiple of 64."""
    memory = np.full(like_this.nbytes + 128, 7, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + like_this.nbytes].view(like_this.dtype).reshape(like_this.shape)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((70, 64, 22, 22), 1),
        ((70, 32, 33, 32), 1),
        ((33000, 67), 1),
        ((35000, 64), 1),
        ((450, 100, 7, 7), 1),
        ((540, 4099), 1),
    ],
)
def test_outputs_past_the_caches(shape, axis):
    """dx and dresidual of more than 8 MB, however they lie: the bits of their parts, which are none of that."""
    x = np.resize(np.random.default_rng(0).standard_normal(1_000_003, np.float32), shape)
    assert x.nbytes > 8 << 20
    dy = x[::-1]
    gamma, beta = random_params(x, axis)
    settings = {"axis": axis, "activation": "leaky_relu"}
    m = bn.moments(x, axis=axis)
    saved = bn.normalize(x, m, gamma, beta, **settings)[1]
    sums = bn.grad_sums(dy, x, saved)
    parts = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(shape[0]), 5)]
    pieces = [bn.normalize(x[at], m, gamma, beta, **settings) for at in parts]
    assert same_bits(np.concatenate([s.mask for _, s in pieces]), saved.mask)
    wants = [
        bn.input_grad(dy[at], x[at], s, sums, gamma, need_dresidual=True)
        for at, (_, s) in zip(parts, pieces, strict=True)
    ]
    for offsets in ((0, 0), (4, 4), (4, 0), (0, 4), (60, 36), (1, 0), (0, 2)):
        outs = tuple(placed(x, offset) for offset in offsets)
        for grads in (
            bn.input_grad(dy, x, saved, sums, gamma, need_dresidual=True, out=outs, threads=2),
            bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True, out=outs, threads=3),
        ):
            for at, want in zip(parts, wants, strict=True):
                assert same_bits(grads.dx[at], want.dx), offsets
                assert same_bits(grads.dresidual[at], want.dresidual), offsets


@pytest.mark.parametrize(("shape", "axis"), [((96001, 67), 1), ((70, 61, 39, 39), 1)])
def test_forward_past_the_caches(shape, axis):
    """y of more than 24 MB, with its mask."""
    x = np.resize(np.random.default_rng(0).standard_normal(1_000_003, np.float32), shape)
    assert x.nbytes > 24 << 20
    gamma, beta = random_params(x, axis)
    settings = {"axis": axis, "activation": "relu"}
    m = bn.moments(x, axis=axis)
    parts = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(shape[0]), 8)]
    wants = [bn.normalize(x[at], m, gamma, beta, residual=x[at], **settings) for at in parts]
    mask = np.concatenate([s.mask for _, s in wants])
    for offset in (0, 20, 1):
        y, saved = bn.normalize(x, m, gamma, beta, residual=x, out=placed(x, offset), threads=2, **settings)
        assert same_bits(saved.mask, mask)
        for at, want in zip(parts, wants, strict=True):
            assert same_bits(y[at], want[0])
        y, saved = bn.batch_norm(x, gamma, beta, residual=x, out=placed(x, offset), threads=3, **settings)
        assert same_bits(saved.mask, mask)
        assert all(same_bits(y[at], want[0]) for at, want in zip(parts, wants, strict=True))


# ---------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_as_pytorch(last, with_residual, activation):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        torch.manual_seed(0)
        shape = (6, 5, 7, 9)
        x, residual, dy = (torch.randn(shape, dtype=dtype) for _ in range(3))
        if last:
            x, residual, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual, dy))
        gamma, beta = torch.randn(2, 5, dtype=dtype)
        leaves = [t.clone().requires_grad_() for t in (x, gamma, beta, residual)]
        want = functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True)
        want = want + leaves[3] if with_residual else want
        if activation == "relu":
            want = torch.relu(want)
        elif activation == "leaky_relu":
            want = functional.leaky_relu(want, 0.2)
        want.backward(dy)

        y, saved = bn.batch_norm(
            x,
            gamma,
            beta,
            activation=activation,
            negative_slope=SLOPES[activation],
            residual=residual if with_residual else None,
        )
        grads = bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True)
        assert isinstance(y, torch.Tensor)
        assert saved.mask is None if activation is None else saved.mask.dtype == torch.uint8
        pairs = [(y, want.detach()), *zip(grads[:3], [leaf.grad for leaf in leaves[:3]], strict=True)]
        if with_residual:
            pairs.append((grads.dresidual, leaves[3].grad))
        for got, wanted in pairs:
            assert got.dtype == dtype
            assert torch.max(torch.abs(got - wanted)) <= tolerance * torch.max(torch.abs(wanted))
        arrays = [t.numpy() for t in (x, residual, dy)]
        y_np, saved_np = bn.batch_norm(
            arrays[0],
            gamma.numpy(),
            beta.numpy(),
            activation=activation,
            negative_slope=SLOPES[activation],
            residual=arrays[1] if with_residual else None,
        )
        assert same_bits(y.numpy(), y_np)
        again = bn.batch_norm_backward(arrays[2], arrays[0], saved_np, gamma.numpy(), need_dresidual=True)
        assert all(same_bits(a.numpy(), b) for a, b in zip(grads, again, strict=True))
        travelled = pickle.loads(pickle.dumps(saved))
        assert activation is None or torch.equal(travelled.mask, saved.mask)
        assert torch.equal(bn.batch_norm_backward(dy, x, travelled, gamma).dx, grads.dx)
