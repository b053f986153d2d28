"""Every way that a call goes through the box: small planes as lanes, rows folded, by lists or packed, columns, blocks
of channels read and written in turns, outputs past the caches. With operands of any alignment and order, with gaps.

tests/cpp/test_plan.cpp says which of them a shape gets.
"""

import ml_dtypes
import numpy as np
import pytest
import reference
from cases import misaligned
from checks import all_results, check_all, random_params, same_bits, writers

import batchnorm as bn

# name: (shape, kept axes, the memory order of the axes or None)
FOLDED = {
    "3 planes of 2": ((300, 3, 2), 1, None),  # 42 rows as one, and 6 left
    "5 planes of 3x3": ((2001, 5, 3, 3), 1, None),  # several chunks
    "128 lanes": ((261, 8, 4, 4), 1, None),
    "NC of 17": ((1900, 17), 1, None),
    "NC of 127": ((301, 127), 1, None),
    "NC of 2": ((5003, 2), 1, None),
    "NHWC of 70": ((9, 70, 8, 9), 1, (0, 2, 3, 1)),
    "groups": ((3, 41, 9, 5), (0, 2), None),
}
PLANES = {
    "planes of 2": ((9, 333, 2), 1, None),
    "planes of 7x7, blocks of 16 channels": ((255, 43, 7, 7), 1, None),
    "planes of 9x9": ((12, 30, 9, 9), 1, None),
    "3 samples of 4x5": ((3, 603, 4, 5), 1, None),
    "one sample of 5": ((1, 1201, 5), 1, None),
    "planes of 9x9, shared evenly": ((32, 34, 9, 9), 1, None),
    "planes of 13x13": ((20, 20, 13, 13), 1, None),
    "planes of 255": ((257, 9, 255), 1, None),
    "planes of 16x16": ((21, 19, 16, 16), 1, None),
    "planes in slabs": ((250, 86, 5, 5), 1, None),
    "planes of two kept axes": ((11, 6, 9, 14), (1, 2), None),
    "planes in groups": ((4, 10, 29, 20), (0, 2), None),
    "planes of two kept axes, swapped": ((11, 6, 9, 14), (1, 2), (0, 2, 1, 3)),
    "planes of samples": ((7, 37, 9, 11), 1, (2, 1, 3, 0)),
    # One less or more: rows.
    "8 samples of 10x10": ((8, 24, 10, 10), 1, None),
    "6 samples of 7x7": ((6, 137, 7, 7), 1, None),  # five blocks of channels
    "one sample of 9": ((1, 1201, 9), 1, None),
    "8 samples of 101": ((8, 20, 101), 1, None),
    "19 samples of 13x13": ((19, 20, 13, 13), 1, None),
    "planes of 257": ((9, 19, 257), 1, None),
}
COLUMNS = {
    "NC": ((500, 700), 1, None),
    "NC in slabs": ((250, 2100), 1, None),
    "NC in slabs, a last batch of one row": ((257, 2101), 1, None),
    "NC, wide": ((9, 4099), 1, None),
    "NC, long": ((3001, 131), 1, None),
    "NHWC": ((3, 133, 16, 17), 1, (0, 2, 3, 1)),
    "per activation": ((270, 5, 9, 10), (1, 2, 3), None),
    "columns in groups": ((3, 200, 301), (0, 2), None),
}
# Above a MB, with rows of more than a KB; odd so that no row but the first is aligned.
IN_TURNS = {
    "one chunk": ((9, 37, 29, 31), 1, None),
    "blocks of 11 channels": ((13, 80, 17, 16), 1, None),
    "blocks of 32 channels": ((3, 403, 16, 17), 1, None),
    "several chunks": ((97, 6, 22, 25), 1, None),
    "planes are cut": ((2, 5, 181, 183), 1, None),
    "several chunks, from the end": ((70, 4, 65, 63), 1, None),  # where L2 is large
    "planes are cut, from the end": ((6, 4, 256, 192), 1, None),
    "three channels, by chunks": ((70, 3, 23, 25), 1, None),
    "groups of channels": ((3, 9, 13, 29, 31), (0, 2), None),
    "instances": ((12, 31, 29, 31), (0, 1), None),
    "one sample": ((1, 401, 24, 25), 1, None),  # row by row, where L3 is quick
    "rows of one turn": ((17, 61, 256), (1,), (0, 1, 2)),
    "two kept axes, swapped": ((5, 40, 11, 513), (1, 2), (0, 2, 1, 3)),  # rows of 40 channels at one distance
}
# All operands together are more than the caches hold, and forward's output is not yet so large that it goes past them.
UNCACHED = {
    "uncached NC": ((25001, 131), 1, None),
    "uncached planes": ((131, 530, 7, 7), 1, None),
}
# Outputs of more than 24 MB.
STREAMED = {
    "streamed rows": ((62, 37, 53, 55), 1, None),
    "streamed rows of whole lines": ((87, 80, 30, 32), 1, None),
    "streamed planes": ((450, 320, 7, 7), 1, None),
    "streamed planes of 15x15": ((410, 71, 15, 15), 1, None),
    "streamed NC, joined": ((99201, 67), 1, None),
    "streamed NC of 3": ((2170003, 3), 1, None),
    "streamed NC, columns": ((3255, 2003), 1, None),
    "many samples": ((260, 40, 31, 23), 1, None),  # in two passes, where L3 is quick
}
# Per-channel work that is worth several threads.
WIDE = {"coefficients": ((3, 70001), 1, None), "merges of 9 chunks": ((1025, 7301), 1, None)}
SMALL = FOLDED | PLANES | COLUMNS
ALL = SMALL | IN_TURNS | UNCACHED

DTYPES = (np.float32, np.float64)


def in_order(values, order):
    """values, the axes of which follow each other so in memory."""
    return values if order is None else np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def inputs(case, dtype=np.float32):
    """x and dy of the case, and its kept axes."""
    shape, axis, order = case
    rng = np.random.default_rng(int(np.prod(shape)) % 1000)
    # A mean of its own for each channel, so that an element of another one shows.
    kept = reference.kept_axes(np.empty(shape), axis)
    means = rng.uniform(-9, 9, [n if a in kept else 1 for a, n in enumerate(shape)])
    x, dy = rng.standard_normal((2, *shape), np.float32)
    return in_order((x * 2 + means).astype(dtype), order), in_order((dy + means / 5).astype(dtype), order), axis


def assert_same(results, wants, detail=None):
    for result, want in zip(results, wants, strict=True):
        for got, wanted in zip(result, want, strict=True):
            assert same_bits(got, wanted), detail


class Guarded:
    """Memory for an array like `like`, in its order, `offset` bytes past a multiple of 64 and within bytes that no one
    may write."""

    def __init__(self, like, offset=0):
        self.memory = np.full(like.nbytes + 512, 0xA5, np.uint8)
        start = -self.memory.ctypes.data % 64 + 128 + offset
        order = sorted(range(like.ndim), key=lambda a: -abs(like.strides[a]))
        flat = self.memory[start : start + like.nbytes].view(like.dtype)
        self.array = flat.reshape([like.shape[a] for a in order]).transpose(np.argsort(order))

    def untouched_around(self):
        rest = self.memory.copy()
        start = self.array.ctypes.data - self.memory.ctypes.data
        rest[start : start + self.array.nbytes] = 0xA5
        return np.all(rest == 0xA5)


def placed(values, offset):
    place = Guarded(values, offset).array
    place[...] = values
    return place


# ------------------------------------------------------------------------------------------------- the right numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_numbers(name, dtype):
    x, dy, axis = inputs(ALL[name], dtype)
    check_all(x, axis, dy=dy, threads=2)


@pytest.mark.parametrize("plane", [2, 9, 49, 169, 255, 256, 257])
def test_planes_by_samples(plane):
    for samples in (7, 8, 9, 255, 257, 271):
        for channels in (1, 5, 17) if samples * plane < 20000 else (5,):
            x, dy, axis = inputs(((samples, channels, plane), 1, None), DTYPES[samples % 2])
            check_all(x, axis, dy=dy)


def test_numbers_of_large_outputs():
    x, dy, axis = inputs(STREAMED["streamed rows"])
    check_all(x, axis, dy=dy)


@pytest.mark.parametrize("shape", [(66001, 129), (132001, 128)])
def test_chunks_of_more_rows_than_a_list(shape):
    """Of 258 rows, and of 516 of which two are one."""
    x = np.random.default_rng(0).integers(-8, 9, shape, np.int8).astype(np.float32)
    total, total_sq = x.sum(0, np.float64), np.einsum("ij,ij->j", x, x, dtype=np.float64)  # exact: integers
    m, n = bn.moments(x, threads=2), shape[0]
    assert np.allclose(m.mean, total / n, rtol=0, atol=1e-14)
    assert np.allclose(m.var(), (n * total_sq - total**2) / n**2, rtol=1e-13, atol=0)
    sums = bn.grad_sums(x, x, bn.Saved(np.zeros(shape[1]), np.ones(shape[1])))
    assert np.array_equal(sums.sum_dy, total)
    assert np.array_equal(sums.sum_dy_xmu, total_sq)


# ------------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("name", ALL | STREAMED | WIDE)
def test_bits_for_any_number_of_threads(name):
    x, _, axis = inputs((ALL | STREAMED | WIDE)[name])
    fused, split, rest = all_results(x, axis, 1)
    assert_same([split], [fused])
    for threads in (2, 3, 5, 16) if name in ALL else (3, 16):
        assert_same(all_results(x, axis, threads), (fused, fused, rest), threads)


PACKED = {
    "folded, each second channel": ((500, 34), lambda a: a[:, ::2]),
    "folded, rows with gaps": ((500, 40), lambda a: a[:, 5:36]),
    "folded, each second sample": ((500, 23), lambda a: a[::2]),
    "planes, a slice of channels": ((255, 37, 5, 5), lambda a: a[:, 3:-2]),
    "planes, each second channel": ((255, 37, 5, 5), lambda a: a[:, ::2]),
    "planes, each second element": ((255, 17, 5, 6), lambda a: a[..., ::2]),
    "planes, each second sample": ((255, 17, 3, 3), lambda a: a[1::2]),
    "columns, each second": ((300, 701), lambda a: a[:, ::2]),
    "columns, one to the right": ((300, 701), lambda a: a[:, 1:]),
    "in turns, each second channel": ((20, 74, 29, 31), lambda a: a[:, ::2]),
    "in turns, each second sample": ((19, 37, 29, 31), lambda a: a[1::2]),
    "in turns, one byte on": ((9, 37, 29, 31), misaligned),
    "planes, one byte on": ((30, 37, 7, 7), misaligned),
}


@pytest.mark.parametrize("name", PACKED)
def test_bits_of_a_view_and_its_copy(name):
    shape, view = PACKED[name]
    x = view(inputs((shape, 1, None))[0])
    assert_same(all_results(x, 1, 2), all_results(x.copy(), 1, 2))


# ---------------------------------------------------------------------------------------------------------- alignment

# Bytes past a multiple of 64: of x, dy and out.
OFFSETS = [(0, 0, 4), (4, 0, 0), (36, 60, 20), (0, 32, 48), (1, 2, 3)]


def sums_of(dy, x, saved):
    sums = bn.grad_sums(dy, x, saved)
    return [sums.sum_dy, sums.sum_dy_xmu]


@pytest.mark.parametrize("name", ALL | STREAMED)
def test_bits_for_any_alignment(name):
    x, dy, axis = inputs((ALL | STREAMED)[name])
    x, dy = placed(x, 0), placed(dy, 0)
    calls = writers(x, dy, axis, threads=2)
    stats = bn.moments(x, axis=axis)
    saved = bn.batch_norm(x, axis=axis)[1]
    sums = sums_of(dy, x, saved)
    wants = {}
    for call, write in calls.items():
        place = Guarded(x)
        wants[call] = write(x, dy, place.array)
        assert place.untouched_around(), call
    for offsets in OFFSETS[::2] if name in STREAMED else OFFSETS:
        moved_x, moved_dy = placed(x, offsets[0]), placed(dy, offsets[1])
        for call, write in calls.items():
            if name in STREAMED and call in ("normalize", "inference"):
                continue
            place = Guarded(x, offsets[2])
            assert same_bits(write(moved_x, moved_dy, place.array), wants[call]), (call, offsets)
            assert place.untouched_around(), (call, offsets)
        moved = bn.moments(moved_x, axis=axis)
        assert_same([[moved.mean, moved.m2]], [[stats.mean, stats.m2]], offsets)
        assert_same([sums_of(moved_dy, moved_x, saved)], [sums], offsets)


@pytest.mark.parametrize("name", [*list(FOLDED)[::3], *list(PLANES)[::3], *list(COLUMNS)[::3], *list(IN_TURNS)[::2]])
def test_bits_in_float64_for_any_alignment(name):
    x, dy, axis = inputs(ALL[name], np.float64)
    calls = writers(x, dy, axis, threads=2)
    for offset in (8, 40, 5):
        for call, write in calls.items():
            place = Guarded(x, offset)
            got = write(placed(x, (offset * 3) % 64), placed(dy, offset), place.array)
            assert same_bits(got, write(x, dy, None)), (call, offset)
            assert place.untouched_around(), (call, offset)


def with_gaps(like):
    """Memory for an array like `like`, whose rows share no lines."""
    return np.empty((*like.shape[:-1], like.shape[-1] + 64), like.dtype)[..., :-64]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_lines_that_streamed_rows_share(dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x, dy, axis = inputs(((40 if dtype == np.float64 else 160, 37, 2279), 1, None), dtype)
    for call, write in writers(x, dy, axis, threads=2).items():
        want = write(x, dy, with_gaps(x))
        for offset in (0, dtype.itemsize, 48):
            place = Guarded(x, offset)
            got = write(placed(x, 16), placed(dy, 32), place.array)
            assert same_bits(got, want), (call, offset)
            assert place.untouched_around(), (call, offset)


@pytest.mark.parametrize("plane", [2279, 121])
def test_lines_that_activated_rows_share(plane):
    x, _, axis = inputs(((10**7 // (37 * plane), 37, plane), 1, None))
    gamma, beta = random_params(x, axis)
    y, saved = bn.batch_norm(x, gamma, beta, out=with_gaps(x))
    for offset in (0, 4, 48):
        place = Guarded(x, offset)
        out, rest = place.array, (gamma, beta)
        got, activated = bn.batch_norm(x, *rest, activation="relu", out=out, threads=2)
        assert np.array_equal(got, np.maximum(y, 0)), offset
        dx = bn.batch_norm_backward(x, x, activated, gamma, out=out).dx.copy()
        through = np.where(y > 0, x, 0)
        assert same_bits(dx, bn.batch_norm_backward(through, x, saved, gamma, out=with_gaps(x)).dx), offset
        bn.batch_norm_inference(x, saved.mean, saved.var, *rest, activation="relu", out=out)
        want = bn.batch_norm_inference(x, saved.mean, saved.var, *rest, out=with_gaps(x))
        assert np.array_equal(out, np.maximum(want, 0)), offset
        assert place.untouched_around(), offset


@pytest.mark.parametrize("name", ALL | STREAMED)
def test_in_place(name):
    x, dy, axis = inputs((ALL | STREAMED)[name])
    for call, write in writers(x, dy, axis, threads=3).items():
        if name in STREAMED and call not in ("batch_norm", "backward"):
            continue
        want = write(x, dy, None)
        target = x.copy("K")
        assert same_bits(write(target, dy, target), want), call
        if "grad" in call or "backward" in call:
            target = dy.copy("K")
            assert same_bits(write(x, target, target), want), call


# -------------------------------------------------------------------------------------------------------------- views

VIEWED = {
    "folded": ((299, 19), 1, None),
    "folded planes": ((299, 9, 3, 4), 1, None),
    "planes": ((41, 39, 7, 6), 1, None),
    "columns": ((300, 403), 1, None),
    "in turns": ((12, 41, 29, 32), 1, None),
}
VIEWS = {
    "flipped samples": lambda a: a[::-1],
    "flipped channels": lambda a: a[:, ::-1],
    "flipped columns": lambda a: a[..., ::-1],
    "a slice of channels": lambda a: a[:, 2:-3],
    "a slice of samples": lambda a: a[3:-2],
    "every second sample": lambda a: a[::2],
    "every third channel": lambda a: a[:, ::3],
    "every second column": lambda a: a[..., ::2],
    "padded rows": lambda a: a[..., :-1],
    "misaligned": misaligned,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", VIEWED)
def test_views(name, view):
    x, dy, axis = inputs(VIEWED[name])
    look = VIEWS[view]
    check_all(look(x), axis, dy=look(dy))


@pytest.mark.parametrize("name", VIEWED)
def test_dy_unlike_x(name):
    x, dy, axis = inputs(VIEWED[name])
    others = {
        "another order": np.asfortranarray(dy),
        "channels last": np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1)), -1, 1),
        "flipped in memory": np.flip(np.flip(dy, 0).copy(), 0),
        "rows with gaps": np.pad(dy, [(0, 0)] * (dy.ndim - 1) + [(0, 3)])[..., :-3],
        "samples with gaps": np.repeat(dy, 2, 0)[::2],
    }
    want = all_of(dy, x, axis)
    for other, array in others.items():
        assert same_bits(array, dy)
        assert_same([all_of(array, x, axis)], [want], other)
    for repeated in (dy[:1], dy[:, :1], dy[:1, :1], dy[..., :1]):
        check_all(x, axis, dy=np.broadcast_to(repeated, dy.shape))
        check_all(np.broadcast_to(repeated, x.shape), axis, dy=dy)


def all_of(dy, x, axis):
    """All arrays of the functions that take dy."""
    gamma = random_params(x, axis)[0]
    saved = bn.batch_norm(x, axis=axis)[1]
    grads = bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var, gamma, axis=axis)
    return [*bn.batch_norm_backward(dy, x, saved, gamma)[:3], *grads[:3], *sums_of(dy, x, saved)]


OUTS = {
    "each second sample": lambda a: a[::2],
    "samples flipped": lambda a: a[-2::-2],
    "a slice of channels": lambda a: a[::2, 3:-2],
    "each second channel": lambda a: a[1::2, ::2],
    "rows with gaps": lambda a: a[::2, ..., 1:-2],
    "each second column": lambda a: a[::2, ..., ::2],
}


@pytest.mark.parametrize("out_view", OUTS)
@pytest.mark.parametrize("name", VIEWED)
def test_out_with_gaps(name, out_view):
    shape, axis, _ = VIEWED[name]
    memory = np.empty((2 * shape[0], *shape[1:]), np.float32)
    look = OUTS[out_view]
    x, dy, _ = inputs((look(memory).shape, axis, None))
    for call, write in writers(x, dy, axis, threads=2).items():
        memory.view(np.uint32)[...] = 0xA5A5A5A5
        want = write(x, dy, None)
        assert same_bits(write(x, dy, look(memory)), want), call
        look(memory.view(np.uint32))[...] = 0xA5A5A5A5
        assert np.all(memory.view(np.uint32) == 0xA5A5A5A5), call


# --------------------------------------------------------------------------------------------- NaN, Inf and constants


def of_channel(x, axis, k):
    """Where x and its statistics belong to the k-th statistic."""
    own = np.zeros(reference.kept_shape(x, axis), bool)
    own.flat[k] = True
    kept = reference.kept_axes(x, axis)
    return np.broadcast_to(own.reshape([n if a in kept else 1 for a, n in enumerate(x.shape)]), x.shape), own


@pytest.mark.parametrize("name", ALL)
def test_nan_and_inf_stay_in_their_channel(name):
    x, dy, axis = inputs(ALL[name])
    gamma, beta = random_params(x, axis)

    def run(x, dy):
        y, saved = bn.batch_norm(x, gamma, beta, axis=axis, threads=2)
        grads = bn.batch_norm_backward(dy, x, saved, gamma, threads=2)
        return [y, grads.dx], [saved.mean, saved.var, grads.dgamma, grads.dbeta]

    statistics = int(np.prod(reference.kept_shape(x, axis)))
    want = run(x, dy)
    for bad, k, place in [(np.nan, 0, -1), (np.inf, statistics - 1, 0), (-np.inf, statistics // 2, 3)]:
        wide, own = of_channel(x, axis, k)
        at = np.unravel_index(np.flatnonzero(wide)[place], x.shape)
        bad_x, bad_dy = x.copy("K"), dy.copy("K")
        bad_x[at] = bad_dy[at] = bad
        for got, finite in ((run(bad_x, dy), 0), (run(x, bad_dy), 1)):
            for array, wanted in zip(got[0], want[0], strict=True):
                assert same_bits(array[~wide], wanted[~wide])
            for array, wanted in zip(got[1], want[1], strict=True):
                assert same_bits(array[~own], wanted[~own])
            if finite == 0:
                assert np.all(np.isnan(got[0][0][wide]))
                assert not np.isfinite(got[1][0][own])
                assert np.isnan(got[1][1][own])
            assert not np.any(np.isfinite(got[0][1][wide]))
            assert not np.isfinite(got[1][3 - (finite == 0)][own])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_constant_channels_give_beta(name, dtype):
    x, _, axis = inputs(ALL[name], dtype)
    gamma, beta = random_params(x, axis)
    statistics = beta.size
    for k, value in ((0, 1e4 / 3), (statistics // 2, -0.1), (statistics - 1, 7e-5)):
        x[of_channel(x, axis, k)[0]] = value
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, threads=2)
    for k in {0, statistics // 2, statistics - 1}:
        wide, own = of_channel(x, axis, k)
        assert np.all(saved.var[own] == 0)
        assert np.all(saved.mean[own] == x[wide][0])
        assert np.all(y[wide] == beta[own])


# ------------------------------------------------------------------------------------------------- where streams begin


@pytest.mark.parametrize(
    ("sample", "axis"), [((64, 7, 7), 1), ((67,), 1), ((2003,), 1), ((40, 32, 34), 1), ((40, 33, 35), 1)]
)
@pytest.mark.parametrize(("call", "megabytes"), [("normalize", 24), ("inference_backward", 8)])
def test_the_first_output_that_is_streamed(sample, axis, call, megabytes):
    """That size and one sample less: of the samples that both have, the same bits."""
    bytes_of_one = int(np.prod(sample)) * 4
    most = -(-(megabytes << 20) // bytes_of_one)
    x, dy, _ = inputs(((most, *sample), axis, None))
    gamma, beta = random_params(x, axis)
    mean, var = np.random.default_rng(0).uniform(0.5, 2, (2, sample[0]))

    def run(samples, offset):
        part, out = x[:samples], Guarded(x[:samples], offset)
        if call == "normalize":
            result, _ = bn.normalize(part, bn.Moments(mean, var, 1.0), gamma, beta, axis=axis, out=out.array)
        else:
            grads = bn.batch_norm_inference_backward(dy[:samples], part, mean, var, gamma, axis=axis, out=out.array)
            result = grads.dx
        assert out.untouched_around()
        return result.copy()

    few = run(most - 1, 0)
    for offset in (0, 4, 52, 2):
        got = run(most, offset)
        assert same_bits(got[:-1], few), offset
        assert np.all(np.isfinite(got[-1]))
        assert not np.all(got[-1].view(np.uint32) == 0xA5A5A5A5)
