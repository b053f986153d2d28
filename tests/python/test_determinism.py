"""The same bits for any number of threads and in every run, with the threads really there; forks; concurrent calls."""

import concurrent.futures
import os
import sys
import threading
import time

import numpy as np
import pytest
from cases import PATHS, path_input
from checks import all_results, same_bits
from child import output_of

import batchnorm as bn

# ------------------------------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize("path", PATHS)
def test_same_bits_for_any_number_of_threads(path):
    x, axis = path_input(path)
    assert x.size > 4 * 32768  # what more than one thread is worth without being asked for
    want_fused, _, want_rest = all_results(x, axis, threads=1)
    for threads in (1, 2, 3, 7, None):
        fused, split, rest = all_results(x, axis, threads)
        assert all(map(same_bits, fused, want_fused)), threads
        assert all(map(same_bits, split, want_fused)), threads
        assert all(map(same_bits, rest, want_rest)), threads


@pytest.mark.parametrize("path", ["row, packed", "lane, packed", "lane, rows with gaps", "row, packed, reversed"])
def test_same_bits_for_a_copy(path):
    """A packed view, and the contiguous array that it packs to."""
    x, axis = path_input(path)
    copy = np.flip(np.flip(x, -1).copy(), -1) if x.strides[-1] < 0 else x.copy()
    for results, wants in zip(all_results(x, axis, 2), all_results(copy, axis, 2), strict=True):
        assert all(map(same_bits, results, wants))


def test_more_threads_than_work():
    x = np.random.default_rng(0).normal(0, 1, (3, 2, 5))
    for result, want in zip(all_results(x, 1, 100), all_results(x, 1, 1), strict=True):
        assert all(map(same_bits, result, want))


def test_same_bits_in_another_process():
    code = """
        import hashlib, numpy as np, batchnorm as bn
        x = np.random.default_rng(0).normal(3, 2, (64, 31, 20, 20)).astype("f4")
        y, saved = bn.batch_norm(x)
        print(hashlib.sha256(b"".join(a.tobytes() for a in bn.batch_norm_backward(x, y, saved)[:3])).hexdigest())
        """
    assert output_of(code) == output_of(code, BATCHNORM_NUM_THREADS="1")


# --------------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("function", ["batch_norm(x)", "moments(x)", "batch_norm_inference(x, 0, 1)"])
def test_workers_are_there(function):
    """threads=7 is the caller and six more."""
    before, after = output_of(
        f"""
        import os, numpy as np, batchnorm as bn
        x = np.zeros((32, 16, 32, 32), np.float32)
        before = len(os.listdir("/proc/self/task"))
        bn.{function.replace(")", ", threads=7)")}
        print(before, len(os.listdir("/proc/self/task")))
        """
    ).split()
    assert int(after) >= int(before) + 6


def test_one_thread_and_small_calls_start_none():
    before, after = output_of(
        """
        import os, numpy as np, batchnorm as bn
        before = len(os.listdir("/proc/self/task"))
        bn.batch_norm(np.zeros((32, 16, 32, 32), np.float32), threads=1)
        bn.batch_norm(np.zeros((32, 16, 4, 4), np.float32))
        print(before, len(os.listdir("/proc/self/task")))
        """
    ).split()
    assert after == before


# ------------------------------------------------------------------------------------------------------------ fork

FORK = """
    import multiprocessing, os, sys, numpy as np, batchnorm as bn
    x = np.random.default_rng(0).normal(0, 1, (32, 16, 32, 32)).astype("f4")
    def results(threads):
        y, saved = bn.batch_norm(x, threads=threads)
        return y.tobytes() + bn.batch_norm_backward(x, x, saved, threads=threads).dx.tobytes()
    want = results(4)
    """


def test_fork():
    code = """
    for threads in (4, None, 1):
        child = os.fork()
        if child == 0:
            os._exit(0 if results(threads) == want else 3)
        assert os.waitpid(child, 0)[1] == 0
    assert results(4) == want
    print("done")
    """
    assert output_of(FORK + code, timeout=60, PYTHONWARNINGS="ignore") == "done"


def test_multiprocessing_fork():
    code = """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(got == want for got in pool.map(results, [4, 2, 1, 3]))
    print("done")
    """
    assert output_of(FORK + code, timeout=60, PYTHONWARNINGS="ignore") == "done"


# ------------------------------------------------------------------------------------------------ concurrent calls


def test_first_calls_at_once():
    """Each of them may import parts of NumPy, during which the others run."""
    code = """
        import threading, numpy as np, batchnorm as bn
        x, start = np.ones((8, 3), np.float32), threading.Barrier(4)
        def work():
            start.wait()
            for _ in range(100): bn.moments(x)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("done")
        """
    assert output_of(code, timeout=30) == "done"


def test_concurrent_calls():
    inputs = [path_input(path) for path in list(PATHS)[::4]]
    wants = [all_results(x, axis, 1) for x, axis in inputs]
    for threads in (1, 3):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda i: all_results(*inputs[i % len(inputs)], threads), range(2 * len(inputs))))  # noqa: B023
        for i, result in enumerate(results):
            for got, want in zip(result, wants[i % len(inputs)], strict=True):
                assert all(map(same_bits, got, want))


@pytest.mark.parametrize("name", ["batch_norm", "moments", "batch_norm_inference", "batch_norm_backward"])
def test_the_gil_is_released(name):
    """With a switch interval of minutes, another thread runs only when the calling one lets it."""
    x = np.zeros((64, 64, 64, 64), np.float32)
    out = np.zeros_like(x)
    saved = bn.Saved(np.zeros(64), np.ones(64))
    call = {
        "batch_norm": lambda: bn.batch_norm(x, out=out, threads=1),
        "moments": lambda: bn.moments(x, threads=1),
        "batch_norm_inference": lambda: bn.batch_norm_inference(x, 0, 1, out=out, threads=1),
        "batch_norm_backward": lambda: bn.batch_norm_backward(x, x, saved, out=out, threads=1),
    }[name]
    steps, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            steps[0] += 1
            time.sleep(1e-4)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=count)
    counter.start()
    try:
        sys.setswitchinterval(600)
        advanced = False
        for _ in range(100):  # once is enough, but a busy machine may keep the counter from running
            before = steps[0]
            call()
            advanced = advanced or steps[0] > before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        counter.join()
    assert advanced


# --------------------------------------------------------------------------------------------------- thread count

DEFAULT = "import batchnorm; print(batchnorm.get_num_threads())"


def default_threads(**environment):
    return int(output_of(DEFAULT, **environment))


def test_environment():
    everything = default_threads()
    assert 1 <= everything <= len(os.sched_getaffinity(0))
    assert default_threads(BATCHNORM_NUM_THREADS="1") == 1
    assert default_threads(OMP_NUM_THREADS="1") == 1
    assert default_threads(OMP_NUM_THREADS="1,4") == 1
    # No more than there are, and BATCHNORM_NUM_THREADS comes first.
    assert default_threads(BATCHNORM_NUM_THREADS="10000") == everything
    assert default_threads(BATCHNORM_NUM_THREADS="10000", OMP_NUM_THREADS="1") == everything
    assert default_threads(BATCHNORM_NUM_THREADS="1", OMP_NUM_THREADS="10000") == 1
    for nothing in ("", "0", "-3", "many"):
        assert default_threads(BATCHNORM_NUM_THREADS=nothing) == everything


def test_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + DEFAULT
    assert output_of(code) == "1"
    assert output_of(code, BATCHNORM_NUM_THREADS="2") == "1"


def test_explicit_threads_are_not_clamped():
    code = """
        import os, numpy as np, batchnorm as bn
        x = np.zeros((32, 16, 32, 32), np.float32)
        before = len(os.listdir("/proc/self/task"))
        bn.set_num_threads(1)
        bn.moments(x)
        between = len(os.listdir("/proc/self/task"))
        bn.moments(x, threads=5)
        print(before, between, len(os.listdir("/proc/self/task")))
        """
    before, between, after = output_of(code, BATCHNORM_NUM_THREADS="1").split()
    assert before == between
    assert int(after) >= int(before) + 4


def test_set_num_threads():
    before = bn.get_num_threads()
    try:
        bn.set_num_threads(3)
        assert bn.get_num_threads() == 3
        for wrong, error in [(0, ValueError), (-1, ValueError), ("a", TypeError), (1.5, TypeError), (None, TypeError)]:
            with pytest.raises(error, match="threads"):
                bn.set_num_threads(wrong)
        assert bn.get_num_threads() == 3
    finally:
        bn.set_num_threads(before)
