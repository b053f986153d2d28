"""torch.compile and torch.export of batchnorm.torch: the bits, gradients and state of the same calls without."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")
testing = pytest.importorskip("torch._dynamo.testing")
import batchnorm.torch  # noqa: E402

nn, bnt = torch.nn, batchnorm.torch
operators = torch.ops.batchnorm
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's, on its own code


@pytest.fixture(autouse=True)
def _forget():
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def compiled(module, backend="aot_eager", **options):
    return torch.compile(module, backend=backend, fullgraph=True, **options)


def check_step(ours, graph, x, residual=None, **call):
    """A step of a module and of its compiled copy, which end with the same bits everywhere."""
    dy = torch.randn(x.shape, dtype=x.dtype)
    ends = []
    for module in (ours, graph):
        leaves = [None if one is None else one.clone().requires_grad_() for one in (x, residual)]
        y = module(leaves[0], residual=leaves[1], **call)
        y.backward(dy)
        ends.append((y, y.stride(), *(leaf.grad for leaf in leaves if leaf is not None)))
        ends[-1] += (*(parameter.grad for parameter in module.parameters()), *module.state_dict().values())
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_bits_of_a_step(memory_format, activation):
    """In training, with another batch size, and in evaluation; planes of 49 elements, whose masks end within bytes."""
    ours = bnt.BatchNorm2d(6, activation=activation)
    graph = compiled(copy.deepcopy(ours))
    for n in (4, 5, 4):
        x, residual = (torch.randn(n, 6, 7, 7).to(memory_format=memory_format) for _ in range(2))
        check_step(ours, graph, x)
        check_step(ours, graph, x, residual=residual)
    ours.eval()
    graph.eval()
    check_step(ours, graph, x, residual=residual)
    assert int(ours.num_batches_tracked) == 6


@pytest.mark.parametrize(
    ("settings", "call"),
    [
        ({"momentum": None}, {}),
        ({"track_running_stats": False}, {}),
        ({"affine": False, "activation": "relu"}, {}),
        ({"bias": False}, {}),
        ({"dtype": torch.float64}, {}),
        ({"group_size": 4}, {}),
        ({"group_size": 4}, {"weights": (6, 5)}),
        ({"activation": "leaky_relu", "negative_slope": 0.2}, {"weights": (6, 1, 5)}),
        ({"threads": 2}, {}),
        ({"axis": -1, "num_features": 5}, {}),
    ],
)
def test_settings(settings, call):
    ours = bnt.BatchNorm(**{"num_features": 3, **settings})
    graph = compiled(copy.deepcopy(ours))
    for _ in range(3):
        weights = {name: torch.rand(shape) for name, shape in call.items()}
        check_step(ours, graph, torch.randn(6, 3, 5, dtype=settings.get("dtype", torch.float32)), **weights)


def test_what_a_module_does_not_track():
    """No count of batches, an empty batch, evaluation."""
    for change in (
        lambda m: setattr(m, "num_batches_tracked", None),
        lambda m: (setattr(m, "num_batches_tracked", None), setattr(m, "momentum", None)),
    ):
        ours = bnt.BatchNorm(3)
        change(ours)
        check_step(ours, compiled(copy.deepcopy(ours)), torch.randn(4, 3))
    layer = bnt.BatchNorm(3)
    assert compiled(layer)(torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert layer.num_batches_tracked == 0


def test_sixteen_bits_by_autocast():
    ours = nn.Sequential(nn.Conv2d(3, 4, 1), bnt.BatchNorm2d(4, activation="relu"))
    graph = compiled(copy.deepcopy(ours))
    x = torch.randn(4, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        ys = [net(x) for net in (ours, graph)]
    assert torch.equal(*ys)
    assert ys[1].dtype == torch.bfloat16
    for y in ys:
        y.float().sum().backward()
    for one, other in zip(ours.parameters(), graph.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.fixture
def _no_caches():
    """Inductor's do not see what an operator's gradient becomes of."""
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


@pytest.mark.usefixtures("_no_caches")
def test_by_inductor():
    """Code that PyTorch generates hands over what the module would have had."""
    ours = nn.Sequential(bnt.BatchNorm2d(6, activation="relu"), nn.Sigmoid(), bnt.BatchNorm2d(6))
    graph = compiled(copy.deepcopy(ours), "inductor")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for _ in range(2):
            x = torch.randn(4, 6, 7, 7).to(memory_format=memory_format)
            ys = [net(x) for net in (ours, graph)]
            torch.testing.assert_close(*ys)
            assert ys[0].stride() == ys[1].stride()
            for net, y in zip((ours, graph), ys, strict=True):
                net.zero_grad()
                y.square().sum().backward()
            for one, other in zip(ours.parameters(), graph.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(graph.state_dict(), {f"_orig_mod.{k}": v for k, v in ours.state_dict().items()})


@pytest.mark.usefixtures("_no_caches")
def test_strides_that_inductor_changes():
    """A convolution's output has others at run time than when it was traced; the mask follows them."""
    ours = nn.Sequential(nn.Conv2d(3, 8, 3), bnt.BatchNorm2d(8, activation="relu"), nn.Conv2d(8, 4, 3))
    graph = compiled(copy.deepcopy(ours), "inductor", dynamic=True)
    for n in (4, 5):
        x = torch.randn(n, 3, 10, 10)
        ys = [net(x) for net in (ours, graph)]
        torch.testing.assert_close(*ys, rtol=1e-4, atol=1e-4)
        for y in ys:
            y.square().sum().backward()
    for one, other in zip(ours.parameters(), graph.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-2)


def test_one_graph_for_all_batch_sizes():
    """After the first two: the size of the activation's mask is no reason for another."""
    counter = testing.CompileCounter()
    graph = compiled(nn.Sequential(bnt.BatchNorm2d(3, activation="relu"), nn.ReLU()), counter)
    for n in range(4, 10):
        graph(torch.randn(n, 3, 7, 7)).sum().backward()
    assert counter.frame_count == 2
    assert counter.op_count > 0


def test_functions():
    """That of given statistics is recorded, its parameters may be numbers; the other is gone around."""
    x, gamma = torch.randn(4, 3, 5), torch.rand(3, requires_grad=True)

    def infer(x, gamma):
        return bnt.batch_norm_inference(x, torch.zeros(3), 2.0, gamma, 0.5, activation="relu") * 2

    def train(x, gamma):
        return bnt.batch_norm(x * 2, gamma, activation="relu")[0] * 2

    for function, fullgraph in ((infer, True), (train, False)):
        grads = []
        for call in (function, torch.compile(function, backend="aot_eager", fullgraph=fullgraph)):
            grads += torch.autograd.grad(call(x, gamma).square().sum(), gamma)
        assert torch.equal(*grads)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(train, backend="aot_eager", fullgraph=True)(x, gamma)


def test_frozen_statistics_that_move_before_backward():
    """In one graph, as outside of one; by PyTorch's other backends its own layers get this wrong, too."""
    x = torch.randn(6, 5, dtype=torch.float64)

    def both(layer, x):
        first = layer.eval()(x)
        return first.pow(2).sum() + layer.train()(x).pow(3).sum()

    grads = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="eager", fullgraph=True)):
        layer = bnt.BatchNorm(5, dtype=torch.float64, activation="leaky_relu")
        leaf = x.clone().requires_grad_()
        wrap(both)(layer, leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_exported(training, strict):
    """Saved, loaded, and for any batch size."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), bnt.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 2, 3)).train(training)
    bnt.convert(net)
    x = torch.randn(4, 3, 9, 9)
    sizes = ({0: torch.export.Dim("n", min=2)},)
    program = torch.export.export(copy.deepcopy(net), (x,), dynamic_shapes=sizes, strict=strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert ("batchnorm.batch_norm.default" if training else "batchnorm.batch_norm_inference.default") in called
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for n in (4, 7):
        x = torch.randn(n, 3, 9, 9)
        assert torch.equal(again(x), net(x))
    if training:  # whose buffers all move
        torch.testing.assert_close(dict(again.named_buffers()), dict(net.named_buffers()), rtol=0, atol=0)


def test_errors():
    """What the library says, when the graph runs."""
    with pytest.raises(ValueError, match="has one value for each statistic"):
        compiled(bnt.BatchNorm(3))(torch.randn(1, 3))
    with pytest.raises(TypeError, match=r"x has dtype torch\.int32"):
        compiled(bnt.BatchNorm(3))(torch.zeros(4, 3, dtype=torch.int32))
    with pytest.raises(Exception, match="has 4 features along axis 1, this layer has 3"):
        compiled(bnt.BatchNorm(3))(torch.zeros(5, 4))


# What strides x has, by where they come from.
LAYOUTS = {
    "contiguous": lambda: torch.randn(6, 3, 4, 5),
    "channels last": lambda: torch.randn(6, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 3, 4, 6).transpose(0, 3),
    "every second": lambda: torch.randn(6, 6, 4, 5)[:, ::2],
    "expanded": lambda: torch.randn(6, 3, 1, 5).expand(6, 3, 4, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators(dtype, activation, layout):
    """Shapes, types and strides are as promised to those who trace, and the schema holds: PyTorch's own check."""
    x, residual = (LAYOUTS[layout]().to(dtype) for _ in range(2))
    mean, var, gamma, beta = torch.randn(3), torch.rand(3), torch.rand(3), torch.rand(3)
    frozen = ([1], 1e-5, activation, 0.01, None)
    for parameters in ((gamma, beta), (None, None), (gamma.half(), beta.half())):
        for groups, weights in ((None, None), (4, None), (None, torch.rand(6, 4, 5)), (4, torch.rand(6, 4, 5))):
            options = (*frozen, groups)
            running = (mean, var, torch.tensor(3), None)
            forward = (x, *parameters, residual, weights, *running, *options)
            check(operators.batch_norm.default, forward)
            _, *statistics, _, _ = operators.batch_norm(*forward)
            check(
                operators.batch_norm_backward.default,
                (residual, x, parameters[0], *statistics, weights, activation is not None, *options),
            )
        check(operators.batch_norm_inference.default, (x, *parameters, residual, mean, var, *frozen))
        y = operators.batch_norm_inference(x, *parameters, residual, mean, var, *frozen)
        check(
            operators.batch_norm_inference_backward.default,
            (residual, x, parameters[0], mean, var, y, activation is not None, *frozen),
        )


def test_masks_of_groups():
    """They have a bit for each element still; rows along the batch end with each group."""
    x = torch.randn(17, 5, 5).permute(2, 1, 0)
    options = ([1], 1e-5, "relu", 0.01, None, 2)
    check(operators.batch_norm.default, (x, *[None] * 8, *options))
    saved = batchnorm.batch_norm(x, axis=1, activation="relu", group_size=2)[1]
    assert saved.mask.numel() > x[:1].numel()  # that of no groups fits into this
    *_, mask, _, _, _ = operators.batch_norm(torch.randn(64, 8, 64), *[None] * 8, *options[:-1], 32)
    assert mask.numel() == 64 * 8 * 64 // 8


def test_backward_lays_x_out_as_forward_had_it():
    """The mask is in that order, of the same size in others."""
    x = torch.randn(6, 8, 4, 4).to(memory_format=torch.channels_last)
    options = ([1], 1e-5, "relu", 0.01, None, None)
    y, *statistics, _, _ = operators.batch_norm(x, *[None] * 8, *options)
    grads = [
        operators.batch_norm_backward(y, one, None, *statistics, None, True, *options) for one in (x, x.contiguous())
    ]
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(grads[0][3], y)
    assert [one.stride() for one in grads[1]][::3] == [x.contiguous().stride()] * 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_forward_mode_is_refused(mode):
    """In a graph, where operators would give tangents of zeros."""
    module = getattr(bnt.BatchNorm1d(3, track_running_stats=mode == "eval"), mode)()
    x = torch.randn(6, 3)

    def tangent(x):
        return torch.func.jvp(module, (x,), (x.cos(),))[1]

    assert tangent(x).abs().max() > 0.5
    with pytest.raises(Exception, match=r"forward mode .* has no rule"):
        compiled(tangent)(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(tangent, backend="eager")(x), tangent(x))  # it goes around what raises
    program = torch.export.export(copy.deepcopy(module), (x,)).module()
    with pytest.raises(TypeError, match=r"forward mode .* has no rule"):
        torch.func.jvp(program, (x,), (x.cos(),))
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), pytest.raises(TypeError, match=r"forward mode .* has no rule"):
        program(forward_ad.make_dual(x, x.cos()))


def test_programs_lose_no_gradients():
    """What is a constant where nothing is traced may need a gradient when a program is called."""

    class Weighted(nn.Module):
        def forward(self, x, weights):
            return normalize(x, weights=weights)

    class Frozen(nn.Module):
        def forward(self, x, var):
            return bnt.batch_norm_inference(x, torch.zeros(3), var)

    normalize = bnt.BatchNorm(3, track_running_stats=False)
    x = torch.randn(6, 3)
    for module, name, shape in ((Weighted(), "weights", 6), (Frozen(), "var", 3)):
        program = torch.export.export(module, (x, torch.rand(shape))).module()
        program(x, torch.rand(shape))
        with pytest.raises(TypeError, match=f"{name} requires grad"):
            program(x, torch.rand(shape, requires_grad=True))


def test_equal_calls_have_equal_masks():
    """Also of the bytes that no element has a bit of."""
    x, gamma = torch.randn(6, 3, 4, 5, requires_grad=True), torch.rand(3, requires_grad=True)
    arguments = (x, gamma, *[None] * 7, [1], 1e-5, "relu", 0.01, None, None)
    result = torch.library.opcheck(operators.batch_norm.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


def check(operator, arguments):
    torch.library.opcheck(
        operator, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )
