"""The same bits whatever caches a processor has: how a call goes through the box depends on them, its chunks do not.

So the ways of other processors are taken here as well, in processes that are told of their caches."""

import ctypes
import hashlib
import platform

import numpy as np
import pytest
from checks import all_results, random_like
from child import run_python
from cpp_build import run, tool
from test_traversals import COLUMNS, IN_TURNS, PLANES, STREAMED, inputs

import batchnorm as bn
from batchnorm import _core

SOME = ("streamed rows", "streamed planes", "many samples", "planes of 13x13", "NC in slabs", "NHWC")
CASES = IN_TURNS | {name: (STREAMED | PLANES | COLUMNS)[name] for name in SOME}
# Backward both within the caches and past them: of 8 MB, row by row where L3 is quick. From memory, few samples.
CASES |= {"8 MB, one sample": ((1, 2048, 32, 32), 1, None), "two samples": ((2, 1003, 56, 57), 1, None)}
# Bytes of the first and second level: of Zen 4, Zen 5, a recent Intel Xeon, a system that says nothing, a large one.
CACHES = {
    "Zen 4": (32 << 10, 1 << 20),
    "Zen 5": (48 << 10, 1 << 20),
    "Xeon": (48 << 10, 2 << 20),
    "unknown": (0, 0),
    "large": (128 << 10, 16 << 20),
}
OTHER_CACHES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
int asked_for_caches = 0;
long sysconf(int name) {
    if (name == _SC_LEVEL1_DCACHE_SIZE) return ++asked_for_caches, atol(getenv("FIRST_CACHE"));
    if (name == _SC_LEVEL2_CACHE_SIZE) return ++asked_for_caches, atol(getenv("SECOND_CACHE"));
    return ((long (*)(int))dlsym(RTLD_NEXT, "sysconf"))(name);
}
"""


def results(case, dtype):
    """Every array that every function returns, and those through a mask."""
    x, dy, axis = inputs(case, dtype)
    yield from (array for some in all_results(x, axis, 2) for array in some)
    for activation in ("relu", "leaky_relu"):
        y, saved = bn.batch_norm(x, axis=axis, activation=activation, residual=dy, threads=2)
        grads = bn.batch_norm_backward(random_like(x), x, saved, need_dresidual=True, threads=2)
        yield from (y, saved.mask, *grads)
    for out in (x, dy):  # the last calls, as they overwrite what they are given
        saved = bn.batch_norm(x, axis=axis, threads=2)[1]
        yield from bn.batch_norm_backward(dy, x, saved, out=out, threads=2)[:3]
        x = inputs(case, dtype)[0]


def digests():
    """name: a digest of all results, in float32, and of some cases in float64."""
    kinds = [(name, np.float32) for name in CASES] + [(name, np.float64) for name in ("one sample", "one chunk")]
    found = {}
    for name, dtype in kinds:
        digest = hashlib.sha256()
        for array in results(CASES[name], dtype):
            digest.update(np.ascontiguousarray(array))
        found[f"{name}, {dtype.__name__}"] = digest.hexdigest()
    return found


@pytest.fixture(scope="module")
def own():
    return digests()


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    (folder / "caches.c").write_text(OTHER_CACHES)
    run(tool("cc"), "-shared", "-fPIC", "-o", folder / "caches.so", folder / "caches.c", "-ldl")
    return folder / "caches.so"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="where the C library is asked for caches")
@pytest.mark.parametrize("processor", CACHES)
def test_same_bits(processor, own, preloaded):
    first, second = map(str, CACHES[processor])
    told = {"LD_PRELOAD": str(preloaded), "FIRST_CACHE": first, "SECOND_CACHE": second}
    done = run_python(__file__, timeout=600, BATCHNORM_ISA=_core.isa(), **told)
    assert done.returncode == 0, done.stderr
    *found, asked = done.stdout.splitlines()
    assert int(asked) >= 2  # the library did ask
    assert found == [f"{name}: {digest}" for name, digest in own.items()]


if __name__ == "__main__":
    print(*(f"{name}: {digest}" for name, digest in digests().items()), sep="\n")
    print(ctypes.c_int.in_dll(ctypes.CDLL(None), "asked_for_caches").value)
