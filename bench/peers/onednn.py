"""oneDNN's C++ interface, through a small driver (onednn.cpp) that is compiled when it is needed.

It takes the headers and the library of PyPI's onednn-cpu-gomp and onednn-devel-cpu-gomp, or those of the system. Its
own blocked layout, for which x and dy are reordered beforehand, is a contestant of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..arrays import EPS, Array, Problem
from ..cases import Task
from ..contestant import Contestant, UnavailableError

_TASKS = {"forward": 0, "inference": 1, "backward": 2}
_LAYOUTS = {"first": 0, "last": 1}
_BLOCKED = 2


class _Arrays(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("x", "dy", "out", "gamma", "beta", "mean", "var", "dgamma", "dbeta")
    ]


class Library:
    """oneDNN with OpenMP, float32."""

    name = "oneDNN"

    def __init__(self) -> None:
        self._driver = _driver()
        self.version = self._driver.onednn_version().decode()

    def contestants(self, problem: Problem, task: Task, threads: int) -> Iterable[Contestant]:
        """In the problem's layout, and blocked."""
        if problem.x.dtype != np.float32:
            raise UnavailableError("oneDNN is skipped for float64, which it does not have")
        plain = _LAYOUTS[problem.layout]
        yield self._contestant(self.name, problem, task, threads, plain)
        if problem.case.spatial:
            yield self._contestant(f"{self.name} blocked", problem, task, threads, _BLOCKED)

    def _contestant(self, name: str, problem: Problem, task: Task, threads: int, layout: int) -> Contestant:
        mean, var = problem.mean.astype(np.float32), problem.var.astype(np.float32)
        dgamma, dbeta = np.empty_like(mean), np.empty_like(mean)
        owned = (problem.x, problem.dy, problem.out, problem.gamma, problem.beta, mean, var, dgamma, dbeta)
        sizes = (problem.case.n, problem.case.c, *problem.case.spatial)
        message = ctypes.create_string_buffer(200)
        prepared = self._driver.onednn_prepare(
            _TASKS[task],
            layout,
            _LAYOUTS[problem.layout],
            len(sizes),
            (ctypes.c_int64 * len(sizes))(*sizes),
            EPS,
            threads,
            ctypes.byref(_Arrays(*(array.ctypes.data for array in owned))),
            message,
            len(message),
        )
        if not prepared:
            raise UnavailableError(f"{name} is skipped for {problem.case.shape}, {task}: {message.value.decode()}")
        run, fetch = self._driver.onednn_run, self._driver.onednn_fetch
        handle = ctypes.c_void_p(prepared)

        def call() -> None:
            run(handle)

        weakref.finalize(call, _release, self._driver, prepared, owned)

        def results() -> dict[str, Array]:
            call()
            fetch(handle)
            if task == "backward":
                return {"dx": problem.out, "dgamma": dgamma, "dbeta": dbeta}
            return {"y": problem.out}

        return Contestant(name, call, results)


def _release(driver: ctypes.CDLL, prepared: int, owned: tuple[Array, ...]) -> None:
    del owned  # they lived as long as the primitive that points to them
    driver.onednn_release(ctypes.c_void_p(prepared))


def _driver() -> ctypes.CDLL:
    """The compiled driver; UnavailableError where oneDNN or a compiler is missing."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise UnavailableError("oneDNN is skipped: no C++ compiler to build its driver with")
    source = Path(__file__).parents[1] / "onednn.cpp"
    prefix = Path(sys.prefix)
    own = (prefix / "include" / "oneapi" / "dnnl" / "dnnl.hpp").exists()
    where = [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"] if own else []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "onednn.so"
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp"]
        command += [str(source), *where, "-ldnnl", "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = next(
                (line for line in done.stderr.splitlines() if "dnnl.hpp" in line), "its driver does not compile"
            )
            raise UnavailableError(f"oneDNN is skipped: {reason.rpartition('error: ')[2]}")
        try:
            driver = ctypes.CDLL(str(library))  # stays loaded when the file is gone
        except OSError as error:
            reason = str(error).rpartition("/")[2]  # without the folder
            raise UnavailableError(f"oneDNN is skipped: its driver does not load: {reason}") from None
    driver.onednn_version.restype = ctypes.c_char_p
    driver.onednn_prepare.restype = ctypes.c_void_p
    driver.onednn_prepare.argtypes = [
        *[ctypes.c_int] * 4,
        ctypes.c_void_p,
        ctypes.c_float,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    for name in ("onednn_run", "onednn_fetch", "onednn_release"):
        getattr(driver, name).argtypes = [ctypes.c_void_p]
        getattr(driver, name).restype = None
    return driver
