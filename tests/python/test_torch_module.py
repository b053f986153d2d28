"""batchnorm.torch: derivatives against finite differences and PyTorch's own, and its module in the place of
PyTorch's."""

import contextlib
import copy
import io
import pickle

import numpy as np
import pytest
from checks import same_bits
from child import run_python

import batchnorm as bn

torch = pytest.importorskip("torch")
import batchnorm.torch  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
bnt = batchnorm.torch
# PyTorch says of its own use of it in forward mode that torch.jit is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

LAYOUTS = [((6, 3), 1), ((4, 3, 5), 1), ((3, 2, 2, 3), -1)]
ACTIVATIONS = {None: lambda v: v, "relu": torch.relu, "leaky_relu": lambda v: functional.leaky_relu(v, 0.01)}


def leaves(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def check_derivatives(function, inputs, second=True):
    check = torch.autograd
    assert check.gradcheck(function, inputs)
    assert check.gradcheck(function, inputs, check_forward_ad=True, check_backward_ad=False)
    if second:
        assert check.gradgradcheck(function, inputs)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_derivatives(shape, axis, activation, with_residual):
    """To first and second order, in reverse and in forward mode."""
    inputs = leaves(shape, 3, 3, *([shape] if with_residual else []))
    mean, var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.5

    def training(x, gamma, beta, residual=None):
        return bnt.batch_norm(x, gamma, beta, axis=axis, activation=activation, residual=residual)[0]

    def inference(x, gamma, beta, residual=None):
        return bnt.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, activation=activation, residual=residual)

    for function in (training, inference):
        check_derivatives(function, inputs)


@pytest.mark.parametrize("affine", [False, True])
def test_derivatives_of_options(affine):
    inputs = leaves((6, 3, 4), *([3, 3] if affine else []))
    weights = torch.rand(6, 4, dtype=torch.float64)
    check_derivatives(lambda *a: bnt.batch_norm(*a, group_size=4)[0], inputs)
    check_derivatives(lambda *a: bnt.batch_norm(*a, axis=(1, 2))[0], (leaves((6, 3, 4))[0],))
    assert torch.autograd.gradcheck(lambda *a: bnt.batch_norm(*a, weights=weights)[0], inputs)
    x = inputs[0]
    dx = torch.autograd.grad(bnt.batch_norm(*inputs, weights=weights)[0].pow(3).sum(), x, create_graph=True)[0]
    with pytest.raises(ValueError, match="saved has weights"):
        dx.sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_function_transforms(activation):
    """torch.func: gradients, gradients of gradients, and forward mode."""
    x, gamma, beta = (t.detach() for t in leaves((6, 3, 4), 3, 3))
    act = ACTIVATIONS[activation]

    def ours(x, gamma):
        return bnt.batch_norm(x, gamma, beta, activation=activation)[0].pow(3).sum()

    def theirs(x, gamma):
        return act(functional.batch_norm(x, None, None, gamma, beta, True)).pow(3).sum()

    def second(function):
        return lambda x, gamma: torch.func.grad(function)(x, gamma).square().sum()

    for argnum in (0, 1):
        for wrap in (lambda f: f, second):
            got, want = (torch.func.grad(wrap(f), argnum)(x, gamma) for f in (ours, theirs))
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    got, want = (torch.func.jvp(f, (x, gamma), (x.cos(), gamma.cos()))[1] for f in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_bits_of_the_plain_functions():
    x, gamma, beta, residual = leaves((8, 5, 7, 7), 5, 5, (8, 5, 7, 7), dtype=torch.float32)
    plain = [t.detach() for t in (x, gamma, beta)]
    settings = {"activation": "relu", "eps": 1e-3}
    dy = torch.randn(8, 5, 7, 7)
    y, saved = bnt.batch_norm(x, gamma, beta, residual=residual, **settings)
    y.backward(dy)
    want, want_saved = bn.batch_norm(*plain, residual=residual.detach(), **settings)
    grads = bn.batch_norm_backward(dy, plain[0], want_saved, plain[1], need_dresidual=True)
    assert torch.equal(y, want)
    assert torch.equal(saved.mean, want_saved.mean)
    for leaf, grad in zip((x, gamma, beta, residual), grads, strict=True):
        assert torch.equal(leaf.grad, grad)
        leaf.grad = None
    mean, var = torch.randn(5), torch.rand(5)
    y = bnt.batch_norm_inference(x, mean, var, gamma, beta, residual=residual, **settings)
    y.backward(dy)
    want = bn.batch_norm_inference(plain[0], mean, var, *plain[1:], residual=residual.detach(), **settings)
    grads = bn.batch_norm_inference_backward(dy, plain[0], mean, var, plain[1], y=want, need_dresidual=True, **settings)
    assert torch.equal(y, want)
    for leaf, grad in zip((x, gamma, beta, residual), grads, strict=True):
        assert torch.equal(leaf.grad, grad)


def test_only_the_gradients_that_are_needed():
    x, gamma, beta = leaves((6, 3, 4), 3, 3)
    for needed in ([0], [1], [2], [0, 2], []):
        inputs = [t.detach().requires_grad_(i in needed) for i, t in enumerate((x, gamma, beta))]
        y = bnt.batch_norm(*inputs)[0]
        assert y.requires_grad == bool(needed)
        if needed:
            y.square().sum().backward()
        assert [t.grad is not None for t in inputs] == [i in needed for i in range(3)]
    with torch.no_grad():
        assert not bnt.batch_norm(x, gamma, beta)[0].requires_grad
    with torch.inference_mode():
        assert bnt.batch_norm_inference(x, 0.0, 1.0, gamma, beta).is_inference()


def test_what_changed_in_between_is_refused():
    x, gamma, beta = leaves((6, 3, 4), 3, 3)
    a = x * 1
    y = bnt.batch_norm(a, gamma, beta)[0]
    a.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(TypeError, match="x is ndarray, expected a torch tensor"):
        bnt.batch_norm(np.zeros((4, 3)))
    with pytest.raises(TypeError, match="mean requires grad, which this function would lose"):
        bnt.batch_norm_inference(x, gamma, 1.0)


def test_infinite_gradients_where_nothing_passes():
    """They are left out, not multiplied by 0: also by gradients that are to have gradients."""
    x = leaves((6, 3, 4))[0]
    mean, var = torch.zeros(3), torch.ones(3)
    for y in (
        lambda: bnt.batch_norm(x, activation="relu")[0],
        lambda: bnt.batch_norm_inference(x, mean, var, activation="relu"),
    ):
        plain, again = (torch.autograd.grad(y().sqrt().sum(), x, create_graph=more)[0] for more in (False, True))
        assert torch.isfinite(plain).all()
        torch.testing.assert_close(again, plain)


def modules(**options):
    """One of ours and one of PyTorch's, with the same parameters."""
    theirs = nn.BatchNorm1d(3, dtype=torch.float64, **options)
    return bnt.convert(copy.deepcopy(theirs)), theirs


@pytest.mark.parametrize("cloned", [False, True])
def test_transforms_of_a_module_in_training(cloned):
    """Its buffers are an argument of the transform, or made inside: tensors without memory of their own."""
    (x,) = (t.detach() for t in leaves((6, 3)))
    results = []
    for module in modules():
        params, buffers = dict(module.named_parameters()), dict(module.named_buffers())

        def loss(params, buffers, x, module=module):
            own = {name: one.clone() for name, one in buffers.items()} if cloned else buffers
            y = torch.func.functional_call(module, (params, own), (x,))
            return y.pow(3).sum(), own

        gradients, moved = torch.func.grad(loss, argnums=(0, 2), has_aux=True)(params, buffers, x)
        results.append((gradients, {name: one for name, one in moved.items() if name != "num_batches_tracked"}))
    torch.testing.assert_close(*results)
    assert (results[0][1]["running_mean"] != 0).all()


def test_a_transform_moves_no_captured_statistics():
    """As PyTorch's operations in place have it: what a transform does not know of must stay."""
    (x,) = (t.detach() for t in leaves((6, 3)))
    module, _ = modules()
    module.num_batches_tracked = None
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(lambda x: module(x).sum())(x)
    assert not module.running_mean.any()


@pytest.mark.parametrize("momentum", [1.5, -0.5, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)], ids=str)
def test_any_momentum(momentum):
    (x,) = (t.detach() for t in leaves((6, 3)))
    ours, theirs = modules()
    ours.momentum = momentum
    ours(x)
    mean = x.mean(0)
    torch.testing.assert_close(ours.running_mean, mean * momentum)
    if isinstance(momentum, float):
        theirs.momentum = momentum
        theirs(x)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_statistics_that_only_pytorch_moves():
    """Ones that require grad or have another shape."""
    (x,) = (t.detach() for t in leaves((6, 3)))
    ours, _ = modules()
    want = copy.deepcopy(ours)
    want(x)
    del ours.running_mean
    ours.running_mean = torch.zeros(1, 3, dtype=torch.float64)
    ours.running_var.requires_grad_()
    with torch.no_grad():
        ours(x)
    torch.testing.assert_close(ours.running_mean[0], want.running_mean)
    torch.testing.assert_close(ours.running_var.detach(), want.running_var)


def test_parameters_that_are_one_number():
    """For all features, as the functions take them: in evaluation, twice differentiated."""
    x = torch.linspace(-1, 2, 18, dtype=torch.float64).reshape(6, 3).requires_grad_()
    module = bnt.BatchNorm1d(3, dtype=torch.float64).eval()
    module.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    module.running_var = torch.tensor(3.0, dtype=torch.float64)
    (dx,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
    dx.sum().backward()
    scale = 2 / (3 + module.eps) ** 0.5
    torch.testing.assert_close(x.grad, 6 * x.detach() * scale**3)
    del module.weight
    module.weight = [2.0, 2.0, 2.0]
    torch.testing.assert_close(module(x), x * scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_passes_an_activation(activation):
    """In every derivative, as in forward, and harms no other value."""
    x = torch.tensor([[1.0, -2], [float("nan"), 0.5], [-1, 3]], dtype=torch.float64, requires_grad=True)
    residual = torch.ones_like(x, requires_grad=True)
    mean, var = torch.zeros(2), torch.ones(2)
    options = {"activation": activation, "negative_slope": 0.01}
    y = bnt.batch_norm_inference(x, mean, var, 2.0, residual=residual, **options)
    dy = torch.rand_like(y)
    plain, again = (torch.autograd.grad(y, (x, residual), dy, create_graph=more) for more in (True, False))
    torch.testing.assert_close(again, plain, rtol=1e-15, atol=0)
    assert torch.equal(again[1][1], dy[1])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(residual.detach(), dy)
        y = bnt.batch_norm_inference(x.detach(), mean, var, 2.0, residual=dual, **options)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, again[1], rtol=1e-15, atol=0)


def test_negative_slopes_of_frozen_statistics():
    x = leaves((6, 3, 4))[0]
    y = bnt.batch_norm_inference(x, 0.0, 1.0, activation="leaky_relu", negative_slope=-0.5)
    for more in (False, True):
        with pytest.raises(ValueError, match=r"negative_slope must not be negative.*got -0\.5"):
            torch.autograd.grad(y.sum(), x, create_graph=more, retain_graph=True)


def test_constants_take_no_gradients():
    """A gradient or a tangent that would be lost is refused, by all ways."""
    x, mean, var, weights = (t.detach() for t in leaves((6, 3, 4), 3, 3, (6, 4), dtype=torch.float32))
    var, weights = var.abs() + 1, weights.abs()
    calls = {
        "mean": (mean, lambda t: bnt.batch_norm_inference(x, t, var)),
        "var": (var, lambda t: bnt.batch_norm_inference(x, mean, t)),
        "weights": (weights.double(), lambda t: bnt.batch_norm(x, weights=t)[0]),
    }
    forward_ad = torch.autograd.forward_ad
    for name, (value, call) in calls.items():
        with pytest.raises(TypeError, match=f"{name} requires grad, which this function would lose"):
            call(value.clone().requires_grad_())
        with pytest.raises(TypeError, match=f"{name} requires grad, which this function would lose"):
            torch.func.grad(lambda t, call=call: call(t).sum())(value)
        with forward_ad.dual_level(), pytest.raises(TypeError, match=f"{name} has a tangent"):
            call(forward_ad.make_dual(value, value))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x))
        with pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
            torch.autograd.grad((bnt.batch_norm(dual)[0] * weights[:, None]).sum(), dual)


def test_numbers_and_lists():
    """What the plain functions take for parameters; and axes as a list, and all or none of them kept."""
    x = leaves((6, 3, 4))[0]
    want = bnt.batch_norm(x, torch.full((3,), 2.0), torch.tensor([1.0, 2, 3]))[0]
    assert torch.equal(bnt.batch_norm(x, 2.0, [1.0, 2, 3], axis=[1])[0], want)
    gamma, mean, var = (torch.tensor(v, dtype=torch.float64, requires_grad=v == 2) for v in (2.0, 0.5, 1.5))
    check_derivatives(lambda x, gamma: bnt.batch_norm(x, gamma, 1.0)[0], (x, gamma))
    for axis in ([1], (), (0, 1, 2), (2, 0)):
        check_derivatives(lambda x, g, axis=axis: bnt.batch_norm_inference(x, mean, var, g, 1.0, axis=axis), (x, gamma))
    with pytest.raises(ValueError, match="axis 3 is out of range"):
        bnt.batch_norm(x, axis=3)
    with pytest.raises(TypeError, match="gamma is dict"):
        bnt.batch_norm(x, {})


def test_arrays_and_lists():
    """NumPy's stand beside tensors, as copies: autograd would not see them change before backward."""
    x = leaves((6, 3, 4))[0]
    rng = np.random.default_rng(0)
    gamma, mask = rng.random(3), rng.random((6, 4)) < 0.7
    gamma.flags.writeable = False
    for weights in (rng.random((6, 4)), mask, rng.integers(0, 3, (6, 4)), rng.random((4, 6)).T[::-1]):
        tensors = [torch.tensor(array.copy()) for array in (gamma, weights)]
        want = torch.autograd.grad(bnt.batch_norm(x, tensors[0], weights=tensors[1])[0].pow(3).sum(), x)[0]
        losses = [bnt.batch_norm(x, gamma, weights=w)[0].pow(3).sum() for w in (weights, weights.tolist())]
        weights[...] = 0
        for loss in losses:
            assert torch.equal(torch.autograd.grad(loss, x)[0], want)
    masked = np.ma.masked_array(np.ones(3), [0, 0, 1])
    with pytest.raises(TypeError, match="gamma is a NumPy array, expected a torch tensor"):
        bnt.batch_norm(x, masked)
    with pytest.raises(TypeError, match="weights is complex"):
        bnt.batch_norm(x, weights=np.ones((6, 4), complex))


def test_weights_may_not_change_before_backward():
    x, gamma = leaves((6, 3, 4), 3)
    weights = torch.ones(6, 4, dtype=torch.float64)
    y = bnt.batch_norm(x, gamma, weights=weights)[0]
    weights[2:] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hooks_that_lose_the_memory_order(activation):
    """Of what is saved, as torch.autograd.graph.save_on_cpu may; the mask of an activation follows it."""
    x, gamma = leaves((4, 3, 5, 5), 3)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    mean, var = torch.zeros(3), torch.ones(3)
    calls = (
        lambda x: bnt.batch_norm(x, gamma, activation=activation)[0],
        lambda x: bnt.batch_norm_inference(x, mean, var, gamma, activation=activation),
    )
    forward_ad = torch.autograd.forward_ad

    def derivatives(call):
        plain = torch.autograd.grad(call(x).pow(3).sum(), (x, gamma))
        again = torch.autograd.grad(call(x).pow(3).sum(), (x, gamma), create_graph=True)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, x.detach().cos()))).tangent
        return *plain, *again, *torch.autograd.grad(again[0].pow(2).sum(), (x, gamma)), tangent

    for call in calls:
        wanted = derivatives(call)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
            got = derivatives(call)
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


def test_what_cannot_be_batched_or_traced():
    """It says so, and what to do."""
    x = torch.randn(2, 4, 3)
    layer = bnt.convert(nn.BatchNorm1d(3))

    def loss(x):
        return layer(x).pow(2).sum()

    leaf = x[0].clone().requires_grad_()
    for training in (True, False):
        y = layer.train(training)(leaf)
        for call in (
            lambda: torch.func.vmap(layer)(x),
            lambda: torch.no_grad()(torch.func.vmap(layer))(x),
            lambda: torch.func.vmap(torch.func.grad(loss))(x),
            lambda y=y: torch.autograd.grad(y, leaf, torch.stack([y, y]).detach(), is_grads_batched=True),
        ):
            with pytest.raises(TypeError, match=r"^vmap, is_grads_batched .* use batchnorm\.torch\.revert\(model\)$"):
                call()
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    for name, call in {
        "Proxy": lambda: torch.fx.symbolic_trace(layer),
        "FakeTensor": lambda: layer(fake.from_tensor(x[0])),
        "Tensor": lambda: torch.no_grad()(torch.func.functionalize(layer))(x[0]),
    }.items():
        with pytest.raises(TypeError, match=rf"^a tensor that PyTorch traces \({name}\) has no values"):
            call()
    with pytest.raises(TypeError, match=r"^torch\.jit\.script cannot compile this layer"):
        torch.jit.script(nn.Sequential(layer))


def test_no_third_derivatives_in_training():
    x = leaves((6, 3))[0]
    first = torch.autograd.grad(bnt.batch_norm(x)[0].pow(3).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)[0]
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.autograd.grad(second.pow(2).sum(), x)


def test_checkpoints():
    from torch.utils.checkpoint import checkpoint

    x, gamma, beta = leaves((6, 3, 4), 3, 3)
    for leaf in (x, gamma):
        got, want = (
            torch.autograd.grad(call(lambda v: bnt.batch_norm(v, gamma, beta)[0]).pow(3).sum(), leaf)[0]
            for call in (lambda f: checkpoint(f, x, use_reentrant=False), lambda f: f(x))
        )
        assert torch.equal(got, want)


# ---------------------------------------------------------------------------------------------------------- the module


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(),
        nn.LazyBatchNorm1d(affine=False), nn.Linear(4 * 8 * 8, 2), nn.BatchNorm1d(2, track_running_stats=False),
    )  # fmt: skip


def train(net, x, steps=4):
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        net(x * (step + 1)).pow(3).mean().backward()
        optimizer.step()
    return net(x).detach(), net.eval()(x).detach()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_trains_as_pytorch(memory_format):
    """A network in float64, layers of all kinds: outputs, parameters, running statistics."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 12, 12).to(memory_format=memory_format)
    theirs = network()
    theirs(x)  # the lazy one becomes another
    theirs = theirs.double()
    ours = bnt.convert(copy.deepcopy(theirs))
    assert [isinstance(layer, bnt.BatchNorm) for layer in ours] == [i in (1, 4, 6, 8) for i in range(9)]
    for got, want in zip(train(ours, x.double()), train(theirs, x.double()), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-9)


def test_convert_keeps_objects_and_revert_goes_back():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    net.append(net[1])  # shared
    seen = []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    layer, weight, text = net[1], net[1].weight, repr(net)
    assert bnt.convert(net.eval()) is net
    assert net[1] is net[3] is layer
    assert type(layer) is bnt.BatchNorm2d
    assert isinstance(layer, nn.BatchNorm2d)  # what freezes, initializes and counts such layers looks for
    assert layer.weight is weight
    assert not layer.training
    net.train()(torch.randn(4, 3, 6, 6))
    assert len(seen) == 2
    assert layer.num_batches_tracked == 2
    assert repr(bnt.revert(net)) == text
    assert type(layer) is nn.BatchNorm2d
    assert vars(layer).keys() == vars(nn.BatchNorm2d(8)).keys()
    only = bnt.convert(nn.BatchNorm1d(3))
    only.activation = "relu"
    assert type(bnt.revert(only)) is bnt.BatchNorm1d

    class Own(nn.BatchNorm2d):
        pass

    lazy = nn.LazyBatchNorm2d()
    for other in (Own(3), bnt.BatchNorm(3), lazy):
        kind = type(other)
        assert type(bnt.revert(bnt.convert(other))) is kind
    lazy(torch.zeros(2, 3, 1, 1))
    assert type(bnt.convert(lazy)) is bnt.BatchNorm2d


@pytest.mark.parametrize(("dims", "ranks"), [(1, (2, 3)), (2, (4,)), (3, (5,))])
def test_each_class_of_pytorch_has_its_own(dims, ranks):
    """With its arguments, the ranks of x that it takes, and what it says of others."""
    theirs, ours = (getattr(module, f"BatchNorm{dims}d")(3, 1e-3, 0.2) for module in (nn, bnt))
    assert isinstance(ours, type(theirs))
    assert isinstance(ours, bnt.BatchNorm)
    assert repr(ours) == repr(theirs) == repr(bnt.convert(copy.deepcopy(theirs)))
    for rank in range(1, 7):
        x = torch.randn((4, 3, 2, 2, 2, 2)[:rank])
        if rank in ranks:
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
            continue
        said = []
        for layer in (theirs, ours):
            with pytest.raises(ValueError, match=rf"^expected .*\(got {rank}D input\)$") as caught:
                layer(x)
            said.append(str(caught.value))
        assert said[0] == said[1]
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert type(bnt.revert(ours)) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()


def test_the_module_is_the_layer():
    """The statistics that bn.BatchNorm has, with groups, weights and activation."""
    rng = np.random.default_rng(0)
    weights = rng.random((6, 5))
    weights[:, 2] = 0
    for settings, call in (
        ({}, {}),
        ({"momentum": None}, {}),
        ({"axis": -1, "activation": "leaky_relu", "negative_slope": 0.2}, {}),
        ({"group_size": 4, "activation": "relu"}, {}),
        ({}, {"weights": weights}),
        ({"axis": 1}, {"weights": (rng.random((6, 5, 5)) < 0.7) & (np.arange(5) != 1)[:, None]}),
    ):
        ours, layer = bnt.BatchNorm(5, dtype=torch.float64, **settings), bn.BatchNorm(5, dtype="float64", **settings)
        for _ in range(3):
            x = rng.normal(2, 3, (6, 5, 5))
            y = ours(torch.from_numpy(x), **{k: torch.from_numpy(v) for k, v in call.items()})
            assert same_bits(y.detach().numpy(), layer(x, **call))
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(getattr(ours, name), getattr(layer, name), rtol=1e-14, atol=1e-15)
        x = rng.normal(2, 3, (6, 5, 5))
        residual = rng.normal(0, 1, x.shape)
        y = ours.eval()(torch.from_numpy(x), residual=torch.from_numpy(residual))
        np.testing.assert_allclose(y.detach(), layer.eval()(x, residual=residual), rtol=1e-12, atol=1e-12)


def test_evaluation_and_training_in_one_graph():
    """The running statistics move in between; the gradients are those of the values that forward had."""
    x = torch.randn(6, 5, 4, dtype=torch.float64, requires_grad=True)
    layer = bnt.BatchNorm1d(5, dtype=torch.float64, activation="leaky_relu")
    layer(x * 2 + 1)

    def evaluated(layer):
        return layer.eval()(x).pow(2).sum()

    def trained(layer):
        return layer.train()(x).pow(3).sum()

    wanted = [torch.autograd.grad(call(copy.deepcopy(layer)), x)[0] for call in (evaluated, trained)]
    (evaluated(layer) + trained(layer)).backward()
    torch.testing.assert_close(x.grad, sum(wanted))


def test_what_modules_may_be_set_to():
    """track_running_stats off for a while, and no count of batches, are as PyTorch has them."""
    x = torch.randn(6, 5, 4)
    for change in (
        lambda m: setattr(m, "track_running_stats", False),
        lambda m: setattr(m, "num_batches_tracked", None),
        lambda m: (setattr(m, "num_batches_tracked", None), setattr(m, "momentum", None)),
    ):
        theirs = nn.BatchNorm1d(5)
        theirs(x)
        ours = bnt.convert(copy.deepcopy(theirs))
        for module in (theirs, ours):
            change(module)
            module(x + 1)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    """x of 16 bits beside parameters and statistics in float32, as autocast has it, and all in 16 bits."""
    x = (torch.randn(16, 4, 5, 5) * 3 + 2).to(dtype)
    theirs = nn.BatchNorm2d(4)
    ours = bnt.convert(copy.deepcopy(theirs))
    y = ours(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), theirs(x.float()), rtol=torch.finfo(dtype).eps / 2, atol=2e-6)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    y.float().sum().backward()
    assert ours.weight.grad.dtype == torch.float32
    assert ours.to(dtype)(x).dtype == dtype


def test_copies():
    layer = bnt.BatchNorm(5, affine=False, activation="relu", group_size=2, axis=-1)
    text = "BatchNorm(5, eps=1e-05, momentum=0.1, affine=False"
    x = torch.randn(6, 2, 5)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
        assert repr(again) == repr(layer)
        assert repr(again).startswith(text)
        assert repr(again).endswith("axis=-1, group_size=2, activation='relu')")
        assert torch.equal(again.eval()(x), layer.eval()(x))
        layer.train()
    assert bnt.BatchNorm(5, bias=False).bias is None
    converted = bnt.convert(nn.BatchNorm2d(5))
    assert type(pickle.loads(pickle.dumps(converted))) is type(copy.deepcopy(converted)) is bnt.BatchNorm2d


def test_arguments_are_checked_when_a_layer_is_made():
    for argument, value, error, text in (
        ("num_features", 3.0, TypeError, "an int, got 3.0"),
        ("eps", 0, ValueError, "positive and finite, got 0"),
        ("momentum", "default", ValueError, "from 0 to 1, got 'default'"),
        ("axis", (1, 2), TypeError, r"an int, got \(1, 2\)"),
        ("group_size", 0, ValueError, "at least 1, got 0"),
        ("group_size", 2.0, TypeError, "an int, got 2.0"),
        ("negative_slope", float("nan"), ValueError, "finite, got nan"),
        ("threads", 0, ValueError, "at least 1, got 0"),
    ):
        with pytest.raises(error, match=f"^{argument} must be {text}$"):
            bnt.BatchNorm(**{"num_features": 3, argument: value})
    with pytest.raises(ValueError, match=r"^activation 'gelu' is unknown, expected None, 'relu' or 'leaky_relu'$"):
        bnt.BatchNorm2d(3, activation="gelu")


def test_empty_batches_and_errors():
    layer = bnt.BatchNorm(3)
    assert layer(torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert layer.num_batches_tracked == 0
    for x, error, text in (
        (torch.zeros(4, 5), ValueError, r"x of shape \(4, 5\) has 5 features along axis 1, this layer has 3"),
        (torch.zeros(4), ValueError, r"axis 1 is out of range for x of shape \(4,\)"),
        (np.zeros((4, 3)), TypeError, "x is ndarray, expected a torch tensor"),
        (torch.zeros(1, 3), ValueError, "one value for each statistic"),
        (torch.zeros(4, 3, dtype=torch.int32), TypeError, "x has dtype torch.int32"),
    ):
        with pytest.raises(error, match=text):
            layer(x)
    assert not layer.running_mean.any()


def test_traced():
    """What records operations refuses it, and takes what revert makes of it."""
    code = """
    import torch, warnings, batchnorm.torch
    from torch._subclasses import FakeTensorMode
    warnings.simplefilter("ignore")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    x = torch.randn(4, 3, 8, 8)
    batchnorm.torch.convert(net)
    for refused in (
        lambda: torch.jit.trace(net, x, check_trace=False),
        lambda: batchnorm.torch.batch_norm(FakeTensorMode().from_tensor(x)),
    ):
        try:
            refused()
        except Exception as error:
            print(error if isinstance(error, TypeError) else type(error).__name__)
    traced = torch.jit.trace(batchnorm.torch.revert(net.eval()), x)
    print(torch.equal(traced(x), net(x)))
    """
    import textwrap

    ended = run_python("-c", textwrap.dedent(code), timeout=300)
    assert ended.stdout.splitlines() == [
        "x is traced by torch.jit, which cannot record this function: call it outside the trace",
        "a tensor that PyTorch traces (FakeTensor) has no values to normalize: use a module of batchnorm.torch for "
        "torch.compile or torch.export, else trace batchnorm.torch.revert(model)",
        "True",
    ], ended.stderr


def test_forward_mode_within_forward_mode():
    """PyTorch has zeros in the place of the outer tangents of a Function."""
    x, layer = torch.randn(6, 3), bnt.BatchNorm1d(3).eval()

    def tangent(x):
        return torch.func.jvp(layer, (x * x,), (torch.ones_like(x),))[1]

    for training in (False, True):
        layer.train(training)
        with pytest.raises(TypeError, match="jvp of another one has no rule"):
            torch.func.jvp(tangent, (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("training", [False, True])
def test_negations_and_zeros_that_pytorch_puts_off(training):
    """Both come from operations of complex numbers, forward and backward."""
    layer = bnt.BatchNorm1d(3).train(training)
    z = torch.randn(6, 3, dtype=torch.complex64)
    negated = z.conj().imag
    assert negated.is_neg()
    assert torch.equal(layer(negated), layer(negated.resolve_neg()))
    factor, grads = torch.randn(6, 3, dtype=torch.complex64), []
    for lazily in (True, False):
        x = negated.resolve_neg().clone().requires_grad_()
        y = layer(x)
        dy = factor.conj().imag if lazily else factor.conj().imag.resolve_neg()
        assert dy.is_neg() == lazily
        y.backward(dy)
        grads.append(x.grad)
    assert torch.equal(*grads)
    x = negated.resolve_neg().clone().requires_grad_()
    layer(x).backward(torch._efficientzerotensor((6, 3)))
    assert torch.equal(x.grad, torch.zeros(6, 3))


def test_a_hook_copies_what_was_expanded():
    """Its strides are given back to x, for the mask, with one element in the place of many."""
    x = torch.randn(6, 3, 1, 5, requires_grad=True)
    grads = []
    for hooks in (True, False):
        keeps = torch.autograd.graph.save_on_cpu() if hooks else contextlib.nullcontext()
        with keeps:
            y, _ = bnt.batch_norm(x.expand(6, 3, 4, 5), activation="relu")
        grads += torch.autograd.grad(y.pow(2).sum(), x)
    assert torch.equal(*grads)


def test_a_residual_that_needs_no_gradient_costs_none(monkeypatch):
    """Nor does one without an activation, whose gradient is dy."""
    asked = []
    for name in ("batch_norm_backward", "batch_norm_inference_backward"):
        plain = getattr(batchnorm.functional, name)

        def watched(*args, plain=plain, **options):
            asked.append(options["need_dresidual"])
            return plain(*args, **options)

        monkeypatch.setattr(batchnorm.functional, name, watched)
    for training in (True, False):
        for activation in (None, "relu"):
            for needs in (False, True):
                layer = bnt.BatchNorm1d(3, activation=activation).train(training)
                x, residual, dy = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3), torch.randn(6, 3)
                residual.requires_grad_(needs)
                y = layer(x, residual)
                y.backward(dy)
                assert asked.pop() == (needs and activation is not None)
                if needs:
                    assert torch.equal(residual.grad, dy if activation is None else torch.where(y > 0, dy, 0))


def test_the_names_and_axes_that_pytorch_takes():
    """The first argument is input; an axis may be NumPy's integer, beside parameters that are numbers."""
    x, layer = torch.randn(6, 3), bnt.convert(torch.nn.BatchNorm1d(3))
    assert layer(input=x).shape == x.shape
    for axis in (np.int64(1), (np.int64(-1),)):
        assert torch.equal(bnt.batch_norm(x, 2.0, axis=axis)[0], bnt.batch_norm(x, 2.0)[0])
        assert torch.equal(bnt.batch_norm_inference(x, 0.0, 1.0, axis=axis), bnt.batch_norm_inference(x, 0.0, 1.0))


def test_running_statistics_of_another_size_move_neither():
    """Nothing is written when a check fails."""
    layer = bnt.BatchNorm1d(3)
    layer.running_var = torch.ones(4)
    with pytest.raises(ValueError, match=r"running_var has shape \(4,\), expected \(3,\)"):
        layer(torch.randn(6, 3))
    assert torch.equal(layer.running_mean, torch.zeros(3))
    with pytest.raises(ValueError, match="num_features must not be negative, got -1"):
        bnt.BatchNorm(-1)
