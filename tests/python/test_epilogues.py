"""Activations, residuals, weights and groups together: the whole product of them on small arrays of every layout, and
each way through the library, against the reference; what an activation keeps for backward; special values."""

import itertools

import masks
import numpy as np
import pytest
import reference
from cases import DTYPES, PATHS, SMALL, path_input, small_input
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


# What each way through the library is for weights, groups and masks; not those of tens of millions of elements.
@pytest.mark.parametrize("path", PATHS)
def test_paths(path):
    """Everything at once, with one thread and several."""
    x, axis = path_input(path)
    n = x.shape[0]
    group_size = None if 0 in reference.kept_axes(x, axis) or n < 3 else n // 2 if n % 2 else n // 2 - 1
    everything = (True, weights_of("numbers", x, axis), group_size, True)
    check(x, axis, "leaky_relu", *everything, more_threads=(2, 3, 7))


@pytest.mark.parametrize("path", ["row, packed", "lane, groups", "row, planes of 3", "lane, rows with gaps"])
def test_paths_in_float64(path):
    x, axis = path_input(path, np.float64)
    check(x, axis, "relu", True, weights_of("mask", x, axis), None, True, more_threads=(3,))


@pytest.mark.parametrize("path", PATHS)
def test_an_activation_alone(path):
    """Traversals are others where there are no weights."""
    x, axis = path_input(path)
    check(x, axis, "relu", False, None, None, True, threads=2, more_threads=(7,))
