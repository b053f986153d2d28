"""The BatchNorm layer."""

import concurrent.futures
import contextlib
import copy
import gc
import io
import itertools
import pickle
import sys
import weakref

import numpy as np
import pytest
import reference
from checks import same_bits
from child import output_of
from reference import assert_matches

import batchnorm as bn

ARRAYS = ("gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var", "num_batches_tracked")


def batch(n=6, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(2, 3, (n, 3, 5)).astype(dtype)


def a_layer(**options):
    """A layer of 3 features whose arrays all differ from their start."""
    layer = bn.BatchNorm(3, **options)
    rng = np.random.default_rng(9)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        if getattr(layer, name) is not None:
            getattr(layer, name)[...] = rng.uniform(0.5, 2, 3)
    return layer


# ---------------------------------------------------------------------------------------------------- construction


def test_a_new_layer():
    layer = bn.BatchNorm(3)
    for name in ARRAYS[:-1]:
        array = getattr(layer, name)
        assert array.dtype == np.float32
        assert array.shape == (3,)
        assert np.all(array == (name in ("gamma", "running_var")))
    assert layer.num_batches_tracked == 0
    assert layer.mode == "train"
    assert (layer.num_features, layer.axis, layer.eps, layer.momentum) == (3, 1, 1e-5, 0.1)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((2.5,), {}, TypeError, "num_features .*2.5"),
        (("3",), {}, TypeError, "num_features .*'3'"),
        ((None,), {}, TypeError, "num_features .*None"),
        ((-1,), {}, ValueError, "num_features .*-1"),
        (((3, -1),), {"axis": (1, 2)}, ValueError, r"num_features .*\(3, -1\)"),
        (((3, 4),), {}, ValueError, r"axis 1 has 1 axes.*num_features \(3, 4\)"),
        ((3,), {"axis": (1, 2)}, ValueError, r"axis \(1, 2\) has 2 axes.*num_features 3"),
        ((3,), {"eps": 0}, ValueError, "eps must be positive and finite, got 0"),
        ((3,), {"eps": -1}, ValueError, "eps"),
        ((3,), {"eps": float("nan")}, ValueError, "eps"),
        ((3,), {"eps": float("inf")}, ValueError, "eps"),
        ((3,), {"momentum": -0.1}, ValueError, "momentum must be from 0 to 1, got -0.1"),
        ((3,), {"momentum": 1.1}, ValueError, "momentum"),
        ((3,), {"momentum": float("nan")}, ValueError, "momentum"),
        ((3,), {"dtype": "int32"}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got int32"),
        ((3,), {"dtype": "longdouble"}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got "),
        ((3,), {"dtype": ">f4"}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got >f4"),
        ((3,), {"dtype": "torch.int32"}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got int32"),
        ((3,), {"dtype": object()}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got <object"),
        ((3,), {"axis": "1"}, TypeError, "axis must be an int or a tuple of ints, got '1'"),
        ((3,), {"axis": [1.0]}, TypeError, "axis must be an int or a tuple of ints, got 1.0"),
        ((3,), {"eps": "a"}, TypeError, "eps must be a number, got 'a'"),
        ((3,), {"eps": "1e-5"}, TypeError, "eps must be a number, got '1e-5'"),
        ((3,), {"negative_slope": [1]}, TypeError, r"negative_slope must be a number, got \[1\]"),
        ((3,), {"group_size": 1.0}, TypeError, "group_size must be an int, got 1.0"),
        ((3,), {"threads": "a"}, TypeError, "threads must be an int, got 'a'"),
        ((3,), {"momentum": [1]}, TypeError, r"momentum must be a number, got \[1\]"),
        ((3,), {"dtype": complex}, TypeError, "dtype"),
        ((3, 1), {}, TypeError, "positional"),
    ],
)
def test_constructor_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        bn.BatchNorm(*arguments, **options)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}])
def test_center_and_scale(options):
    layer = a_layer(**options)
    assert (layer.beta is None) == (layer.dbeta is None) == ("center" in options)
    assert (layer.gamma is None) == (layer.dgamma is None) == ("scale" in options)
    x, dy = batch(), batch(seed=1)
    assert_matches(layer(x), reference.forward(x, 1, layer.gamma, layer.beta).y)
    assert_matches(layer.backward(dy), reference.backward(dy, x, 1, layer.gamma).dx)
    names = [name for name, _, _ in layer.parameters()]
    assert names == [n for n in ("gamma", "beta") if getattr(layer, n) is not None]
    assert ("weight" in layer.state_dict()) == ("scale" not in options)
    assert ("bias" in layer.state_dict()) == ("center" not in options)
    layer.zero_grad()


def test_several_kept_axes():
    x, dy = (batch(seed=i).reshape(6, 3, 5) for i in range(2))
    layer = bn.BatchNorm((3, 5), axis=(1, 2))
    assert layer.gamma.shape == layer.running_var.shape == (3, 5)
    assert_matches(layer(x), reference.forward(x, (1, 2)).y)
    assert_matches(layer.backward(dy), reference.backward(dy, x, (1, 2)).dx)
    assert_matches(layer.dgamma, reference.backward(dy, x, (1, 2)).dgamma)
    assert bn.BatchNorm((3,), axis=(1,)).gamma.shape == (3,)
    assert bn.BatchNorm((), axis=()).gamma.shape == ()


def test_bfloat16_needs_no_import_before():
    pytest.importorskip("ml_dtypes")
    code = """
        import batchnorm as bn
        print(bn.BatchNorm(3, dtype="bfloat16").gamma.dtype)
        """
    assert output_of(code) == "bfloat16"


def test_bfloat16_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="dtype bfloat16 needs the package ml_dtypes: pip install ml_dtypes"):
        bn.BatchNorm(3, dtype="bfloat16")
    assert bn.BatchNorm(3, dtype="float16").gamma.dtype == np.float16


def test_channels_last():
    x = np.ascontiguousarray(batch().transpose(0, 2, 1))
    layer = a_layer(axis=-1)
    assert_matches(layer(x), reference.forward(x, -1, layer.gamma, layer.beta).y)


def test_float64():
    layer = a_layer(dtype="float64")
    assert all(getattr(layer, name).dtype == np.float64 for name in ARRAYS[:-1])
    x, dy = batch(dtype=np.float64), batch(seed=1, dtype=np.float64)
    assert_matches(layer(x), reference.forward(x, 1, layer.gamma, layer.beta).y)
    assert_matches(layer.backward(dy), reference.backward(dy, x, 1, layer.gamma).dx)
    assert_matches(layer.dgamma, reference.backward(dy, x, 1, layer.gamma).dgamma)


# ------------------------------------------------------------------------------------------------------------ modes


def test_modes_return_the_layer():
    layer = bn.BatchNorm(3)
    for mode in ("eval", "freeze", "train"):
        assert getattr(layer, mode)() is layer
        assert layer.mode == mode
        assert layer.training == (mode == "train")


def test_train_takes_a_bool_as_pytorch_s_does():
    layer = bn.BatchNorm(3)
    assert layer.train(False) is layer
    assert layer.mode == "eval"
    assert layer.train(True).mode == "train"
    with pytest.raises(TypeError, match="mode must be a bool, got 'eval'"):
        layer.train("eval")


def test_training():
    layer = a_layer()
    x, dy = batch(), batch(seed=1)
    assert_matches(layer(x), reference.forward(x, 1, layer.gamma, layer.beta).y)
    want = reference.backward(dy, x, 1, layer.gamma)
    assert_matches(layer.backward(dy), want.dx)
    assert_matches(layer.dgamma, want.dgamma)
    assert_matches(layer.dbeta, want.dbeta)


@pytest.mark.parametrize("mode", ["eval", "freeze"])
def test_running_statistics_are_used_and_left(mode):
    layer = getattr(a_layer(), mode)()
    before = layer.state_dict()
    x, dy = batch(), batch(seed=1)
    statistics = layer.running_mean, layer.running_var
    assert_matches(layer(x), reference.inference(x, *statistics, 1, layer.gamma, layer.beta))
    if mode == "freeze":
        want = reference.inference_backward(dy, x, *statistics, 1, layer.gamma)
        assert_matches(layer.backward(dy), want.dx)
        assert_matches(layer.dgamma, want.dgamma)
        assert_matches(layer.dbeta, want.dbeta)
    for key, value in layer.state_dict().items():
        assert same_bits(value, before[key])


def test_frozen_backward_uses_the_statistics_of_its_forward():
    layer = a_layer().freeze()
    x, dy = batch(), batch(seed=1)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    layer(x)
    layer.running_mean[...] = layer.running_var[...] = 77
    assert_matches(layer.backward(dy), reference.inference_backward(dy, x, mean, var, 1, layer.gamma).dx)


def test_frozen_backward_uses_the_settings_of_its_forward():
    layer = a_layer(activation="leaky_relu", negative_slope=0.2, eps=0.5).freeze()
    x, dy = batch(), batch(seed=1)
    layer(x)
    want = layer.backward(dy)
    layer(x)
    layer.eps, layer.activation, layer.negative_slope = 1e-5, None, 0.7
    assert same_bits(layer.backward(dy), want)


@pytest.mark.parametrize("momentum", [0.1, 0, 1, 0.25])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics(momentum, dtype):
    layer = bn.BatchNorm(3, momentum=momentum, dtype=dtype)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(4):
        x = batch(4 + step, seed=step, dtype=dtype)
        layer(x)
        wide, own = x.astype(np.float64), bn.moments(x)
        bound = 2.0**-53 * 17 * (8 + np.sqrt(x.size / 3))  # as reference.py has it for a batch's own statistics
        assert np.all(np.abs(own.mean - wide.mean((0, 2))) <= bound * np.abs(wide).max())
        assert np.allclose(own.var(correction=1), wide.var((0, 2), ddof=1), rtol=bound, atol=0)
        mean = (1 - momentum) * mean + momentum * own.mean
        var = (1 - momentum) * var + momentum * own.var(correction=1)
        # Stored after each step: a rounding each to dtype.
        tolerance = 4 * np.finfo(dtype).eps
        assert np.all(np.abs(layer.running_mean - mean) <= tolerance * np.abs(mean).max())
        assert np.all(np.abs(layer.running_var - var) <= tolerance * var.max())
        assert layer.num_batches_tracked == step + 1


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 3, 0)])
def test_empty_batch(shape):
    layer = a_layer()
    before = layer.state_dict()
    x = np.zeros(shape, np.float32)
    assert layer(x).shape == shape
    for key, value in layer.state_dict().items():
        assert same_bits(value, before[key])
    layer.dgamma[...] = layer.dbeta[...] = 5
    assert layer.backward(x).shape == shape
    assert np.all(layer.dgamma == 0)
    assert np.all(layer.dbeta == 0)


def test_zero_features():
    layer = bn.BatchNorm(0)
    x = np.zeros((4, 0, 5), np.float32)
    assert layer(x).shape == layer.backward(x).shape == x.shape
    assert layer.num_batches_tracked == 0
    assert layer.eval()(x).shape == x.shape


WRONG_X = {
    "one value": (np.zeros((1, 3), np.float32), ValueError, "variance"),
    "features": (np.zeros((6, 4, 5), np.float32), ValueError, r"x has \(4,\) features along axis 1.*\(3,\)"),
    "rank": (np.zeros(3, np.float32), ValueError, "axis 1 is out of range"),
    "dtype": (np.zeros((6, 3, 5), int), TypeError, "x has dtype"),
    "list": (np.zeros((6, 3)).tolist(), TypeError, "x is list"),
}


@pytest.mark.parametrize("case", WRONG_X)
def test_wrong_x_changes_nothing(case):
    x, error, message = WRONG_X[case]
    layer = a_layer()
    before = layer.state_dict()
    good = batch()
    layer(good)
    want = layer.backward(good)
    layer.load_state_dict(before)
    layer(good)
    layer.load_state_dict(before)
    with pytest.raises(error, match=message):
        layer(x)
    for key, value in layer.state_dict().items():
        assert same_bits(value, before[key])
    assert same_bits(layer.backward(good), want)  # the batch before is still there
    with pytest.raises((TypeError, ValueError)):
        layer.eval()(x if case != "one value" else x[0])


def test_out():
    x = batch()
    out, dx = np.empty_like(x), np.empty_like(x)
    for mode in ("train", "freeze"):
        layer = getattr(a_layer(), mode)()
        assert layer(x, out=out) is out
        assert layer.backward(x, out=dx) is dx
    assert a_layer().eval()(x, out=out) is out


def test_threads():
    x = np.random.default_rng(0).normal(0, 1, (64, 3, 50, 50)).astype(np.float32)
    results = []
    for threads in (1, 3, None):
        layer = a_layer(threads=threads)
        results.append((layer(x), layer.backward(x), layer.dgamma))
    for result in results[1:]:
        assert all(map(same_bits, result, results[0]))
    with pytest.raises(ValueError, match="threads"):
        bn.BatchNorm(3, threads=0)


# -------------------------------------------------------------------------------------------------------- gradients


def test_accumulate():
    layer = a_layer()
    parts = [(batch(seed=i), batch(seed=10 + i)) for i in range(3)]
    grads = []
    for i, (x, dy) in enumerate(parts):
        layer(x)
        layer.backward(dy, accumulate=i > 0)
        alone = a_layer()
        alone(x)
        alone.backward(dy)
        grads.append((alone.dgamma, alone.dbeta))
    assert same_bits(layer.dgamma, grads[0][0] + grads[1][0] + grads[2][0])
    assert same_bits(layer.dbeta, grads[0][1] + grads[1][1] + grads[2][1])
    layer(parts[0][0])
    layer.backward(parts[0][1])  # does not accumulate
    assert same_bits(layer.dgamma, grads[0][0])


def test_parameters_and_zero_grad():
    layer = a_layer()
    layer(batch())
    layer.backward(batch(seed=1))
    parameters = list(layer.parameters())
    assert [name for name, _, _ in parameters] == ["gamma", "beta"]
    for name, value, grad in parameters:
        assert value is getattr(layer, name)
        assert grad is getattr(layer, f"d{name}")
        assert np.any(grad != 0)
    layer.zero_grad()
    assert not np.any(layer.dgamma)
    assert not np.any(layer.dbeta)


def test_gradient_descent_in_place():
    layer = a_layer(dtype="float64")
    x, target = batch(dtype=np.float64), batch(seed=1, dtype=np.float64)
    losses = []
    for _ in range(20):
        y = layer(x)
        losses.append(np.mean((y - target) ** 2))
        layer.backward(2 * (y - target) / y.size)
        for _, value, grad in layer.parameters():
            value -= 0.2 * grad
    assert all(after < before for before, after in itertools.pairwise(losses))


# ------------------------------------------------------------------------------------- what waits for its backward


def test_second_backward():
    layer = a_layer()
    x = batch()
    layer(x)
    layer.backward(x)
    with pytest.raises(RuntimeError, match="already"):
        layer.backward(x)
    layer(x)
    layer.backward(x)


def test_backward_without_forward():
    for layer in (bn.BatchNorm(3), bn.BatchNorm(3).eval(), bn.BatchNorm(3).freeze()):
        with pytest.raises(RuntimeError, match="backward needs a call"):
            layer.backward(batch())
    layer = bn.BatchNorm(3).eval()
    layer(batch())
    with pytest.raises(RuntimeError, match="backward needs a call"):
        layer.backward(batch())


def test_several_forwards():
    layer = a_layer()
    inputs = [batch(seed=i) for i in range(3)]
    dys = [batch(seed=10 + i) for i in range(3)]
    contexts = []
    for x in inputs:
        y, ctx = layer.forward(x)
        assert_matches(y, reference.forward(x, 1, layer.gamma, layer.beta).y)
        contexts.append(ctx)
    with pytest.raises(RuntimeError, match="backward needs a call"):  # forward() leaves nothing in the layer
        layer.backward(dys[0])
    for i in (1, 0, 2):
        want = reference.backward(dys[i], inputs[i], 1, layer.gamma)
        assert_matches(layer.backward(dys[i], contexts[i]), want.dx)
        assert_matches(layer.dgamma, want.dgamma)
        with pytest.raises(RuntimeError, match="already"):
            layer.backward(dys[i], contexts[i])
    assert layer.num_batches_tracked == 3
    assert layer.eval().forward(inputs[0])[1] is None


@pytest.mark.parametrize("mode", ["train", "freeze"])
def test_a_context_of_another_layer(mode):
    layer, other = (getattr(a_layer(), mode)() for _ in range(2))
    x = batch()
    _, ctx = other.forward(x)
    with pytest.raises(ValueError, match=r"ctx is of a forward of another layer, expected one of this BatchNorm\(3"):
        layer.backward(x, ctx)
    assert not layer.dgamma.any()
    other.backward(x, ctx)  # where it still is


def test_mode_may_change_before_backward():
    layer = a_layer()
    x, dy = batch(), batch(seed=1)
    layer(x)
    layer.freeze()
    assert_matches(layer.backward(dy), reference.backward(dy, x, 1, layer.gamma).dx)
    layer(x)
    layer.eval()
    want = reference.inference_backward(dy, x, layer.running_mean, layer.running_var, 1, layer.gamma)
    assert_matches(layer.backward(dy), want.dx)


def test_no_backward_of_a_call_in_eval():
    """Nor that of the call before, whose gradient it might be taken for; a context is kept apart from that."""
    layer = a_layer()
    x, dy = batch(), batch(seed=1)
    layer(x)
    ctx = layer.forward(x)[1]
    layer.eval()
    layer(batch(seed=2))
    with pytest.raises(RuntimeError, match=r"backward needs a call.*eval keeps nothing"):
        layer.backward(dy)
    y, nothing = layer.forward(x)
    with pytest.raises(RuntimeError, match=r"backward needs a call.*eval keeps nothing"):
        layer.backward(dy, nothing)
    for wrong in (y, "ctx", ctx._statistics):
        with pytest.raises(TypeError, match="ctx must be what forward returned, got "):
            layer.backward(dy, wrong)
    assert_matches(layer.backward(dy, ctx), reference.backward(dy, x, 1, layer.gamma).dx)


def test_empty_batches_are_not_overwritten():
    x = np.zeros((0, 3, 4), np.float32)
    layer = a_layer()
    layer(x, out=x)
    assert layer.backward(x).shape == x.shape


@pytest.mark.parametrize("mode", ["train", "freeze"])
def test_no_backward_where_x_was_overwritten(mode):
    layer = getattr(a_layer(), mode)()
    dy = batch(seed=1)
    for seen_as in (lambda x: x, lambda x: x[...]):
        x = batch()
        want = layer(x.copy())
        assert same_bits(layer(x, out=seen_as(x)), want)
        with pytest.raises(RuntimeError, match=r"backward needs x, which forward overwrote \(out was x\)"):
            layer.backward(dy)


def test_no_backward_where_x_was_overwritten_as_another_type(tmp_path):
    """It is the memory that counts, not how x and out see it."""
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(6, 3, 5))
    cases = [(mapped, np.asarray(mapped)), (np.asarray(mapped), mapped)]
    with contextlib.suppress(ImportError):
        import torch

        parameter = torch.nn.Parameter(torch.from_numpy(batch()), requires_grad=False)
        cases.append((parameter, parameter.data))
    for x, out in cases:
        layer = a_layer()
        layer(x, out=out)
        with pytest.raises(RuntimeError, match="backward needs x, which forward overwrote"):
            layer.backward(x)


def test_a_wrong_dy_can_be_corrected():
    layer = a_layer()
    x = batch()
    layer(x)
    layer.dgamma[...] = 5
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(x[:2])
    assert np.all(layer.dgamma == 5)
    assert_matches(layer.backward(x), reference.backward(x, x, 1, layer.gamma).dx)


class Watched(np.ndarray):
    """An array that weak references can point to."""


def watched():
    x = batch().view(Watched)
    return x, weakref.ref(x)


def test_x_is_kept_until_backward():
    for mode in ("train", "freeze"):
        layer = getattr(a_layer(), mode)()
        x, alive = watched()
        dy = np.array(x)
        layer(x)
        del x
        gc.collect()
        assert alive() is not None
        layer.backward(dy)
        gc.collect()
        assert alive() is None


def test_eval_keeps_nothing():
    layer = a_layer().eval()
    x, alive = watched()
    y = layer(x)
    del x, y
    gc.collect()
    assert alive() is None


def test_concurrent_eval():
    layer = a_layer().eval()
    inputs = [batch(400, seed=i) for i in range(8)]
    wants = [layer(x) for x in inputs]
    before = dict(layer.__dict__)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: layer(inputs[i % 8]), range(200)))
    for i, y in enumerate(results):
        assert same_bits(y, wants[i % 8])
    assert layer.__dict__ == before


# ------------------------------------------------------------------------------------------------------------ state


def test_state_dict_copies():
    layer = a_layer()
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    before = {key: value.copy() for key, value in state.items()}
    for array in (layer.gamma, layer.beta, layer.running_mean, layer.running_var, layer.num_batches_tracked):
        array[...] = 99
    for key, value in state.items():
        assert same_bits(value, before[key])


def test_load_state_dict():
    source, layer = a_layer(), bn.BatchNorm(3)
    source(batch())
    assert layer.load_state_dict(source.state_dict()) is None
    for key, value in layer.state_dict().items():
        assert same_bits(value, source.state_dict()[key])
    x = batch(seed=3)
    assert same_bits(layer.eval()(x), source.eval()(x))


def test_load_from_npz():
    source, layer = a_layer(), bn.BatchNorm(3)
    file = io.BytesIO()
    np.savez(file, **{f"net.bn1.{key}": value for key, value in source.state_dict().items()}, other=np.zeros(7))
    file.seek(0)
    with np.load(file) as arrays:
        layer.load_state_dict(arrays, prefix="net.bn1.")
    for key, value in layer.state_dict().items():
        assert same_bits(value, source.state_dict()[key])


def test_bfloat16_through_npz():
    """Which gives its arrays back as two bytes without a type."""
    source = a_layer(dtype=pytest.importorskip("ml_dtypes").bfloat16)
    file = io.BytesIO()
    np.savez(file, **source.state_dict())
    file.seek(0)
    with np.load(file) as arrays:
        assert arrays["weight"].dtype == "V2"
        for layer in (bn.BatchNorm(3, dtype="bfloat16"), bn.BatchNorm(3)):
            layer.load_state_dict(arrays)
            for key, value in layer.state_dict().items():
                assert np.array_equal(value, source.state_dict()[key])


def test_load_other_types():
    layer = bn.BatchNorm(3)
    layer.load_state_dict(
        {"weight": [1, 2, 3], "bias": (4.0, 5, 6), "running_mean": np.array([7, 8, 9], np.float64),
         "running_var": np.array([1, 2, 3], ">f2")}
    )  # fmt: skip
    assert same_bits(layer.gamma, np.float32([1, 2, 3]))
    assert same_bits(layer.running_var, np.float32([1, 2, 3]))
    assert layer.num_batches_tracked == 0  # which old checkpoints lack


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weight"), r"missing \['weight'\]"),
        (lambda s: s.pop("running_var"), r"missing \['running_var'\]"),
        (lambda s: s.update(extra=np.zeros(3)), r"unexpected \['extra'\]"),
        (lambda s: s.update(bias=np.zeros(4)), r"bias has shape \(4,\), expected \(3,\)"),
        (lambda s: s.update(running_var=np.ones((3, 1))), r"running_var has shape \(3, 1\), expected \(3,\)"),
        (lambda s: s.update(running_mean=5.0), r"running_mean has shape \(\), expected \(3,\)"),
        (lambda s: s.update(running_var=np.array([1, -1, 1])), "running_var must not be negative"),
        (lambda s: s.update(num_batches_tracked=-2), "num_batches_tracked must not be negative"),
        (
            lambda s: s.update(num_batches_tracked=2.5),
            "num_batches_tracked must be whole numbers that int64 holds, got 2.5",
        ),
        (lambda s: s.update(num_batches_tracked=np.inf), "num_batches_tracked must be whole numbers.*got inf"),
        (lambda s: s.update(num_batches_tracked=np.nan), "num_batches_tracked must be whole numbers.*got nan"),
        (lambda s: s.update(num_batches_tracked=1e30), "num_batches_tracked must be whole numbers.*got 1e[+]30"),
        (lambda s: s.update(num_batches_tracked=2.0**63), "num_batches_tracked must be whole numbers that int64"),
        (lambda s: s.update(bias=np.array(list("abc"))), "bias has dtype <U1, expected real numbers"),
        (lambda s: s.update(running_mean=np.array([1j, 1, 1])), "running_mean has dtype complex128, expected real"),
    ],
)
def test_load_errors_write_nothing(change, message):
    layer = a_layer()
    before = layer.state_dict()
    state = {key: value + 1 for key, value in before.items()}
    change(state)
    with pytest.raises((TypeError, ValueError), match=message):
        layer.load_state_dict(state)
    with pytest.raises(ValueError, match="weight"):  # nothing has that prefix
        layer.load_state_dict(state, prefix="bn.")
    for key, value in layer.state_dict().items():
        assert same_bits(value, before[key])


def test_load_from_no_mapping():
    for state, name in (([1], "list"), (bn.BatchNorm(3), "batchnorm.layers.BatchNorm"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"mapping is {name}, expected a mapping of names to arrays"):
            bn.BatchNorm(3).load_state_dict(state)


def test_the_largest_number_of_batches():
    layer = bn.BatchNorm(3)
    layer.load_state_dict({"num_batches_tracked": 2**63 - 1}, strict=False)
    assert layer.num_batches_tracked == 2**63 - 1


def test_load_not_strict():
    layer = a_layer()
    before = layer.state_dict()
    layer.load_state_dict({"bias": np.array([7, 8, 9]), "other": np.zeros(50)}, strict=False)
    assert same_bits(layer.beta, np.float32([7, 8, 9]))
    assert same_bits(layer.gamma, before["weight"])
    with pytest.raises(ValueError, match="bias has shape"):
        layer.load_state_dict({"bias": np.zeros(4)}, strict=False)


def test_arrays_are_never_replaced():
    layer = a_layer()
    arrays = {name: getattr(layer, name) for name in ARRAYS}
    x = batch()
    layer(x)
    layer.backward(x)
    layer(x)
    layer.backward(x, accumulate=True)
    layer.zero_grad()
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})
    layer.freeze()(x)
    layer.backward(x)
    layer.eval()(x)
    layer.train()(np.zeros((0, 3, 5), np.float32))
    for name, array in arrays.items():
        assert getattr(layer, name) is array


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_leave_the_batch_behind(copied):
    layer = a_layer(eps=0.01, momentum=0.3).freeze()
    x, alive = watched()
    dy = np.array(x)
    layer(x)
    again = copied(layer)
    with pytest.raises(RuntimeError, match="backward needs a call"):
        again.backward(dy)
    assert repr(again) == repr(layer)
    for name in ARRAYS:
        assert same_bits(getattr(again, name), getattr(layer, name))
    layer.backward(dy)  # the original still has its batch
    assert same_bits(again.eval()(dy), layer.eval()(dy))
    del x
    gc.collect()
    assert alive() is None


def test_deepcopy_shares_nothing():
    layer = a_layer()
    again = copy.deepcopy(layer)
    for name in ARRAYS:
        assert not np.shares_memory(getattr(again, name), getattr(layer, name))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: bn.BatchNorm(3), "BatchNorm(3, axis=1, eps=1e-05, momentum=0.1, dtype='float32', mode='train')"),
        (
            lambda: bn.BatchNorm((3, 4), axis=(1, -1), eps=0.5, momentum=0.9, center=False, dtype="f8").freeze(),
            "BatchNorm((3, 4), axis=(1, -1), eps=0.5, momentum=0.9, center=False, dtype='float64', mode='freeze')",
        ),
        (
            lambda: bn.BatchNorm(3, scale=False, center=False).eval(),
            "BatchNorm(3, axis=1, eps=1e-05, momentum=0.1, center=False, scale=False, dtype='float32', mode='eval')",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer()) == text


# ------------------------------------------------------------------------------------------------------------ torch


@pytest.mark.parametrize("mode", ["train", "freeze", "eval"])
def test_torch_tensors(mode):
    torch = pytest.importorskip("torch")
    x, dy = batch(), batch(seed=1)
    ours, theirs = (getattr(a_layer(), mode)() for _ in range(2))
    y, want = theirs(torch.from_numpy(x)), ours(x)
    assert isinstance(y, torch.Tensor)
    assert same_bits(y.numpy(), want)
    if mode != "eval":
        dx, want = theirs.backward(torch.from_numpy(dy)), ours.backward(dy)
        assert isinstance(dx, torch.Tensor)
        assert same_bits(dx.numpy(), want)
    for name in ARRAYS:
        assert isinstance(getattr(theirs, name), np.ndarray)
        assert same_bits(getattr(theirs, name), getattr(ours, name))


@pytest.mark.parametrize("mode", ["train", "freeze", "eval"])
def test_a_bfloat16_layer_of_torch_tensors(mode):
    torch = pytest.importorskip("torch")
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert bn.BatchNorm(3, dtype=torch.bfloat16).gamma.dtype == bfloat16
    assert bn.BatchNorm(3, dtype=torch.float64).gamma.dtype == np.float64
    x, dy = batch(dtype=bfloat16), batch(seed=1, dtype=bfloat16)

    def as_tensor(array):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    ours, theirs = (getattr(a_layer(dtype="bfloat16", activation="relu"), mode)() for _ in range(2))
    for accumulate in (False, True):
        y, want = theirs(as_tensor(x), residual=as_tensor(dy)), ours(x, residual=dy)
        assert same_bits(y.view(torch.int16).numpy(), want.view(np.int16))
        if mode != "eval":
            dx = theirs.backward(as_tensor(dy), accumulate=accumulate)
            want = ours.backward(dy, accumulate=accumulate)
            assert same_bits(dx.view(torch.int16).numpy(), want.view(np.int16))
    for name in ARRAYS:
        assert same_bits(getattr(theirs, name), getattr(ours, name))


@pytest.mark.parametrize("mode", ["train", "freeze", "eval"])
def test_a_subclass_of_torch_s_tensor(mode):
    torch = pytest.importorskip("torch")

    class Named(torch.Tensor):
        pass

    layer, plain = (getattr(a_layer(), mode)() for _ in range(2))
    x = torch.from_numpy(batch())
    assert same_bits(layer(x.as_subclass(Named)).numpy(), plain(x).numpy())
    if mode != "eval":
        assert same_bits(layer.backward(x.as_subclass(Named)).numpy(), plain.backward(x).numpy())
        assert same_bits(layer.dgamma, plain.dgamma)
