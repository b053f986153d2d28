"""What bad input gets: the exception of DESIGN's table, naming the argument, and nothing written; and what looks bad
but is not."""

import copy
import inspect
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
from cases import misaligned
from checks import same_bits

import batchnorm as bn

SHAPE = (4, 3, 5)
OUTPUTS = ("out", "ddy", "dx")
LIKE_X = ("dy", "residual", "tx", "ddx")
PARAMETERS = ("gamma", "beta", "mean", "var", "tgamma", "tbeta", "ddgamma", "ddbeta")


def good_arguments():
    """A value for every argument that a function may have, and an out full of sevens."""
    rng = np.random.default_rng(0)
    x, dy, tx, ddx = rng.normal(0, 1, (4, *SHAPE)).astype(np.float32)
    y, saved = bn.batch_norm(x)
    arguments = {
        "x": x,
        "dy": dy,
        "y": y,
        "residual": dy.copy(),
        "tx": tx,
        "ddx": ddx,
        "gamma": np.ones(3, np.float32),
        "beta": np.zeros(3, np.float32),
        **{name: np.ones(3, np.float32) for name in ("tgamma", "tbeta", "ddgamma", "ddbeta")},
        "mean": np.zeros(3, np.float32),
        "var": np.ones(3, np.float32),
        "saved": saved,
        "moments": bn.moments(x),
        "sums": bn.grad_sums(dy, x, saved),
        "axis": 1,
        "eps": 1e-5,
        "group_size": None,
        "weights": None,
        "activation": None,
        "negative_slope": 0.01,
        "need_dresidual": False,
        "threads": None,
        "stream": None,
        **{output: np.full(SHAPE, 7, np.float32) for output in OUTPUTS},
    }
    return arguments


def batch_norm_double_backward(ddx, dy, x, saved, gamma, ddgamma, ddbeta, ddy, dx, threads):
    """The function with an argument for each output, which its messages name."""
    options = {"ddgamma": ddgamma, "ddbeta": ddbeta, "out": (ddy, dx), "threads": threads}
    return bn.batch_norm_double_backward(ddx, dy, x, saved, gamma, **options)


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
        bn.batch_norm_inplace,
        bn.batch_norm_backward_from_output,
        bn.batch_norm_jvp,
        batch_norm_double_backward,
    )
}


def takers(*arguments):
    """The names of the functions that take them all."""
    return [name for name, (_, parameters) in FUNCTIONS.items() if set(arguments) <= set(parameters)]


def writers(*arguments):
    """Pairs of the functions that take them all with each array that these may be asked to write to."""
    return [(name, output) for output in OUTPUTS for name in takers(*arguments, output)]


def data_of(name):
    """What the function calls its data."""
    return "x" if "x" in FUNCTIONS[name][1] else "y"


def call(name, **changes):
    function, parameters = FUNCTIONS[name]
    arguments = good_arguments() | changes
    return function(**{p: arguments[p] for p in parameters})


def refuses(name, error, message, **changes):
    """Calling the function with the changes raises the error and writes nothing."""
    for output in OUTPUTS:
        changes.setdefault(output, np.full(np.shape(changes.get(data_of(name), np.empty(SHAPE))), 7, np.float32))
    changes = good_arguments() | changes
    outs = changes["out"] if isinstance(changes["out"], tuple) else ()
    arrays = changes | {f"out[{i}]": out for i, out in enumerate(outs)}
    arrays = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
    if data_of(name) == "y" and message:
        message = re.sub(r"\bx's\b", "y's", message)
    before = {k: v.copy() for k, v in arrays.items()}
    with pytest.raises(error, match=message):
        call(name, **changes)
    for argument, array in arrays.items():
        assert array.tobytes() == before[argument].tobytes(), f"{argument} was written"


def test_the_good_arguments_are_good():
    for name, (_, parameters) in FUNCTIONS.items():
        arguments = good_arguments()
        x = arguments["x"].copy()
        call(name, **arguments)
        for output in OUTPUTS:
            assert np.all(arguments[output] == 7) == (output not in parameters)
        assert np.array_equal(arguments["x"], x) == (name != "batch_norm_inplace")


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
    **{
        like_x: {
            **{
                k: (v, TypeError, f"{like_x} has dtype .*{EXPECTED}.*astype")
                for k, v in NOT_FLOAT.items()
            },
            **{
                k: (v, TypeError, f"{like_x} is .*expected a NumPy array.*asarray")
                for k, v in NO_ARRAY.items()
                if k != "None" or like_x != "residual"
            },
            "masked": (np.ma.zeros(SHAPE, f32), TypeError, f"{like_x} is a masked array"),
            "rank 9": (np.zeros((1,) * 9, f32), ValueError, f"{like_x} has 9 axes, expected at most 8"),
            "another type": (np.zeros(SHAPE), TypeError, f"{like_x} is float64, expected x's type float32"),
            "half": (np.zeros(SHAPE, np.float16), TypeError, f"{like_x} is float16, expected x's type float32"),
            "bfloat16": (np.zeros(SHAPE, bf16), TypeError, f"{like_x} is bfloat16, expected x's type float32"),
            "another shape": (np.zeros((4, 3, 6), f32), ValueError, rf"{like_x} has shape \(4, 3, 6\).*\(4, 3, 5\)"),
            "another rank": (np.zeros((4, 3), f32), ValueError, rf"{like_x} has shape \(4, 3\).*\(4, 3, 5\)"),
            "broadcastable": (np.zeros((1, 3, 1), f32), ValueError, rf"{like_x} has shape \(1, 3, 1\).*\(4, 3, 5\)"),
        }
        for like_x in LIKE_X
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
    "group_size": {
        **{repr(n): (n, ValueError, f"group_size must be at least 1, got {n}") for n in (0, -1, -(2**62))},
        **{repr(n): (n, TypeError, "group_size must be an int or None, got") for n in (2.5, "2", [2], (2,))},
    },
    "activation": {
        **{
            repr(v): (v, ValueError, f"activation {v!r} is unknown, expected None, 'relu' or 'leaky_relu'")
            for v in ("gelu", "ReLU", "", "none")
        },
        "no character": ("\ud800", ValueError, r"activation '\\ud800' is unknown"),
        "cut": ("é" * 600, ValueError, "activation 'éé.*é$"),
        **{repr(v): (v, TypeError, "activation is (int|bool|list|float|bytes), expected None, 'relu' or 'leaky_relu'")
           for v in (1, True, ["relu"], 0.5, b"relu")},
    },
    "negative_slope": {
        **{repr(v): (v, ValueError, f"negative_slope must be finite, got {v}") for v in (np.nan, np.inf, -np.inf)},
        "1e300": (1e300, ValueError, "negative_slope must be finite in float32, which x's arithmetic is in, got 1e"),
        **{repr(v): (v, TypeError, "negative_slope must be a number, got") for v in ("a", None, [0.1])},
    },
    "weights": {
        "negative": (np.array([-0.5] + [1] * 19).reshape(4, 5), ValueError,
                     "weights must be finite and not negative, got -0.5"),
        "negative, at the end": (np.array([1] * 19 + [-2]).reshape(4, 5), ValueError,
                                 "weights must be finite and not negative, got -2"),
        "negative, broadcast": (np.array([1, -3, 1]).reshape(1, 3, 1), ValueError, "not negative, got -3"),
        "NaN": (np.array([1] * 19 + [np.nan]).reshape(4, 5), ValueError, "weights must be finite .*got -?nan"),
        "inf": (np.array([np.inf] + [1] * 19).reshape(4, 5), ValueError, "weights must be finite .*got inf"),
        "-inf": (np.array([1] * 19 + [-np.inf]).reshape(4, 5), ValueError, "weights must be finite .*got -inf"),
        "inf in float32": ([[1e39] * 5] * 4, ValueError, "weights must be finite .*got inf"),
        "0 in float32": ([[1e-50] * 5] * 4, ValueError, "weights has numbers so small that all are 0 in float32"),
        **{
            f"of shape {shape}": (np.ones(shape), ValueError, rf"weights has shape {re.escape(str(shape))}, expected "
                                  r"that of x, \(4, 3, 5\), without the kept axes, or of its rank and broadcast to it")
            for shape in ((4, 3), (5, 4), (4,), (), (4, 1), (1, 5), (4, 3, 6), (2, 1, 5), (1, 4, 3, 5), (4, 5, 1))
        },
        "number": (1.0, ValueError, r"weights has shape \(\), expected"),
        "complex": (np.ones((4, 5), complex), TypeError, "weights has dtype complex128, expected real"),
        "object": (np.ones((4, 5), object), TypeError, "weights has dtype object, expected real numbers or bools"),
        "dates": (np.ones((4, 5), "M8[s]"), TypeError, "weights has dtype .*expected real numbers or bools"),
        "strings": (np.ones((4, 5), "U1"), TypeError, "weights has dtype .*expected real numbers or bools"),
        "ragged": ([[1], [2, 3]], TypeError, "weights is list, expected an array of numbers or bools"),
        "text": ("abc", TypeError, "weights has dtype .*expected real numbers or bools"),
        "masked": (np.ma.ones((4, 5)), TypeError, "weights is a masked array, expected a plain one"),
        "rank 9": (np.ones((1,) * 9), ValueError, "weights has 9 axes, expected at most 8"),
    },
    "threads": {
        **{repr(n): (n, ValueError, f"threads must be from 1 to .*got {n}") for n in (0, -1)},
        "2**40": (2**40, ValueError, "threads must be from 1"),
        **{repr(n): (n, TypeError, "threads must be an int or None, got") for n in ("a", 1.5, [2])},
    },
    **{
        out: {
            "list": ([], TypeError, f"{out} is list, expected a NumPy array"),
            "masked": (np.ma.zeros(SHAPE, f32), TypeError, f"{out} is a masked array"),
            "int": (np.full(SHAPE, 7), TypeError, f"{out} has dtype .*expected float32, float64, float16 or bfloat16"),
            "another type": (np.full(SHAPE, 7.0), TypeError, f"{out} is float64, expected x's type float32"),
            "half": (np.full(SHAPE, 7, np.float16), TypeError, f"{out} is float16, expected x's type float32"),
            "bfloat16": (np.full(SHAPE, 7, bf16), TypeError, f"{out} is bfloat16, expected x's type float32"),
            "another shape": (np.full((4, 3, 6), 7, f32), ValueError, rf"{out} has shape \(4, 3, 6\).*\(4, 3, 5\)"),
            "another rank": (np.full((4, 15), 7, f32), ValueError, rf"{out} has shape \(4, 15\).*\(4, 3, 5\)"),
            "transposed": (np.full((5, 3, 4), 7, f32), ValueError, rf"{out} has shape \(5, 3, 4\).*\(4, 3, 5\)"),
        }
        for out in OUTPUTS
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
        for param in PARAMETERS
    },
    "saved": {
        "too long": (bn.Saved([0] * 4, [1] * 4), ValueError, r"saved.(mean|inv_std) has shape \(4,\), expected \(3,\)"),
        "another axis": (bn.Saved([0] * 3, [1] * 3, axis=2), ValueError, r"saved.\w+ has .*\(3,\), expected \(5,\)"),
        "axis out of range": (bn.Saved([0] * 3, [1] * 3, axis=3), ValueError, "axis 3 is out of range"),
        "two axes": (bn.Saved([0] * 3, [1] * 3, axis=(0, 1)), ValueError, r"saved.(mean|inv_std) .*expected \(4, 3\)"),
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
BAD["y"] = {k: (v[0], v[1], re.sub("^dy", "y", v[2])) for k, v in BAD["dy"].items() if k != "None"}
BAD["mean"]["None"] = (None, ValueError, "mean is required")
BAD["var"]["None"] = (None, ValueError, "var is required")
BAD["var"]["negative"] = (np.array([1, -0.5, 1], f32), ValueError, "var must not be negative, got -0.5")
BAD["var"]["negative number"] = (-1, ValueError, "var must not be negative, got -1")


def is_held_against_itself(name, argument, case):
    """y, where it takes x's place, has a shape and type that others are refused for."""
    return argument == data_of(name) == "y" and case in (
        "half",
        "bfloat16",
        *("another " + k for k in ("type", "shape", "rank")),
        "broadcastable",
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("name", "argument", "case"),
    [
        (name, argument, case)
        for argument, cases in BAD.items()
        for case in cases
        for name in takers(argument)
        if not is_held_against_itself(name, argument, case)
    ],
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
    assert len(writers()) == 10
    assert len(takers("need_dresidual")) == 3


@pytest.mark.parametrize(("name", "output"), writers())
def test_read_only_out(name, output):
    out = np.full(SHAPE, 7, f32)
    out.flags.writeable = False
    refuses(name, ValueError, f"{output} is read-only", **{output: out})


@pytest.mark.parametrize(("name", "output"), writers())
@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1)])
def test_out_with_elements_in_one_place(name, output, shape):
    out = np.lib.stride_tricks.as_strided(
        np.full(shape, 7, f32), SHAPE, np.broadcast_to(np.empty(shape, f32), SHAPE).strides
    )
    refuses(name, ValueError, f"{output} has elements that share memory", **{output: out})
    windows = np.lib.stride_tricks.as_strided(np.full(40, 7, f32), SHAPE, (24, 8, 4))
    refuses(name, ValueError, f"{output} has elements that share memory", **{output: windows})


OVERLAPS = {
    "one element on": lambda m: (m[:-1].reshape(SHAPE), m[1:].reshape(SHAPE)),
    "one element back": lambda m: (m[1:].reshape(SHAPE), m[:-1].reshape(SHAPE)),
    "reversed": lambda m: (m[1:].reshape(SHAPE), m[1:].reshape(SHAPE)[::-1]),
    "another order": lambda m: (m[1:].reshape(SHAPE), m[1:].reshape(5, 3, 4).T),
    "two bytes on": lambda m: (m[:-1].reshape(SHAPE), m.view(np.uint8)[2:-2].view(f32).reshape(SHAPE)),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(
    ("name", "output", "argument"),
    [
        (*pair, a)
        for a in ("x", "y", *LIKE_X)
        for pair in writers(a)
        if (pair[0], a) != ("batch_norm_inference_backward", "y")  # where it is read with an activation only
    ],
)
def test_out_overlaps_an_input(name, output, argument, overlap):
    value, out = OVERLAPS[overlap](memory(extra=1))
    refuses(name, ValueError, f"{output} overlaps {argument}", **{argument: value, output: out})


@pytest.mark.parametrize(("name", "output", "argument"), [(*pair, a) for a in PARAMETERS for pair in writers(a)])
def test_out_overlaps_a_parameter(name, output, argument):
    out = memory().reshape(SHAPE)
    refuses(name, ValueError, f"{output} overlaps {argument}", **{argument: out[0, :, 0], output: out})


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_outputs_overlap(overlap):
    ddy, dx = OVERLAPS[overlap](memory(extra=1))
    refuses("batch_norm_double_backward", ValueError, "the outputs ddy and dx overlap", ddy=ddy, dx=dx)
    refuses("batch_norm_double_backward", ValueError, "the outputs ddy and dx overlap", ddy=ddy, dx=ddy)


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
@pytest.mark.parametrize(("name", "output"), writers())
def test_interleaved_views_are_fine(name, output, views):
    buffer = np.full((2, 4, 6, 10), 7, f32)
    x, out, dy = INTERLEAVED[views](buffer)
    arguments = good_arguments()
    x[...], dy[...] = arguments["x"], arguments["dy"]
    want, got = call(name, **{output: None}), call(name, x=x, dy=dy, **{output: out})
    for result in (want, got):
        assert result is not None
    assert np.array_equal(out, want if isinstance(want, np.ndarray) else want[output == "dx"])
    assert np.array_equal(x, arguments["x"])
    assert np.array_equal(dy, arguments["dy"])


@pytest.mark.parametrize(("name", "output"), writers())
def test_out_may_be_interleaved_with_a_parameter(name, output):
    buffer = np.full((4, 3, 6), 1, f32)
    parameters = {p: buffer[0, :, 5] for p in PARAMETERS if p in FUNCTIONS[name][1]}
    call(name, **{output: buffer[..., :5]}, **parameters)
    assert np.all(buffer[..., 5] == 1)


# ----------------------------------------------------------------------------------------------------- other kinds

MIXED = [(n, a) for a in (*LIKE_X, *OUTPUTS, *PARAMETERS) for n in takers(a)]


@pytest.mark.parametrize(("name", "argument"), MIXED)
def test_mixed_kinds(name, argument):
    torch = pytest.importorskip("torch")
    arguments = good_arguments()
    tensor = torch.from_numpy(arguments[argument])
    refuses(name, TypeError, f"{argument} is a torch tensor, expected a NumPy array, as x is", **{argument: tensor})
    with pytest.raises(TypeError, match="expected a torch tensor, as x is"):
        call(name, **{data_of(name): torch.from_numpy(arguments["x"])})


@pytest.mark.parametrize("argument", ["x", "y", *LIKE_X, *PARAMETERS, *OUTPUTS])
def test_requires_grad(argument):
    torch = pytest.importorskip("torch")
    for name in takers(argument):
        tensors = {k: torch.from_numpy(v) for k, v in good_arguments().items() if isinstance(v, np.ndarray)}
        tensors["moments"] = bn.moments(tensors["x"])
        tensors["sums"] = bn.grad_sums(tensors["dy"], tensors["x"], good_arguments()["saved"])
        tensors[argument].requires_grad_()
        with pytest.raises(TypeError, match=rf"{argument} requires grad.*{argument}\.detach\(\)"):
            call(name, **tensors)
        for output in OUTPUTS:
            assert torch.all(tensors[output] == 7)


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
    with pytest.raises(RuntimeError, match="weights is on device meta"):
        bn.moments(torch.zeros(SHAPE), weights=torch.ones(4, 5, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="out has elements that share memory"):
        bn.batch_norm(torch.zeros(SHAPE), out=torch.zeros(4, 3, 1).expand(SHAPE))
    with pytest.raises(ValueError, match="x has 9 axes"):
        bn.moments(torch.zeros((1,) * 9))


# ------------------------------------------------------------------- activations, residuals, weights, groups: together

LEAKY = {"activation": "leaky_relu"}
PLAIN = ("batch_norm_jvp", "batch_norm_double_backward")  # which take neither activation nor weights


@pytest.mark.parametrize("size", [2**62, 2**63 - 1, 10**30])
def test_groups_larger_than_any_batch(size):
    """One group of all."""
    arguments = good_arguments()
    x, dy = arguments["x"], arguments["dy"]
    y, saved = bn.batch_norm(x, group_size=size)
    assert saved.mean.shape == (1, *bn.batch_norm(x)[1].mean.shape)
    assert np.array_equal(y, bn.batch_norm(x)[0])
    assert np.array_equal(
        bn.batch_norm_backward(dy, x, saved).dx, bn.batch_norm_backward(dy, x, bn.batch_norm(x)[1]).dx
    )
    assert bn.moments(x, group_size=size).mean.shape == saved.mean.shape


def test_groups_without_values():
    """The halves have the statistics and the sums of all parts to go by, where their own part is empty."""
    x = np.zeros((4, 3, 0))
    m = bn.Moments(np.arange(6.0).reshape(2, 3), np.full((2, 3), 4.0), np.full((2, 3), 8.0))
    y, saved = bn.normalize(x, m, group_size=2, eps=0.5)
    assert y.shape == x.shape
    assert np.array_equal(saved.mean, m.mean)
    assert np.all(saved.var == 0.5)
    assert np.all(saved.inv_std == 1)
    assert np.all(np.asarray(saved.count) == 8)
    sums = bn.GradSums(m.count, np.full((2, 3), 2.0), np.full((2, 3), 3.0))
    grads = bn.input_grad(x, x, saved, sums)
    assert np.all(grads.dbeta == 4)
    assert np.all(grads.dgamma == 6)
    y, saved = bn.batch_norm(x[:0], group_size=2)
    assert saved.mean.shape == (0, 3)


def test_a_saved_of_another_batch():
    """Of which x is a part, say: the sums of all parts are needed."""
    x = np.random.default_rng(0).standard_normal((8, 3, 4))
    saved = bn.batch_norm(x)[1]
    for backward in (
        lambda: bn.batch_norm_backward(x[:4], x[:4], saved),
        lambda: bn.batch_norm_backward_from_output(x[:4], x[:4], saved),
        lambda: bn.batch_norm_jvp(x[:4], x[:4], saved),
        lambda: bn.batch_norm_double_backward(x[:4], x[:4], x[:4], saved),
    ):
        with pytest.raises(ValueError, match=r"saved.count is 32, but [xy] of shape \(4, 3, 4\) has 16 values"):
            backward()
    bn.grad_sums(x[:4], x[:4], saved)


@pytest.mark.parametrize("function", [bn.batch_norm, bn.batch_norm_inplace])
def test_eps_too_small_for_float32(function):
    """1.5 / sqrt(eps) would be infinite, and a constant channel NaN."""
    for dtype in (np.float32, np.float16):
        with pytest.raises(
            ValueError, match="eps 1e-80 is too small for arithmetic in float32, expected at least 1e-76"
        ):
            function(np.full((4, 3), 7, dtype), 1.5, 0.25, eps=1e-80)
        x = np.full((4, 3), 7, dtype)
        y = function(x, 1.5, 0.25, eps=1e-76)
        assert np.all((x if function is bn.batch_norm_inplace else y[0]) == 0.25)
    assert np.all(bn.batch_norm(np.full((4, 3), 7.0), 1.5, 0.25, eps=1e-80)[0] == 0.25)


def test_what_is_no_number():
    x = good_arguments()["x"]
    with pytest.raises(TypeError, match="axis must be an int or a tuple of ints, got ndarray"):
        bn.batch_norm(x, axis=np.array([1, 2]))
    with pytest.raises(ValueError, match="eps is larger than any float64"):
        bn.batch_norm(x, eps=10**400)
    with pytest.raises(TypeError, match="need_dresidual must be a bool, got ndarray"):
        bn.batch_norm_backward(x, x, bn.batch_norm(x)[1], need_dresidual=np.array([1, 2]))
    with pytest.raises(ValueError, match="batch_norm_inplace: x has elements that share memory"):
        bn.batch_norm_inplace(np.lib.stride_tricks.as_strided(x, strides=(0, *x.strides[1:])))


def test_one_statistic_without_weight():
    """axis=(): count is an array of rank 0 then, and 0 in a call's halves and in copies, too."""
    x, weights = np.random.default_rng(0).standard_normal((8, 3)), np.zeros((8, 3))
    y, saved = bn.batch_norm(x, axis=(), weights=weights)
    split = bn.normalize(x, bn.moments(x, axis=(), weights=weights), axis=(), weights=weights)
    assert np.array_equal(split[0], y)
    dx = bn.batch_norm_backward(x, x, saved).dx
    for s in (saved, split[1], pickle.loads(pickle.dumps(saved)), copy.deepcopy(saved)):
        assert s.count.shape == ()
        assert s.count == 0
        assert np.array_equal(bn.input_grad(x, x, s, bn.grad_sums(x, x, s)).dx, dx)


@pytest.mark.parametrize("name", takers("group_size"))
def test_groups_that_cannot_be(name):
    x8 = np.random.default_rng(0).normal(0, 1, (4, 1, 1, 1, 1, 1, 1, 5)).astype(f32)
    moments = bn.Moments(np.zeros((2, 1)), np.ones((2, 1)), 10.0)
    for size in (1, 3, 10**9):
        refuses(name, ValueError, "x has 8 axes, expected at most 7 with group_size", x=x8, group_size=size,
                gamma=None, beta=None, moments=moments, residual=None)  # fmt: skip
        for axis in (0, (0, 1), -3):
            refuses(name, ValueError, "group_size cuts axis 0, which keeps its own statistics here: leave axis 0 out",
                    axis=axis, group_size=size, gamma=None, beta=None, residual=None)  # fmt: skip
    scalar = np.ones((), f32)
    refuses(name, ValueError, "group_size cuts axis 0", x=scalar, axis=(), group_size=2, gamma=None, beta=None,
            residual=None)  # fmt: skip


@pytest.mark.parametrize("name", ["batch_norm", "batch_norm_inplace"])
@pytest.mark.parametrize(("rows", "size"), [(4, 1), (1, 2), (5, 2), (9, 4)])
def test_groups_of_one_value(name, rows, size):
    x = np.random.default_rng(0).normal(0, 1, (rows, 3)).astype(f32)
    message = rf"group_size {size} leaves a group of one value for each statistic of x of shape \({rows}, 3\)"
    refuses(name, ValueError, message, x=x, group_size=size, residual=None)
    m = bn.moments(x, group_size=size)
    saved = bn.Saved(m.mean, np.ones_like(m.mean), group_size=size)
    refuses("batch_norm_backward", ValueError, message, x=x, dy=x.copy(), saved=saved)
    output_message = message.replace("of x of", "of y of")
    refuses("batch_norm_backward_from_output", ValueError, output_message, y=x, dy=x.copy(), saved=saved)


def test_statistics_of_other_groups():
    one, three = bn.batch_norm(good_arguments()["x"])[1], bn.moments(np.ones((6, 3, 5), f32), group_size=2)
    for size in (2, 3):
        refuses("normalize", ValueError, r"mean has shape \(3,\), expected \(2, 3\), the groups and the kept axes of",
                group_size=size)  # fmt: skip
        refuses("normalize", ValueError, r"mean has shape \(3, 3\), expected \(2, 3\)", moments=three, group_size=size)
        saved = bn.Saved(one.mean, one.inv_std, group_size=size)
        for name in takers("saved"):
            refuses(name, ValueError, r"saved.\w+ has shape \(3,\), expected \(2, 3\)", saved=saved)
    saved = bn.batch_norm(good_arguments()["x"], group_size=2)[1]
    refuses("input_grad", ValueError, r"sums.count has|sums.sum_dy has shape \(3,\), expected \(2, 3\)", saved=saved)


@pytest.mark.parametrize("name", takers("need_dresidual"))
def test_pairs_of_outputs(name):
    saved = bn.batch_norm(good_arguments()["x"], **LEAKY)[1]
    for settings in ({"saved": saved}, LEAKY, {}):
        if not set(settings) <= set(FUNCTIONS[name][1]):
            continue

        def refused(error, message, need=True, settings=settings, **changes):
            refuses(name, error, message, need_dresidual=need, **settings, **changes)

        first, second = np.full((2, *SHAPE), 7, f32)
        refused(TypeError, r"out is a tuple of 2, expected dx \(or need_dresidual=True\)", False, out=(first, second))
        for outs in ((), (first,), (first, second, first)):
            refused(TypeError, rf"out is a tuple of {len(outs)}, expected dx or \(dx, dresidual\)", out=outs)
        refused(TypeError, "out is list", out=[first, second])
        refused(TypeError, "out is list", out=(first, [1]))
        refused(ValueError, "the outputs out and dresidual overlap", out=(first, first))
        refused(ValueError, "the outputs out and dresidual overlap", out=(first, first[::-1]))
        refused(TypeError, "dresidual is float64, expected x's type float32", out=(first, np.full(SHAPE, 7.0)))
        refused(ValueError, r"dresidual has shape \(4, 3, 6\)", out=(first, np.full((4, 3, 6), 7, f32)))
        shared = np.lib.stride_tricks.as_strided(np.full((4, 3, 1), 7, f32), SHAPE, (12, 4, 0))
        refused(ValueError, "dresidual has elements that share memory", out=(first, shared))
        refused(ValueError, "out is read-only", out=(first, np.broadcast_to(f32(7), SHAPE)))
        for overlap in OVERLAPS.values():
            for argument in ("x", "dy"):
                value, out = overlap(memory(extra=1))
                refused(ValueError, f"dresidual overlaps {argument}", out=(first, out), **{argument: value})
        refused(ValueError, "dresidual overlaps gamma", out=(first, second), gamma=second[0, :, 0])
        refused(ValueError, "the outputs out and dresidual overlap", dy=first, out=(first, first))


def test_torch_pair():
    torch = pytest.importorskip("torch")
    x = good_arguments()["x"]
    saved = bn.batch_norm(x)[1]
    out = np.full(SHAPE, 7, f32), torch.full(SHAPE, 7.0)
    with pytest.raises(TypeError, match="out is a torch tensor, expected a NumPy array"):
        bn.batch_norm_backward(x, x, saved, need_dresidual=True, out=out)
    assert np.all(out[0] == 7)


@pytest.mark.parametrize("name", [n for n in takers("saved") if data_of(n) == "x" and n not in PLAIN])
def test_mask_that_does_not_fit(name):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4, 6, 10)).astype(f32)
    moved = np.ascontiguousarray(x.transpose(2, 1, 0)).transpose(2, 1, 0)
    padded = np.pad(x, [(0, 0), (0, 0), (0, 2)])[..., :-2]
    sums = bn.GradSums(40, np.zeros(6), np.zeros(6))
    for forward in (x, moved, padded):
        saved = bn.batch_norm(forward, activation="relu")[1]
        for other in (x, moved, padded, x[::-1], misaligned(moved)):
            arguments = {"x": other, "dy": x.copy(), "saved": saved, "sums": sums, "gamma": None,
                         "out": np.full(x.shape, 7, f32)}  # fmt: skip
            if other.strides == forward.strides:
                call(name, **arguments)
            else:
                message = r"x has not the shape and strides of forward's x, which saved.mask \(\d+ bytes\) follows"
                refuses(name, ValueError, message, **arguments)
        one_less = x[:3] if forward is x else forward[:3]
        refuses(name, ValueError, "x has not the shape", x=one_less, dy=one_less.copy(), saved=saved, sums=sums,
                gamma=None)  # fmt: skip
    # A mask by hand has a size alone; without a forward nothing else is known.
    right = bn.batch_norm(x, activation="relu")[1]
    for size in (right.mask.size - 1, right.mask.size + 1, 0):
        saved = bn.Saved(right.mean, right.inv_std, activation="relu", mask=np.zeros(size, np.uint8))
        refuses(name, ValueError, rf"saved.mask \({size} bytes\)", x=x, dy=x.copy(), saved=saved, sums=sums, gamma=None)
    saved = bn.Saved(right.mean, right.inv_std, activation="relu")
    refuses(name, ValueError, "saved.mask is required with an activation", x=x, dy=x.copy(), saved=saved, sums=sums,
            gamma=None)  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"activation": "relu"}, "an activation"),
        ({"activation": "leaky_relu"}, "an activation"),
        ({"weights": np.ones((4, 5))}, "weights"),
    ],
)
def test_settings_of_forward_that_are_not_taken(name, settings, what):
    saved = bn.batch_norm(good_arguments()["x"], **settings)[1]
    refuses(name, ValueError, f"{name}: saved has {what}, expected that of a forward without", saved=saved)


@pytest.mark.parametrize("name", [n for n in takers("saved") if n not in PLAIN])
def test_saved_weights(name):
    """Backward checks forward's weights, which may have been made by hand."""
    for case, (value, error, message) in BAD["weights"].items():
        if case == "inf in float32":
            continue
        saved = bn.Saved([0] * 3, [1] * 3, count=np.full(3, 20.0), weights=value)
        refuses(name, error, re.sub("of x,", f"of {data_of(name)},", message), saved=saved)
    saved = bn.Saved([0] * 3, [1] * 3, weights=np.ones((4, 5)))
    if name != "input_grad":  # which has the count of the sums
        refuses(name, ValueError, "saved.count is required", saved=saved)


def test_saved_made_by_hand():
    for wrong, error, message in [
        ({"activation": "gelu"}, ValueError, "activation 'gelu' is unknown"),
        ({"activation": 3}, TypeError, "activation is int"),
        ({"negative_slope": "a"}, TypeError, "negative_slope must be a number"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
        ({"group_size": 1.5}, TypeError, "group_size must be an int or None, got float"),
        ({"mask": np.zeros(4)}, TypeError, "mask has dtype float64, expected uint8"),
        ({"mask": np.zeros(4, bool)}, TypeError, "mask has dtype bool, expected uint8, 8 elements to the byte"),
        ({"count": [1.0, -1, 2]}, (TypeError, ValueError), "count must"),
        ({"count": np.array([1.0, -1, 2])}, ValueError, "count must not be negative, got -1"),
        ({"count": np.ones(4)}, ValueError, r"count has shape \(4,\), expected mean's shape"),
        ({"count": np.array([1.0, np.nan, 2])}, ValueError, "count must not be negative, got nan"),
    ]:
        with pytest.raises(error, match=message):
            bn.Saved([0] * 3, [1] * 3, **wrong)
    for slope in (np.nan, np.inf):
        saved = bn.Saved([0] * 3, [1] * 3, activation="leaky_relu", negative_slope=slope, mask=np.zeros(8, np.uint8))
        for name in takers("saved"):
            message = "saved has an activation" if name in PLAIN else "negative_slope must be (finite|positive)"
            refuses(name, ValueError, message, saved=saved)


# --------------------------------------------------------------------------------------- in place, and from the output

NOT_INVERTIBLE = {
    "relu": ({"activation": "relu"}, "activation relu cannot be gone back through from its output"),
    "slope 0": (LEAKY | {"negative_slope": 0}, "negative_slope must be positive.*got 0"),
    "slope 1e-39": (LEAKY | {"negative_slope": 1e-39}, "1 / negative_slope finite.*got 1e-39"),
    "slope -0.5": (LEAKY | {"negative_slope": -0.5}, "negative_slope must be positive.*got -0.5"),
    "gamma 0": ({"gamma": np.array([1, 0, 1], f32)}, "gamma must not be 0"),
    "gamma -0": ({"gamma": [1.0, 1, -0.0]}, "gamma must not be 0"),
    "gamma 0 for all": ({"gamma": 0}, "gamma must not be 0"),
    "gamma subnormal": ({"gamma": np.array([1, 1e-40, 1], f32)}, r"gamma must not be 0 \(or so small"),
    "gamma small in float64": ({"gamma": np.array([1, 1e-40, 1])}, r"gamma must not be 0 \(or so small"),
}


@pytest.mark.parametrize("case", NOT_INVERTIBLE)
def test_what_cannot_be_gone_back_through(case):
    changes, message = NOT_INVERTIBLE[case]
    refuses("batch_norm_inplace", ValueError, message, **changes)
    mask = np.zeros(12, np.uint8) if "activation" in changes else None
    settings = {k: v for k, v in changes.items() if k != "gamma"}
    saved = bn.Saved([0] * 3, [1] * 3, mask=mask, **settings)
    gamma = {"gamma": changes["gamma"]} if "gamma" in changes else {}
    refuses("batch_norm_backward_from_output", ValueError, message, saved=saved, **gamma)


def test_gamma_that_is_small_but_not_too_small():
    x = good_arguments()["x"].astype(np.float64)
    saved = bn.batch_norm_inplace(x, [1, 1e-300, -1e-40])
    assert np.all(np.isfinite(bn.batch_norm_backward_from_output(x, x, saved, [1, 1e-300, -1e-40]).dgamma))


def test_read_only_inplace():
    x = good_arguments()["x"]
    x.flags.writeable = False
    refuses("batch_norm_inplace", ValueError, "x is read-only", x=x)
    refuses("batch_norm_inplace", ValueError, "x is read-only", x=np.broadcast_to(f32(3), SHAPE))
    base = np.ones((4, 1, 5), f32)
    repeated = np.lib.stride_tricks.as_strided(base, SHAPE, (20, 0, 4))
    with pytest.raises(ValueError, match=r"(x|out) has elements that share memory"):
        bn.batch_norm_inplace(repeated)
    assert np.all(base == 1)


@pytest.mark.parametrize("argument", ["gamma", "beta", "weights"])
def test_inplace_overlaps_a_parameter(argument):
    x = np.abs(good_arguments()["x"])
    value = x[0, :, 0] if argument != "weights" else x[:, 1]
    refuses("batch_norm_inplace", ValueError, f"(x|out) overlaps {argument}", x=x, **{argument: value})


def test_output_required_by_inference_backward():
    for activation in ("relu", "leaky_relu"):
        refuses("batch_norm_inference_backward", ValueError, "y, forward's output, is required with an activation",
                activation=activation, y=None)  # fmt: skip
    refuses("batch_norm_inference_backward", ValueError, "negative_slope must not be negative.*got -0.1",
            negative_slope=-0.1, **LEAKY)  # fmt: skip
    call("batch_norm_inference_backward", negative_slope=-0.1, activation="relu")  # has none
    call("batch_norm_inference_backward", negative_slope=0, activation="leaky_relu")
    for overlap in OVERLAPS.values():
        y, out = overlap(memory(extra=1))
        refuses("batch_norm_inference_backward", ValueError, "out overlaps y", y=y, out=out, **LEAKY)


def test_empty_input_with_everything():
    x = np.zeros((0, 3, 5), f32)
    y, saved = bn.batch_norm(x, residual=x, activation="relu", weights=np.ones((0, 5)), group_size=2)
    assert y.shape == x.shape
    assert saved.mean.shape == saved.var.shape == (0, 3)
    assert saved.mask.size == 0
    grads = bn.batch_norm_backward(x, x, saved, need_dresidual=True)
    assert grads.dx.shape == grads.dresidual.shape == x.shape
    assert grads.dgamma.tolist() == grads.dbeta.tolist() == [0, 0, 0]
    sums = bn.grad_sums(x, x, saved)
    grads = bn.input_grad(x, x, saved, sums, need_dresidual=True)
    assert grads.dgamma.tolist() == grads.dbeta.tolist() == [0, 0, 0]
    for shape in ((4, 0, 5), (4, 3, 0)):
        x = np.zeros(shape, f32)
        y, saved = bn.batch_norm(x, residual=x, activation="relu", group_size=2, weights=np.ones((4, shape[2])))
        assert saved.mean.shape == (2, shape[1])
        grads = bn.batch_norm_backward(x, x, saved, need_dresidual=True)
        assert grads.dgamma.tolist() == [0] * shape[1]
        assert bn.moments(x, group_size=3).mean.shape == (2, shape[1])
        saved = bn.batch_norm_inplace(x, **LEAKY)
        assert bn.batch_norm_backward_from_output(x, x, saved).dgamma.tolist() == [0] * shape[1]


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
        lambda: bn.batch_norm_jvp(x, x, saved, out=out),
        lambda: bn.batch_norm_double_backward(x, x, x, saved, out=(out, None)),
        lambda: bn.batch_norm_double_backward(x, x, x, saved, out=(None, out)),
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


def test_a_failed_call_does_not_tell_autograd_that_out_was_written():
    torch = pytest.importorskip("torch")
    a = torch.randn(5, 4, requires_grad=True)
    z = a * 1
    loss = (z * z).sum()
    with pytest.raises(ValueError, match="out has shape"):
        bn.batch_norm(torch.randn(5, 3), out=z.detach())
    with pytest.raises(ValueError, match="gamma has shape"):
        bn.batch_norm_inplace(z.detach(), [1, 2])
    loss.backward()
    loss = (z * z).sum()
    bn.batch_norm_inplace(z.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_text_is_no_parameter():
    x = np.random.default_rng(0).normal(0, 1, SHAPE).astype(f32)
    for gamma, kind in (("1", "str"), (["1", "2", "3"], "list"), (b"1", "bytes")):
        with pytest.raises(TypeError, match=f"gamma is {kind}, expected an array, a sequence of numbers or a number"):
            bn.batch_norm(x, gamma)


def test_saved_does_not_follow_a_list_of_axes():
    axis = [1]
    x = np.random.default_rng(0).normal(0, 1, SHAPE).astype(f32)
    for saved in (bn.batch_norm(x, axis=axis)[1], bn.Saved([0] * 3, [1] * 3, axis=axis)):
        axis[0] = 2
        assert saved.axis == (1,)
        axis[0] = 1


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
