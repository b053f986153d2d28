"""All functions on one input, against the reference and against each other."""

import numpy as np
import reference
from reference import assert_matches

import batchnorm as bn


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def random_params(x, axis, seed=1):
    """gamma and beta for x: signed, of x's type."""
    rng = np.random.default_rng(seed)
    shape = reference.kept_shape(x, axis)
    gamma = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
    return tuple(np.asarray(p).astype(x.dtype).reshape(shape) for p in (gamma, rng.normal(0, 1, shape)))


def random_like(x, seed=2):
    """Normal numbers of x's shape and type, in C order."""
    return np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)


def check_all(x, axis=1, *, dy=None, eps=1e-5, threads=None):
    """Every function on x and dy; one value per statistic leaves out those of training."""
    dy = random_like(x) if dy is None else dy
    gamma, beta = random_params(x, axis)
    options = {"threads": threads}

    check_inference(x, dy, axis, gamma, beta, eps, options)
    m = bn.moments(x, axis=axis, **options)
    want = reference.forward(x, axis, gamma, beta, eps)
    assert m.count == want.count
    assert_matches(m.mean, want.mean, "moments.mean")
    assert_matches(m.var(), want.var, "moments.var()")
    assert np.all(np.asarray(m.m2) >= 0)
    if want.count == 1:
        return

    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, eps=eps, **options)
    assert y.dtype == x.dtype
    assert saved.count == want.count
    for name in ("mean", "var", "inv_std"):
        assert getattr(saved, name).dtype == np.float64
        assert_matches(getattr(saved, name), getattr(want, name), f"saved.{name}")
    assert_matches(y, want.y, "y")
    y_split, saved_split = bn.normalize(x, m, gamma, beta, axis=axis, eps=eps, **options)
    assert same_bits(y_split, y)
    assert same_bits(saved_split.inv_std, saved.inv_std)

    grads = bn.batch_norm_backward(dy, x, saved, gamma, **options)
    want_grads = reference.backward(dy, x, axis, gamma, eps)
    for name in ("dx", "dgamma", "dbeta"):
        assert getattr(grads, name).dtype == x.dtype
        assert_matches(getattr(grads, name), getattr(want_grads, name), name)
    sums = bn.grad_sums(dy, x, saved, **options)
    assert sums.count == want.count
    for name, value in zip(("sum_dy", "sum_dy_xmu"), reference.grad_sums(dy, x, saved.mean, axis), strict=True):
        assert_matches(getattr(sums, name), value, name)
    split = bn.input_grad(dy, x, saved, sums, gamma, **options)
    assert all(same_bits(a, b) for a, b in zip(split[:3], grads[:3], strict=True))


def check_inference(x, dy, axis, gamma, beta, eps, options):
    rng = np.random.default_rng(3)
    shape = reference.kept_shape(x, axis)
    mean, var = rng.normal(0, 1, shape), rng.uniform(0.5, 2, shape)
    y = bn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, eps=eps, **options)
    assert_matches(y, reference.inference(x, mean, var, axis, gamma, beta, eps), "inference y")
    grads = bn.batch_norm_inference_backward(dy, x, mean, var, gamma, axis=axis, eps=eps, **options)
    want = reference.inference_backward(dy, x, mean, var, axis, gamma, eps)
    for name in ("dx", "dgamma", "dbeta"):
        assert getattr(grads, name).dtype == x.dtype
        assert_matches(getattr(grads, name), getattr(want, name), f"inference {name}")


def all_results(x, axis, threads):
    """Every array that every function returns."""
    dy, (gamma, beta) = random_like(x), random_params(x, axis)
    options = {"threads": threads}
    y, saved = bn.batch_norm(x, gamma, beta, axis=axis, **options)
    stats = saved.mean, saved.var
    m = bn.moments(x, axis=axis, **options)
    y_split, saved_split = bn.normalize(x, m, gamma, beta, axis=axis, **options)
    sums = bn.grad_sums(dy, x, saved, **options)
    fused = [y, saved.mean, saved.inv_std, *bn.batch_norm_backward(dy, x, saved, gamma, **options)[:3]]
    split = [y_split, saved_split.mean, saved_split.inv_std]
    split += bn.input_grad(dy, x, saved, sums, gamma, **options)[:3]
    inference = bn.batch_norm_inference(x, *stats, gamma, beta, axis=axis, **options)
    inference_grads = bn.batch_norm_inference_backward(dy, x, *stats, gamma, axis=axis, **options)
    return fused, split, [m.mean, m.m2, saved.var, sums.sum_dy, sums.sum_dy_xmu, inference, *inference_grads[:3]]


def writers(x, dy, axis=1, threads=None):
    """name: calls the function with an out"""
    gamma, beta = random_params(x, axis)
    m = bn.moments(x, axis=axis)
    saved = bn.batch_norm(x, axis=axis)[1]
    sums = bn.grad_sums(dy, x, saved)
    mean, var = saved.mean, saved.var

    def inference_backward(x, dy, out):
        return bn.batch_norm_inference_backward(dy, x, mean, var, gamma, axis=axis, out=out, threads=threads).dx

    of_axis, of_saved = {"axis": axis, "threads": threads}, {"threads": threads}
    return {
        "batch_norm": lambda x, dy, out: bn.batch_norm(x, gamma, beta, out=out, **of_axis)[0],
        "normalize": lambda x, dy, out: bn.normalize(x, m, gamma, beta, out=out, **of_axis)[0],
        "inference": lambda x, dy, out: bn.batch_norm_inference(x, mean, var, gamma, beta, out=out, **of_axis),
        "backward": lambda x, dy, out: bn.batch_norm_backward(dy, x, saved, gamma, out=out, **of_saved).dx,
        "inference_backward": inference_backward,
        "input_grad": lambda x, dy, out: bn.input_grad(dy, x, saved, sums, gamma, out=out, **of_saved).dx,
    }
