"""batch_norm_jvp and batch_norm_double_backward: against the reference, central differences and PyTorch; where results
go; bad input."""

import numpy as np
import pytest
import reference
from cases import PATHS, VIEWED_SHAPE, VIEWS, path_input, viewed
from checks import random_like, random_params, same_bits
from reference import assert_matches
from test_gradients import CASES, STEP, assert_same, problem, slopes

import batchnorm as bn

f32 = np.float32


def check_both(x, axis=1, *, tx=None, dy=None, threads=None):
    """Both functions on x, with and without parameters."""
    tx = random_like(x, 5) if tx is None else tx
    dy = random_like(x) if dy is None else dy
    gamma, beta = random_params(x, axis)
    tgamma, tbeta = random_params(x, axis, 7)
    saved = bn.batch_norm(x, gamma, beta, axis=axis)[1]
    stats = saved.mean, saved.inv_std, axis
    for params in ((gamma, tgamma, tbeta), (None, None, None), (gamma, None, tbeta)):
        gamma, tgamma, tbeta = params
        ty = bn.batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, tbeta=tbeta, threads=threads)
        assert ty.dtype == x.dtype
        assert_matches(ty, reference.jvp(tx, x, *stats, *params), "ty")
        grads = bn.batch_norm_double_backward(tx, dy, x, saved, gamma, ddgamma=tgamma, ddbeta=tbeta, threads=threads)
        dgamma_dtype = x.dtype if gamma is not None else np.promote_types(x.dtype, f32)
        wanted = reference.double_backward(tx, dy, x, *stats, *params, grad_dtype=dgamma_dtype)
        for name, want in wanted._asdict().items():
            got = getattr(grads, name)
            assert got.dtype == (dgamma_dtype if name == "dgamma" else x.dtype)
            assert_matches(got, want, name)
        assert same_bits(grads.ddy, ty)


# -------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("view", VIEWS)
def test_views(view, dtype):
    x = viewed(view, dtype)
    for axis in (1, -1, 0, (0, 2), ()):
        check_both(x, axis)
        # Others in x's layout, and in one of their own.
        check_both(x, axis, tx=viewed(view, dtype, 8), dy=np.asfortranarray(random_like(x)))


@pytest.mark.parametrize("view", ["channels last", "column step", "repeated samples", "misaligned", "all reversed"])
def test_views_of_one_operand(view):
    x = np.random.default_rng(0).normal(2, 3, VIEWED_SHAPE).astype(f32)
    other = viewed(view)
    x = x[tuple(slice(n) for n in other.shape)]
    check_both(x, tx=other)
    check_both(x, dy=other)


PATHS_HERE = [
    "row, channels in cache",
    "row, one plane larger than a chunk",
    "row, channels larger than cache",
    "row, planes of 7x7",
    "row, groups",
    "row, packed",
    "lane, several chunks",
    "lane, few channels",
    "lane, wide rows",
    "lane, rows with gaps",
    "lane, packed, wide",
]


@pytest.mark.parametrize("path", PATHS_HERE)
def test_paths(path):
    assert path in PATHS
    x, axis = path_input(path)
    check_both(x, axis)


@pytest.mark.parametrize("path", PATHS_HERE)
def test_same_bits_for_any_number_of_threads(path):
    x, axis = path_input(path)
    assert x.size > 4 * 32768
    tx, dy, (gamma, tgamma) = random_like(x, 5), random_like(x), random_params(x, axis)
    saved = bn.batch_norm(x, axis=axis)[1]

    def results(threads):
        ty = bn.batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, threads=threads)
        return ty, *bn.batch_norm_double_backward(tx, dy, x, saved, gamma, ddgamma=tgamma, threads=threads)

    want = results(1)
    for threads in (1, 2, 3, 7, None):
        assert all(map(same_bits, results(threads), want)), threads


LARGE = 1e6
MEANS = {"x": (LARGE, 0, 0), "tx": (0, LARGE, 0), "dy": (0, 0, LARGE), "all": (LARGE, LARGE, LARGE)}


@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("axis", [1, -1])
def test_large_means(means, axis):
    """A mean of a million standard deviations: what is left of the operands counts, not their size. But where two have
    such means, their product's mean k keeps the rounding of the product of the means, a float64."""
    shape = (8, 16, 28, 28) if axis == 1 else (8, 28, 28, 16)
    rng = np.random.default_rng(1)
    x, tx, dy = (rng.normal(mean, 1, shape).astype(f32) for mean in MEANS[means])
    k_error = 2.0**-53 * LARGE**2 if means == "all" else 0
    gamma, _ = random_params(x, axis)
    tgamma, tbeta = random_params(x, axis, 7)
    saved = bn.batch_norm(x, axis=axis)[1]
    stats = saved.mean, saved.inv_std, axis, gamma, tgamma, tbeta
    ty = bn.batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, tbeta=tbeta)
    grads = bn.batch_norm_double_backward(tx, dy, x, saved, gamma, ddgamma=tgamma, ddbeta=tbeta)
    want = reference.double_backward(tx, dy, x, *stats)
    assert same_bits(grads.ddy, ty)
    size = np.max(np.abs(saved.inv_std))
    errors = {"ddy": 0, "dx": 4 * np.max(np.abs(gamma)) * size**2 * k_error, "dgamma": saved.count * size * k_error}
    for name, (exact, _) in want._asdict().items():
        assert np.max(np.abs(getattr(grads, name) - exact)) <= 3e-7 * np.max(np.abs(exact)) + errors[name], name


def test_not_a_number_stays_in_its_channel():
    x, tx, dy = np.random.default_rng(0).normal(0, 1, (3, 4, 3, 5)).astype(f32)
    saved = bn.batch_norm(x)[1]
    want = bn.batch_norm_jvp(tx, x, saved), *bn.batch_norm_double_backward(tx, dy, x, saved)
    for array in (tx, dy):
        array[2, 1, 3] = np.nan
        got = bn.batch_norm_jvp(tx, x, saved), *bn.batch_norm_double_backward(tx, dy, x, saved)
        for a, b in zip(got, want, strict=True):
            rest = (slice(None), [0, 2]) if a.ndim > 1 else [0, 2]
            assert same_bits(a[rest], b[rest])
        assert np.isnan(got[2][:, 1]).all()
        array[2, 1, 3] = 0


# ------------------------------------------------------------------------------------------------------ differences


@pytest.mark.parametrize(("shape", "axis", "layout"), CASES)
def test_jvp_is_a_difference(shape, axis, layout):
    x, tx, gamma, beta = problem(shape, axis, layout)
    tgamma, tbeta = np.sin(gamma), np.cos(beta)
    saved = bn.batch_norm(x, axis=axis)[1]

    def y(step):
        return bn.batch_norm(x + step * tx, gamma + step * tgamma, beta + step * tbeta, axis=axis)[0]

    ty = bn.batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, tbeta=tbeta)
    assert_same(ty, (y(STEP) - y(-STEP)) / (2 * STEP), "ty")


@pytest.mark.parametrize(("shape", "axis", "layout"), CASES)
def test_double_backward_is_slopes(shape, axis, layout):
    x, dy, gamma, beta = problem(shape, axis, layout)
    ddx, ddgamma, ddbeta = random_like(x, 9), np.sin(gamma), np.cos(beta)

    def loss():
        saved = bn.batch_norm(x, axis=axis)[1]
        dx, dgamma, dbeta, _ = bn.batch_norm_backward(dy, x, saved, gamma)
        return np.sum(ddx * dx) + np.sum(ddgamma * dgamma) + np.sum(ddbeta * dbeta)

    saved = bn.batch_norm(x, axis=axis)[1]
    grads = bn.batch_norm_double_backward(ddx, dy, x, saved, gamma, ddgamma=ddgamma, ddbeta=ddbeta)
    assert_same(grads.ddy, slopes(loss, dy), "ddy")
    assert_same(grads.dx, slopes(loss, x), "dx")
    assert_same(grads.dgamma, slopes(loss, gamma), "dgamma")


def test_eps():
    """Where eps is a large part of the variance."""
    x, dy, gamma, _ = problem((4, 3, 5), 1, np.asarray)
    x *= 0.1
    ddx = random_like(x, 9)

    def loss():
        saved = bn.batch_norm(x, eps=0.1)[1]
        return np.sum(ddx * bn.batch_norm_backward(dy, x, saved, gamma).dx)

    saved = bn.batch_norm(x, eps=0.1)[1]
    assert_same(bn.batch_norm_double_backward(ddx, dy, x, saved, gamma).dx, slopes(loss, x), "dx")


@pytest.mark.parametrize("group_size", [2, 3, 7])
def test_groups(group_size):
    x, tx, dy = np.random.default_rng(3).normal(1, 2, (3, 7, 4, 6))
    params = [np.random.default_rng(i).normal(1, 1, 4) for i in range(3)]
    saved = bn.batch_norm(x, group_size=group_size)[1]
    ty = bn.batch_norm_jvp(tx, x, saved, params[0], tgamma=params[1], tbeta=params[2])
    grads = bn.batch_norm_double_backward(tx, dy, x, saved, params[0], ddgamma=params[1], ddbeta=params[2])
    assert same_bits(grads.ddy, ty)
    dgamma = 0
    for first in range(0, 7, group_size):
        part = slice(first, first + group_size)
        own = bn.batch_norm(x[part])[1]
        want = bn.batch_norm_double_backward(
            tx[part], dy[part], x[part], own, params[0], ddgamma=params[1], ddbeta=params[2]
        )
        np.testing.assert_allclose(grads.ddy[part], want.ddy, atol=1e-13, rtol=1e-12)
        np.testing.assert_allclose(grads.dx[part], want.dx, atol=1e-13, rtol=1e-12)
        dgamma += want.dgamma
    np.testing.assert_allclose(grads.dgamma, dgamma, atol=1e-12, rtol=1e-12)


def test_jvp_is_the_transpose_of_backward():
    x, tx, dy = np.random.default_rng(3).normal(1, 2, (3, 6, 4, 7))
    gamma, _ = random_params(x, 1)
    tgamma, tbeta = random_params(x, 1, 7)
    saved = bn.batch_norm(x)[1]
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    forward = np.sum(dy * bn.batch_norm_jvp(tx, x, saved, gamma, tgamma=tgamma, tbeta=tbeta))
    backward = np.sum(grads.dx * tx) + np.sum(grads.dgamma * tgamma) + np.sum(grads.dbeta * tbeta)
    assert abs(forward - backward) <= 1e-12 * np.sum(np.abs(dy))


# ---------------------------------------------------------------------------------------------------------- PyTorch


TORCH_ITSELF = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # as its forward mode starts


@TORCH_ITSELF
@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (9, 4), (5, 4, 7)])
def test_pytorch(shape):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, dy, ddx = (torch.randn(shape, dtype=torch.float64) * 2 + 1 for _ in range(3))
    gamma, beta, ddgamma, ddbeta = torch.randn(4, shape[1], dtype=torch.float64)

    def forward(x, gamma, beta):
        return torch.nn.functional.batch_norm(x, None, None, gamma, beta, True, 0.1, 1e-5)

    want_ty = torch.func.jvp(forward, (x, gamma, beta), (ddx, ddgamma, ddbeta))[1]
    saved = bn.batch_norm(x)[1]
    ty = bn.batch_norm_jvp(ddx, x, saved, gamma, tgamma=ddgamma, tbeta=ddbeta)
    assert isinstance(ty, torch.Tensor)
    torch.testing.assert_close(ty, want_ty, atol=1e-12, rtol=1e-10)

    leaves = [tensor.clone().requires_grad_() for tensor in (dy, x, gamma, beta)]
    y = forward(*leaves[1:])
    grads = torch.autograd.grad(y, leaves[1:], leaves[0], create_graph=True)
    loss = sum((d * grad).sum() for d, grad in zip((ddx, ddgamma, ddbeta), grads, strict=True))
    want = torch.autograd.grad(loss, leaves[:3])
    got = bn.batch_norm_double_backward(ddx, dy, x, saved, gamma, ddgamma=ddgamma, ddbeta=ddbeta)
    for one, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-12, rtol=1e-10)


def autograd_functions(torch, axis):
    """batch_norm with PyTorch's automatic differentiation, both ways and twice back."""

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, dy, x, gamma, saved):
            ctx.save_for_backward(dy, x, gamma)
            ctx.saved = saved
            return bn.batch_norm_backward(dy.detach(), x.detach(), saved, gamma.detach())[:3]

        @staticmethod
        def backward(ctx, ddx, ddgamma, ddbeta):
            tensors = [tensor.detach() for tensor in (ddx, *ctx.saved_tensors)]
            ddx, dy, x, gamma = tensors
            grads = bn.batch_norm_double_backward(
                ddx, dy, x, ctx.saved, gamma, ddgamma=ddgamma.detach(), ddbeta=ddbeta.detach()
            )
            return *grads, None

    class BatchNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, gamma, beta):
            y, ctx.saved = bn.batch_norm(x.detach(), gamma.detach(), beta.detach(), axis=axis)
            ctx.save_for_backward(x, gamma)
            ctx.save_for_forward(x, gamma)
            return y

        @staticmethod
        def backward(ctx, dy):
            x, gamma = ctx.saved_tensors
            return Backward.apply(dy, x, gamma, ctx.saved)

        @staticmethod
        def jvp(ctx, tx, tgamma, tbeta):
            x, gamma = (tensor.detach() for tensor in ctx.saved_tensors)
            return bn.batch_norm_jvp(tx, x, ctx.saved, gamma, tgamma=tgamma, tbeta=tbeta)

    return BatchNorm


@TORCH_ITSELF
@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5), 1), ((6, 5), -1), ((3, 2, 4), (0, 1)), ((3, 4, 5), (0, 2))])
def test_gradcheck(shape, axis):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    kept = reference.kept_shape(np.empty(shape), axis)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gamma, beta = (torch.randn(kept, dtype=torch.float64, requires_grad=True) for _ in range(2))
    apply = autograd_functions(torch, axis).apply
    assert torch.autograd.gradcheck(apply, (x, gamma, beta), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, (x, gamma, beta))


# ----------------------------------------------------------------------------------------------- results and in place


def operands(shape=(4, 3, 5)):
    x, ddx, dy = np.random.default_rng(0).normal(0, 1, (3, *shape)).astype(f32)
    return {"ddx": ddx, "dy": dy, "x": x, "saved": bn.batch_norm(x)[1]}


def test_types_of_results():
    good = operands()
    for gamma, dtype in ((None, f32), (np.ones(3), np.float64), ([1, 2, 3], f32), (2.0, f32), (np.ones(3, "f2"), "f2")):
        assert bn.batch_norm_double_backward(**good, gamma=gamma).dgamma.dtype == dtype
    one = bn.batch_norm_double_backward(**good, gamma=2.0, ddgamma=3, ddbeta=[1, 1, 1])
    all_ = bn.batch_norm_double_backward(**good, gamma=np.full(3, 2.0), ddgamma=[3] * 3, ddbeta=1.0)
    assert same_bits(one.ddy, all_.ddy)
    assert same_bits(one.dx, all_.dx)


def test_memory_order_is_kept():
    x, ddx, dy = (viewed("channels last", seed=i) for i in range(3))
    saved = bn.batch_norm(x)[1]
    grads = bn.batch_norm_double_backward(ddx, dy, x, saved)
    for result in (bn.batch_norm_jvp(ddx, x, saved), grads.ddy, grads.dx):
        assert result.strides == x.strides


@pytest.mark.parametrize("over", ["tx", "x", "new"])
def test_jvp_out(over):
    good = operands()
    arrays = {"tx": good["ddx"], "x": good["x"], "new": np.empty_like(good["x"])}
    want = bn.batch_norm_jvp(arrays["tx"], arrays["x"], good["saved"])
    assert bn.batch_norm_jvp(arrays["tx"], arrays["x"], good["saved"], out=arrays[over]) is arrays[over]
    assert same_bits(arrays[over], want)


@pytest.mark.parametrize("dx", ["ddx", "dy", "x", "new", None])
@pytest.mark.parametrize("ddy", ["ddx", "dy", "x", "another", None])
def test_double_backward_out(ddy, dx):
    good = operands()
    want = bn.batch_norm_double_backward(**good)
    before = {name: good[name].copy() for name in ("ddx", "dy", "x")}
    good |= {"new": np.full_like(good["x"], 7), "another": np.full_like(good["x"], 7), None: None}
    out = good[ddy], good[dx]
    arguments = {name: good[name] for name in ("ddx", "dy", "x", "saved")}
    apart = {"another", "new", None}
    if ddy in apart or dx in apart or (dx == "dy" and ddy != "dy"):
        got = bn.batch_norm_double_backward(**arguments, out=out)
        assert all(map(same_bits, got, want))
        assert all(a is None or a is b for a, b in zip(out, got, strict=False))
    else:
        with pytest.raises(ValueError, match=r"still needed for dx|outputs ddy and dx overlap"):
            bn.batch_norm_double_backward(**arguments, out=out)
        assert all(same_bits(good[name], array) for name, array in before.items())


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_empty(shape):
    x = np.empty(shape, f32)
    saved = bn.batch_norm(x)[1]
    assert bn.batch_norm_jvp(x, x, saved, 2.0, tgamma=1, tbeta=1).shape == shape
    grads = bn.batch_norm_double_backward(x, x, x, saved, np.ones(shape[1], f32))
    assert grads.ddy.shape == grads.dx.shape == shape
    assert grads.dgamma.shape == (shape[1],)
    assert np.all(grads.dgamma == 0)


# ------------------------------------------------- bad input; that of single arguments is in test_bad_input.py


def test_bad_out_of_jvp():
    good = operands()
    out = np.full((2, 4, 3, 5), 7, f32)
    for pair in ((out[0],), tuple(out)):
        with pytest.raises(TypeError, match="out is tuple, expected a NumPy array"):
            bn.batch_norm_jvp(good["ddx"], good["x"], good["saved"], out=pair)
    assert np.all(out == 7)


def test_bad_out_of_double_backward():
    out = np.full((2, 4, 3, 5), 7, f32)
    for wrong in (out[0], list(out), (out[0],), (*out, out[0]), (), "ab"):
        with pytest.raises(TypeError, match=r"out is .*, expected a tuple \(ddy, dx\)"):
            bn.batch_norm_double_backward(**operands(), out=wrong)
    assert np.all(out == 7)
