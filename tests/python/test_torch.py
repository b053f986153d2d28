"""PyTorch: the same results, its tensors in and out without copies, its checkpoints, one OpenMP for both."""

import ml_dtypes
import numpy as np
import pytest
import reference
from checks import same_bits
from child import output_of, run_python
from reference import assert_matches

import batchnorm as bn

torch = pytest.importorskip("torch")

# rtol of the largest value: both round each term a few times
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
HALVES = (torch.float16, torch.bfloat16)
SHAPES = [(16, 5), (8, 6, 7), (4, 24, 9, 11), (2, 5, 3, 4, 6)]
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def inputs(shape, dtype=torch.float32, last=False):
    torch.manual_seed(0)
    x, dy = torch.randn(2, *shape, dtype=dtype).unbind()
    x = x * 3 + 2
    if last:
        x, dy = (t.contiguous(memory_format=CHANNELS_LAST[x.ndim]) for t in (x, dy))
    gamma, beta = torch.randn(2, shape[1], dtype=dtype).unbind()
    return x, dy, gamma, beta


def assert_close(got, want):
    assert got.dtype == want.dtype
    assert torch.max(torch.abs(got - want)) <= TOLERANCE[want.dtype] * torch.max(torch.abs(want))


CASES = [(shape, last) for shape in SHAPES for last in (False, True) if not last or len(shape) in CHANNELS_LAST]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "last"), CASES)
def test_forward_and_backward(shape, last, dtype):
    x, dy, gamma, beta = inputs(shape, dtype, last)
    leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
    want = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=1e-3)
    want.backward(dy)
    y, saved = bn.batch_norm(x, gamma, beta, eps=1e-3)
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_close(y, want.detach())
    for got, leaf in zip(grads[:3], leaves, strict=True):
        assert_close(got, leaf.grad)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "last"), [*CASES, ((64, 64, 32, 32), False)])
def test_halves(shape, last, dtype):
    """The bits of NumPy's arrays of the same memory; large results too, which lie in memory that is used again."""
    x, dy, gamma, beta = inputs(shape, torch.float32, last)
    x, dy = x.to(dtype), dy.to(dtype)

    def to_numpy(tensor):
        if tensor.dtype not in HALVES:
            return tensor.numpy()
        return tensor.view(torch.int16).numpy().view(np.float16 if dtype == torch.float16 else ml_dtypes.bfloat16)

    for params in ((gamma, beta), (gamma.to(dtype), beta.to(dtype))):
        y, saved = bn.batch_norm(x, *params)
        grads = bn.batch_norm_backward(dy, x, saved, params[0])
        y_there, saved_there = bn.batch_norm(to_numpy(x), *map(to_numpy, params))
        there = bn.batch_norm_backward(to_numpy(dy), to_numpy(x), saved_there, to_numpy(params[0]))
        assert y.dtype == grads.dx.dtype == dtype
        assert y.stride() == grads.dx.stride() == x.stride()
        assert grads.dgamma.dtype == grads.dbeta.dtype == params[0].dtype
        for got, want in zip((y, *grads[:3]), (y_there, *there[:3]), strict=True):
            assert same_bits(to_numpy(got), want)
    want = torch.nn.functional.batch_norm(x.float(), None, None, gamma, beta, training=True)
    y = bn.batch_norm(x, gamma, beta, out=torch.empty_like(x))[0]
    assert torch.all(torch.abs(y.float() - want) <= torch.finfo(dtype).eps * torch.abs(want) + 1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_layer_of_halves(dtype):
    x, dy, _, _ = inputs((8, 6, 7))
    layer = bn.BatchNorm(6)
    y = layer(x.to(dtype))
    assert y.dtype == layer.backward(dy.to(dtype)).dtype == dtype
    assert layer.dgamma.dtype == np.float32


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "last"), CASES)
def test_inference(shape, last, dtype):
    x, dy, gamma, beta = inputs(shape, dtype, last)
    mean, var = torch.randn(shape[1], dtype=dtype), torch.rand(shape[1], dtype=dtype) + 0.5
    leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
    want = torch.nn.functional.batch_norm(leaves[0], mean, var, *leaves[1:], training=False)
    want.backward(dy)
    assert_close(bn.batch_norm_inference(x, mean, var, gamma, beta), want.detach())
    grads = bn.batch_norm_inference_backward(dy, x, mean, var, gamma)
    for got, leaf in zip(grads[:3], leaves, strict=True):
        assert_close(got, leaf.grad)


@pytest.mark.parametrize(("shape", "last"), CASES)
def test_same_kind_and_memory_format(shape, last):
    x, dy, gamma, beta = inputs(shape, last=last)
    y, saved = bn.batch_norm(x, gamma, beta)
    moments = bn.moments(x)
    sums = bn.grad_sums(dy, x, saved)
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    tensors = [
        y,
        bn.normalize(x, moments, gamma, beta)[0],
        bn.batch_norm_inference(x, saved.mean, saved.var),
        grads.dx,
        bn.input_grad(dy, x, saved, sums, gamma).dx,
        bn.batch_norm_inference_backward(dy, x, saved.mean, saved.var).dx,
    ]
    for tensor in tensors:
        assert tensor.stride() == x.stride()
        assert tensor.dtype == x.dtype
    for statistic in (saved.mean, saved.var, saved.inv_std, moments.mean, moments.m2, sums.sum_dy, sums.sum_dy_xmu):
        assert isinstance(statistic, torch.Tensor)
        assert statistic.dtype == torch.float64
    assert isinstance((moments + moments).var(), torch.Tensor)
    assert isinstance((sums + sums).sum_dy, torch.Tensor)
    assert isinstance(grads.dgamma, torch.Tensor)
    assert isinstance(grads.dbeta, torch.Tensor)


def test_same_bits_as_with_numpy():
    x, dy, gamma, beta = inputs((4, 24, 9, 11))
    y, saved = bn.batch_norm(x, gamma, beta)
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    x, dy, gamma, beta = (t.numpy() for t in (x, dy, gamma, beta))
    want_y, want_saved = bn.batch_norm(x, gamma, beta)
    want = bn.batch_norm_backward(dy, x, want_saved, gamma)
    assert same_bits(y, want_y)
    assert same_bits(saved.mean, want_saved.mean)
    assert all(map(same_bits, grads[:3], want[:3]))


@pytest.mark.parametrize("view", [lambda t: t[:, 8:24], lambda t: t[::2], lambda t: t[..., ::2], lambda t: t.mT,
                                  lambda t: t[:, :1].expand(t.shape), lambda t: t[:, :, 1:-1, 2:]])  # fmt: skip
def test_views(view):
    x, dy = map(view, inputs((4, 26, 9, 11))[:2])
    before = x.clone()
    y, saved = bn.batch_norm(x)
    assert_matches(y.numpy(), reference.forward(x.numpy()).y)
    assert_matches(bn.batch_norm_backward(dy, x, saved).dx.numpy(), reference.backward(dy.numpy(), x.numpy()).dx)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_subclasses_are_read_alike(dtype):
    """They are asked for what PyTorch's own tensors tell at once."""

    class Named(torch.Tensor):
        pass

    x = torch.randn(2, 6, 4, 7).to(dtype)[:, 1:, ::2].transpose(0, 2)
    params = torch.rand(2, 5).to(dtype)
    got, saved = bn.batch_norm(x.as_subclass(Named), *params.as_subclass(Named))
    want, _ = bn.batch_norm(x, *params)
    assert torch.equal(torch.as_tensor(got), want)
    assert got.stride() == want.stride()
    grads = bn.batch_norm_backward(x.as_subclass(Named), x, saved, torch.nn.Parameter(params[0], requires_grad=False))
    assert torch.equal(grads.dx, bn.batch_norm_backward(x, x, saved, params[0]).dx)


def test_pytorchs_own_tensors_are_read_at_once(monkeypatch):
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no DLPack functions in C")

    def asked(tensor):
        raise AssertionError("a tensor was asked")

    monkeypatch.setattr(torch.Tensor, "data_ptr", asked)
    x, saved = torch.randn(4, 3), bn.Saved(torch.zeros(3), torch.ones(3), axis=1)
    torch.testing.assert_close(bn.batch_norm_backward(x, x, saved).dbeta, x.sum(0))
    with pytest.raises(AssertionError, match="a tensor was asked"):
        bn.batch_norm(torch.nn.Parameter(x, requires_grad=False))


def test_out():
    x, dy, gamma, beta = inputs((4, 6, 5, 7), last=True)
    wide = torch.full((4, 12, 5, 7), 7.0)
    out = wide[:, ::2]
    y, saved = bn.batch_norm(x, gamma, beta, out=out)
    assert y is out
    assert torch.equal(out, bn.batch_norm(x, gamma, beta)[0])
    assert torch.all(wide[:, 1::2] == 7)
    want = bn.batch_norm_backward(dy, x, saved, gamma).dx
    assert bn.batch_norm_backward(dy, x, saved, gamma, out=dy).dx is dy
    assert torch.equal(dy, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameter_types(dtype):
    x, dy, gamma, beta = inputs((6, 5))
    gamma, beta = gamma.to(dtype), beta.to(dtype)
    y, saved = bn.batch_norm(x, gamma, beta)
    assert torch.equal(y, bn.batch_norm(x, gamma.double(), beta.double())[0])
    grads, want = bn.batch_norm_backward(dy, x, saved, gamma), bn.batch_norm_backward(dy, x, saved, gamma.double())
    assert grads.dgamma.dtype == grads.dbeta.dtype == dtype
    assert torch.equal(grads.dgamma, want.dgamma.to(dtype))
    for gamma in (None, 2.0, [1, 2, 3, 4, 5]):
        grads = bn.batch_norm_backward(dy, x, saved, gamma)
        assert isinstance(grads.dgamma, torch.Tensor)
        assert grads.dgamma.dtype == torch.float32


def test_empty_and_inference_tensors():
    x = torch.zeros(0, 3, 5)
    assert bn.batch_norm(x)[0].shape == x.shape
    with torch.inference_mode():
        x = torch.randn(6, 3)
        assert_matches(bn.batch_norm(x)[0].numpy(), reference.forward(x.numpy()).y)
    # Nor is a parameter taken where gradients are off.
    with torch.no_grad(), pytest.raises(TypeError, match="gamma requires grad"):
        bn.batch_norm(torch.zeros(4, 3), torch.nn.Parameter(torch.ones(3)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch says so of its own use, too
def test_traces_are_refused():
    """A trace would hold the output's memory, not what is written there."""
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(8, 4)
    for tracer, trace in (
        ("torch.jit", lambda f: torch.jit.trace(f, x, check_trace=False)),
        ("torch.fx", lambda f: make_fx(f)(x)),
    ):
        for call in (lambda v: bn.batch_norm(v)[0], lambda v: bn.batch_norm_inference(v, 0.0, 1.0)):
            with pytest.raises(TypeError, match=f"x is traced by {tracer}, which cannot record this function"):
                trace(call)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_tangents_are_refused():
    forward_ad = torch.autograd.forward_ad
    x = torch.randn(8, 4)
    with forward_ad.dual_level():
        assert torch.equal(bn.batch_norm(x)[0], bn.batch_norm(x)[0])
        with pytest.raises(TypeError, match="x has a tangent, which this function would lose"):
            bn.batch_norm(forward_ad.make_dual(x, x))
        with pytest.raises(TypeError, match="gamma has a tangent"):
            bn.batch_norm(x, forward_ad.make_dual(x[0], x[0]))


def test_autograd_sees_what_is_overwritten():
    w = torch.randn(8, 4, requires_grad=True)
    for overwrite in (
        bn.batch_norm_inplace,
        lambda a: bn.batch_norm(a, out=a),
        lambda a: bn.batch_norm_inference(torch.zeros(8, 4), 0.0, 1.0, out=a),
    ):
        a = torch.randn(8, 4)
        product = (w * a).sum()
        overwrite(a)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
    with torch.inference_mode():
        bn.batch_norm_inplace(torch.randn(8, 4))


def test_weights_that_are_all_too_small():
    with pytest.raises(ValueError, match="weights has numbers so small that all are 0 in float32"):
        bn.batch_norm(torch.randn(8, 4), weights=torch.full((8,), 1e-60, dtype=torch.float64))
    weights = torch.ones(8, dtype=torch.float64)
    weights[3] = 1e-60
    assert torch.all(bn.batch_norm(torch.randn(8, 4), weights=weights)[1].count == 7)


def test_bfloat16_weights_and_other_default_devices():
    x = torch.randn(8, 4)
    weights = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bfloat16)
    got = bn.population_statistics(1, [x], weights=[weights])
    want = bn.population_statistics(1, [x], weights=[weights.float()])
    assert same_bits(got.var, want.var)
    x = x.bfloat16()
    gamma = torch.ones(4, dtype=torch.bfloat16)
    y, saved = bn.batch_norm(x, gamma)
    torch.set_default_device("meta")
    try:
        grads = bn.batch_norm_backward(y, x, saved, gamma)
    finally:
        torch.set_default_device("cpu")
    assert grads.dgamma.dtype == torch.bfloat16
    assert grads.dgamma.device == x.device


def test_nothing_is_said_at_the_end_of_the_process():
    """Of a Saved that a module still holds then."""
    code = "import torch, batchnorm as bn; bn.last = bn.batch_norm(torch.randn(4, 3))"
    ended = run_python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def trained_module():
    torch.manual_seed(1)
    module = torch.nn.BatchNorm2d(6)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for step in range(5):
        optimizer.zero_grad()
        (module(torch.randn(4, 6, 5, 5) * (step + 1) + step) ** 3).sum().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1)
        optimizer.step()
    torch.nn.init.normal_(module.weight)
    return module


@pytest.mark.parametrize("keep_vars", [False, True])
@pytest.mark.parametrize("prefix", ["", "bn1."])
def test_state_dict_loads(prefix, keep_vars):
    module = trained_module()
    layer = bn.BatchNorm(6)
    layer.load_state_dict(module.state_dict(prefix=prefix, keep_vars=keep_vars), prefix=prefix)
    assert layer.num_batches_tracked == 5
    x = torch.randn(4, 6, 5, 5)
    want = module.eval()(x).detach()
    assert_close(layer.eval()(x), want)
    assert_close(torch.from_numpy(layer(x.numpy())), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_state_dict_of_another_type_loads(dtype):
    module = trained_module().to(dtype)
    layer = bn.BatchNorm(6)
    layer.load_state_dict(module.state_dict())
    assert np.array_equal(layer.gamma, module.weight.detach().float().numpy())
    assert np.array_equal(layer.running_var, module.running_var.float().numpy())


def test_state_dict_without_affine_loads():
    module = torch.nn.BatchNorm1d(6, affine=False)
    module(torch.randn(8, 6))
    layer = bn.BatchNorm(6, center=False, scale=False)
    layer.load_state_dict(module.state_dict())
    assert np.array_equal(layer.running_mean, module.running_mean.numpy())


def test_our_state_dict_loads_there():
    layer = bn.BatchNorm(6)
    layer(torch.randn(4, 6, 5, 5))
    module = torch.nn.BatchNorm2d(6)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
    x = torch.randn(4, 6, 5, 5)
    assert_close(layer.eval()(x), module.eval()(x).detach())


def test_training_moves_the_running_statistics_alike():
    module, layer = torch.nn.BatchNorm2d(6, momentum=0.3), bn.BatchNorm(6, momentum=0.3)
    for step in range(4):
        x = torch.randn(3, 6, 4, 4) * (step + 1) + step
        assert_close(layer(x), module(x).detach())
    for name in ("running_mean", "running_var"):
        assert_close(torch.from_numpy(getattr(layer, name)), getattr(module, name))
    assert layer.num_batches_tracked == module.num_batches_tracked


@pytest.mark.parametrize("order", ["torch, batchnorm", "batchnorm, torch"])
def test_one_openmp(order):
    """Two of them in one process would start twice the threads, which then wait for each other's processors."""
    libraries = output_of(
        f"""
        import {order}
        x = torch.randn(64, 16, 32, 32)
        batchnorm.batch_norm(x, threads=2)
        torch.set_num_threads(2)
        x.sum()
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line}})
        """
    ).split()
    from batchnorm import _core

    if _core.threading() == "OpenMP":
        assert len(libraries) == 1, libraries


def test_a_tensor_is_known_whenever_torch_was_imported():
    code = """
        import batchnorm, numpy
        batchnorm.moments(numpy.zeros((4, 3)))
        import torch
        print(type(batchnorm.moments(torch.zeros(4, 3)).mean).__name__)
        """
    assert output_of(code) == "Tensor"
