"""GPUs: whether there are any to compute on, and which."""

from __future__ import annotations

from . import _core


def is_available() -> bool:
    """Whether arrays on a GPU are taken: this package has its CUDA part, and there are a driver and a GPU."""
    return unavailable_because() is None


def unavailable_because() -> str | None:
    """What is missing, in words; None if nothing is."""
    return _core.cuda_unavailable_because()


def device_count() -> int:
    """How many GPUs there are; 0 if they are not available."""
    return _core.cuda_device_count()


def device_name(device: int = 0) -> str:
    """The name of a GPU, such as "NVIDIA H200"; ValueError if there is none of that number."""
    name = _core.cuda_device_name(device)
    if name is None:
        raise ValueError(f"device {device} does not exist: {unavailable_because() or f'there are {device_count()}'}")
    return name
