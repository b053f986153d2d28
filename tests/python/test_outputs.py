"""Results that no out= was given for: arrays as empty_like makes them, in memory that is used again.

Only those of 128 KB and more, tensors of 512 KB, are more than what empty_like makes.
"""

import copy
import ctypes
import itertools
import pickle
import threading

import numpy as np
import pytest
from checks import same_bits
from child import output_of

import batchnorm as bn

try:
    import torch
except ImportError:
    torch = None

SHAPE = (12, 66, 34, 34)  # 3.6 MB of float32; the views below have 2 MB and more
LARGE = (32, 66, 34, 34)  # 9.8 MB, of which none are held besides the one that is kept
KINDS = ["numpy", pytest.param("torch", marks=pytest.mark.skipif(torch is None, reason="without torch"))]


@pytest.fixture(autouse=True)
def empty_cache():
    bn.clear_cache()
    yield
    bn.clear_cache()


def array(kind="numpy", shape=SHAPE, dtype=np.float32):
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return values if kind == "numpy" else torch.from_numpy(values)


def infer(x, **options):
    """A function with one result."""
    return bn.batch_norm_inference(x, 0.5, 2.0, axis=(), **options)


def address(y):
    return y.ctypes.data if isinstance(y, np.ndarray) else y.data_ptr()


def is_mapped(where):
    with open("/proc/self/maps") as maps:
        ranges = (line.split()[0].split("-") for line in maps)
        return any(int(begin, 16) <= where < int(end, 16) for begin, end in ranges)


def results(x, dy):
    """Those of every function that has one of x's size, by name."""
    y, saved = bn.batch_norm(x)
    return {
        "batch_norm": y,
        "batch_norm_backward": bn.batch_norm_backward(dy, x, saved).dx,
        "batch_norm_inference": bn.batch_norm_inference(x, saved.mean, saved.var),
        "batch_norm_inference_backward": bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var).dx,
        "normalize": bn.normalize(x, bn.moments(x))[0],
        "input_grad": bn.input_grad(dy, x, saved, bn.grad_sums(dy, x, saved)).dx,
    }


# ---------------------------------------------------------------------------------------------------- like empty_like

NUMPY_VIEWS = {
    "C order": lambda x: x,
    "Fortran order": lambda x: np.asfortranarray(x),
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(2, 1, 3, 0),
    "channels": lambda x: x[:, 8:60],
    "every other sample": lambda x: np.repeat(x, 2, 0)[::2],
    "every other column": lambda x: np.repeat(x, 2, 3)[..., ::2],
    "reversed": lambda x: x[::-1, :, ::-1],
    "inner part": lambda x: x[:, :, 1:-1, 2:],
    "repeated sample": lambda x: np.broadcast_to(x[:1], x.shape),
    "repeated channel": lambda x: np.broadcast_to(x[:, :1], x.shape).transpose(0, 2, 1, 3),
    "axes of one": lambda x: x[:, None, :, None].transpose(1, 2, 3, 0, 5, 4),
    "a sample": lambda x: np.concatenate([x, x])[:, :, None].reshape(1, -1, 34, 34),
    "a vector": lambda x: x.reshape(-1),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "misaligned": lambda x: np.frombuffer(b"abc" + x.tobytes(), np.float32, offset=3).reshape(x.shape),
}


@pytest.mark.parametrize("view", NUMPY_VIEWS)
def test_numpy_arrays_are_those_of_empty_like(view):
    x = NUMPY_VIEWS[view](array())
    assert x.nbytes >= 2**21
    want = np.empty_like(x, subok=False)
    y = infer(x)
    assert type(y) is np.ndarray
    assert (y.shape, y.strides, y.dtype) == (want.shape, want.strides, want.dtype)
    assert y.base is None
    for flag in ("owndata", "writeable", "aligned", "c_contiguous", "f_contiguous"):
        assert getattr(y.flags, flag) == getattr(want.flags, flag), flag
    assert address(y) % 64 == 0
    infer(x, out=want)
    assert same_bits(y, want)


TORCH_VIEWS = {
    "C order": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.permute(2, 1, 3, 0),
    "channels": lambda x: x[:, 8:60],
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "inner part": lambda x: x.permute(1, 0, 3, 2)[:, :, 1:-1, 2:],
    "repeated sample": lambda x: x[:1].expand(x.shape),
    "repeated channel": lambda x: x[:, :1].expand(x.shape).transpose(1, 2),
    "axes of one": lambda x: x[:, None, :, None].permute(1, 2, 3, 0, 5, 4),
    "an axis of one with a stride": lambda x: x.as_strided((1, 66, 12, 34, 34), (7, 34 * 34, 66 * 34 * 34, 34, 1)),
    "a vector": lambda x: x.reshape(-1),
}


@pytest.mark.skipif(torch is None, reason="without torch")
@pytest.mark.parametrize("view", TORCH_VIEWS)
@pytest.mark.parametrize("inference_mode", [False, True])
def test_torch_tensors_are_those_of_empty_like(view, inference_mode):
    with torch.inference_mode(inference_mode):
        x = TORCH_VIEWS[view](array("torch"))
        want = torch.empty_like(x)
        y = infer(x)
        assert type(y) is torch.Tensor
        assert (y.shape, y.stride(), y.dtype, y.device) == (want.shape, want.stride(), want.dtype, want.device)
        assert (y._is_view(), y.is_inference()) == (False, inference_mode)
        assert y.untyped_storage().nbytes() == want.untyped_storage().nbytes() == 4 * x.numel()
        assert address(y) % 64 == 0
        infer(x, out=want)
        assert torch.equal(y, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_with_and_without_out(kind, dtype):
    x, dy = array(kind, dtype=dtype), array(kind, dtype=dtype)[:: -1 if kind == "numpy" else 1]
    outs = {name: dy.copy() if kind == "numpy" else dy.clone() for name in results(x, dy)}
    saved = bn.batch_norm(x, out=outs["batch_norm"])[1]
    stats = saved.mean, saved.var
    bn.batch_norm_backward(dy, x, saved, out=outs["batch_norm_backward"])
    bn.batch_norm_inference(x, *stats, out=outs["batch_norm_inference"])
    bn.batch_norm_inference_backward(dy, x, *stats, out=outs["batch_norm_inference_backward"])
    bn.normalize(x, bn.moments(x), out=outs["normalize"])
    bn.input_grad(dy, x, saved, bn.grad_sums(dy, x, saved), out=outs["input_grad"])
    for _ in range(2):  # in new memory, and in memory that was used
        for name, result in results(x, dy).items():
            assert type(result) is type(outs[name])
            assert same_bits(result, outs[name]), name


class Mine(np.ndarray):
    pass


def test_a_subclass_of_ndarray_gets_an_ndarray():
    assert type(infer(array().view(Mine))) is np.ndarray


@pytest.mark.skipif(torch is None, reason="without torch")
def test_a_subclass_of_tensor_gets_what_its_empty_like_makes():
    class Mine(torch.Tensor):
        pass

    x = array("torch").as_subclass(Mine)
    assert type(infer(x)) is type(torch.empty_like(x)) is Mine


# -------------------------------------------------------------------------------------------------------- one's own


def test_numpy_arrays_can_be_used_like_any():
    x = array()
    y = infer(x)
    want = y.copy()
    assert same_bits(pickle.loads(pickle.dumps(y)), want)
    assert same_bits(copy.deepcopy(y), want)
    assert infer(x, out=y) is y
    y += 1
    assert same_bits(y, want + 1)
    for rows in (20, 3, 0, 30):
        y.resize((rows, *SHAPE[1:]), refcheck=False)
        known = min(rows, 3) if rows != 20 else 12
        assert y.shape[0] == rows
        if rows in (20, 3):
            assert same_bits(y[:known], want[:known] + 1)
    assert not y.any()  # after a size of 0: as of NumPy's own, all zeros
    del y
    assert same_bits(infer(x), want)


@pytest.mark.skipif(torch is None, reason="without torch")
def test_torch_tensors_can_be_used_like_any():
    x = array("torch")
    want = infer(x).clone()
    assert torch.equal(pickle.loads(pickle.dumps(infer(x))), want)
    assert torch.equal(copy.deepcopy(infer(x)), want)
    y = infer(x)
    assert np.shares_memory(y.numpy(), infer(x, out=y).numpy())
    y.add_(1)
    y[0].zero_()
    assert torch.equal(y[1:], want[1:] + 1)
    assert not y[0].any()

    leaf = infer(x).requires_grad_()
    loss = (leaf * leaf).sum()  # keeps leaf for backward
    others = [infer(x) for _ in range(2)]
    loss.backward()
    assert torch.equal(leaf.grad, 2 * want)
    assert all(torch.equal(other, want) for other in others)

    shared = infer(x).share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, want)


@pytest.mark.parametrize("kind", KINDS)
def test_live_results_share_no_memory(kind):
    x = array(kind)
    want = infer(x, out=array(kind))
    alive = []
    for i in range(6):
        alive += results(x, x).values()
        if i % 2:
            del alive[::3]  # some of them, and not those that came last
    ranges = sorted((address(y), address(y) + 4 * np.prod(SHAPE)) for y in [*alive, x])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
    a, b = infer(x), infer(x)
    assert not np.shares_memory(np.asarray(a), np.asarray(b))
    a[...] = 7
    assert same_bits(b, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_lives_as_long_as_its_views(kind):
    x = array(kind)
    want = infer(x, out=array(kind))
    layer = bn.BatchNorm(SHAPE[1])
    view = infer(x)[3:5, 7:9]
    as_numpy = np.asarray(infer(x)).reshape(-1)[5:]
    y = layer(x)
    want_y = y.copy() if kind == "numpy" else y.clone()
    del layer
    bn.clear_cache()
    others = [infer(x) + 1 for _ in range(3)]
    assert len(others) == 3
    assert same_bits(view, want[3:5, 7:9])
    assert same_bits(as_numpy, np.asarray(want).reshape(-1)[5:])
    assert same_bits(y, want_y)


# -------------------------------------------------------------------------------------------------------- used again


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_used_again_and_given_back(kind):
    x = array(kind)
    y = infer(x)
    where = address(y)
    view = y[1:]
    del y
    z = infer(x)  # while a view is there
    assert address(z) != where
    del view
    assert is_mapped(where)
    again = infer(x)
    assert address(again) == where
    assert bn.clear_cache() is None
    assert is_mapped(where)  # it is in use
    del again
    assert is_mapped(where)
    bn.clear_cache()
    assert not is_mapped(where)
    bn.clear_cache()  # nothing to do


@pytest.mark.skipif(torch is None, reason="without torch")
def test_tensors_and_arrays_use_each_other_s_memory():
    y = infer(array("torch"))
    where = address(y)
    del y
    assert address(infer(array())) == where


def places_of_results_that_are_gone(x, count):
    """Those of results that were there together, and went in this order."""
    alive = [infer(x) for _ in range(count)]
    places = [address(y) for y in alive]
    while alive:
        del alive[0]
    assert len(set(places)) == count
    return places


def test_more_of_a_size_than_one_are_used_again():
    """The one that is kept, then those that went last."""
    x = array()
    places = places_of_results_that_are_gone(x, 4)
    assert all(map(is_mapped, places))
    alive = [infer(x) for _ in range(5)]
    assert [address(y) for y in alive[:4]] == [places[0], places[3], places[2], places[1]]
    assert address(alive[4]) not in places
    del alive
    bn.clear_cache()
    assert not any(map(is_mapped, places))


@pytest.mark.parametrize("other_size", [False, True])
def test_those_that_are_not_used_again_go(other_size):
    x = array()
    places = places_of_results_that_are_gone(x, 4)
    used = np.zeros(2**19, np.float32) if other_size else x
    for _ in range(500):
        infer(used)
    assert all(map(is_mapped, places))
    for _ in range(20):
        infer(used)
    assert [is_mapped(place) for place in places] == [not other_size, False, False, False]


def test_those_that_are_used_again_stay():
    x = np.zeros(2**19, np.float32)
    places = set(places_of_results_that_are_gone(x, 4))
    for _ in range(300):
        alive = [infer(x) for _ in range(4)]
        assert {address(y) for y in alive} == places
        del alive


def test_memory_that_cannot_be_freed_lazily_is_unmapped():
    x = array(shape=LARGE)
    alive = [infer(x) for _ in range(3)]
    places = [address(y) for y in alive]
    if ctypes.CDLL(None).mlock(ctypes.c_void_p(places[1]), ctypes.c_size_t(4096)):
        pytest.skip("this process may lock no memory")
    while alive:
        del alive[0]
    assert [is_mapped(place) for place in places] == [True, False, True]


def test_the_size_used_longest_ago_goes_first():
    sizes = [2**15 + 1024 * i for i in range(65)]  # of different numbers of pages
    xs = [np.zeros(size, np.float32) for size in sizes]
    places = []
    for x in xs[:64]:
        y = infer(x)
        places.append(address(y))
        del y
    assert all(map(is_mapped, places))
    assert address(infer(xs[0])) == places[0]
    infer(xs[64])
    assert [is_mapped(place) for place in places] == [True, False, *[True] * 62]


@pytest.mark.parametrize(("kind", "least"), [("numpy", 2**17), pytest.param("torch", 2**19, marks=KINDS[1].marks)])
def test_the_smallest_results_that_are_kept(kind, least):
    x = array(kind, (least // 4,))
    where = address(infer(x))
    assert is_mapped(where)
    assert address(infer(x)) == where
    bn.clear_cache()
    assert not is_mapped(where)


def test_smaller_results_are_numpy_s_own():
    multiarray = (np._core if hasattr(np, "_core") else np.core).multiarray
    for size, handler in ((2**15, "batchnorm"), (2**15 - 1, multiarray.get_handler_name(np.empty(1)))):
        assert multiarray.get_handler_name(infer(array(shape=(size,)))) == handler


def test_in_a_training_loop_no_more_than_three_buffers_are_used():
    """Each of y and dx lives until the next one is there."""
    x, layer = array(), bn.BatchNorm(SHAPE[1])
    places = set()
    for _ in range(10):
        y = layer(x)
        dx = layer.backward(x)
        places |= {address(y), address(dx)}
    assert len(places) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4])
def test_layers_whose_results_die_together_use_two_buffers_each(kind, count):
    x, layers = array(kind), [bn.BatchNorm(SHAPE[1]) for _ in range(count)]

    def step():
        ys = [layer(x) for layer in layers]
        dxs = [layer.backward(x) for layer in layers]
        return {address(array) for array in ys + dxs}

    places = step()
    assert len(places) == 2 * count
    for _ in range(10):
        assert step() == places


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_call_gives_its_memory_back(kind):
    x = array(kind)
    y = infer(x)
    where = address(y)
    del y
    for _ in range(3):
        with pytest.raises(ValueError, match="gamma"):
            bn.batch_norm(x, np.ones(5) if kind == "numpy" else torch.ones(5))
    assert address(infer(x)) == where


# ------------------------------------------------------------------------------------- how much memory, in a process

MEASURE = """
    import numpy as np, batchnorm as bn
    if {torch}: import torch
    def status(field):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
    def held():  # without the pages that the kernel may take at any time
        lines = open("/proc/self/smaps_rollup").readlines()[1:]
        sizes = {{line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}}
        return sizes["Rss"] - sizes["LazyFree"]
    def infer(x):
        return bn.batch_norm_inference(x, 0.5, 2.0, axis=())
    def array(samples):  # of 1 MB each
        x = np.broadcast_to(np.float32(2), (int(samples * 64), 2**12))
        return torch.zeros(1).expand(x.shape) if {torch} else x
    infer(array(9))
    bn.clear_cache()
    before = {measure}
    {calls}
    print(({measure} - before) / 2**20)
    """


def growth(calls, kind="numpy", field=None):
    """By how many MB the process grew, in what it holds or in a field of its status."""
    measure = f'status("{field}")' if field else "held()"
    return float(output_of(MEASURE.format(calls=calls, torch=kind == "torch", measure=measure)))


MARGIN = 1.5  # MB: a huge page that is not full, and what Python allocates


@pytest.mark.parametrize("kind", KINDS)
def test_results_that_are_gone_hold_the_memory_of_one(kind):
    made = "ys = [infer(array(8)) for _ in range(6)]"
    assert growth(made, kind) == pytest.approx(48, abs=6 * MARGIN)  # the measure sees them
    assert growth(made + "; del ys", kind) == pytest.approx(8, abs=MARGIN)
    assert growth(made + "; del ys[1::2]", kind) == pytest.approx(32, abs=6 * MARGIN)
    assert growth("for _ in range(30): y = infer(array(8))", kind) == pytest.approx(16, abs=2 * MARGIN)


@pytest.mark.parametrize("field", ["VmRSS", "VmSize"])
def test_all_is_given_back(field):
    made = "ys = [infer(array(8)) for _ in range(6)]; del ys"
    assert growth(made, field=field) > 40  # the measure sees what is unused
    assert growth(made + "; bn.clear_cache()", field=field) == pytest.approx(0, abs=MARGIN)
    later = made + "\n    for _ in range(600): infer(array(2))"
    assert growth(later, field=field) == pytest.approx(2, abs=2 * MARGIN + 2)  # the size that is used


def test_less_than_8_mb_are_held_of_small_results_that_are_gone():
    """And the one that is kept."""
    made = "ys = [infer(array(1)) for _ in range(40)]"
    assert growth(made) == pytest.approx(40, abs=2 * MARGIN)
    assert growth(made + "; del ys") == pytest.approx(1 + 7, abs=MARGIN)
    other = "; zs = [infer(array(2)) for _ in range(20)]"
    assert growth(made + other + "; del ys, zs") == pytest.approx(1 + 7 + 2, abs=MARGIN)
    assert growth(made + "; del ys; bn.clear_cache()", field="VmRSS") == pytest.approx(0, abs=MARGIN)


def test_many_sizes_hold_the_memory_of_sixty_four():
    sizes = "for n in range(2, 92): ys = [infer(array(n / 16)) for _ in range(2)]; del ys"
    last = sum(range(28, 92)) / 16  # less than what is kept
    assert growth(sizes) == pytest.approx(last + 8, abs=64 * MARGIN / 4)
    assert growth(sizes, field="VmRSS") == pytest.approx(2 * last, abs=64 * MARGIN / 2)
    assert growth(sizes + "\n    bn.clear_cache()", field="VmRSS") == pytest.approx(0, abs=MARGIN)
    assert growth("ys = [infer(array(n / 16)) for n in range(2, 92)] * 2") > last + 20  # it sees more


def test_no_more_than_256_mb_are_kept_of_all_sizes():
    """Or the last one, however large; beside what the kernel may take at any time."""
    made = "for size in range(20, 44): infer(array(size))"
    assert growth(made) == pytest.approx(sum(range(38, 44)), abs=6 * MARGIN)
    assert growth(made, field="VmRSS") > 600  # the measure sees the others
    assert growth("for size in (100, 120, 300): infer(array(size))") == pytest.approx(300, abs=MARGIN)


@pytest.mark.parametrize("kind", KINDS)
def test_failed_calls_leak_nothing(kind):
    """In addresses: nothing was written there."""
    gamma = "torch.ones(5)" if kind == "torch" else "np.ones(5)"
    calls = f"""
    for _ in range(50):
        try: bn.batch_norm(array(8), {gamma})
        except ValueError: pass
        else: raise AssertionError
    """
    assert growth(calls, kind, "VmSize") < 2 * 8 + 2
    assert growth("ys = [infer(array(8)) for _ in range(50)]", kind, "VmSize") > 50 * 8


def test_resized_arrays_leak_nothing():
    resized = "infer(array(8)).resize((72 * 8, 2**12), refcheck=False)"
    assert growth(f"for _ in range(50): {resized}", field="VmSize") < 8 + 9 + 2 * 2 + 2
    assert growth("ys = [infer(array(8)) for _ in range(50)]", field="VmSize") > 50 * 8


def test_pages_that_the_kernel_took():
    """While nobody used them."""
    code = """
    import ctypes
    x = np.random.default_rng(0).standard_normal((8, 2**18), np.float32)
    want = infer(x).copy()
    ys = [infer(x) for _ in range(6)]
    places = [y.ctypes.data for y in ys]
    while ys: del ys[0]
    unused = held(), status("VmRSS")
    for place in places[1:]:
        if ctypes.CDLL(None).madvise(ctypes.c_void_p(place), ctypes.c_size_t(8 * 2**20), 21):
            print("skip")  # no MADV_PAGEOUT
    assert status("VmRSS") < unused[1] - 35 * 2**20, "they are still there"
    assert abs(held() - unused[0]) < 2**20
    ys = [infer(x) for _ in range(6)]
    assert {y.ctypes.data for y in ys} == set(places)
    assert all(np.array_equal(y, want) for y in ys)
    """
    if "skip" in output_of(MEASURE.format(calls=code, torch=False, measure="held()")):
        pytest.skip("this kernel takes no pages on demand")


# ------------------------------------------------------------------------------------------ threads, forks, the end


@pytest.mark.parametrize("clearing", [False, True])
def test_threads(clearing):
    x = array()
    wants = [infer(x + i, out=np.empty_like(x)) for i in range(4)]
    failures = []

    def work(i):
        rng, alive, mine = np.random.default_rng(i), [], x + i
        for step in range(200):
            alive.append(infer(mine, threads=1))
            if len(alive) == 3:
                y = alive.pop(rng.integers(3))
                if not same_bits(y, wants[i]):
                    failures.append((i, step))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while clearing and any(thread.is_alive() for thread in threads):
        bn.clear_cache()
    for thread in threads:
        thread.join()
    assert not failures


FORKS = """
    import os, signal, threading, numpy as np, batchnorm as bn
    x = np.random.default_rng(0).standard_normal((8, 64, 72, 72), np.float32)
    def infer():
        return bn.batch_norm_inference(x, 0.5, 2.0, axis=(), threads=1)
    def is_mapped(where):
        ranges = (line.split()[0].split("-") for line in open("/proc/self/maps"))
        return any(int(begin, 16) <= where < int(end, 16) for begin, end in ranges)
    def in_child(check):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if check() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    want = infer()
    """


def test_a_child_has_the_live_results_and_keeps_none_that_are_gone():
    code = """
    others = [infer() for _ in range(3)]
    places = [other.ctypes.data for other in others]
    where = places[0]
    del others
    def check():
        first, second = infer(), infer()
        same = [np.array_equal(y, want) for y in (first, second)]
        want[...] = 1
        return all(same) and np.array_equal(first, second)
    print(in_child(lambda: not any(map(is_mapped, places))), in_child(check), all(map(is_mapped, places)))
    print(in_child(lambda: is_mapped(where)))  # it can fail
    print(np.array_equal(infer(), want))
    """
    assert output_of(FORKS + code).split() == ["0", "0", "True", "1", "True"]


def test_results_that_a_child_has_too_hold_the_memory_of_one_when_they_are_gone():
    """The kernel would not take their pages."""
    code = """
    def gone():
        others = [infer() for _ in range(4)]
        places = [other.ctypes.data for other in others]
        print(in_child(lambda: all(map(is_mapped, places))))
        while others: del others[0]
        print(*map(is_mapped, places))
    gone()
    in_child(lambda: True)
    others = [infer() for _ in range(4)]
    places = [other.ctypes.data for other in others]
    del others
    print(*map(is_mapped, places))
    """
    assert output_of(FORKS + code).splitlines() == ["0", "True False False False", "True True True True"]


def test_a_child_that_was_forked_while_others_use_the_cache():
    code = """
    stop = False
    def work():
        while not stop:
            others = [infer() for _ in range(3)]
            del others
            bn.clear_cache()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    codes = {in_child(lambda: np.array_equal(infer(), want)) for _ in range(50)}
    stop = True
    for thread in threads: thread.join()
    print(codes)
    """
    assert output_of(FORKS + code) == "{0}"


@pytest.mark.parametrize("kind", KINDS)
def test_python_ends_with_live_results(kind):
    code = """
        import numpy as np, batchnorm as bn
        x = np.ones((8, 64, 40, 40), np.float32)
        if {torch}:
            import torch
            x = torch.from_numpy(x)
        def infer():
            return bn.batch_norm_inference(x, 0.5, 2.0, axis=(), threads=1)
        in_module = [infer() for _ in range(3)]
        class Cycle: pass
        cycle = Cycle()
        cycle.self, cycle.y = cycle, infer()
        np.kept = infer()
        del in_module[1]
        print("done")
        """
    assert output_of(code.format(torch=kind == "torch")) == "done"
