"""Conventions of other libraries: against Keras, Flax, ONNX, PyTorch and TensorFlow where they are, else formulas."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import warnings

import numpy as np
import pytest
from checks import same_bits

import batchnorm as bn
from batchnorm.conventions import RULES

UNBIASED = ("torch", "caffe", "tensorflow")
COUNT = 12 * 5

# Its arrays know NumPy 1's protocol alone.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def needs(name):
    """A package of the extra `peers`, with the warnings of its import, which are not ours, left aside."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def batches(n=4, dtype=np.float32):
    return [np.random.default_rng(i).normal(i, 1 + i, (12, 3, 5)).astype(dtype) for i in range(n)]


def a_state(dtype=np.float32, batches=None):
    rng = np.random.default_rng(1)
    state = {name: rng.normal(0, 1, 3).astype(dtype) for name in ("weight", "bias", "running_mean")}
    state["running_var"] = rng.uniform(0.01, 4, 3).astype(dtype)
    if batches is not None:
        state["num_batches_tracked"] = np.array(batches)
    return state


def output(state, x, eps):
    return bn.batch_norm_inference(x, state["running_mean"], state["running_var"], state["weight"], state["bias"],
                                   eps=eps)  # fmt: skip


def close(got, want, ulps=16):
    want = np.asarray(want)
    assert np.all(np.abs(got - want) <= ulps * np.finfo(np.float32).eps * np.abs(want).max()), (got, want)


# ---------------------------------------------------------------------------- a layer trained beside another library


def trained(convention, x=None, **options):
    layer = bn.BatchNorm(3, convention=convention, **options)
    for batch in batches() if x is None else x:
        layer(batch)
    return layer


def assert_follows(convention, steps, **options):
    """steps yields each batch with the other library's mean, var and y after it."""
    layer = bn.BatchNorm(3, convention=convention, **options)
    n = 0
    for x, mean, var, y in steps:
        close(layer(x), y, 64)
        close(layer.running_mean, mean)
        close(layer.running_var, var)
        n += 1
    assert n == 4


@keras_warns
@pytest.mark.parametrize("momentum", [None, 0.7])
def test_keras_trains_alike(momentum):
    keras = needs("keras")
    theirs = keras.layers.BatchNormalization(axis=1, **({} if momentum is None else {"momentum": momentum}))

    def steps():
        for x in batches():
            y = keras.ops.convert_to_numpy(theirs(x, training=True))
            yield x, *(np.array(keras.ops.convert_to_numpy(v)) for v in (theirs.moving_mean, theirs.moving_variance)), y

    assert_follows("keras", steps(), **({} if momentum is None else {"momentum": momentum}))


@pytest.mark.parametrize("momentum", [None, 0.7])
def test_flax_trains_alike(momentum):
    nn = needs("flax").linen
    options = {} if momentum is None else {"momentum": momentum}
    theirs = nn.BatchNorm(use_running_average=False, axis=1, use_fast_variance=False, **options)

    def steps():
        variables = theirs.init(needs("jax").random.key(0), batches()[0])
        for x in batches():
            y, new = theirs.apply(variables, x, mutable=["batch_stats"])
            variables = {**variables, **new}
            yield x, *(np.asarray(variables["batch_stats"][k]) for k in ("mean", "var")), np.asarray(y)

    assert_follows("flax", steps(), **options)


@pytest.mark.parametrize("momentum", [None, 0.7])
def test_onnx_trains_alike(momentum):
    model = onnx_model(momentum)

    def steps():
        state = {"scale": np.ones(3), "B": np.zeros(3), "input_mean": np.zeros(3), "input_var": np.ones(3)}
        state = {key: value.astype(np.float32) for key, value in state.items()}
        for x in batches():
            y, state["input_mean"], state["input_var"] = model.run(None, {"X": x, **state})
            yield x, state["input_mean"], state["input_var"], y

    assert_follows("onnx", steps(), **({} if momentum is None else {"momentum": momentum}))


def onnx_model(momentum=None, training=True):
    onnx = needs("onnx")
    helper = needs("onnx.helper")
    inputs = ["X", "scale", "B", "input_mean", "input_var"]
    outputs = ["Y", "running_mean", "running_var"] if training else ["Y"]
    options = {} if momentum is None else {"momentum": momentum}
    node = helper.make_node("BatchNormalization", inputs, outputs, training_mode=int(training), **options)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (*inputs, *outputs)]
    graph = helper.make_graph([node], "bn", values[:5], values[5:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    return needs("onnx.reference").ReferenceEvaluator(model)


@pytest.mark.parametrize("momentum", ["default", 0.4, None])
def test_torch_trains_alike(momentum):
    torch = needs("torch")
    options = {} if momentum == "default" else {"momentum": momentum}
    theirs = torch.nn.BatchNorm1d(3, **options)

    def steps():
        for x in batches():
            y = theirs(torch.from_numpy(x)).detach()
            yield x, theirs.running_mean.numpy(), theirs.running_var.numpy(), y.numpy()

    assert_follows("torch", steps(), **options)


def test_tensorflow_s_fused_op_trains_alike():
    tf = needs("tensorflow")

    def steps():
        mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
        for x in batches():
            y, mean, var = tf.compat.v1.nn.fused_batch_norm(
                x.transpose(0, 2, 1)[:, :, None], np.ones(3, np.float32), np.zeros(3, np.float32), mean, var,
                is_training=True, exponential_avg_factor=np.float32(1) - np.float32(0.99),
            )  # fmt: skip
            mean, var = mean.numpy(), var.numpy()
            yield x, mean, var, y.numpy()[:, :, 0].transpose(0, 2, 1)

    assert_follows("tensorflow", steps())


def test_tensorflow_s_formula():
    """moving * 0.99 + batch * 0.01 with the fused operation's M / (M - 1), and epsilon 0.001 under the root."""

    def steps():
        mean, var = np.zeros(3), np.ones(3)
        for x in batches():
            wide = x.astype(np.float64)
            mean = mean * 0.99 + wide.mean((0, 2)) * 0.01
            var = var * 0.99 + wide.var((0, 2), ddof=1) * 0.01
            yield x, mean, var, normalized(wide, 1e-3)

    assert_follows("tensorflow", steps())


def normalized(x, eps):
    return (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + eps)


def test_caffe_s_formula():
    """batch_norm_layer.cpp: every blob is multiplied by 0.999 and added to; inference divides by the third."""

    def steps():
        blobs = [np.zeros(3), np.zeros(3), 0.0]
        for x in batches():
            wide = x.astype(np.float64)
            m = wide.size / 3
            blobs = [0.999 * blobs[0] + wide.mean((0, 2)), 0.999 * blobs[1] + m / (m - 1) * wide.var((0, 2)),
                     0.999 * blobs[2] + 1]  # fmt: skip
            yield x, blobs[0] / blobs[2], blobs[1] / blobs[2], normalized(wide, 1e-5)

    assert_follows("caffe", steps())


def test_matconvnet_s_formula():
    """vl_nnbnorm's moments [mu, sqrt(sigma2 + 1e-4)], averaged with the layer's learning rate of 0.1."""
    layer = bn.BatchNorm(3, convention="matconvnet", dtype="float64")
    moments = np.array([[0, np.sqrt(1 + 1e-4)]] * 3)
    for x in batches(dtype=np.float64):
        new = np.stack([x.mean((0, 2)), np.sqrt(x.var((0, 2)) + 1e-4)], axis=1)
        moments = 0.9 * moments + 0.1 * new
        np.testing.assert_allclose(layer(x), normalized(x, 1e-4), atol=1e-12)
        np.testing.assert_allclose(layer.running_mean, moments[:, 0], rtol=1e-12)
        np.testing.assert_allclose(layer.running_var, moments[:, 1] ** 2 - 1e-4, rtol=1e-12)
    state = bn.convert_state(layer.state_dict(), "matconvnet", "matconvnet")
    np.testing.assert_allclose(state["moments"], moments, rtol=1e-12)


def test_defaults_are_the_packages():
    ours = {name: (bn.BatchNorm(3, convention=name).momentum, bn.BatchNorm(3, convention=name).eps) for name in RULES}
    assert ours == {
        "torch": (0.1, 1e-5), "keras": (0.99, 1e-3), "flax": (0.99, 1e-5), "onnx": (0.9, 1e-5),
        "caffe": (0.999, 1e-5), "matconvnet": (0.1, 1e-4), "tensorflow": (0.99, 1e-3),
    }  # fmt: skip


def test_defaults_of_torch():
    theirs = needs("torch").nn.BatchNorm1d(3)
    assert (theirs.momentum, theirs.eps) == (RULES["torch"].momentum, RULES["torch"].eps)


def test_defaults_of_keras():
    theirs = needs("keras").layers.BatchNormalization()
    assert (theirs.momentum, theirs.epsilon) == (RULES["keras"].momentum, RULES["keras"].eps)


def test_defaults_of_flax():
    linen, nnx = needs("flax.linen"), needs("flax.nnx")
    assert (linen.BatchNorm.momentum, linen.BatchNorm.epsilon) == (RULES["flax"].momentum, RULES["flax"].eps)
    parameters = inspect.signature(nnx.BatchNorm.__init__).parameters
    assert parameters["momentum"].default == RULES["flax"].momentum
    assert parameters["epsilon"].default == RULES["flax"].eps


def test_defaults_of_onnx():
    attributes = needs("onnx.defs").get_schema("BatchNormalization").attributes
    got = [attributes[name].default_value.f for name in ("momentum", "epsilon")]
    assert got == [np.float32(RULES["onnx"].momentum), np.float32(RULES["onnx"].eps)]


# ------------------------------------------------------------------------------- a policy with another's conventions


@pytest.mark.parametrize("convention", RULES)
@pytest.mark.parametrize("policy", [bn.Window(2), bn.Window(2, pooled=True), bn.Cumulative(), bn.Population()])
def test_policies_are_biased_as_the_convention_says(policy, convention):
    layer = trained(convention, running=policy, dtype="float64")
    reference = trained("torch", running=policy, dtype="float64")
    biased = convention not in UNBIASED and not isinstance(policy, bn.Population)
    values = COUNT * 2 if getattr(policy, "pooled", False) else COUNT
    np.testing.assert_allclose(layer.running_mean, reference.running_mean)
    factor = (values - 1) / values if biased else 1
    np.testing.assert_allclose(layer.running_var, reference.running_var * factor, rtol=1e-12)


def test_settings():
    layer = bn.BatchNorm(3, convention="keras", eps=0.5, momentum=0.25)
    assert (layer.eps, layer.momentum, layer.running) == (0.5, 0.25, bn.Exponential(0.25, sense="keras"))
    assert repr(layer) == (
        "BatchNorm(3, axis=1, eps=0.5, momentum=0.25, convention='keras', dtype='float32', mode='train')"
    )
    layer.momentum = None
    layer.momentum = 0.75
    assert layer.running == bn.Exponential(0.75, sense="keras")
    assert bn.BatchNorm(3, convention="caffe").running == bn.Exponential(0.999, sense="keras", corrected=True)
    assert bn.BatchNorm(3, convention="matconvnet").running == bn.Exponential(0.1, std_eps=1e-4)
    assert bn.BatchNorm(3, convention="onnx", running=bn.Window(3)).running == bn.Window(3)
    with pytest.raises(ValueError, match="std_eps must be finite and not negative, got -1"):
        bn.Exponential(0.1, std_eps=-1)


# ------------------------------------------------------------------------------------------------- states converted


def within_2_ulp(got, want, dtype, scale=None):
    scale = np.abs(want) if scale is None else scale
    return np.all(np.abs(got - want) <= 2 * np.spacing(np.asarray(scale).astype(dtype)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pair", list(itertools.product(RULES, RULES)), ids="-".join)
def test_there_and_back(pair, dtype):
    one, other = pair
    for count in (2, 3, COUNT, 12544, 1e9):
        state = bn.convert_state(a_state(dtype, batches=500), "torch", one, count=count)
        again = bn.convert_state(bn.convert_state(state, one, other, count=count), other, one, count=count)
        assert state.keys() - again.keys() <= {"num_batches_tracked"}
        if one == "caffe":  # whose blobs may have any scale
            for s in (state, again):
                factor = s.pop("scale_factor")
                s["mean"], s["variance"] = (s[k].astype(np.float64) / factor for k in ("mean", "variance"))
        for key, got in again.items():
            scale = None
            if other == "matconvnet" != one and key == RULES[one].names[3]:
                scale = state[key] + 1e-4 * count / (count - 1)
            assert within_2_ulp(got, state[key], dtype, scale), (key, count)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("other", RULES)
def test_many_values_there_and_back(other, dtype):
    """Within 2 ulp for all of many values, of 20 orders of magnitude; MatConvNet's of var + eps."""
    rng = np.random.default_rng(0)
    state = {"running_mean": rng.normal(0, 1, 20000).astype(dtype)}
    state["running_var"] = np.exp(rng.uniform(-20, 20, 20000)).astype(dtype)
    for count in (2, 7, 1000):
        again = bn.convert_state(bn.convert_state(state, "torch", other, count), other, "torch", count)
        for key, want in state.items():
            of_sigma = key == "running_var" and other == "matconvnet"
            scale = want + 1e-4 * count / (count - 1) if of_sigma else None
            assert within_2_ulp(again[key], want, dtype, scale), (key, count)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pair", list(itertools.product(RULES, ("caffe", "matconvnet"))), ids="-".join)
def test_16_bits_there_and_back(pair, dtype):
    """By way of sums that float16 could not hold, and of which bfloat16 would round another time."""
    one, other = pair
    dtype = np.dtype(dtype) if dtype == "float16" else np.dtype(needs("ml_dtypes").bfloat16)
    spacing = 2.0 ** (-10 if dtype == np.float16 else -7)
    rng = np.random.default_rng(0)
    state = {"running_mean": rng.normal(0, 300, 2000).astype(dtype)}
    state["running_var"] = np.exp(rng.uniform(-5, 10, 2000)).astype(dtype)
    for count in (2, 7, 1000):
        again = bn.convert_state(bn.convert_state(state, one, other, count), other, one, count)
        again = bn.convert_state(again, one, "torch", np.inf)
        for key, want in state.items():
            got, want = (a.astype(np.float64) for a in (again[key], want))
            scale = want + 1e-4 * count / (count - 1) if key == "running_var" and other == "matconvnet" else abs(want)
            assert np.all(np.abs(got - want) <= 2 * spacing * 2.0 ** np.floor(np.log2(scale))), (key, count)


def test_torch_to_each():
    state = a_state(np.float64, batches=3)
    mean, var = state["running_mean"], state["running_var"]
    biased = var * (COUNT - 1) / COUNT
    got = {to: bn.convert_state(state, "torch", to, count=COUNT) for to in RULES}
    assert all(same_bits(got["torch"][key], state[key]) for key in state)
    assert list(got["keras"]) == list(got["tensorflow"]) == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert list(got["flax"]) == ["scale", "bias", "mean", "var"]
    assert list(got["onnx"]) == ["scale", "B", "input_mean", "input_var"]
    assert list(got["caffe"]) == ["scale", "bias", "mean", "variance", "scale_factor"]
    assert list(got["matconvnet"]) == ["multipliers", "biases", "moments"]
    for to, names in {"keras": "gamma beta", "onnx": "scale B", "matconvnet": "multipliers biases"}.items():
        assert all(same_bits(got[to][n], state[k]) for n, k in zip(names.split(), ("weight", "bias"), strict=True))
    np.testing.assert_allclose(got["keras"]["moving_variance"], biased, rtol=1e-15)
    np.testing.assert_allclose(got["flax"]["var"], biased, rtol=1e-15)
    np.testing.assert_allclose(got["onnx"]["input_var"], biased, rtol=1e-15)
    assert same_bits(got["tensorflow"]["moving_variance"], var)
    factor = 1 + 0.999 + 0.999**2
    np.testing.assert_allclose(got["caffe"]["scale_factor"], [factor], rtol=1e-14)
    np.testing.assert_allclose(got["caffe"]["mean"], mean * factor, rtol=1e-14)
    np.testing.assert_allclose(got["caffe"]["variance"], var * factor, rtol=1e-14)
    np.testing.assert_allclose(got["matconvnet"]["moments"], np.stack([mean, np.sqrt(biased + 1e-4)], 1), rtol=1e-15)
    unknown = bn.convert_state(a_state(), "torch", "caffe")
    np.testing.assert_allclose(unknown["scale_factor"], [1000])
    for to in got:
        assert not any(np.shares_memory(a, b) for a in got[to].values() for b in state.values())


def test_variances_stay_above_zero():
    moments = np.array([[0, 0.01], [0, 0.009], [0, np.nextafter(0.01, 0)]])
    got = bn.convert_state({"moments": moments}, "matconvnet", "torch", count=10)
    assert np.all(got["running_var"] >= 0)
    assert got["running_var"][1] == 0
    state = {"running_mean": np.zeros(1), "running_var": np.array([5e-324])}
    for to in RULES:
        for count in (2, 3, 1e6):
            back = bn.convert_state(bn.convert_state(state, "torch", to, count), to, "torch", count)
            assert back["running_var"] >= 0
    zero = {"mean": np.ones(2), "variance": np.ones(2), "scale_factor": np.zeros(1)}
    assert not bn.convert_state(zero, "caffe", "torch")["running_var"].any()


def test_count_of_each_statistic():
    got = bn.convert_state(a_state(np.float64), "torch", "keras", count=[2, 4, 8])
    want = a_state(np.float64)["running_var"] * [1 / 2, 3 / 4, 7 / 8]
    np.testing.assert_allclose(got["moving_variance"], want, rtol=1e-15)


@pytest.mark.parametrize("convention", RULES)
def test_variances_as_they_are(convention):
    """Which infer the same, with the same eps."""
    source = bn.BatchNorm(5, dtype="float64")
    rng = np.random.default_rng(0)
    for _ in range(3):
        source(rng.normal(3, 0.03, (8, 5)))
    state = bn.convert_state(source.state_dict(), "torch", convention, count=np.inf, eps=source.eps)
    layer = bn.BatchNorm(5, convention=convention, eps=source.eps, dtype="float64")
    layer.load_state_dict(state)
    x = rng.normal(3, 0.03, (8, 5))
    np.testing.assert_allclose(layer.eval()(x), source.eval()(x), rtol=1e-13)


# ------------------------------------------------------------------------------- states into and out of the packages


@keras_warns
def test_into_keras_and_out():
    keras = needs("keras")
    theirs = keras.layers.BatchNormalization(axis=1)
    theirs.build((None, 3, 5))
    state = bn.convert_state(a_state(), "torch", "keras", count=COUNT)
    assert [weight.name for weight in theirs.weights] == list(state)
    theirs.set_weights(list(state.values()))
    x = batches()[1]
    biased = {**a_state(), "running_var": state["moving_variance"]}
    want = keras.ops.convert_to_numpy(theirs(x, training=False))
    close(output(biased, x, 1e-3), want)
    weights = {weight.name: keras.ops.convert_to_numpy(weight) for weight in theirs.weights}
    layer = bn.BatchNorm(3, convention="keras").eval()
    layer.load_state_dict(weights)
    close(layer(x), want)
    back = bn.convert_state(weights, "keras", "torch", count=COUNT)
    np.testing.assert_allclose(back["running_var"], a_state()["running_var"], rtol=2.4e-7)


def test_into_flax_and_out():
    nn = needs("flax").linen
    state = bn.convert_state(a_state(), "torch", "flax", count=COUNT)
    variables = {"params": {key: state[key] for key in ("scale", "bias")},
                 "batch_stats": {key: state[key] for key in ("mean", "var")}}  # fmt: skip
    x = batches()[1]
    want = np.asarray(nn.BatchNorm(use_running_average=True, axis=1).apply(variables, x))
    layer = bn.BatchNorm(3, convention="flax").eval()
    layer.load_state_dict(variables)
    close(layer(x), want)
    nested = bn.convert_state(variables, "flax", "torch", count=COUNT)
    flat = bn.convert_state(state, "flax", "torch", count=COUNT)
    assert all(same_bits(nested[key], flat[key]) for key in flat)


def test_into_onnx():
    model = onnx_model(training=False)
    state = bn.convert_state(a_state(), "torch", "onnx", count=COUNT)
    x = batches()[1]
    layer = bn.BatchNorm(3, convention="onnx").eval()
    layer.load_state_dict(state)
    close(layer(x), model.run(None, {"X": x, **state})[0])


def test_out_of_torch():
    torch = needs("torch")
    theirs = torch.nn.BatchNorm1d(3)
    theirs(torch.from_numpy(batches()[1]))
    got = bn.convert_state(theirs.state_dict(), "torch", "keras", count=COUNT)
    want = theirs.running_var.numpy() * np.float64((COUNT - 1) / COUNT)
    assert got["moving_variance"].dtype == np.float32
    np.testing.assert_allclose(got["moving_variance"], want, rtol=1.2e-7)
    halves = bn.convert_state(theirs.to(torch.bfloat16).state_dict(), "torch", "flax", count=COUNT)
    assert halves["var"].dtype == np.float32


# --------------------------------------------------------------------------------------------------- into our layers


@pytest.mark.parametrize("convention", RULES)
def test_a_layer_saves_exactly_and_loads_both_names(convention):
    layer = trained(convention)
    again = bn.BatchNorm(3, convention=convention)
    again.load_state_dict(layer.state_dict())
    named = bn.BatchNorm(3, convention=convention)
    theirs = bn.convert_state(layer.state_dict(), convention, convention)
    named.load_state_dict({f"net.{key}": value for key, value in theirs.items()}, prefix="net.")
    assert {"weight", "bias", "running_mean", "running_var"} <= layer.state_dict().keys()
    for key, value in layer.state_dict().items():
        assert same_bits(again.state_dict()[key], value)
        if key != "num_batches_tracked":  # which only PyTorch has
            np.testing.assert_allclose(named.state_dict()[key], value, rtol=3e-7)
    for x in batches():
        y = layer(x)
        assert same_bits(again(x), y)
        named(x)
    np.testing.assert_allclose(named.running_var, layer.running_var, rtol=1e-6)


def test_caffe_into_other_policies():
    state = bn.convert_state(trained("caffe").state_dict(), "caffe", "caffe")
    layer = bn.BatchNorm(3, convention="caffe", running=bn.Window(2))
    layer.load_state_dict(state)
    np.testing.assert_allclose(layer.running_var, state["variance"] / state["scale_factor"], rtol=1e-6)


def test_a_policy_s_memory_is_left_out():
    for policy in (bn.Window(2), bn.Population(), bn.Cumulative()):
        weights = np.ones((1, 3, 1))
        layer = bn.BatchNorm(3, running=policy)
        layer(batches()[0], weights=weights)
        weights[:, 1] = 0
        layer(batches()[0], weights=weights)
        assert len(layer.state_dict()) > 5
        assert len(bn.convert_state(layer.state_dict(), "torch", "tensorflow")) == 4


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({}, {"from_": "pytorch"}, "from_ 'pytorch' is unknown, expected one of torch, keras, flax, onnx, caffe"),
        ({}, {"to": None}, "to None is unknown"),
        ({}, {"to": "keras"}, "count is needed from torch's unbiased to keras's biased variance.* N [*] H [*] W"),
        ({}, {"from_": "onnx", "to": "caffe"}, "count is needed from onnx's biased to caffe's unbiased"),
        ({}, {"to": "keras", "count": 1}, "count must be above 1, got 1"),
        ({}, {"to": "keras", "count": float("nan")}, "count must be above 1, got nan"),
        ({}, {"to": "keras", "count": [2, 1, 3]}, "count must be above 1"),
        ({}, {"eps": 0}, "eps must be positive and finite, got 0"),
        ({}, {"to": "keras", "count": np.full(4, 9)}, r"count has shape \(4,\), expected one number or \(3,\)"),
        ({"running_var": -np.ones(3)}, {}, "variances of state must not be negative"),
        ({"running_mean": np.ones(4)}, {}, r"weight has shape \(3,\), expected \(4,\), that of running_mean"),
        ({"running_var": np.ones(4)}, {}, r"running_var has shape \(4,\), expected \(3,\), that of running_mean"),
        ({"num_batches_tracked": np.inf}, {}, "num_batches_tracked must be whole numbers"),
        ({"num_batches_tracked": np.ones(3)}, {}, r"num_batches_tracked has shape \(3,\), expected \(\)"),
        (
            {"running_mean": np.full(3, 1e36, np.float32)},
            {"to": "caffe"},
            "running_mean overflows float32 when it is con",
        ),
        (
            {"running_var": np.full(3, 6e4, np.float16)},
            {"from_": "onnx", "count": 2},
            "running_var overflows float16 when it is converted, expected a wider type or smaller values",
        ),
        ({"moving_mean": np.ones(3)}, {}, r"unknown keys \['moving_mean'\], expected those of torch: weight"),
    ],
)
def test_errors(state, options, message):
    with pytest.raises(ValueError, match=message):
        bn.convert_state({**a_state(), **state}, **{"from_": "torch", "to": "torch", **options})


@pytest.mark.parametrize(
    ("from_", "state", "message"),
    [
        ("keras", {"gamma": np.ones(3), "moving_mean": np.ones(3)}, "lacks .'running_var'.*moving_variance"),
        ("keras", {"scale": np.ones(3)}, "unknown keys .'scale'.*keras: gamma, beta"),
        ("caffe", {"mean": np.ones(3), "variance": np.ones(3)}, "lacks 'scale_factor'"),
        ("caffe", {"mean": np.ones(3), "variance": np.ones(3), "scale_factor": -1}, "scale_factor must be one number"),
        ("caffe", {"mean": np.ones(3), "variance": -np.ones(3), "scale_factor": 1}, "must not be negative"),
        ("matconvnet", {"moments": np.ones((3, 3))}, r"moments has shape \(3, 3\), expected \(C, 2\)"),
        (
            "caffe",
            {"mean": np.ones(3), "variance": np.ones(3), "scale_factor": np.inf},
            "scale_factor must be one number",
        ),
        ("keras", {"moving_mean": np.ones(3), "moving_variance": np.ones(4)}, r"moving_variance has shape \(4,\)"),
        (
            "flax",
            {name: {"BatchNorm_0": {}} for name in ("params", "batch_stats")},
            r"unknown keys \['BatchNorm_0'\].*of a Flax tree, \{'params': tree\['params'\]\[name\], 'batch_stats'",
        ),
    ],
)
def test_errors_of_a_convention(from_, state, message):
    with pytest.raises(ValueError, match=message):
        bn.convert_state(state, from_, from_)


def test_a_sigma_whose_square_overflows():
    with pytest.raises(ValueError, match="moments overflows float64 when it is converted"):
        bn.convert_state({"moments": np.full((3, 2), 1e200)}, "matconvnet", "keras")


@pytest.mark.parametrize(
    ("from_", "state", "options", "message"),
    [
        (
            "torch",
            {"running_mean": np.ones(3) * 1j, "running_var": np.ones(3)},
            {},
            "running_mean has dtype complex128",
        ),
        (
            "keras",
            {"moving_mean": ["a"], "moving_variance": np.ones(1)},
            {},
            "moving_mean has dtype <U1, expected real",
        ),
        ("caffe", {"mean": "m", "variance": "v", "scale_factor": 1}, {}, "mean has dtype <U1"),
        ("caffe", {"mean": np.ones(3), "variance": np.ones(3), "scale_factor": "1"}, {}, "scale_factor has dtype <U1"),
        ("matconvnet", {"moments": "m"}, {}, "moments has dtype <U1"),
        ("torch", a_state(), {"to": "keras", "count": "10"}, "count has dtype <U2, expected real numbers"),
        ("torch", a_state(), {"eps": "x"}, "eps must be a number, got 'x'"),
        (
            "torch",
            bn.BatchNorm(3),
            {},
            r"state is batchnorm.layers.BatchNorm, expected a mapping .* as a state_dict\(\)",
        ),
        ("keras", [1], {}, "state is list, expected a mapping of names to arrays"),
    ],
)
def test_types_that_are_wrong(from_, state, options, message):
    with pytest.raises(TypeError, match=message):
        bn.convert_state(state, from_, **{"to": from_, **options})


def test_errors_of_the_layer():
    with pytest.raises(ValueError, match="convention 'jax' is unknown, expected one of torch, keras"):
        bn.BatchNorm(3, convention="jax")
    layer = bn.BatchNorm(3, convention="keras")
    state = bn.convert_state(a_state(), "torch", "keras", count=9)
    with pytest.raises(ValueError, match=r"missing \['running_var'\]"):
        layer.load_state_dict({key: value for key, value in state.items() if key != "moving_variance"})
    with pytest.raises(ValueError, match=r"unexpected \['extra'\]"):
        layer.load_state_dict({**state, "extra": 1})
    with pytest.raises(ValueError, match=r"unexpected \['beta', 'gamma'"):
        bn.BatchNorm(3).load_state_dict(state)
    tree = {"params": {"BatchNorm_0": {"scale": np.ones(3)}}, "batch_stats": {"BatchNorm_0": {"mean": np.ones(3)}}}
    with pytest.raises(ValueError, match=r"unexpected \['BatchNorm_0'\].*; of a Flax tree, .* is one layer's"):
        bn.BatchNorm(3, convention="flax").load_state_dict(tree)
