"""group_size: each group is a batch of its own; and the norms that are batch norm over other axes. The products of
settings are in test_epilogues.py."""

import numpy as np
import pytest
import reference
from cases import DTYPES, SMALL, small_input
from checks import random_like, random_params, same_bits
from test_epilogues import like
from test_gradients import assert_same, slopes
from test_weights import roundings

import batchnorm as bn

CUTTABLE = [name for name, (shape, axis, _) in SMALL.items() if 0 not in reference.kept_axes(np.empty(shape), axis)]


def sizes_of(x, axis):
    """Group sizes that leave no group of one value: even ones, ragged ones, all but one sample, one too many."""
    each = x.size // x.shape[0] // max(1, int(np.prod(reference.kept_shape(x, axis))))
    n = x.shape[0]
    return [s for s in {1, 2, 3, 4, 5, n // 2, n - 1, n, n + 1, 10**12} if each * (n % s or s) > 1]


SETTINGS = {
    "plain": {},
    "activation": {"activation": "relu"},
    "residual": {"activation": "leaky_relu", "residual": True},
    "weights": {"weights": True, "activation": "leaky_relu", "residual": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layout", CUTTABLE)
def test_as_separate_calls(layout, settings, dtype):
    """To rounding: by itself a group may be another box, which adds up in another order."""
    x, axis = small_input(layout, dtype)
    gamma, beta = random_params(x, axis)
    dy = like(x, 2)
    settings = dict(SETTINGS[settings])
    tensors = {}
    if settings.pop("residual", False):
        tensors["residual"] = like(x, 3)
    if settings.pop("weights", False):
        tensors["weights"] = np.abs(like(x, 4))
    for size in sizes_of(x, axis):
        whole = tensors | {"axis": axis, "group_size": size} | settings
        y, saved = bn.batch_norm(x, gamma, beta, **whole)
        grads = bn.batch_norm_backward(dy, x, saved, gamma, need_dresidual=True)
        groups = reference.groups_of(x, min(size, x.shape[0]))
        assert saved.mean.shape == (len(groups), *reference.kept_shape(x, axis))
        totals = [0, 0]
        for g, at in enumerate(groups):
            part = {name: array[at] for name, array in tensors.items()}
            own_y, own = bn.batch_norm(x[at], gamma, beta, axis=axis, **part, **settings)
            bound = roundings(x, 6)
            assert np.allclose(saved.mean[g], own.mean, rtol=0, atol=roundings(x, 0) * np.max(np.abs(x)))
            assert np.allclose(saved.var[g], own.var, rtol=roundings(x, 0), atol=0)
            assert np.allclose(saved.inv_std[g], own.inv_std, rtol=roundings(x, 0), atol=0)
            assert np.allclose(saved.count[g], own.count, rtol=1e-14, atol=0)
            assert np.max(np.abs(y[at] - own_y)) <= bound * np.max(np.abs(own_y))
            own_grads = bn.batch_norm_backward(dy[at], x[at], own, gamma, need_dresidual=True)
            condition = 1 + np.max(np.abs(own.mean) * own.inv_std)
            scale = np.max(np.abs(gamma)) * np.max(own.inv_std) * np.max(np.abs(dy)) * condition
            # Where rounding makes z 0 or not there is another gradient, if that ever happens.
            same = (y[at] > 0) == (own_y > 0)
            assert np.mean(same) > 0.99
            assert np.all(np.abs(grads.dx[at] - own_grads.dx)[same] <= 8 * bound * scale)
            assert np.array_equal(grads.dresidual[at][same], own_grads.dresidual[same])
            totals = [t + g.astype(np.float64) for t, g in zip(totals, own_grads[1:3], strict=True)]
        for got, total in zip(grads[1:3], totals, strict=True):
            assert np.allclose(got, total, rtol=0, atol=8 * bound * np.sum(np.abs(dy)) * condition)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", CUTTABLE)
def test_one_group_is_batch_norm_to_the_bit(layout, dtype):
    x, axis = small_input(layout, dtype)
    gamma, beta = random_params(x, axis)
    dy, residual, weights = like(x, 2), like(x, 3), np.abs(like(x, 4))
    for settings in ({}, {"weights": weights}, {"activation": "relu", "residual": residual}):
        want, want_saved = bn.batch_norm(x, gamma, beta, axis=axis, **settings)
        want_grads = bn.batch_norm_backward(dy, x, want_saved, gamma)
        for size in (x.shape[0], x.shape[0] + 1, 2**62):
            y, saved = bn.batch_norm(x, gamma, beta, axis=axis, group_size=size, **settings)
            assert same_bits(y, want)
            for name in ("mean", "var", "inv_std"):
                assert same_bits(getattr(saved, name)[0], getattr(want_saved, name))
            assert np.array_equal(saved.count[0], np.broadcast_to(want_saved.count, saved.count[0].shape))
            assert saved.mask is None or same_bits(saved.mask, want_saved.mask)
            grads = bn.batch_norm_backward(dy, x, saved, gamma)
            assert all(map(same_bits, grads[:3], want_grads[:3]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", CUTTABLE)
def test_moments_of_groups_add_up_to_the_batch(layout, weighted):
    x, axis = small_input(layout, np.float64)
    weights = np.round(np.abs(like(x, 4)) * 2) if weighted else None
    whole = bn.moments(x, axis=axis, weights=weights)
    for size in (1, 2, 3, x.shape[0]):
        m = bn.moments(x, axis=axis, group_size=size, weights=weights)
        groups = -(-x.shape[0] // size)
        assert m.mean.shape == m.m2.shape == m.count.shape == (groups, *reference.kept_shape(x, axis))
        merged = bn.Moments.merge(bn.Moments(m.mean[g], m.m2[g], m.count[g]) for g in range(groups))
        assert np.array_equal(merged.count, np.broadcast_to(whole.count, merged.count.shape))
        assert np.allclose(merged.mean, whole.mean, rtol=0, atol=1e-14 * np.max(np.abs(x)))
        assert np.allclose(merged.m2, whole.m2, rtol=1e-13, atol=1e-13)
        assert np.all(m.m2 >= 0)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW, planes as lanes", "one statistic"])
@pytest.mark.parametrize("size", [2, 4])
def test_gradients(layout, size):
    x, axis = small_input(layout, np.float64)
    x = x[:5, :3].copy("K")
    dy = random_like(x, 7)
    gamma, beta = map(np.asarray, random_params(x, axis))

    def loss():
        return np.sum(dy * bn.batch_norm(x, gamma, beta, axis=axis, group_size=size)[0])

    saved = bn.batch_norm(x, gamma, beta, axis=axis, group_size=size)[1]
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_same(grads.dx, slopes(loss, x), "dx")
    assert_same(grads.dgamma, slopes(loss, gamma), "dgamma")
    assert_same(grads.dbeta, slopes(loss, beta), "dbeta")


def test_statistics_given_for_each_group():
    """normalize by moments of groups from elsewhere."""
    x = small_input("NCHW", np.float64)[0]
    rng = np.random.default_rng(0)
    mean, var = rng.normal(0, 1, (3, 3)), rng.uniform(0.5, 2, (3, 3))
    y, saved = bn.normalize(x, bn.Moments(mean, var * 7.0, 7.0), group_size=2)
    assert np.array_equal(saved.mean, mean)
    assert saved.count == 7
    for g in range(3):
        at = slice(2 * g, 2 * g + 2)
        assert np.allclose(y[at], bn.batch_norm_inference(x[at], mean[g], var[g]), rtol=1e-13, atol=1e-13)
    per_group = bn.Moments(mean, var * 7.0, np.full((3, 3), 7.0))
    assert same_bits(bn.normalize(x, per_group, group_size=2)[0], y)


def test_seven_axes():
    """Eight with the groups."""
    x = np.random.default_rng(0).normal(0, 1, (5, 2, 1, 3, 2, 1, 2))
    y = bn.batch_norm(x, axis=3, group_size=2)[0]
    for at in (slice(0, 2), slice(2, 4), slice(4, 5)):
        assert np.allclose(y[at], bn.batch_norm(x[at], axis=3)[0], rtol=1e-12, atol=1e-13)


# ----------------------------------------------------------------------------------------------------- as in PyTorch

torch_dtypes = [("float64", 1e-13), ("float32", 3e-6)]


def against(torch, x, dy, want, y, grads, tolerance):
    want.backward(dy.reshape(want.shape))
    for got, wanted in ((y.reshape(want.shape), want.detach()), (grads.dx.reshape(x.shape), x.grad)):
        assert got.dtype == wanted.dtype
        assert torch.max(torch.abs(got - wanted)) <= tolerance * torch.max(torch.abs(wanted))


@pytest.mark.parametrize(("dtype", "tolerance"), torch_dtypes)
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (3, 8, 40), (2, 4, 3, 3, 5)])
@pytest.mark.parametrize("norm", ["instance", "group", "layer", "layer over the last"])
def test_norms_without_parameters(norm, shape, dtype, tolerance):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    torch.manual_seed(1)
    x = (torch.randn(shape, dtype=getattr(torch, dtype)) * 2 + 1).requires_grad_()
    dy = torch.randn(shape, dtype=x.dtype)
    if norm == "instance":
        want, axis, of = functional.instance_norm(x), (0, 1), shape
    elif norm == "group":
        want, axis, of = functional.group_norm(x, 2), (0, 1), (shape[0], 2, -1)
    elif norm == "layer":
        want, axis, of = functional.layer_norm(x, shape[1:]), 0, shape
    else:
        want, axis, of = functional.layer_norm(x, shape[-1:]), tuple(range(len(shape) - 1)), shape
    data = x.detach().reshape(of)
    y, saved = bn.batch_norm(data, axis=axis)
    grads = bn.batch_norm_backward(dy.reshape(of), data, saved)
    against(torch, x, dy, want, y, grads, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), torch_dtypes)
def test_instance_norm_in_channels_last(dtype, tolerance):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    x = torch.randn((4, 6, 5, 7), dtype=getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    dy = torch.randn_like(x)
    y, saved = bn.batch_norm(x.detach(), axis=(0, 1))
    grads = bn.batch_norm_backward(dy, x.detach(), saved)
    against(torch, x, dy, torch.nn.functional.instance_norm(x), y, grads, tolerance)
    # Groups of one sample are the same.
    ghost = bn.batch_norm(x.detach(), group_size=1)[0]
    assert torch.max(torch.abs(ghost - y)) <= tolerance * torch.max(torch.abs(y))
