"""PyTorch with GPUs whose memory is the CPU's, as in fake_cupy.py: tensors that say they are there."""

import contextlib
import re

import torch
from torch.overrides import TorchFunctionMode

_streams = {}  # the current ones, by device


class Stream:
    def __init__(self, cuda_stream, device):
        self.cuda_stream, self.device = cuda_stream, device

    def __cuda_stream__(self):
        return 0, self.cuda_stream


def current_stream(device):
    return Stream(_streams.get(device, [0])[-1], device)


@contextlib.contextmanager
def stream(of):
    streams = _streams.setdefault(of.device, [0])
    streams.append(of.cuda_stream)
    try:
        yield
    finally:
        streams.pop()


class CudaTensor(torch.Tensor):
    index = 0
    recorded = ()  # streams

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    device = property(lambda self: torch.device("cuda", self.index))
    __torch_function__ = torch._C._disabled_torch_function_impl

    def get_device(self):
        return self.index

    def record_stream(self, of):
        self.recorded = (*self.recorded, of.cuda_stream)

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __bool__(self):
        raise AssertionError("the GPU is waited for")

    __float__ = __int__ = __index__ = item = tolist = numpy = __bool__

    def __repr__(self):
        return f"{host(self)!r} on cuda:{self.index}"

    def __deepcopy__(self, _):
        return on_gpu(host(self).clone(), self.index)

    def __reduce_ex__(self, _):
        return on_gpu, (host(self), self.index)


def on_gpu(tensor, index=0):
    made = tensor.as_subclass(CudaTensor)
    made.index = index
    made.stream = current_stream(index).cuda_stream  # whose memory it is
    return made


def host(tensor):
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(torch.Tensor)


def _flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _gpu(device):
    """Its number; None for the CPU."""
    match = re.fullmatch(r"cuda(?::(\d+))?", str(device))
    return int(match[1] or 0) if match else None


class Gpus(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        index = _gpu(kwargs.pop("device", None)) if _gpu(kwargs.get("device")) is not None else None
        if name == "to" and len(args) > 1 and _gpu(args[1]) is not None:
            return on_gpu(host(args[0]).clone(), _gpu(args[1]))
        devices = {one.index for one in _flat((*args, *kwargs.values())) if isinstance(one, CudaTensor)}
        assert len(devices) <= 1, f"{name} of tensors on several devices"
        on_cpu = [one for one in _flat(args) if type(one) is torch.Tensor and one.ndim]
        assert not (devices and on_cpu), f"{name} of tensors on CPU and GPU"
        result = function(*args, **kwargs)
        index = next(iter(devices), index)
        if isinstance(result, torch.Tensor) and index is not None:
            return on_gpu(host(result), index)
        return result


def install():
    torch.cuda.current_stream = current_stream
    torch.cuda.stream = stream
    torch.cuda.ExternalStream = Stream
    torch.cuda.default_stream = lambda device: Stream(0, device)
    Gpus().__enter__()
    return torch
