"""Policies of running statistics and population statistics, against PyTorch, Keras, NumPy and the formulas."""

from __future__ import annotations

import copy
import io
import pickle
import re
import sys

import numpy as np
import pytest
from checks import same_bits

import batchnorm as bn

POLICIES = [
    bn.Exponential(0.3),
    bn.Exponential(0.7, sense="keras"),
    bn.Exponential(0.9, sense="keras", corrected=True),
    bn.Cumulative(),
    bn.Window(3),
    bn.Window(3, pooled=True),
    bn.Population(),
    bn.Population(pooled=True),
]
policies = pytest.mark.parametrize("policy", POLICIES, ids=repr)


def batches(n=6, dtype=np.float64):
    """Batches of several lengths whose means and deviations differ."""
    rng = np.random.default_rng(3)
    return [rng.normal(i, 1 + i / 2, (4 + 3 * (i % 4), 3, 5)).astype(dtype) for i in range(n)]


def trained(policy, parts, weights=None, **options):
    layer = bn.BatchNorm(3, running=policy, dtype="float64", **options)
    for i, x in enumerate(parts):
        layer(x, weights=None if weights is None else weights[i])
    return layer


def expected(policy, statistics):
    """Running mean and variance of one channel, in plain loops, from the (values, weights) of its batches."""
    means = [np.average(v, weights=w) for v, w in statistics]
    effective = [w.sum() ** 2 / (w**2).sum() for _, w in statistics]
    variances = [
        np.average((v - m) ** 2, weights=w) * (n / (n - 1) if n > 1 else 1)
        for (v, w), m, n in zip(statistics, means, effective, strict=True)
    ]
    pairs = list(zip(means, variances, strict=True))
    if isinstance(policy, bn.Exponential):
        keep = 1 - policy.momentum if policy.sense == "torch" else policy.momentum
        if policy.corrected:
            shares = [keep**i for i in reversed(range(len(pairs)))]
            return np.average(pairs, axis=0, weights=shares)
        got = np.array([0.0, 1.0])
        for pair in pairs:
            got = keep * got + (1 - keep) * np.array(pair)
        return got
    if isinstance(policy, bn.Window):
        pairs, statistics = pairs[-policy.batches :], statistics[-policy.batches :]
    if getattr(policy, "pooled", False):
        values, w = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
        n = w.sum() ** 2 / (w**2).sum()
        mean = np.average(values, weights=w)
        return mean, np.average((values - mean) ** 2, weights=w) * n / (n - 1)
    if isinstance(policy, bn.Population):
        pairs = [pair for pair, n in zip(pairs, effective, strict=True) if n > 1]
    return np.mean(pairs, axis=0)


def assert_running(layer, parts, weights=None):
    """The layer's statistics of each channel are those of the plain loops over the batches that have weight there."""
    for c in range(3):
        columns = [np.moveaxis(x, 1, 0)[c].ravel() for x in parts]
        shares = [np.ones(x.shape) if weights is None else weights[i] for i, x in enumerate(parts)]
        shares = [np.moveaxis(np.broadcast_to(w, x.shape), 1, 0)[c].ravel() for w, x in zip(shares, parts, strict=True)]
        statistics = [(v[w > 0], w[w > 0]) for v, w in zip(columns, shares, strict=True) if w.any()]
        mean, var = expected(layer.running, statistics)
        np.testing.assert_allclose(layer.running_mean[c], mean, rtol=1e-12)
        np.testing.assert_allclose(layer.running_var[c], var, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------- policies


@policies
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_policies(policy, steps):
    parts = batches(steps)
    assert_running(trained(policy, parts), parts)


@policies
def test_groups_give_the_pooled_statistics(policy):
    parts = batches()
    assert_running(trained(policy, parts, group_size=3), parts)


@policies
@pytest.mark.parametrize("kind", ["mask", "real"])
def test_weights_and_channels_without(policy, kind):
    parts = batches()
    rng = np.random.default_rng(0)
    weights = [rng.uniform(0.1, 2, x.shape) for x in parts]
    if kind == "mask":
        weights = [(w > 0.7).astype(float) for w in weights]
    weights[0][:, 1] = weights[3][:, 1] = 0  # channel 1 misses its first batch
    weights[4][:, 2] = 0
    weights[5][:, 0] = 0
    weights[5][0, 0, 0] = 1  # one value: no variance
    assert_running(trained(policy, parts, weights), parts, weights)


@policies
def test_a_channel_that_never_had_weight_keeps_its_statistics(policy):
    weights = np.ones((1, 3, 1))
    weights[:, 2] = 0
    layer = trained(policy, batches(), [weights] * 6)
    assert layer.running_mean[2] == 0
    assert layer.running_var[2] == 1
    assert layer.num_batches_tracked == 6


@policies
def test_an_empty_batch_says_nothing(policy):
    layer = trained(policy, batches())
    before = layer.state_dict()
    layer(np.zeros((0, 3, 5)))
    assert all(same_bits(value, before[key]) for key, value in layer.state_dict().items())


@policies
def test_saved_and_loaded(policy):
    parts = batches()
    layer = trained(policy, parts[:4])
    file = io.BytesIO()
    np.savez(file, **{f"bn.{key}": value for key, value in layer.state_dict().items()})
    file.seek(0)
    loaded = bn.BatchNorm(3, running=policy, dtype="float64")
    with np.load(file) as state:
        loaded.load_state_dict(state, prefix="bn.")
    others = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for x in parts[4:]:
        layer(x)
        for other in others:
            other(x)
    for other in others:
        assert other.running == policy
        assert repr(other) == repr(layer)
        for key, value in layer.state_dict().items():
            assert same_bits(other.state_dict()[key], value), key


@policies
def test_a_layer_continues_what_weights_left_uneven(policy):
    parts = batches()
    weights = [np.ones((1, 3, 1)) for _ in parts]
    weights[0][:, 1] = 0
    layer, loaded = (trained(policy, parts[:n], weights) for n in (2, 0))
    loaded.load_state_dict(layer.state_dict())
    for x, w in zip(parts[2:], weights[2:], strict=True):
        loaded(x, weights=w)
    assert_running(loaded, parts, weights)


@policies
def test_memory_is_written_in_place_and_copied_out(policy):
    layer = trained(policy, batches(2))
    arrays = dict(layer._memory)
    state = layer.state_dict()
    layer(batches(3)[2])
    assert all(layer._memory[key] is array for key, array in arrays.items())
    assert not any(np.shares_memory(state[key], array) for key, array in arrays.items() if key in state)
    assert len({array.__array_interface__["data"] for array in arrays.values()}) == len(arrays)


@policies
def test_layers_share_a_policy_and_no_arrays(policy):
    one, two = (bn.BatchNorm(3, running=policy, dtype="float64") for _ in range(2))
    one(batches()[0])
    assert np.all(two.running_mean == 0)
    assert two.state_dict().keys() >= {"running_mean"}
    assert not any(np.any(array) for array in two._memory.values())


@policies
def test_shapes(policy):
    """One number, several kept axes, and no features."""
    x = batches()[0]
    for layer in (
        bn.BatchNorm((), axis=(), running=policy),
        bn.BatchNorm((3, 5), axis=(1, 2), running=policy),
    ):
        layer(x)
        layer(x)
        assert layer.running_mean.shape == layer.num_features
        assert np.all(np.isfinite(layer.running_var))
        bn.BatchNorm(layer.num_features, axis=layer.axis, running=policy).load_state_dict(layer.state_dict())
    empty = bn.BatchNorm(0, running=policy)
    empty(np.zeros((4, 0), np.float32))
    assert empty.num_batches_tracked == 0


def test_a_window_forgets_a_nan():
    parts = batches()
    parts[1][0, 1, 0] = np.nan
    layer = trained(bn.Window(3), parts[:4])
    assert np.isnan(layer.running_mean[1])
    layer(parts[4])
    assert_running(layer, parts[2:5])


@policies
def test_large_numbers(policy):
    """Whose squares overflow, while those of their deviations do not: also beside the nothing of before."""
    values = 1e160 * (1 + 1e-10 * np.random.default_rng(0).normal(size=(100, 3)))
    policy = policy if not isinstance(policy, bn.Exponential) else bn.Exponential(1.0)
    layer = trained(policy, [values])
    scaled = values / 1e160  # whose variance is known to 1e-16 / 1e-10
    np.testing.assert_allclose(layer.running_mean, values.mean(0), rtol=1e-15)
    np.testing.assert_allclose(layer.running_var / 1e300, scaled.var(0, ddof=1) * 1e20, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
@policies
def test_the_scale_of_weights_is_nothing(policy, scale):
    parts = batches(2)
    weights = [np.random.default_rng(i).integers(0, 4, x.shape).astype(np.float64) for i, x in enumerate(parts)]
    want = trained(policy, parts, weights)
    layer = trained(policy, parts, [w * scale for w in weights])
    np.testing.assert_allclose(layer.running_var, want.running_var, rtol=1e-13)

    def step(part):
        again(part[0], weights=part[1])
        again.backward(part[0])

    again, whole = trained(policy, []), trained(policy, [])
    bn.accumulate(step, [(x, w * scale) for x, w in zip(parts, weights, strict=True)], [again])
    whole(np.concatenate(parts), weights=np.concatenate(weights))
    np.testing.assert_allclose(again.running_var, whole.running_var, rtol=1e-13)


def test_reset():
    for policy in POLICIES:
        layer = trained(policy, batches())
        layer.reset_running_statistics()
        fresh = trained(policy, [])
        assert all(same_bits(value, fresh.state_dict()[key]) for key, value in layer.state_dict().items())
        layer(batches()[2])
        assert_running(layer, batches()[2:3])


# -------------------------------------------------------------------------------------------------- other packages


def theirs_and_ours(torch, momentum, dtype):
    theirs = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=getattr(torch, dtype))
    return theirs, bn.BatchNorm(3, momentum=momentum, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [None, 0.1, 0.4])
def test_momentum_is_pytorch_s(momentum, dtype):
    torch = pytest.importorskip("torch")
    theirs, ours = theirs_and_ours(torch, momentum, dtype)
    for i, x in enumerate(batches(dtype=dtype)):
        if i == 3:  # both ways between their states, in the middle of an average
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in ours.state_dict().items()})
        theirs(torch.from_numpy(x))
        ours(x)
        tolerance = 8 * np.finfo(dtype).eps  # a rounding or two to dtype in each of six steps
        np.testing.assert_allclose(ours.running_mean, theirs.running_mean, rtol=0, atol=tolerance * 5)
        np.testing.assert_allclose(ours.running_var, theirs.running_var, rtol=tolerance)
        assert ours.num_batches_tracked == theirs.num_batches_tracked == i + 1
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_population_is_pytorch_s_update_bn():
    """update_bn averages the batches' unbiased statistics: Algorithm 2 for batches of one size."""
    torch = pytest.importorskip("torch")
    parts = [np.random.default_rng(i).normal(i, 2, (8, 3, 5)) for i in range(5)]
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3, dtype=torch.float64))
    torch.optim.swa_utils.update_bn([torch.from_numpy(x) for x in parts], net)
    got = bn.population_statistics(1, parts)
    np.testing.assert_allclose(got.mean, net[0].running_mean, rtol=1e-13)
    np.testing.assert_allclose(got.var, net[0].running_var, rtol=1e-13)


# -------------------------------------------------------------------------------------- population statistics


def test_algorithm_2():
    """var = M / (M - 1) * E[biased variance], as the paper writes it, for batches of one size."""
    parts = [np.random.default_rng(i).normal(i, 2, (8, 3, 5)) for i in range(5)]
    got = bn.population_statistics(1, parts)
    m = 8 * 5
    np.testing.assert_allclose(got.mean, np.mean([x.mean((0, 2)) for x in parts], axis=0), rtol=1e-13)
    np.testing.assert_allclose(got.var, m / (m - 1) * np.mean([x.var((0, 2)) for x in parts], axis=0), rtol=1e-13)
    assert np.all(got.batches == 5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_pooled_is_exact(dtype):
    parts = batches(dtype=dtype)
    got = bn.population_statistics(1, parts)
    whole = np.concatenate(parts).astype(np.longdouble)
    rtol = 2e-6 if dtype == "float16" else 1e-13  # sums of 16 bits start in float32: docs/numerics.md
    np.testing.assert_allclose(got.pooled_mean, whole.mean((0, 2)).astype(float), rtol=rtol)
    np.testing.assert_allclose(got.pooled_var, whole.var((0, 2), ddof=1).astype(float), rtol=rtol)
    np.testing.assert_allclose(got.pooled.var(), whole.var((0, 2)).astype(float), rtol=rtol)
    assert np.all(got.effective_count == got.pooled.count)
    assert np.all(got.pooled.count == whole.size / 3)


def test_pooled_far_from_zero():
    parts = [np.random.default_rng(i).normal(1e6, 1, (50, 3)) for i in range(8)]
    got = bn.population_statistics(1, parts)
    whole = np.concatenate(parts).astype(np.longdouble)
    np.testing.assert_allclose(got.pooled_var, whole.var(0, ddof=1).astype(float), rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_add_up(weighted):
    parts = batches()
    weights = [np.random.default_rng(i).uniform(0, 1, x.shape) for i, x in enumerate(parts)] if weighted else None
    one, two = (
        bn.population_statistics(1, parts[s], weights=weights and weights[s]) for s in (slice(0, 2), slice(2, 6))
    )
    whole = bn.population_statistics(1, parts, weights=weights)
    for total in (one + two, two + one, sum([one, two]), pickle.loads(pickle.dumps(one)) + two):
        for name in ("mean", "var", "pooled_mean", "pooled_var", "effective_count", "batches"):
            np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-13)
    if weighted:
        layer = trained(bn.Population(pooled=True), parts, weights)
        np.testing.assert_allclose(layer.running_var, whole.pooled_var, rtol=1e-13)
    with pytest.raises(ValueError, match="do not merge"):
        one + bn.population_statistics(2, parts)
    with pytest.raises(TypeError):
        one + 1


def test_batches_with_one_value():
    parts = batches(3)
    single = np.array([[[7.0], [8], [9]]])
    got = bn.population_statistics(1, [*parts, single])
    without = bn.population_statistics(1, parts)
    assert same_bits(got.mean, without.mean)
    assert same_bits(got.var, without.var)
    assert np.all(got.pooled.count == without.pooled.count + 1)
    singles = bn.population_statistics(1, [row[None] for row in parts[0][:, :, 0]])
    np.testing.assert_allclose(singles.mean, parts[0][:, :, 0].mean(0))
    np.testing.assert_allclose(singles.var, parts[0][:, :, 0].var(0, ddof=1))


def test_any_iterable(tmp_path):
    parts = [x[:4] for x in batches(6, np.float32)]
    want = bn.population_statistics(1, parts)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=(24, 3, 5))
    file[:] = np.concatenate(parts)
    taken = []
    got = bn.population_statistics(bn.BatchNorm(3), (taken.append(i) or file[i : i + 4] for i in range(0, 24, 4)))
    assert taken == list(range(0, 24, 4))
    assert same_bits(got.var, want.var)
    assert same_bits(got.pooled_var, want.pooled_var)
    torch = pytest.importorskip("torch")
    assert same_bits(bn.population_statistics(1, map(torch.from_numpy, parts)).var, want.var)


@pytest.mark.parametrize("pooled", [False, True])
@policies
def test_store(policy, pooled):
    parts = batches()
    layer = bn.BatchNorm(3, running=policy)
    stats = bn.population_statistics(layer, parts)
    assert np.all(layer.running_mean == 0)
    arrays = layer.running_mean, layer.running_var
    stats.store(layer, pooled=pooled)
    assert layer.running_mean is arrays[0]
    assert layer.running_var is arrays[1]
    assert same_bits(layer.running_mean, (stats.pooled_mean if pooled else stats.mean).astype(np.float32))
    assert same_bits(layer.running_var, (stats.pooled_var if pooled else stats.var).astype(np.float32))
    assert layer.num_batches_tracked == 6
    if isinstance(policy, bn.Population):
        layer(parts[0])
        again = bn.population_statistics(layer)
        np.testing.assert_allclose(again.pooled_var, (stats + bn.population_statistics(1, parts[:1])).pooled_var)
    if isinstance(policy, bn.Cumulative):
        before = layer.running_mean.copy()
        layer(parts[0])
        np.testing.assert_allclose(layer.running_mean, before + (parts[0].mean((0, 2)) - before) / 7, rtol=1e-6)


def test_store_keeps_channels_without_values():
    weights = np.ones((1, 3, 1))
    weights[:, 1] = 0
    parts = batches()
    layer = bn.BatchNorm(3)
    layer.running_var[...] = 5
    bn.population_statistics(layer, parts, weights=[weights] * 6).store(layer)
    assert layer.running_var[1] == 5
    assert layer.running_mean[1] == 0
    assert layer.running_var[0] != 5


def test_a_layer_gathers_both():
    parts = batches()
    layer = trained(bn.Population(), parts)
    got, want = bn.population_statistics(layer), bn.population_statistics(1, parts)
    for name in ("mean", "var", "pooled_mean", "pooled_var", "batches"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, got.var, rtol=1e-15)
    layer(parts[0])
    assert np.all(got.batches == 6)  # a copy


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("known", [True, False])
def test_progress(monkeypatch, known):
    parts = batches()
    monkeypatch.setattr(sys, "stderr", Terminal())
    bn.population_statistics(1, parts, progress=False)
    assert sys.stderr.getvalue() == ""
    bn.population_statistics(1, parts if known else (x for x in parts))
    last = sys.stderr.getvalue().rsplit("\r", 1)[1]
    assert last.startswith("6/6 batches |###" if known else "6 batches 0 s")
    assert last.endswith("\n")


def test_no_progress_where_nobody_watches(capsys):
    bn.population_statistics(1, batches())
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------- settings


def test_momentum_of_the_layer():
    layer = bn.BatchNorm(3, momentum=0.25)
    assert layer.running == bn.Exponential(0.25)
    layer(batches(1)[0])
    layer.momentum = 0.5
    assert layer.momentum == 0.5
    layer.momentum = None
    assert layer.running == bn.Cumulative()
    assert layer.momentum is None
    before = layer.running_mean.copy()
    x = batches()[1]
    layer(x)
    np.testing.assert_allclose(layer.running_mean, (before + x.mean((0, 2))) / 2, rtol=1e-6)
    layer.momentum = 0.75
    assert layer.running == bn.Exponential(0.75)
    keras = bn.BatchNorm(3, running=bn.Exponential(0.99, sense="keras"))
    keras.momentum = 0.9
    assert keras.running == bn.Exponential(0.9, sense="keras")


def test_another_policy_goes_on_from_the_statistics():
    layer = trained(bn.Exponential(0.5), batches(2))
    mean = layer.running_mean.copy()
    layer.running = bn.Cumulative()
    assert same_bits(layer.running_mean, mean)
    layer(batches()[2])
    np.testing.assert_allclose(layer.running_mean, mean + (batches()[2].mean((0, 2)) - mean) / 3, rtol=1e-12)
    layer.running = bn.Window(2)
    assert layer.state_dict()["window_mean"].shape == (2, 3)


def test_corrected_goes_on_from_a_number_of_batches():
    policy = bn.Exponential(0.8, sense="keras", corrected=True)
    layer = trained(policy, batches(5))
    again = bn.BatchNorm(3, running=policy, dtype="float64")
    state = {key: value for key, value in layer.state_dict().items() if key != "scale_factor"}
    again.load_state_dict(state)
    np.testing.assert_allclose(again._memory["scale_factor"], layer._memory["scale_factor"], rtol=1e-14)
    for keep, n, want in ((1, 4, 4), (0, 4, 1), (0.5, 0, 0), (0.5, 3, 1.75)):
        assert bn.running.scale_factor(keep, n) == want


def test_repr():
    texts = ["Exponential(momentum=0.3)", "Exponential(momentum=0.7, sense='keras')",
             "Exponential(momentum=0.9, sense='keras', corrected=True)", "Cumulative()", "Window(batches=3)",
             "Window(batches=3, pooled=True)", "Population()", "Population(pooled=True)"]  # fmt: skip
    assert [repr(policy) for policy in POLICIES] == texts
    shown = [repr(bn.BatchNorm(3, running=policy)) for policy in POLICIES]
    assert "momentum=0.3, dtype" in shown[0]
    assert "running=Exponential(momentum=0.7, sense='keras'), dtype" in shown[1]
    assert "momentum=None, dtype" in shown[3]
    assert "running=Window(batches=3), dtype" in shown[4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bn.Exponential(1.5), ValueError, "momentum must be from 0 to 1, got 1.5"),
        (lambda: bn.Exponential(float("nan")), ValueError, "momentum"),
        (lambda: bn.Exponential("fast"), ValueError, "momentum must be from 0 to 1, got 'fast'"),
        (lambda: bn.Exponential(0.1, sense="caffe"), ValueError, "sense 'caffe' is unknown, expected 'torch' or"),
        (lambda: bn.Window(0), ValueError, "batches must be at least 1, got 0"),
        (lambda: bn.Window(2.5), TypeError, "batches must be an int, got 2.5"),
        (lambda: bn.BatchNorm(3, momentum=0.1, running=bn.Window(2)), ValueError, "momentum 0.1 and running Window"),
        (lambda: bn.BatchNorm(3, running="window"), TypeError, "running is 'window', expected bn.Exponential"),
        (lambda: bn.BatchNorm(3, running=bn.Window), TypeError, "running is .*expected bn.Exponential"),
        (lambda: bn.population_statistics(1), ValueError, "batches is needed, since 1 is no layer"),
        (lambda: bn.population_statistics(bn.BatchNorm(3)), ValueError, "batches is needed.*Population"),
        (lambda: bn.population_statistics(1, np.zeros((4, 3))), TypeError, "batches is one ndarray, expected an iter"),
        (lambda: bn.population_statistics(1, 7), TypeError, "batches is one int"),
        (lambda: bn.population_statistics(1, []), ValueError, "batches has no values"),
        (lambda: bn.population_statistics(1, [np.zeros((0, 3))]), ValueError, "batches has no values"),
        (lambda: bn.population_statistics(1, [*batches(1), 5]), TypeError, "batch 1 of batches: x is int"),
        (lambda: bn.population_statistics(1, [*batches(1), np.zeros((4, 7))]), ValueError, r"batch 1 .*\(3,\).*\(7,\)"),
        (lambda: bn.population_statistics(bn.BatchNorm(4), batches(1)), ValueError, r"batch 0 .*x has \(3,\) features"),
        (lambda: bn.population_statistics(1, batches(2), weights=[None]), ValueError, "weights ended after 1 batches"),
        (lambda: bn.population_statistics(1, batches(1), weights=[None] * 2), ValueError, "weights has more items"),
        (lambda: bn.population_statistics(1, batches(1)).store(bn.BatchNorm(4)), ValueError, r"layer .*\(4,\).*\(3,\)"),
        (lambda: bn.population_statistics(1, batches(1)).store(np.ones(3)), TypeError, "layer is numpy.ndarray, "),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_layers_of_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(3)
    with pytest.raises(
        TypeError, match=r"layer is torch\.nn\..*BatchNorm1d, expected bn.BatchNorm, not a module of Py"
    ):
        bn.population_statistics(1, batches(1)).store(theirs)
    assert not theirs.running_mean.any()


def test_states_that_do_not_fit():
    window = trained(bn.Window(2), batches())
    state = window.state_dict()
    with pytest.raises(ValueError, match=r"unexpected \['window_effective_count'"):
        bn.BatchNorm(3).load_state_dict(state)
    with pytest.raises(ValueError, match=re.escape("window_mean has shape (2, 3), expected (4, 3)")):
        bn.BatchNorm(3, running=bn.Window(4)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"missing \['window_var'\]"):
        window.load_state_dict({key: value for key, value in state.items() if key != "window_var"})
    with pytest.raises(ValueError, match="window_var must not be negative"):
        window.load_state_dict({**state, "window_var": -1 - state["window_var"]})
    assert all(same_bits(value, state[key]) for key, value in window.state_dict().items())
    window.load_state_dict(bn.BatchNorm(3).state_dict())  # as PyTorch's: the window starts again
    window(batches()[5])
    assert_running(window, batches()[5:])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_policy_of_ones_own(weighted):
    """One that takes another step is not taken for what it is made of."""

    class Last(bn.Exponential):
        def step(self, memory, mean, var, batch):
            return batch.mean, batch.statistic()

    x = batches()[1]
    layer = trained(Last(), [x], [np.ones(x.shape)] if weighted else None)
    np.testing.assert_allclose(layer.running_mean, x.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, x.var((0, 2), ddof=1), rtol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_averages_are_rounded_once(convention, dtype, grouped):
    """To the type of the arrays, from float64."""
    layer = bn.BatchNorm(3, dtype=dtype, convention=convention, group_size=2 if grouped else None)
    keep = 0.9 if convention == "torch" else 0.99
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    for x in batches():
        m = x.size / 3
        factor = m / (m - 1) if convention == "torch" else 1
        mean, var = (
            (keep * one.astype(np.float64) + (1 - keep) * new).astype(dtype)
            for one, new in ((mean, x.mean((0, 2))), (var, x.var((0, 2)) * factor))
        )
        layer(x)
        assert same_bits(layer.running_mean, mean)
        assert same_bits(layer.running_var, var)


def test_statistics_that_are_not_there():
    layer = bn.BatchNorm(3)
    layer.running_var = None
    with pytest.raises(TypeError, match="running_var is None, expected an array"):
        layer(batches()[0])
