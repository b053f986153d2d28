"""Hypothesis: any shape, axes, strides and types against the reference."""

import numpy as np
import reference
from checks import check_all, random_like, same_bits
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference import assert_matches

import batchnorm as bn

# derandomize: the same examples everywhere.
fixed = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def views(draw, least=1):
    """An array of float32 or float64 in any memory order, seen through steps, reversals and repeated axes."""
    rank = draw(st.integers(0, 5))
    shape = tuple(draw(st.integers(least, 7)) for _ in range(rank))
    slices, base_shape, flipped = [], [], []
    for axis, size in enumerate(shape):
        step, before, after = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(0, 2)), draw(st.integers(0, 2))
        base_shape.append(before + size * step + after)
        slices.append(slice(before, before + size * step, step))
        if draw(st.integers(0, 3)) == 0:
            flipped.append(axis)
    order = draw(st.permutations(range(rank)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean, std = draw(st.sampled_from([(0, 1), (5, 2), (-1e4, 1), (0, 1e10)]))
    base = rng.normal(mean, std, [base_shape[a] for a in order])
    base = base.astype(draw(st.sampled_from([np.float32, np.float64])))
    x = np.asarray(np.flip(base.transpose(np.argsort(order))[(*slices, ...)], flipped))  # np.flip: rank 0 is a number
    assert x.shape == shape
    for axis in range(rank):
        if shape[axis] and draw(st.integers(0, 9)) == 0:
            x = np.broadcast_to(np.take(x, [0], axis), shape)
    return x


@st.composite
def views_and_axes(draw, least=1):
    x = draw(views(least))
    axes = draw(st.lists(st.integers(-x.ndim, x.ndim - 1), unique_by=lambda a: a % x.ndim)) if x.ndim else []
    return x, tuple(axes)


@fixed
@given(views_and_axes(), st.integers(1, 4), st.data())
def test_everything(x_and_axes, threads, data):
    x, axes = x_and_axes
    order = data.draw(st.permutations(range(x.ndim)))
    dy = random_like(x).transpose(order).copy().transpose(np.argsort(order))
    check_all(x, axes, dy=dy, threads=threads)


@fixed
@given(views_and_axes(), st.data())
def test_out_in_any_layout(x_and_axes, data):
    x, axes = x_and_axes
    assume(reference.forward(x, axes).count > 1)
    order = data.draw(st.permutations(range(x.ndim)))
    gaps = [data.draw(st.integers(1, 2)) for _ in range(x.ndim)]
    buffer = np.full([x.shape[a] * gaps[a] for a in order], 7, x.dtype)
    out = buffer.transpose(np.argsort(order))[tuple(slice(None, None, gap) for gap in gaps)]
    y, saved = bn.batch_norm(x, axis=axes, out=out)
    want, _ = bn.batch_norm(x, axis=axes)
    assert y is out
    assert same_bits(y, want)
    dx = bn.batch_norm_backward(x, x, saved).dx
    assert same_bits(bn.batch_norm_backward(x, x, saved, out=out).dx, dx)
    out[...] = 7
    assert np.all(buffer == 7)


@fixed
@given(views_and_axes(least=0))
def test_sizes_of_zero(x_and_axes):
    x, axes = x_and_axes
    kept = reference.kept_shape(x, axes)
    m = bn.moments(x, axis=axes)
    assert m.mean.shape == m.m2.shape == kept
    mean, var = np.zeros(kept), np.ones(kept)
    y = bn.batch_norm_inference(x, mean, var, axis=axes)
    assert y.shape == x.shape
    grads = bn.batch_norm_inference_backward(x, x, mean, var, axis=axes)
    assert grads.dx.shape == x.shape
    assert grads.dgamma.shape == grads.dbeta.shape == kept
    if x.size == 0:
        y, saved = bn.batch_norm(x, axis=axes)
        assert y.shape == x.shape
        assert saved.mean.shape == kept
        grads = bn.batch_norm_backward(x, x, saved)
        assert not np.any(grads.dgamma)
        assert not np.any(grads.dbeta)


@fixed
@given(views_and_axes(), st.lists(st.integers(0, 7), max_size=4))
def test_parts_merge_to_the_whole(x_and_axes, cuts):
    x, axes = x_and_axes
    assume(x.ndim and 0 not in reference.kept_axes(x, axes))  # the axis to cut
    parts = np.split(x, sorted(min(cut, len(x)) for cut in cuts))
    merged = sum(bn.moments(part, axis=axes) for part in parts)
    want = reference.forward(x, axes)
    assert merged.count == want.count
    assert_matches(merged.mean, want.mean)
    assert_matches(merged.var(), want.var)
