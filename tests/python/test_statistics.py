"""Statistics as values: Moments, GradSums, Saved."""

import copy
import pickle

import numpy as np
import pytest
import reference
from checks import random_like, random_params, same_bits

import batchnorm as bn

# dtype: how far apart two orders of summation, or roundings to the type, may take a result of size 1
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}


def uneven_parts(dtype, cuts=(1, 2, 9, 40, 41), seed=0):
    """Parts of a batch along axis 0 whose means differ by many standard deviations, and one that is empty."""
    x = np.random.default_rng(seed).normal(0, 1, (64, 5, 4)).astype(dtype)
    parts = np.split(x, [*cuts, 41])
    for i, part in enumerate(parts):
        part += 10 * i
    return x, parts


def assert_close(got, want, tolerance):
    assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))


# --------------------------------------------------------------------------------------------------------- Moments

MERGES = {
    "+": lambda ms: ms[0] + ms[1] + ms[2] + ms[3] + ms[4] + ms[5] + ms[6],
    "sum": sum,
    "merge": bn.Moments.merge,
    "merge of an iterator": lambda ms: bn.Moments.merge(iter(ms)),
    "in another order": lambda ms: sum(ms[::-1]),
    "pairwise": lambda ms: (ms[0] + ms[1] + (ms[2] + ms[3])) + (ms[4] + (ms[5] + ms[6])),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("merge", MERGES)
def test_merged_moments_are_those_of_the_whole(merge, dtype):
    x, parts = uneven_parts(dtype)
    merged = MERGES[merge]([bn.moments(part) for part in parts])
    whole, want = bn.moments(x), reference.forward(x)
    assert merged.count == whole.count == 64 * 4
    # Both are float64, whatever the data's type.
    for got in (merged, whole):
        assert_close(got.mean, want.mean.exact, 1e-14)
        assert_close(got.var(), want.var.exact, 1e-14)
    assert merged.mean.dtype == merged.m2.dtype == np.float64


def test_merging_keeps_moments_far_from_zero():
    x, parts = uneven_parts(np.float64)
    x += 1e6
    merged = sum(bn.moments(part) for part in parts)
    # The means are float64 numbers of 1e6: their differences, the deviations, are known to 1e6 * 2**-53.
    assert_close(merged.var(), reference.forward(x).var.exact, 1e-10)


@pytest.mark.parametrize("one_count", [True, False])
def test_a_light_part_far_away(one_count):
    """The mean keeps the digits that the heavy part gives it, whichever comes first."""
    x = np.random.default_rng(0).normal(0, 1, (1000, 3))
    for far, weight in ((1e10, 1e-30), (1e10, 1e-18), (-1e8, 1e-3), (1e10, 0.0)):
        counts = (weight, 1000.0) if one_count else (np.full(3, weight), np.full(3, 1000.0))
        light = bn.Moments(np.full(3, far if weight else 0.0), np.zeros(3), counts[0])
        whole = bn.moments(x)
        heavy = bn.Moments(whole.mean, whole.m2, counts[1])
        wide = x.astype(np.longdouble)
        total = np.longdouble(weight) + 1000
        mean = (wide.sum(0) + np.longdouble(weight) * far) / total
        var = (((wide - mean) ** 2).sum(0) + np.longdouble(weight) * (far - mean) ** 2) / total
        for merged in (light + heavy, heavy + light):
            assert np.all(np.abs(merged.mean - mean) <= 1e-14 * np.sqrt(var))
            np.testing.assert_allclose(merged.var(), var.astype(float), rtol=1e-14)


def test_a_part_without_weight_beside_large_numbers():
    large = bn.Moments(np.array([1e160, -1e300]), np.array([1e300, 5.0]), np.array([4.0, 2.0]))
    nothing = bn.Moments(np.zeros(2), np.zeros(2), np.zeros(2))
    for merged in (large + nothing, nothing + large):
        assert same_bits(merged.mean, large.mean)
        assert same_bits(merged.m2, large.m2)


def test_empty_parts_change_nothing():
    x = np.random.default_rng(0).normal(0, 1, (6, 3))
    m, empty = bn.moments(x), bn.moments(x[:0])
    assert empty.count == 0
    for merged in (m + empty, empty + m, empty + m + empty):
        assert same_bits(merged.mean, m.mean)
        assert same_bits(merged.m2, m.m2)
        assert merged.count == m.count
    assert (empty + empty).count == 0


def test_operands_are_left_alone():
    _, parts = uneven_parts(np.float64)
    a, b = bn.moments(parts[2]), bn.moments(parts[3])
    before = [v.copy() for v in (a.mean, a.m2, b.mean, b.m2)]
    a + b
    assert all(map(same_bits, (a.mean, a.m2, b.mean, b.m2), before))


def test_var():
    x = np.random.default_rng(0).normal(0, 1, (6, 3))
    m = bn.moments(x)
    assert_close(m.var(), x.var(0), 1e-14)
    assert_close(m.var(correction=1), x.var(0, ddof=1), 1e-14)
    assert_close(m.var(1.5), x.var(0) * 6 / 4.5, 1e-14)
    for correction in (6, 7):
        with pytest.raises(ValueError, match=f"correction {correction}.*count.*6"):
            m.var(correction)
    with pytest.raises(ValueError, match="count"):
        bn.moments(x[:0]).var()


def test_what_does_not_merge():
    x = np.zeros((4, 3, 2))
    m = bn.moments(x)
    s = bn.grad_sums(x, x, bn.batch_norm(x)[1])
    for value in (m, s):
        for other in (1, 1.5, "a", None, (m.mean, m.m2, 1)):
            with pytest.raises(TypeError):
                value + other
            with pytest.raises(TypeError):
                other + value
    with pytest.raises(TypeError):
        m + s
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        m + bn.moments(x, axis=2)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        s + bn.grad_sums(x, x, bn.batch_norm(x, axis=2)[1])
    with pytest.raises(ValueError, match="at least one"):
        bn.Moments.merge([])


def test_moments_and_sums_are_frozen():
    m = bn.moments(np.zeros((4, 3)))
    with pytest.raises(AttributeError):
        m.count = 3
    assert bn.Moments.merge([m]).count == 4
    assert pickle.loads(pickle.dumps(m)).count == 4


# --------------------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("axis", [1, (1, 2), 2])
def test_micro_batches_equal_the_whole_batch(axis, dtype):
    x, parts = uneven_parts(dtype)
    dy = random_like(x)
    dy_parts = np.split(dy, np.cumsum([len(p) for p in parts])[:-1])
    gamma, beta = random_params(x, axis)
    tolerance = TOLERANCE[dtype]

    m = sum(bn.moments(part, axis=axis) for part in parts)
    outputs = [bn.normalize(part, m, gamma, beta, axis=axis) for part in parts]
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    assert_close(np.concatenate([o[0] for o in outputs]), y, tolerance)

    arguments = [(d, p, o[1]) for d, p, o in zip(dy_parts, parts, outputs, strict=True)]
    sums = sum(bn.grad_sums(*a) for a in arguments)
    parts_grads = [bn.input_grad(*a, sums, gamma) for a in arguments]
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_close(np.concatenate([g.dx for g in parts_grads]), grads.dx, tolerance)
    assert sums.count == m.count == saved.count
    for part in parts_grads:  # the totals already, also from the empty part
        assert_close(part.dgamma, grads.dgamma, tolerance)
        assert_close(part.dbeta, grads.dbeta, tolerance)


def test_saved_of_a_part_is_that_of_the_whole():
    _, parts = uneven_parts(np.float64)
    m = sum(bn.moments(part) for part in parts)
    for part in parts:
        saved = bn.normalize(part, m)[1]
        assert saved.count == m.count
        assert same_bits(saved.mean, m.mean)
        assert same_bits(saved.var, m.var())


def test_one_value_per_channel_of_a_part_is_fine():
    parts = np.random.default_rng(0).normal(0, 1, (4, 1, 3))
    m = sum(bn.moments(part) for part in parts)
    y = np.concatenate([bn.normalize(part, m)[0] for part in parts])
    assert_close(y, bn.batch_norm(np.concatenate(parts))[0], 1e-12)


# ----------------------------------------------------------------------------------------------------------- Saved


def test_attributes():
    x = np.random.default_rng(0).normal(1, 2, (4, 3, 5)).astype(np.float32)
    saved = bn.batch_norm(x, axis=(0, -1), eps=0.25)[1]
    assert saved.axis == (0, -1)
    assert saved.count == 3
    assert isinstance(saved.count, float)
    for name in ("mean", "inv_std", "var"):
        value = getattr(saved, name)
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float64
        assert value.shape == (4, 5)
        with pytest.raises(AttributeError):
            setattr(saved, name, value)
    assert_close(saved.inv_std, 1 / np.sqrt(saved.var + 0.25), 1e-15)
    with pytest.raises(AttributeError):
        saved.count = 2


def test_attributes_outlive_saved():
    x = np.random.default_rng(0).normal(1, 2, (400, 300))
    saved = bn.batch_norm(x)[1]
    mean = saved.mean
    before = mean.copy()
    del saved
    [bn.batch_norm(x + i) for i in range(10)]  # would take its memory
    assert same_bits(mean, before)


@pytest.mark.parametrize("mean", [[1, 2, 3], (1.0, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.float16),
                                  np.array([1, 9, 2, 9, 3.0])[::2], np.array([1, 2, 3], ">f8")])  # fmt: skip
def test_by_hand(mean):
    x = np.random.default_rng(0).normal(0, 1, (4, 3, 5))
    saved = bn.Saved(mean, [2, 1, 0.5])
    assert same_bits(saved.mean, np.array([1.0, 2, 3]))
    assert same_bits(saved.inv_std, np.array([2, 1, 0.5]))
    assert saved.var is None
    assert saved.count is None
    assert saved.axis == 1
    got = bn.batch_norm_backward(x, x, saved)
    # The formula holds for any statistics.
    xhat = (x - np.reshape([1.0, 2, 3], (3, 1))) * np.reshape([2, 1, 0.5], (3, 1))
    assert_close(got.dgamma, (x * xhat).sum((0, 2)), 1e-13)
    dx = x - x.mean((0, 2), keepdims=True) - xhat * (x * xhat).mean((0, 2), keepdims=True)
    assert_close(got.dx, np.reshape([2, 1, 0.5], (3, 1)) * dx, 1e-13)


def test_by_hand_copies():
    mean = np.zeros(3)
    saved = bn.Saved(mean, np.ones(3), np.ones(3), 20, axis=0)
    mean += 1
    assert np.all(saved.mean == 0)
    assert (saved.count, saved.axis) == (20, 0)
    assert np.all(saved.var == 1)


def test_by_hand_is_forward_s():
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5)).astype(np.float32)
    saved = bn.batch_norm(x, axis=2)[1]
    again = bn.Saved(saved.mean, saved.inv_std, axis=2)
    got, want = bn.batch_norm_backward(x, x, again), bn.batch_norm_backward(x, x, saved)
    assert all(map(same_bits, got[:3], want[:3]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", [1]), TypeError, "mean"),
        (([1], object()), TypeError, "inv_std"),
        (([1], ["a"]), TypeError, "inv_std"),
        (([1, 2], [1]), ValueError, r"inv_std.*\(1,\).*mean"),
        (([1, 2], [1, 2], [1]), ValueError, r"var.*\(1,\).*mean"),
        (([1], [1], [1], "many"), TypeError, "count.*number.*str"),
    ],
)
def test_by_hand_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        bn.Saved(*arguments)


@pytest.mark.parametrize("axis", [1.0, "a", None, (0, 1.5)])
def test_by_hand_axis_error(axis):
    with pytest.raises(TypeError, match="axis"):
        bn.Saved([1], [1], axis=axis)


def same_saved(a, b):
    return (
        all(same_bits(getattr(a, name), getattr(b, name)) for name in ("mean", "inv_std", "var"))
        and (a.count, a.axis) == (b.count, b.axis)
        and type(a.mean) is type(b.mean)
    )


COPIES = {
    "pickle": lambda saved: pickle.loads(pickle.dumps(saved)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("how", COPIES)
def test_copies(how, kind):
    x = np.random.default_rng(0).normal(1, 2, (4, 3, 5))
    if kind == "torch":
        x = pytest.importorskip("torch").from_numpy(x)
    saved = bn.batch_norm(x, axis=(0, 2))[1]
    again = COPIES[how](saved)
    assert same_saved(again, saved)
    assert not np.shares_memory(np.asarray(again.mean), np.asarray(saved.mean))
    got, want = bn.batch_norm_backward(x, x, again), bn.batch_norm_backward(x, x, saved)
    assert all(map(same_bits, got[:3], want[:3]))


@pytest.mark.parametrize("how", COPIES)
def test_copies_by_hand(how):
    again = COPIES[how](bn.Saved([1, 2], [3, 4]))
    assert again.var is None
    assert again.count is None
    assert np.array_equal(again.mean, [1, 2])


def test_repr():
    saved = bn.batch_norm(np.array([[1.0, 2], [3, 4]]), axis=-1)[1]
    for part in (
        "Saved(",
        "mean=array([2., 3.])",
        "inv_std=array([0.9999",
        "var=array([1., 1.])",
        "count=2.0",
        "axis=-1",
    ):
        assert part in repr(saved)
