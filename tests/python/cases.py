"""One case for every way that a call can take through the library (cpp/src/plan.cpp, chunks.cpp), and views of all
kinds."""

import numpy as np

# Of the data, in the tests of activations, residuals, weights and groups.
DTYPES = (np.float32, np.float64)

# name: (shape, axis, view of an array of that shape)
PATHS = {
    "row, channels in cache": ((8, 24, 28, 28), 1, None),
    "row, one plane larger than a chunk": ((2, 4, 200, 210), 1, None),
    "row, several chunks of planes": ((97, 6, 28, 28), 1, None),
    "row, channels larger than cache": ((5, 3, 540, 530), 1, None),
    "row, channels larger than cache, small planes": ((1500, 4, 21, 21), 1, None),
    "row, fewer channels than threads": ((300, 2, 15, 15), 1, None),
    "row, planes of 7x7": ((96, 40, 7, 7), 1, None),
    "row, planes of 3": ((400, 130, 3), 1, None),
    "row, groups": ((6, 20, 5, 333), (0, 2), None),
    "row, instance norm": ((8, 24, 28, 28), (0, 1), None),
    "row, layer norm": ((300, 1100), 0, None),
    "row, one statistic": ((300, 1100), (), None),
    "row, cut along two dimensions": ((40, 7, 60, 62), 1, lambda x: x[:, :, 1:-1, 2:-3]),
    "row, packed": ((20, 9, 60, 63), 1, lambda x: x[..., ::2]),
    "row, packed, reversed": ((20, 9, 60, 63), 1, lambda x: x[..., ::-1]),
    "lane, in cache": ((1900, 70), 1, None),
    "lane, several chunks": ((40000, 37), 1, None),
    "lane, larger than cache": ((33000, 131), 1, None),
    "lane, few channels": ((70000, 3), 1, None),
    "lane, few channels, samples apart": ((300, 70, 5, 3), (1, 3), None),
    "lane, few channels, rows with gaps": ((50000, 9), 1, lambda x: x[:, 1:8]),
    "lane, wide rows": ((130, 5003), 1, None),
    "lane, groups": ((24, 400, 33), (0, 2), None),
    "lane, groups larger than cache": ((2, 20000, 67), (0, 2), None),
    "lane, NHWC": ((10, 33, 31, 64), 3, None),
    "lane, three kept axes": ((20, 9, 50, 7, 11), (1, 3, 4), None),
    "lane, rows with gaps": ((3000, 150), 1, lambda x: x[:, 13:121]),
    "lane, packed": ((3000, 150), 1, lambda x: x[:, ::2]),
    "lane, packed, wide": ((70, 9000), 1, lambda x: x[:, ::-2]),
}


def path_input(name, dtype=np.float32):
    """x and axis of the path's case."""
    shape, axis, view = PATHS[name]
    rng = np.random.default_rng(len(name))
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    x *= 2
    x += 3
    return (view(x) if view else x), axis


def misaligned(values):
    """A copy of values one byte off any alignment."""
    buffer = bytearray(values.nbytes + 1)
    array = np.ndarray(values.shape, values.dtype, buffer, offset=1)
    array[...] = values
    assert not array.flags.aligned
    return array


def packed_field(values):
    """A copy of values in packed records: its strides are no multiples of the item size."""
    records = np.zeros(values.shape, np.dtype([("flag", "u1"), ("value", values.dtype)]))
    field = records["value"]
    field[...] = values
    assert field.strides[-1] % field.itemsize
    return field


def read_only(values):
    array = values.copy()
    array.flags.writeable = False
    return array


class Subclass(np.ndarray):
    """Someone's own kind of array."""


def channels_last(a):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


# Small arrays in every pattern, for products with many settings. name: (shape, axis, view of an array of that shape)
SMALL = {
    "NCHW": ((5, 3, 4, 5), 1, None),
    "NCHW, planes as lanes": ((9, 5, 3, 3), 1, None),
    "NCHW, planes of 17 x 16": ((5, 3, 17, 16), 1, None),
    "NHWC": ((5, 11, 3, 2), 1, channels_last),
    "NHWC of 32": ((5, 32, 2, 2), 1, channels_last),
    "NC, folded": ((37, 7), -1, None),
    "NC": ((13, 131), -1, None),
    "HWCN": ((6, 3, 2, 4), 1, lambda a: np.ascontiguousarray(a.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)),
    "slice of channels": ((5, 9, 4, 5), 1, lambda a: a[:, 2:-3]),
    "crop": ((5, 3, 6, 12), 1, lambda a: a[:, :, 1:-1, 1:-2]),
    "packed": ((5, 3, 3, 38), 1, lambda a: a[..., ::2]),
    "packed lanes": ((12, 46), 1, lambda a: a[:, ::-2]),
    "all reversed": ((5, 3, 4, 5), 1, lambda a: a[::-1, ::-1, ::-1, ::-1]),
    "kept axes outside and inside": ((6, 3, 4, 9), (1, 3), None),
    "instances": ((4, 3, 3, 7), (0, 1), None),
    "one statistic": ((6, 5, 3), (), None),
    "one axis": ((29,), (), None),
}


def small_input(name, dtype, seed=0):
    """x and axis of a case of SMALL: a mean of its own for each channel, and steps between x's neighbours."""
    shape, axis, view = SMALL[name]
    x = np.random.default_rng(seed).normal(0, 2, shape) + np.arange(shape[-1]) % 3 - 1
    x = x.astype(dtype)
    return (view(x) if view else x), axis


# name: makes a view, or an array in some layout, of an array of VIEWED_SHAPE
VIEWED_SHAPE = (4, 26, 5, 6)
VIEWS = {
    "C order": lambda a: a,
    "Fortran order": np.asfortranarray,
    "channels last": lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "HWCN": lambda a: np.ascontiguousarray(a.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1),
    "channel slice": lambda a: a[:, 8:24],
    "sample step": lambda a: a[::2],
    "row slice": lambda a: a[:, :, 1:-1],
    "crop": lambda a: a[:, :, 1:-1, 2:-1],
    "column step": lambda a: a[..., ::2],
    "step on every axis": lambda a: a[::2, 1::3, ::2, ::2],
    "transpose": lambda a: a.T,
    "swapped": lambda a: a.swapaxes(1, 2),
    "reversed samples": lambda a: a[::-1],
    "reversed channels": lambda a: a[:, ::-1],
    "reversed columns": lambda a: a[..., ::-1],
    "all reversed": lambda a: a[::-1, ::-1, ::-1, ::-1],
    "reversed with step": lambda a: a[:, ::-3, :, ::-2],
    "repeated samples": lambda a: np.broadcast_to(a[:1], a.shape),
    "repeated channels": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "repeated columns": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "one value for all": lambda a: np.broadcast_to(a[:1, :1, :1, :1], a.shape),
    "read-only": read_only,
    "misaligned": misaligned,
    "packed records": packed_field,
    "packed records, a step": lambda a: packed_field(a)[..., ::2],
    "subclass": lambda a: a.view(Subclass),
    "sliding windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, (3, 3), (2, 3)),
}


def viewed(name, dtype=np.float32, seed=4):
    values = np.random.default_rng(seed).normal(2, 3, VIEWED_SHAPE)
    return VIEWS[name](values.astype(dtype))
