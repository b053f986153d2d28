"""In the place of CuPy: arrays that say they are on a GPU and lie in the CPU's memory.

That is the device's memory where the CUDA part is built for the CPU (tests/cuda_on_cpu). Looking at a value, for which
a GPU would have to be waited for, is an error.
"""

import contextlib
import sys
import types

import numpy as np

_devices, _streams = [0], {}  # the current ones


def _stream():
    return _streams.get(_devices[-1], [0])[-1]


class Device:
    def __init__(self, device=None):
        self.id = _devices[-1] if device is None else device

    def __enter__(self):
        _devices.append(self.id)
        return self

    def __exit__(self, *_):
        assert _devices.pop() == self.id


class Stream:
    def __init__(self, ptr, device_id=-1):
        self.ptr, self.device = ptr, _devices[-1] if device_id == -1 else device_id

    def __enter__(self):
        _streams.setdefault(self.device, [0]).append(self.ptr)
        return self

    def __exit__(self, *_):
        assert _streams[self.device].pop() == self.ptr

    def __cuda_stream__(self):
        return 0, self.ptr


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801
    def __init__(self, values, device=None):
        self.values = values
        self.device = Device(device)
        self.stream = _stream()  # whose part of the memory pool it is in
        self.data = types.SimpleNamespace(ptr=values.__array_interface__["data"][0])

    shape = property(lambda self: self.values.shape)
    strides = property(lambda self: self.values.strides)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    nbytes = property(lambda self: self.values.nbytes)
    T = property(lambda self: ndarray(self.values.T, self.device.id))

    @property
    def __cuda_array_interface__(self):
        return self.values.__array_interface__ | {"stream": 1}

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __bool__(self):
        raise AssertionError("the GPU is waited for")

    __float__ = __int__ = __index__ = __bool__

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        devices = {one.device.id for one in inputs if isinstance(one, ndarray)}
        assert len(devices) == 1
        values = [one.values if isinstance(one, ndarray) else one for one in inputs]
        assert all(not isinstance(one, np.ndarray) for one in inputs)
        return ndarray(np.asarray(getattr(ufunc, method)(*values, **options)), *devices)

    def __getitem__(self, at):
        return ndarray(self.values[at], self.device.id)

    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == dtype else ndarray(self.values.astype(dtype), self.device.id)

    def reshape(self, *shape):
        return ndarray(self.values.reshape(*shape), self.device.id)

    def transpose(self, *axes):
        return ndarray(self.values.transpose(*axes), self.device.id)

    def copy(self):
        return ndarray(self.values.copy(), self.device.id)

    def __repr__(self):
        return f"array({self.values!r})"

    def __reduce__(self):
        return ndarray, (self.values, self.device.id)


def _garbage(array):
    array.view(np.uint8).reshape(-1)[...] = 0xFF
    return array


def empty(shape, dtype=float):
    return ndarray(_garbage(np.empty(shape, dtype)) if np.prod(shape, dtype=int) and shape else np.empty(shape, dtype))


def empty_like(like):
    return ndarray(np.empty_like(like.values))


def full(shape, value, dtype=None):
    return ndarray(np.full(shape, value, dtype))


def array(values, dtype=None, copy=True, order="K"):
    assert copy
    return ndarray(np.array(getattr(values, "values", values), dtype, copy=True, order=order))


def asarray(values):
    return values if isinstance(values, ndarray) else ndarray(np.array(values, order="C"))


def ascontiguousarray(values):
    return ndarray(np.ascontiguousarray(values.values), values.device.id)


def asnumpy(values):
    return values.values


def install():
    module = sys.modules[__name__]
    module.cuda = types.SimpleNamespace(
        Device=Device, ExternalStream=Stream, get_current_stream=lambda: Stream(_stream()), Stream=Stream
    )
    sys.modules["cupy"] = module
    return module


@contextlib.contextmanager
def on_device(device):
    with Device(device):
        yield
