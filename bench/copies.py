"""Copying x to out in four ways, the unit of all other times."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import batchnorm as bn

from .arrays import Array, Problem
from .contestant import Contestant

_LIBRARY = Path(bn.__file__).parent / "lib" / "libbatchnorm_copies.so"


class Copies:
    """The library of copies that the package brings."""

    def __init__(self) -> None:
        if not _LIBRARY.exists():
            raise RuntimeError("this installation was built without OpenMP, and has no copies to measure against")
        library = ctypes.CDLL(str(_LIBRARY))
        self._copy = library.batchnorm_copy
        self._copy.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._copy.restype = None
        library.batchnorm_copy_name.restype = ctypes.c_char_p
        self.names: list[str] = []
        while name := library.batchnorm_copy_name(len(self.names)):
            self.names.append(name.decode())

    def copy(self, name: str, y: Array, x: Array, threads: int) -> None:
        """Write x to y, both contiguous and aligned to 64 bytes."""
        self._copy(self.names.index(name), y.ctypes.data, x.ctypes.data, x.nbytes, threads)

    def contestants(self, problem: Problem, threads: int) -> list[Contestant]:
        """One for each way, with prepared arguments: from the start of the line on in which both arrays start."""
        x, out = problem.x, problem.out
        past = x.ctypes.data % 64
        assert out.ctypes.data % 64 == past  # what lies before them is theirs, too (arrays.aligned)

        def contestant(way: int, name: str) -> Contestant:
            call = partial(self._copy, way, out.ctypes.data - past, x.ctypes.data - past, x.nbytes + past, threads)

            def results() -> dict[str, Array]:
                call()
                return {"copy": out}

            return Contestant(name, call, results)

        return [contestant(way, name) for way, name in enumerate(self.names)]
