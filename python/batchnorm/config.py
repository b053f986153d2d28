"""What this installation is and has, and its thread count."""

from __future__ import annotations

from pathlib import Path

from . import _core


def get_num_threads() -> int:
    """How many threads a call uses at most, unless it says so itself.

    What `set_num_threads` said; before that BATCHNORM_NUM_THREADS, else OMP_NUM_THREADS, else all processors, in each
    case no more than the process' affinity and control group allow.
    """
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Set the default thread count of the process, at least 1."""
    _core.set_num_threads(threads)


def cmake_dir() -> Path:
    """The directory of the C++ library's CMake package, for ``find_package(batchnorm)``."""
    return Path(__file__).parent / "lib" / "cmake" / "batchnorm"


def show_config() -> None:
    """Print version, instruction sets, threads and backends."""
    available = ", ".join(_core.available_isas())
    in_use = _core.isa() or "none: BATCHNORM_ISA names one that is not available"
    print(f"batchnorm        {_core.version()}")
    print(f"instruction set  {in_use} (available: {available})")
    print(f"threads          {_core.get_num_threads()}, run by {_core.threading()}")
    print("CUDA             not built")
