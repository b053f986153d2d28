"""Batch renormalization: BatchRenorm, against its formulas and Keras 3."""

import importlib.util
import pickle

import numpy as np
import pytest
from checks import same_bits
from child import output_of

import batchnorm as bn

ARRAYS = ("gamma", "beta", "running_mean", "running_var", "renorm_mean", "renorm_std")


def batches(n=4, dtype=np.float64, seed=0):
    """x and dy of a few small batches that are not alike: some channels' r and d are clipped, others' are not."""
    rng = np.random.default_rng(seed)
    spread = np.array([0.02, 1, 1.3, 30, 1])[:, None]
    shift = np.array([0, 0.3, 9, -9, 0])[:, None]
    return [tuple((rng.standard_normal((2, 6, 5, 4)) * spread + shift).astype(dtype)) for _ in range(n)]


def a_layer(dtype=np.float64, **options):
    layer = bn.BatchRenorm(5, dtype=dtype, **options)
    rng = np.random.default_rng(9)
    for name in ARRAYS:
        if getattr(layer, name) is not None:
            getattr(layer, name)[...] = rng.uniform(0.5, 2, 5)
    return layer


def assert_close(got, want, tolerance=1e-12):
    assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))


def by_channel(values):
    return np.asarray(values)[:, None]


def reference(layer, x, dy, rmin, rmax, dmax):
    """y, dx, dgamma, dbeta and the averages after, by the formulas."""
    gamma = np.ones(5) if layer.gamma is None else layer.gamma
    beta = np.zeros(5) if layer.beta is None else layer.beta
    mean, s = x.mean((0, 2)), np.sqrt(x.var((0, 2)) + layer.eps)
    r = np.clip(s / layer.renorm_std, rmin, rmax)
    d = np.clip((mean - layer.renorm_mean) / layer.renorm_std, -dmax, dmax)
    xhat = (x - by_channel(mean)) / by_channel(s)
    renormed = xhat * by_channel(r) + by_channel(d)
    dxhat = dy * by_channel(gamma * r)
    dx = dxhat - dxhat.mean((0, 2), keepdims=True) - xhat * (dxhat * xhat).mean((0, 2), keepdims=True)
    m, n = layer.momentum, layer.renorm_momentum
    return {
        "y": renormed * by_channel(gamma) + by_channel(beta),
        "dx": dx / by_channel(s),
        "dgamma": (dy * renormed).sum((0, 2)),
        "dbeta": dy.sum((0, 2)),
        "renorm_mean": (1 - n) * layer.renorm_mean + n * mean,
        "renorm_std": (1 - n) * layer.renorm_std + n * s,
        "running_mean": (1 - m) * layer.running_mean + m * mean,
        "running_var": ((1 - m) * np.sqrt(layer.running_var + layer.eps) + m * s) ** 2 - layer.eps,
    }


@pytest.mark.parametrize("limits", [(None, 1.5, 0.5), (0, 2, 1), (0.5, 3, 5), (None, np.inf, np.inf)])
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
def test_formulas(limits, options):
    rmin, rmax, dmax = limits
    layer = a_layer(rmin=rmin, rmax=rmax, dmax=dmax, renorm_momentum=0.2, eps=1e-3, **options)
    for x, dy in batches():
        want = reference(layer, x, dy, 1 / rmax if rmin is None else rmin, rmax, dmax)
        y = layer(x)
        got = {"y": y, "dx": layer.backward(dy), **{name: getattr(layer, name) for name in list(want)[2:]}}
        for name, value in got.items():
            if value is not None:
                assert_close(value, want[name])
    assert layer.num_batches_tracked == 4


def test_without_room_for_r_and_d_it_is_batch_norm():
    layer, plain = a_layer(np.float32, rmax=1, dmax=0), bn.BatchNorm(5)
    plain.gamma[...], plain.beta[...] = layer.gamma, layer.beta
    for x, dy in batches(dtype=np.float32):
        assert same_bits(layer(x), plain(x))
        assert same_bits(layer.backward(dy), plain.backward(dy))
        assert same_bits(layer.dgamma, plain.dgamma)
        assert same_bits(layer.dbeta, plain.dbeta)


def test_without_clipping_training_is_inference():
    """By the averages before the batch moved them."""
    layer = a_layer(rmin=0, rmax=np.inf, dmax=np.inf)
    for x, _ in batches():
        want = bn.batch_norm_inference(
            x, layer.renorm_mean, layer.renorm_std**2 - layer.eps, layer.gamma, layer.beta, eps=layer.eps
        )
        assert_close(layer(x), want)


def test_schedule():
    seen = []

    def rmax(step):
        seen.append(step)
        return np.interp(step, [1, 3], [1, 3])

    layer = a_layer(rmax=rmax, dmax=lambda step: np.interp(step, [1, 3], [0, 5]))
    for step, (x, dy) in enumerate(batches(5)):
        limit = min(max(step, 1), 3)
        want = reference(layer, x, dy, 1 / limit, limit, 2.5 * (limit - 1))
        assert_close(layer(x), want["y"])
        assert_close(layer.backward(dy), want["dx"])
    assert seen == [0, 1, 2, 3, 4]


def test_micro_batches():
    whole, layer = a_layer(), a_layer()
    for x, dy in batches():
        y = whole(x)
        dx = whole.backward(dy)

        def step(part, x=x, dy=dy):
            return layer(x[part]), layer.backward(dy[part]), layer.dgamma.copy()

        ys, dxs, dgammas = zip(*bn.accumulate(step, [np.s_[:1], np.s_[1:1], np.s_[1:]], [layer]), strict=True)
        assert_close(np.concatenate(ys), y)
        assert_close(np.concatenate(dxs), dx)
        assert_close(sum(dgammas), whole.dgamma)
        for name in ARRAYS:
            assert_close(getattr(layer, name), getattr(whole, name))


def test_activation_residual_weights_and_torch():
    x, dy = batches(1, np.float32)[0]
    weights = np.random.default_rng(0).uniform(0, 1, (6, 4)) > 0.3
    layer = a_layer(np.float32, activation="relu")
    plain, mean, std = a_layer(np.float32), layer.renorm_mean.copy(), layer.renorm_std.copy()
    y = layer(x, residual=dy, weights=weights)
    assert_close(y, np.maximum(plain(x, weights=weights) + dy, 0), 1e-6)
    dx = layer.backward(dy)
    assert same_bits(layer.dresidual, np.where(y > 0, dy, 0))
    assert_close(dx, plain.backward(layer.dresidual), 1e-6)
    assert np.any(mean != layer.renorm_mean)
    assert np.any(std != layer.renorm_std)
    torch = pytest.importorskip("torch")
    again = a_layer(np.float32, activation="relu")
    got = again(torch.from_numpy(x), residual=torch.from_numpy(dy), weights=torch.from_numpy(weights))
    assert same_bits(got.numpy(), y)
    assert same_bits(again.backward(torch.from_numpy(dy)).numpy(), dx)


def test_empty_batches_and_other_modes():
    layer = a_layer()
    before = layer.state_dict()
    empty = np.zeros((0, 5, 4))
    assert layer(empty).shape == layer.backward(empty).shape == empty.shape
    x = batches(1)[0][0]
    assert_close(
        layer.eval()(x), bn.batch_norm_inference(x, layer.running_mean, layer.running_var, layer.gamma, layer.beta)
    )
    layer.freeze()(x)
    layer.backward(x)
    assert all(same_bits(layer.state_dict()[key], before[key]) for key in before)


def test_state():
    layer = a_layer(rmin=0)
    assert list(layer.state_dict())[-2:] == ["renorm_mean", "renorm_std"]
    again = bn.BatchRenorm(5, dtype="float64", rmin=0)
    again.load_state_dict(layer.state_dict())
    third = pickle.loads(pickle.dumps(layer))
    x = batches(1)[0][0]
    y = layer(x)
    assert same_bits(again(x), y)
    assert same_bits(third(x), y)
    assert repr(layer) == (
        "BatchRenorm(5, axis=1, eps=1e-05, momentum=0.1, rmax=3.0, dmax=5.0, rmin=0, renorm_momentum=0.01, "
        "dtype='float64', mode='train')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rmax": 0.5}, "rmax must be at least 1, got 0.5"),
        ({"rmax": np.nan}, "rmax"),
        ({"dmax": -1}, "dmax must not be negative, got -1"),
        ({"rmin": 2}, "rmin must be from 0 to 1, got 2"),
        ({"renorm_momentum": 1.5}, "renorm_momentum must be from 0 to 1, got 1.5"),
        ({"group_size": 2}, "group_size must be None, got 2"),
        ({"eps": 0}, "eps must be positive"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        bn.BatchRenorm(5, **options)


@pytest.mark.parametrize("name", ["rmax", "dmax", "rmin", "renorm_momentum"])
def test_limits_that_are_no_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'a'"):
        bn.BatchRenorm(5, **{name: "a"})


def test_a_wrong_schedule():
    layer = a_layer(rmax=lambda step: 1 - step)
    before = layer.state_dict()
    x = batches(1)[0][0]
    layer(x)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"rmax must be at least 1, got 0\.0"):
        layer(x)
    assert all(same_bits(layer.state_dict()[key], before[key]) for key in before)


def test_a_state_of_batch_norm():
    layer, plain = a_layer(), bn.BatchNorm(5)
    before = layer.state_dict()
    message = r"missing \['renorm_mean', 'renorm_std'\].*strict=False leaves what is missing as it is"
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(plain.state_dict())
    assert all(same_bits(layer.state_dict()[key], before[key]) for key in before)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert np.array_equal(layer.running_var, plain.running_var)
    assert same_bits(layer.renorm_std, before["renorm_std"])


def test_reset():
    layer = a_layer()
    x = batches(1)[0][0]
    layer(x)
    layer.reset_running_statistics()
    fresh = a_layer()
    fresh.load_state_dict({**layer.state_dict()})
    assert not layer.renorm_mean.any()
    assert np.all(layer.renorm_std == 1)
    assert layer.num_batches_tracked == 0
    assert same_bits(layer(x), fresh(x))


def test_policies_that_are_set():
    layer = a_layer()
    layer.momentum = 0.5
    assert layer.running == bn.Exponential(0.5)
    for name, value in (
        ("momentum", None),
        ("running", bn.Window(3)),
        ("running", 0.1),
        ("running", bn.Exponential(0.9, "keras")),
    ):
        with pytest.raises(
            ValueError, match=r"running must be a plain bn.Exponential .*renormalization are exponential"
        ):
            setattr(layer, name, value)


def test_arguments_that_it_does_not_take():
    for options, message in (
        ({"group_size": 2}, "group_size must be None, got 2"),
        ({"running": bn.Window(3)}, "running must be None, got Window"),
        ({"convention": "keras"}, "convention must be 'torch', got 'keras'"),
        ({"momentum": None}, r"running must be a plain bn.Exponential in PyTorch's sense, got Cumulative\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bn.BatchRenorm(3, **options)


def test_keras():
    """Four training steps and inference.

    Keras computes in float32 whatever its dtype is, and var as mean(x^2) - mean^2, of which
    2**-24 * (1 + (mean / std)^2) is lost: 3e-6 here, where means are up to 7 standard deviations. What the formulas
    above give is compared to 1e-12.
    """
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("keras and torch, which it then runs on, are not both installed")
    code = """
        import inspect, sys
        import keras, numpy as np, torch
        sys.path.insert(0, FOLDER)
        import test_renorm as t
        import batchnorm as bn

        if "renorm" not in inspect.signature(keras.layers.BatchNormalization).parameters:
            print("no renorm in keras", keras.__version__)
            sys.exit()
        limits = {"rmin": 0.4, "rmax": 1.5, "dmax": 0.5}
        theirs = keras.layers.BatchNormalization(
            axis=1, momentum=0.9, epsilon=1e-3, renorm=True, renorm_clipping=limits, renorm_momentum=0.8
        )
        theirs.build((None, 5, 4))
        ours = t.a_layer(eps=1e-3, renorm_momentum=0.2, **limits)
        theirs.gamma.assign(ours.gamma)
        theirs.beta.assign(ours.beta)
        theirs.moving_mean.assign(ours.running_mean)
        theirs.moving_variance.assign(ours.running_var)
        theirs.moving_stddev.assign(np.sqrt(ours.running_var + 1e-3))
        theirs.renorm_mean.assign(ours.renorm_mean)
        theirs.renorm_stddev.assign(ours.renorm_std)
        for x, dy in t.batches():
            tx = torch.from_numpy(x).requires_grad_()
            ty = theirs(tx, training=True)
            gamma, beta = theirs.gamma.value, theirs.beta.value
            grads = torch.autograd.grad(ty, (tx, gamma, beta), torch.from_numpy(dy))
            t.assert_close(ours(x), ty.detach().numpy(), 1e-5)
            dx = ours.backward(dy)
            for got, want in zip((dx, ours.dgamma, ours.dbeta), grads):
                t.assert_close(got, want.numpy(), 1e-5)
            for got, want in ((ours.renorm_mean, theirs.renorm_mean), (ours.renorm_std, theirs.renorm_stddev),
                              (ours.running_mean, theirs.moving_mean), (ours.running_var, theirs.moving_variance)):
                t.assert_close(got, keras.ops.convert_to_numpy(want), 1e-5)
        y = keras.ops.convert_to_numpy(theirs(torch.from_numpy(x), training=False))
        t.assert_close(ours.eval()(x), y, 1e-5)
        print("same")
        """
    printed = output_of(code.replace("FOLDER", repr(__file__.rpartition("/")[0])), KERAS_BACKEND="torch")
    if printed.startswith("no renorm"):
        pytest.skip(printed)
    assert printed == "same"
