"""JAX's arrays on the CPU: read where they are, results in new ones, the same bits as with NumPy."""

import numpy as np
import pytest
from checks import same_bits

import batchnorm as bn

jax = pytest.importorskip("jax")
jnp = jax.numpy

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def arrays(dtype="float32", count=3):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((8, 6, 5, 3)), dtype) for _ in range(count)]


def same(got, want):
    """Whether got is JAX's, and has the bits of NumPy's want."""
    return isinstance(got, jax.Array) and same_bits(np.asarray(got), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [1, -1, (1, 3)])
def test_the_bits_of_numpy(dtype, axis):
    x, dy, residual = arrays(dtype)
    own = [np.asarray(array) for array in (x, dy, residual)]
    shape = tuple(x.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,)))
    gamma, beta = np.linspace(0.5, 1.5, np.prod(shape), dtype="f4").reshape(shape), np.full(shape, 0.25, "f4")
    params = jnp.asarray(gamma), jnp.asarray(beta)

    y, saved = bn.batch_norm(x, *params, axis=axis, activation="relu", residual=residual)
    want, own_saved = bn.batch_norm(own[0], gamma, beta, axis=axis, activation="relu", residual=own[2])
    assert same(y, want)
    assert type(saved.mean) is np.ndarray
    assert same_bits(saved.mean, own_saved.mean)
    got = bn.batch_norm_backward(dy, x, saved, params[0], need_dresidual=True)
    wanted = bn.batch_norm_backward(own[1], own[0], own_saved, gamma, need_dresidual=True)
    assert all(map(same, got, wanted))
    got = bn.batch_norm_inference(x, saved.mean, saved.var, *params, axis=axis)
    assert same(got, bn.batch_norm_inference(own[0], own_saved.mean, own_saved.var, gamma, beta, axis=axis))

    moments = bn.moments(x, axis=axis)
    assert same_bits(moments.mean, bn.moments(own[0], axis=axis).mean)
    y, saved = bn.normalize(x, moments, *params, axis=axis)
    sums = bn.grad_sums(dy, x, saved)
    assert same(y, bn.normalize(own[0], moments, gamma, beta, axis=axis)[0])
    assert same(bn.input_grad(dy, x, saved, sums, params[0]).dx, bn.input_grad(own[1], own[0], saved, sums, gamma).dx)


def test_gradients_have_the_type_of_their_parameters():
    x, dy = arrays(count=2)
    for dtype in DTYPES:
        gamma = jnp.ones(6, dtype)
        grads = bn.batch_norm_backward(dy, x, bn.batch_norm(x, gamma)[1], gamma)
        assert isinstance(grads.dgamma, jax.Array)
        assert grads.dgamma.dtype == gamma.dtype
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        wide = x.astype("float64")
        y, saved = bn.batch_norm(wide)
        assert same(y, bn.batch_norm(np.asarray(wide))[0])
        assert bn.batch_norm_backward(wide, wide, saved).dgamma.dtype == np.float64


def test_numpy_arrays_beside_them():
    x, dy = arrays(count=2)
    gamma, out = np.ones(6, "f4"), np.empty(x.shape, "f4")
    y, saved = bn.batch_norm(x, gamma, [0.0] * 6, out=out, weights=np.ones((8, 1, 5, 3), bool))
    assert y is out
    assert same_bits(out, bn.batch_norm(np.asarray(x))[0])
    assert isinstance(bn.batch_norm_backward(np.asarray(dy), x, saved, gamma).dx, jax.Array)
    assert isinstance(bn.batch_norm(x, weights=jnp.ones((8, 1, 5, 3)))[0], jax.Array)


def test_results_share_no_memory():
    x = arrays(count=1)[0]
    results = [bn.batch_norm(x, float(i))[0] for i in range(1, 9)]
    assert len({y.unsafe_buffer_pointer() for y in [x, *results]}) == 9
    want = np.asarray(results[0])
    assert all(np.allclose(np.asarray(y), (i + 1) * want, rtol=1e-6, atol=1e-6) for i, y in enumerate(results))


def test_the_layer():
    x, dy = arrays(count=2)
    layer, own = bn.BatchNorm(6, activation="relu"), bn.BatchNorm(6, activation="relu")
    assert same(layer(x), own(np.asarray(x)))
    assert same(layer.backward(dy), own.backward(np.asarray(dy)))
    for name in ("dgamma", "running_mean", "running_var"):
        assert same_bits(getattr(layer, name), getattr(own, name)), name
    assert same(layer.eval()(x), own.eval()(np.asarray(x)))


def test_the_layer_with_out():
    """Which only NumPy's arrays can be."""
    x, dy = arrays(count=2)
    out = np.empty(x.shape, np.asarray(x).dtype)
    layer, own = bn.BatchNorm(x.shape[1]), bn.BatchNorm(x.shape[1])
    layer(x, out=out)
    assert same_bits(out, own(np.asarray(x)))
    assert same(layer.backward(dy), own.backward(np.asarray(dy)))


def test_what_is_refused():
    x = arrays(count=1)[0]
    deleted = x + 1
    deleted.delete()
    for call, error, text in (
        (lambda: bn.batch_norm(x, out=x), ValueError, "out is a JAX array, which cannot be written to"),
        (lambda: bn.batch_norm_inplace(x), ValueError, "x is a JAX array, which cannot be written to"),
        (lambda: bn.batch_norm(np.asarray(x), jnp.ones(6)), TypeError, "gamma is a JAX array, expected a NumPy array"),
        (lambda: bn.batch_norm(x.astype("int32")), TypeError, "x has dtype int32, expected float32"),
        (lambda: bn.batch_norm(x, stream=1), ValueError, "stream is given, but x is on the CPU"),
        (lambda: jax.jit(lambda v: bn.batch_norm(v)[0])(x), TypeError, r"x is traced by JAX \(jit"),
        (lambda: jax.jit(lambda v: bn.batch_norm(x, v)[0])(x[0, :, 0]), TypeError, "gamma is traced by JAX"),
        (lambda: jax.jit(lambda v: bn.batch_norm(x, weights=v)[0])(x[:, 0]), TypeError, "weights is traced by JAX"),
        (lambda: bn.batch_norm(deleted), ValueError, "x is a JAX array that cannot be exported: it was deleted"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_constants_of_a_jitted_function():
    x = arrays(count=1)[0]
    got = jax.jit(lambda factor: factor * bn.batch_norm(x)[0])(2.0)
    assert same_bits(np.asarray(got), 2 * bn.batch_norm(np.asarray(x))[0])


def test_inside_a_jitted_function():
    x = arrays(count=1)[0]

    @jax.jit
    def network(v):
        y = jax.pure_callback(lambda a: bn.batch_norm(np.asarray(a))[0], jax.ShapeDtypeStruct(v.shape, v.dtype), v)
        return 2 * y

    assert same_bits(np.asarray(network(x)), 2 * bn.batch_norm(np.asarray(x))[0])
