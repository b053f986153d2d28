"""Arrays on a GPU for tests: those of PyTorch, CuPy and JAX; or of their stand-ins, where there is none.

The environment variable GPU_ARRAYS=fake asks for the stand-ins, whose memory is the CPU's: for a CUDA part that is
built for the CPU.
"""

import os

import ml_dtypes
import numpy as np
import pytest

import batchnorm as bn

FAKE = os.environ.get("GPU_ARRAYS") == "fake"
LIBRARIES = ("torch", "cupy", "jax")


class Torch:
    name = "torch"
    writable = True

    def __init__(self, torch):
        self.module = torch

    def put(self, values, device=0):
        """A copy in C order."""
        values = np.array(values, order="C")
        if values.dtype == ml_dtypes.bfloat16:
            tensor = self.module.from_numpy(values.view(np.int16)).view(self.module.bfloat16)
        else:
            tensor = self.module.from_numpy(values)
        if FAKE:
            import fake_torch

            return fake_torch.on_gpu(tensor, device)
        return tensor.to(f"cuda:{device}")

    def host(self, tensor):
        assert tensor.is_cuda
        if FAKE:
            import fake_torch

            tensor = fake_torch.host(tensor)
        tensor = tensor.cpu()
        if tensor.dtype == self.module.bfloat16:
            return tensor.view(self.module.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def is_array(self, array):
        return isinstance(array, self.module.Tensor) and array.is_cuda

    def device(self, tensor):
        return tensor.get_device()

    def strides(self, tensor):
        return tuple(stride * tensor.element_size() for stride in tensor.stride())

    def transpose(self, tensor, axes):
        return tensor.permute(axes)

    def new_stream(self):
        if FAKE:
            import fake_torch

            return fake_torch.Stream(fake_stream(), 0)
        return self.module.cuda.Stream()

    def handle(self, stream):
        return stream.cuda_stream

    def current(self, stream):
        return self.module.cuda.stream(stream)

    def synchronize(self):
        if not FAKE:
            self.module.cuda.synchronize()


class CuPy:
    name = "cupy"
    writable = True

    def __init__(self, cupy):
        self.module = cupy

    def put(self, values, device=0):
        with self.module.cuda.Device(device):
            return self.module.asarray(np.array(values, order="C"))

    def host(self, array):
        return self.module.asnumpy(array)

    def is_array(self, array):
        return isinstance(array, self.module.ndarray)

    def device(self, array):
        return array.device.id

    def strides(self, array):
        return array.strides

    def transpose(self, array, axes):
        return array.transpose(axes)

    def new_stream(self):
        return self.module.cuda.Stream(fake_stream()) if FAKE else self.module.cuda.Stream(non_blocking=True)

    def handle(self, stream):
        return stream.ptr

    def current(self, stream):
        return stream

    def synchronize(self):
        if not FAKE:
            self.module.cuda.Device().synchronize()


class Jax:
    name = "jax"
    writable = False

    def __init__(self, jax):
        self.module = jax

    def put(self, values, device=0):
        values = np.array(values, order="C")
        if FAKE:
            return self.module.Array(values, device)
        with self.module.enable_x64(True):
            return self.module.device_put(values, self.module.devices("gpu")[device])

    def host(self, array):
        return array._values if FAKE else np.asarray(array)

    def is_array(self, array):
        return isinstance(array, self.module.Array)

    def device(self, array):
        return array.__dlpack_device__()[1]

    def synchronize(self):
        pass


def fake_stream():
    """What a cudaStream_t may be: 2 is the default one of the thread."""
    return 2


def arrays_of(name):
    """The library of this name, or else the test is skipped."""
    if FAKE:
        import fake_cupy
        import fake_jax
        import fake_torch

        return {"torch": Torch, "cupy": CuPy, "jax": Jax}[name](
            _installed(name, {"torch": fake_torch, "cupy": fake_cupy, "jax": fake_jax}[name])
        )
    if not bn.cuda.is_available():
        pytest.skip(bn.cuda.unavailable_because())
    module = pytest.importorskip(name)
    has_gpu = {
        "torch": lambda: module.cuda.is_available(),
        "cupy": lambda: module.cuda.runtime.getDeviceCount() > 0,
        "jax": lambda: any(device.platform == "gpu" for device in module.devices()),
    }[name]
    if not has_gpu():
        pytest.skip(f"{name} has no GPU here")
    return {"torch": Torch, "cupy": CuPy, "jax": Jax}[name](module)


_modules = {}


def _installed(name, fake):
    if name not in _modules:
        _modules[name] = fake.install()
    return _modules[name]
