"""What this installation is and has, its thread count, and the memory that it keeps."""

from __future__ import annotations

from pathlib import Path

from . import _core, cuda


def get_num_threads() -> int:
    """How many threads a call uses at most, unless it says so itself.

    What `set_num_threads` said, as it is. Before that BATCHNORM_NUM_THREADS, else OMP_NUM_THREADS, else all processors:
    of these three no more than the process' affinity and control group allow.
    """
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Set the default thread count of the process, at least 1."""
    _core.set_num_threads(threads)


def clear_cache() -> None:
    """Give the memory that is kept for coming results back to the system.

    Results of 128 KB and more (tensors: 512 KB) that no ``out`` was given for lie in memory of this library. When such
    an array and all its views are gone, its memory is kept for the next result of that size: one of each size, the last
    64 sizes used, 256 MB in all at most, or the last one. Others are used again too, but of them no more than 8 MB in
    all are kept: the system may take the pages of the rest whenever it needs memory (until then top counts them as the
    process'; /proc/PID/smaps_rollup says LazyFree). All go when 1024 times a result was made or went without their
    being used. The results are arrays like others, but that a tensor among them cannot grow (`torch.Tensor.resize_`).
    """
    _core.clear_cache()


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
    print(f"CUDA             {_devices()}")


def _devices() -> str:
    names = [cuda.device_name(i) for i in range(cuda.device_count())]
    return ", ".join(names) if names else f"not available: {cuda.unavailable_because() or 'there is no device'}"
