"""Hypothesis: any shape, axes, strides and types against the reference."""

import ml_dtypes
import numpy as np
import pytest
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


def random_call(rng):
    """x of up to some 200,000 elements of any type, anywhere between two lines of the cache; dy; options."""
    dtype = np.dtype(rng.choice([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    axis = [1, 1, -1, (0, 1)][rng.integers(4)]
    samples, channels = (int(np.exp(rng.uniform(np.log(2), np.log(40)))) for _ in range(2))
    inner = int(np.exp(rng.uniform(np.log(2), np.log(200_000 / (samples * channels)))))
    shape = (samples, inner, channels) if axis == -1 else (samples, channels, inner)
    start = rng.integers(64)
    x = np.empty(start + samples * channels * inner, dtype)[start:].reshape(shape)
    x[...] = rng.normal(1.5, 2, shape)
    whole = axis == (0, 1)
    options = {
        "axis": axis,
        "activation": [None, "relu", "leaky_relu"][rng.integers(3)],
        "negative_slope": 0.25,
        "residual": rng.normal(0, 1, shape).astype(dtype) if rng.random() < 0.5 else None,
        "weights": None if whole or rng.random() < 0.5 else rng.integers(0, 3, (samples, 1, 1)) + 0.5,
        "group_size": None if whole or rng.random() < 0.5 else int(rng.integers(2, 9)),
    }
    return x, rng.normal(0.25, 1, shape).astype(dtype), options


@pytest.mark.parametrize("seed", range(8))
def test_options_of_all_types(seed):
    """Fused as split, on any threads; the mask as y has it; all types as float64, but for their roundings."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        check_options(*random_call(rng), threads=int(rng.integers(1, 4)))


def check_options(x, dy, options, threads):
    halves = {key: options[key] for key in ("axis", "group_size", "weights")}
    y, saved = bn.batch_norm(x, threads=threads, **options)
    grads = bn.batch_norm_backward(dy, x, saved, need_dresidual=True, threads=threads)
    m = bn.moments(x, threads=3, **halves)
    split_y, split = bn.normalize(x, m, threads=2, **options)
    sums = bn.grad_sums(dy, x, split, threads=3)
    split_grads = bn.input_grad(dy, x, split, sums, need_dresidual=True, threads=2)
    assert same_bits(split_y, y)
    for got, want in zip(split_grads, grads, strict=True):
        assert same_bits(got, want)
    if options["activation"]:
        assert same_bits(split.mask, saved.mask)
        through = y > 0
        scaled = dy * dy.dtype.type(0.25 if options["activation"] == "leaky_relu" else 0)
        assert np.array_equal(grads.dresidual, np.where(through, dy, scaled))

    wide = {key: value.astype(np.float64) if key == "residual" and value is not None else value
            for key, value in options.items()}  # fmt: skip
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    y64, saved64 = bn.batch_norm(x64, **wide)
    # Elements next to 0 may fall on the other side of an activation: backward goes through what y went through.
    scale = np.where(y > 0, 1.0, 1.0 if not options["activation"] else 0.25 * (options["activation"] != "relu"))
    plain = bn.Saved(saved64.mean, saved64.inv_std, saved64.var, saved64.count, **halves)
    dx64 = bn.batch_norm_backward(dy64 * scale, x64, plain).dx
    # One rounding of the result, and a few of terms in the arithmetic's type, which may cancel.
    info, inv_std = ml_dtypes.finfo(x.dtype), saved64.inv_std.max(initial=0)
    unit = 2.0**-53 if x.dtype == np.float64 else 2.0**-24
    terms_of_y = np.ptp(x64) * inv_std + (0 if wide["residual"] is None else np.abs(wide["residual"]).max())
    for got, want, terms in ((y, y64, terms_of_y), (grads.dx, dx64, np.abs(dy64).max() * inv_std)):
        allowed = float(info.eps) / 2 * np.abs(want) + 16 * unit * terms + float(info.smallest_subnormal)
        assert np.all(np.abs(got.astype(np.float64) - want) <= allowed)
