"""What bad input gets: the exception of DESIGN's table, naming the argument, and nothing written; and what looks bad
but is not."""

import inspect

import ml_dtypes
import numpy as np
import pytest
from checks import same_bits

import batchnorm as bn

SHAPE = (4, 3, 5)


def good_arguments():
    """A value for every argument that a function may have, and an out full of sevens."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(0, 1, (2, *SHAPE)).astype(np.float32)
    saved = bn.batch_norm(x)[1]
    arguments = {
        "x": x,
        "dy": dy,
        "gamma": np.ones(3, np.float32),
        "beta": np.zeros(3, np.float32),
        "mean": np.zeros(3, np.float32),
        "var": np.ones(3, np.float32),
        "saved": saved,
        "moments": bn.moments(x),
        "sums": bn.grad_sums(dy, x, saved),
        "axis": 1,
        "eps": 1e-5,
        "threads": None,
        "out": np.full(SHAPE, 7, np.float32),
    }
    return arguments


FUNCTIONS = {
    function.__name__: (function, list(inspect.signature(function).parameters))
    for function in (
        bn.batch_norm,
        bn.batch_norm_backward,
        bn.batch_norm_inference,
        bn.batch_norm_inference_backward,
        bn.moments,
        bn.normalize,
        bn.grad_sums,
        bn.input_grad,
    )
}


def takers(*arguments):
    """The names of the functions that take them all."""
    return [name for name, (_, parameters) in FUNCTIONS.items() if set(arguments) <= set(parameters)]


def call(name, **changes):
    function, parameters = FUNCTIONS[name]
    arguments = good_arguments() | changes
    return function(**{p: arguments[p] for p in parameters})


def refuses(name, error, message, **changes):
    """Calling the function with the changes raises the error and writes nothing."""
    out = changes.get("out")
    if not isinstance(out, np.ndarray):
        out = changes.setdefault("out", np.full(np.shape(changes.get("x", np.empty(SHAPE))), 7, np.float32))
    arrays = {k: v for k, v in (good_arguments() | changes).items() if isinstance(v, np.ndarray)}
    before = {k: v.copy() for k, v in arrays.items()}
    with pytest.raises(error, match=message):
        call(name, **changes)
    for argument, array in arrays.items():
        assert array.tobytes() == before[argument].tobytes(), f"{argument} was written"


def test_the_good_arguments_are_good():
    for name, (_, parameters) in FUNCTIONS.items():
        out = np.full(SHAPE, 7, np.float32)
        call(name, out=out)
        assert np.all(out == 7) == ("out" not in parameters)


# ------------------------------------------------------------------------------------------------ wrong everywhere

f32, bf16 = np.float32, ml_dtypes.bfloat16
EXPECTED = "expected float32, float64, float16 or bfloat16"
NOT_FLOAT = {
    "int64": np.zeros(SHAPE, np.int64),
    "int8": np.zeros(SHAPE, np.int8),
    "bool": np.zeros(SHAPE, bool),
    "object": np.zeros(SHAPE, object),
    "complex": np.zeros(SHAPE, np.complex64),
    "longdouble": np.zeros(SHAPE, np.longdouble),
    "float8": np.zeros(SHAPE, ml_dtypes.float8_e4m3fn),
    "big-endian float16": np.zeros(SHAPE, ">f2"),
    "big-endian bfloat16": np.zeros(SHAPE, ml_dtypes.bfloat16).view(np.dtype(ml_dtypes.bfloat16).newbyteorder()),
    "uint16": np.zeros(SHAPE, np.uint16),
    "big-endian": np.zeros(SHAPE, ">f4"),
    "string": np.zeros(SHAPE, "U3"),
    "datetime": np.zeros(SHAPE, "M8[s]"),
    "record": np.zeros(SHAPE, [("a", "f4")]),
    "subarray": np.zeros(SHAPE, [("a", "f4", 2)]),
}
NO_ARRAY = {"list": np.zeros(SHAPE).tolist(), "number": 1.5, "numpy number": f32(1), "None": None, "string": "abc",
            "bytes": b"abcd", "memoryview": memoryview(np.zeros(SHAPE, f32))}  # fmt: skip

# argument: name: (value, exception, message); for every function that takes the argument
BAD = {
    "x": {
        **{k: (v, TypeError, f"x has dtype .*{EXPECTED}.*astype") for k, v in NOT_FLOAT.items()},
        **{k: (v, TypeError, "x is .*expected a NumPy array.*asarray") for k, v in NO_ARRAY.items()},
        "masked": (np.ma.zeros(SHAPE, f32), TypeError, "x is a masked array"),
        "rank 9": (np.zeros((1,) * 9, f32), ValueError, "x has 9 axes, expected at most 8"),
    },
    "dy": {
        **{k: (v, TypeError, f"dy has dtype .*{EXPECTED}.*astype") for k, v in NOT_FLOAT.items()},
        **{k: (v, TypeError, "dy is .*expected a NumPy array.*asarray") for k, v in NO_ARRAY.items()},
        "masked": (np.ma.zeros(SHAPE, f32), TypeError, "dy is a masked array"),
        "another type": (np.zeros(SHAPE), TypeError, "dy is float64, expected x's type float32"),
        "half": (np.zeros(SHAPE, np.float16), TypeError, "dy is float16, expected x's type float32"),
        "bfloat16": (np.zeros(SHAPE, bf16), TypeError, "dy is bfloat16, expected x's type float32"),
        "another shape": (np.zeros((4, 3, 6), f32), ValueError, r"dy has shape \(4, 3, 6\).*\(4, 3, 5\)"),
        "another rank": (np.zeros((4, 3), f32), ValueError, r"dy has shape \(4, 3\).*\(4, 3, 5\)"),
        "broadcastable": (np.zeros((1, 3, 1), f32), ValueError, r"dy has shape \(1, 3, 1\).*\(4, 3, 5\)"),
    },
    "axis": {
        "3": (3, ValueError, r"axis 3 is out of range.*\(4, 3, 5\)"),
        "-4": (-4, ValueError, r"axis -4 is out of range.*\(4, 3, 5\)"),
        "huge": (10**30, ValueError, "axis .*out of range"),
        "one of two": ((1, 3), ValueError, "axis 3 is out of range"),
        "repeated": ((1, 1), ValueError, "axis 1 is repeated"),
        "repeated from the end": ((1, -2), ValueError, "axis -2 is repeated"),
        "too many": ((0, 1, 2) * 4, ValueError, "axis"),
        **{
            repr(axis): (axis, TypeError, "axis must be an int or a tuple of ints, got (float|str|NoneType|bool|set)")
            for axis in (1.0, "1", None, True, (0, 1.5), ("a",), {1})
        },
    },
    "eps": {
        **{repr(eps): (eps, ValueError, "eps must be positive and finite, got") for eps in (0, -1, np.nan, np.inf)},
        **{repr(eps): (eps, TypeError, "eps must be a number, got") for eps in ("a", None, [1e-5])},
    },
    "threads": {
        **{repr(n): (n, ValueError, f"threads must be from 1 to .*got {n}") for n in (0, -1)},
        "2**40": (2**40, ValueError, "threads must be from 1"),
        **{repr(n): (n, TypeError, "threads must be an int or None, got") for n in ("a", 1.5, [2])},
    },
    "out": {
        "list": ([], TypeError, "out is list, expected a NumPy array"),
        "masked": (np.ma.zeros(SHAPE, f32), TypeError, "out is a masked array"),
        "int": (np.full(SHAPE, 7), TypeError, "out has dtype .*expected float32, float64, float16 or bfloat16"),
        "another type": (np.full(SHAPE, 7.0), TypeError, "out is float64, expected x's type float32"),
        "half": (np.full(SHAPE, 7, np.float16), TypeError, "out is float16, expected x's type float32"),
        "bfloat16": (np.full(SHAPE, 7, bf16), TypeError, "out is bfloat16, expected x's type float32"),
        "another shape": (np.full((4, 3, 6), 7, f32), ValueError, r"out has shape \(4, 3, 6\).*\(4, 3, 5\)"),
        "another rank": (np.full((4, 3, 5, 1), 7, f32), ValueError, r"out has shape \(4, 3, 5, 1\).*\(4, 3, 5\)"),
        "transposed": (np.full((5, 3, 4), 7, f32), ValueError, r"out has shape \(5, 3, 4\).*\(4, 3, 5\)"),
    },
    **{
        param: {
            "too long": (np.ones(4, f32), ValueError, rf"{param} has shape \(4,\), expected \(3,\).*\(4, 3, 5\)"),
            "too short": (np.ones(1, f32), ValueError, rf"{param} has shape \(1,\), expected \(3,\)"),
            "long list": ([1.0] * 4, ValueError, rf"{param} has shape \(4,\), expected \(3,\)"),
            "empty list": ([], ValueError, rf"{param} has shape \(0,\), expected \(3,\)"),
            "column": (np.ones((3, 1), f32), ValueError, rf"{param} has shape \(3, 1\), expected \(3,\)"),
            "int": (np.ones(3, int), TypeError, f"{param} has dtype .*expected a float type"),
            "bool": (np.ones(3, bool), TypeError, f"{param} has dtype"),
            "complex": (np.ones(3, complex), TypeError, f"{param} has dtype"),
            "object": (np.ones(3, object), TypeError, f"{param} has dtype"),
            "string": ("abc", TypeError, f"{param} is str, expected an array, a sequence of numbers or a number"),
            "ragged": ([[1], [2, 3]], TypeError, f"{param} is list"),
            "function": (len, TypeError, f"{param} is builtin"),
            "masked": (np.ma.ones(3, f32), TypeError, f"{param} is a masked array"),
        }
        for param in ("gamma", "beta", "mean", "var")
    },
    "saved": {
        "too long": (bn.Saved([0] * 4, [1] * 4), ValueError, r"saved.mean has shape \(4,\), expected \(3,\)"),
        "another axis": (bn.Saved([0] * 3, [1] * 3, axis=2), ValueError, r"saved.mean .*\(3,\), expected \(5,\)"),
        "axis out of range": (bn.Saved([0] * 3, [1] * 3, axis=3), ValueError, "axis 3 is out of range"),
        "two axes": (bn.Saved([0] * 3, [1] * 3, axis=(0, 1)), ValueError, r"saved.mean .*expected \(4, 3\)"),
        "tuple": ((np.zeros(3), np.ones(3)), TypeError, "saved is tuple, expected bn.Saved"),
        "None": (None, TypeError, "saved is NoneType, expected bn.Saved"),
    },
    "moments": {
        "too long": (bn.Moments(np.zeros(4), np.ones(4), 20), ValueError, r"mean has shape \(4,\), expected \(3,\)"),
        "m2 too long": (bn.Moments(np.zeros(3), np.ones(4), 20), ValueError, r"m2 has shape \(4,\), expected \(3,\)"),
        "negative m2": (bn.Moments(np.zeros(3), -np.ones(3), 20), ValueError, "m2 must not be negative, got -1"),
        "no count": (bn.Moments(np.zeros(3), np.ones(3), 0), ValueError, "count must be positive, got 0"),
        "tuple": ((np.zeros(3), np.ones(3), 20), TypeError, "moments is tuple, expected bn.Moments"),
    },
    "sums": {
        "too long": (bn.GradSums(20, np.zeros(4), np.ones(4)), ValueError, r"sum_dy has shape \(4,\), expected \(3,\)"),
        "second": (bn.GradSums(20, np.zeros(3), np.ones(4)), ValueError, r"sum_dy_xmu .*\(4,\), expected \(3,\)"),
        "no count": (bn.GradSums(0, np.zeros(3), np.ones(3)), ValueError, "count must be positive, got 0"),
        "tuple": ((20, np.zeros(3), np.ones(3)), TypeError, "sums is tuple, expected bn.GradSums"),
    },
}  # fmt: skip
BAD["mean"]["None"] = (None, ValueError, "mean is required")
BAD["var"]["None"] = (None, ValueError, "var is required")
BAD["var"]["negative"] = (np.array([1, -0.5, 1], f32), ValueError, "var must not be negative, got -0.5")
BAD["var"]["negative number"] = (-1, ValueError, "var must not be negative, got -1")


@pytest.mark.parametrize(
    ("name", "argument", "case"),
    [(name, argument, case) for argument, cases in BAD.items() for case in cases for name in takers(argument)],
)
def test_refused(name, argument, case):
    value, error, message = BAD[argument][case]
    refuses(name, error, message, **{argument: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_several_mistakes_write_nothing(name):
    refuses(name, (TypeError, ValueError), None, x=np.zeros(SHAPE, int), dy=None, gamma=[1], axis=9, eps=0, threads=0)


# ------------------------------------------------------------------------------------------------ where out may be


def memory(shape=SHAPE, extra=0):
    """Sevens."""
    return np.full(int(np.prod(shape)) + extra, 7, f32)


def test_functions_with_out():
    assert len(takers("out")) == 6


@pytest.mark.parametrize("name", takers("out"))
def test_read_only_out(name):
    out = np.full(SHAPE, 7, f32)
    out.flags.writeable = False
    refuses(name, ValueError, "out is read-only", out=out)


@pytest.mark.parametrize("name", takers("out"))
@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1)])
def test_out_with_elements_in_one_place(name, shape):
    out = np.lib.stride_tricks.as_strided(
        np.full(shape, 7, f32), SHAPE, np.broadcast_to(np.empty(shape, f32), SHAPE).strides
    )
    refuses(name, ValueError, "out has elements that share memory", out=out)
    windows = np.lib.stride_tricks.as_strided(np.full(40, 7, f32), SHAPE, (24, 8, 4))
    refuses(name, ValueError, "out has elements that share memory", out=windows)


OVERLAPS = {
    "one element on": lambda m: (m[:-1].reshape(SHAPE), m[1:].reshape(SHAPE)),
    "one element back": lambda m: (m[1:].reshape(SHAPE), m[:-1].reshape(SHAPE)),
    "reversed": lambda m: (m[1:].reshape(SHAPE), m[1:].reshape(SHAPE)[::-1]),
    "another order": lambda m: (m[1:].reshape(SHAPE), m[1:].reshape(5, 3, 4).T),
    "two bytes on": lambda m: (m[:-1].reshape(SHAPE), m.view(np.uint8)[2:-2].view(f32).reshape(SHAPE)),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("name", "argument"), [(n, a) for a in ("x", "dy") for n in takers(a, "out")])
def test_out_overlaps_an_input(name, argument, overlap):
    value, out = OVERLAPS[overlap](memory(extra=1))
    refuses(name, ValueError, f"out overlaps {argument}", **{argument: value, "out": out})


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for a in ("gamma", "beta", "mean", "var") for n in takers(a, "out")]
)
def test_out_overlaps_a_parameter(name, argument):
    out = memory().reshape(SHAPE)
    refuses(name, ValueError, f"out overlaps {argument}", **{argument: out[0, :, 0], "out": out})


INTERLEAVED = {
    "columns": lambda m: (m[0, :4, :3, ::2], m[0, :4, :3, 1::2], m[1, :4, :3, ::2]),
    "channels": lambda m: (m[0, :4, ::2, :5], m[0, :4, 1::2, :5], m[1, :4, ::2, 5:]),
    "halves of rows": lambda m: (m[0, :4, :3, :5], m[0, :4, :3, 5:], m[1, :4, :3, :5]),
    "reversed": lambda m: (m[0, :4, :3, ::2], m[0, 3::-1, :3, ::-2], m[1, :4, :3, 1::2]),
    "next to each other": lambda m: (
        m.ravel()[:60].reshape(SHAPE), m.ravel()[60:120].reshape(SHAPE), m.ravel()[120:180].reshape(SHAPE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("views", INTERLEAVED)
@pytest.mark.parametrize("name", takers("out"))
def test_interleaved_views_are_fine(name, views):
    buffer = np.full((2, 4, 6, 10), 7, f32)
    x, out, dy = INTERLEAVED[views](buffer)
    arguments = good_arguments()
    x[...], dy[...] = arguments["x"], arguments["dy"]
    want, got = call(name, out=None), call(name, x=x, dy=dy, out=out)
    for result in (want, got):
        assert result is not None
    assert np.array_equal(out, want if isinstance(want, np.ndarray) else want[0])
    assert np.array_equal(x, arguments["x"])
    assert np.array_equal(dy, arguments["dy"])


@pytest.mark.parametrize("name", takers("out"))
def test_out_may_be_interleaved_with_a_parameter(name):
    buffer = np.full((4, 3, 6), 1, f32)
    parameters = {p: buffer[0, :, 5] for p in ("gamma", "beta", "mean", "var") if p in FUNCTIONS[name][1]}
    call(name, out=buffer[..., :5], **parameters)
    assert np.all(buffer[..., 5] == 1)


# ----------------------------------------------------------------------------------------------------- other kinds

MIXED = [(n, a) for a in ("dy", "out", "gamma", "beta", "mean", "var") for n in takers(a)]


@pytest.mark.parametrize(("name", "argument"), MIXED)
def test_mixed_kinds(name, argument):
    torch = pytest.importorskip("torch")
    arguments = good_arguments()
    tensor = torch.from_numpy(arguments[argument])
    refuses(name, TypeError, f"{argument} is a torch tensor, expected a NumPy array, as x is", **{argument: tensor})
    with pytest.raises(TypeError, match="expected a torch tensor, as x is"):
        call(name, x=torch.from_numpy(arguments["x"]))


@pytest.mark.parametrize("argument", ["x", "dy", "gamma", "beta", "mean", "var", "out"])
def test_requires_grad(argument):
    torch = pytest.importorskip("torch")
    for name in takers(argument):
        tensors = {k: torch.from_numpy(v) for k, v in good_arguments().items() if isinstance(v, np.ndarray)}
        tensors["moments"] = bn.moments(tensors["x"])
        tensors["sums"] = bn.grad_sums(tensors["dy"], tensors["x"], good_arguments()["saved"])
        tensors[argument].requires_grad_()
        with pytest.raises(TypeError, match=rf"{argument} requires grad.*{argument}\.detach\(\)"):
            call(name, **tensors)
        assert torch.all(tensors["out"] == 7)


def test_other_torch_tensors():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"x has dtype {dtype}, expected float32, float64, float16 or bfloat16"):
            bn.moments(torch.zeros(SHAPE, dtype=dtype))
    negated = torch.zeros(SHAPE, dtype=torch.complex64).conj().imag
    with pytest.raises(TypeError, match=r"x is a negated view, .*resolve_neg"):
        bn.moments(negated)
    bn.moments(negated.resolve_neg())
    with pytest.raises(TypeError, match=r"x has layout torch.sparse_coo, expected torch.strided"):
        bn.moments(torch.zeros(SHAPE).to_sparse())
    with pytest.raises(RuntimeError, match="x is on device meta"):
        bn.moments(torch.zeros(SHAPE, device="meta"))
    with pytest.raises(ValueError, match="out has elements that share memory"):
        bn.batch_norm(torch.zeros(SHAPE), out=torch.zeros(4, 3, 1).expand(SHAPE))
    with pytest.raises(ValueError, match="x has 9 axes"):
        bn.moments(torch.zeros((1,) * 9))


# ---------------------------------------------------------------------------------- too few values, and none at all

ONE_VALUE = [((1, 3), 1), ((3,), 0), ((1, 3, 1, 1), 1), ((4, 3, 5), (0, 1, 2)), ((1,), ()), ((), ())]


@pytest.mark.parametrize(("shape", "axis"), ONE_VALUE)
def test_one_value_for_each_statistic(shape, axis):
    x = np.ones(shape, f32)
    kept = bn.moments(x, axis=axis)
    assert kept.count == 1
    assert np.all(kept.m2 == 0)
    assert np.all(kept.mean == 1)
    saved = bn.Saved(kept.mean, np.ones_like(kept.mean), axis=axis)
    out = np.full(shape, 7, f32)
    for wrong in (
        lambda: bn.batch_norm(x, axis=axis, out=out),
        lambda: bn.batch_norm_backward(x, x, saved, out=out),
    ):
        with pytest.raises(ValueError, match=r"x of shape .* one value for each statistic.*variance"):
            wrong()
    assert np.all(out == 7)
    assert np.all(bn.batch_norm_inference(x, 1, 1, None, 5, axis=axis) == 5)
    assert np.all(bn.batch_norm_inference_backward(x, x, 0, 1, axis=axis).dbeta == 1)
    assert bn.grad_sums(x, x, saved).count == 1


EMPTY = [((0, 3, 5), 1), ((4, 0, 5), 1), ((4, 3, 0), 1), ((0,), ()), ((0,), 0), ((0, 0), 1), ((4, 0, 5), (0, 2)),
         ((0, 3), (0, 1)), ((1, 3, 0), 1)]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_empty(shape, axis, dtype):
    x = np.zeros(shape, dtype)
    axes = axis if isinstance(axis, tuple) else (axis,)
    kept = tuple(shape[a] for a in axes)
    gamma, beta = np.full(kept, 2, dtype), np.full(kept, 3, dtype)
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis)
    m = bn.moments(x, axis=axis)
    assert m.count == np.prod([n for a, n in enumerate(shape) if a not in axes])  # for zero channels, not 0
    assert saved.count is None
    for statistic in (saved.mean, saved.var, m.mean, m.m2):
        assert statistic.shape == kept
        assert np.all(statistic == 0)
    assert np.all(saved.inv_std == 1 / np.sqrt(1e-5))
    sums = bn.grad_sums(x, x, saved)
    assert sums.count == m.count
    outputs = [
        y,
        bn.batch_norm_inference(x, np.zeros(kept), np.ones(kept), gamma, beta, axis=axis),
        bn.normalize(x, m, gamma, beta, axis=axis)[0],
    ]
    for grads in (
        bn.batch_norm_backward(x, x, saved, gamma),
        bn.batch_norm_inference_backward(x, x, np.zeros(kept), np.ones(kept), gamma, axis=axis),
        bn.input_grad(x, x, saved, sums, gamma),
    ):
        outputs.append(grads.dx)
        for grad in (grads.dgamma, grads.dbeta):
            assert grad.shape == kept
            assert grad.dtype == dtype
            assert np.all(grad == 0)
    for output in outputs:
        assert output.shape == shape
        assert output.dtype == dtype
    out = np.zeros(shape, dtype)
    assert bn.batch_norm(x, axis=axis, out=out)[0] is out


def test_empty_input_is_still_checked():
    x = np.zeros((0, 3, 5), f32)
    for changes, error in [
        ({"gamma": [1, 2]}, ValueError),
        ({"axis": 3}, ValueError),
        ({"eps": 0}, ValueError),
        ({"out": np.zeros((0, 3, 6), f32)}, ValueError),
        ({"out": np.zeros((0, 3, 5))}, TypeError),
    ]:
        with pytest.raises(error):
            bn.batch_norm(x, **changes)


# --------------------------------------------------------------------------------------------- fine, although unusual


def test_unusual_but_fine():
    x = np.random.default_rng(0).normal(0, 1, (4, 3, 5)).astype(f32)
    y = bn.batch_norm(x)[0]
    for same in (
        bn.batch_norm(x, eps=f32(1e-5).astype(float) * 0 + 1e-5)[0],
        bn.batch_norm(x, threads=np.int64(2))[0],
        bn.batch_norm(x, axis=np.int8(1))[0],
        bn.batch_norm(x, axis=[1])[0],
        bn.batch_norm(x, np.array(1.0), np.array(0, f32))[0],
        bn.batch_norm(x, gamma=np.array([9, 1, 1, 1], f32)[1:])[0],
        bn.batch_norm(x.view(np.dtype("f4").newbyteorder("=")))[0],
        bn.batch_norm(x, threads=1000)[0],
    ):
        assert same_bits(same, y)
    assert bn.batch_norm(np.zeros((2, 1, 1, 1, 1, 1, 1, 3), f32), axis=7)[0].ndim == 8
    assert np.isnan(bn.batch_norm_inference(x, 0, np.nan)).all()
