"""Gradients against central differences of forward."""

import numpy as np
import pytest
import reference
from cases import misaligned
from checks import random_like

import batchnorm as bn

# shape, axis, layout of x
CASES = [
    ((4, 3, 5), 1, np.asarray),
    ((4, 3, 2, 2), 1, np.asarray),
    ((4, 3, 2, 2), 1, np.asfortranarray),
    ((6, 5), -1, np.asarray),
    ((3, 2, 4), -1, np.asfortranarray),
    ((5, 8), 0, np.asarray),
    ((3, 4, 5), (0, 1), np.asarray),
    ((3, 4, 5), (0, 2), np.asarray),
    ((2, 3, 2, 2, 3), (1, 4), np.asarray),
    ((4, 7), (), np.asarray),
    ((9,), (), lambda x: x[::-1]),
    ((4, 6, 5), 1, lambda x: x[:, ::2, 1:]),
    ((4, 3, 5), 1, misaligned),
]
STEP = 6e-6  # the cube root of float64's 2**-53: truncation, STEP**2, and rounding, 2**-53 / STEP, are alike


def problem(shape, axis, layout):
    rng = np.random.default_rng(11)
    x = layout(rng.normal(1, 2, shape))
    kept = reference.kept_shape(x, axis)
    gamma = rng.uniform(0.5, 2, kept) * rng.choice([-1, 1], kept)
    return x, random_like(x), np.asarray(gamma), np.asarray(rng.normal(0, 1, kept))


def slopes(loss, array):
    """d loss() / d array by central differences, array being changed in place."""
    gradient = np.empty(array.shape)
    for at in np.ndindex(array.shape):
        value = array[at]
        array[at] = value + STEP
        above = loss()
        array[at] = value - STEP
        gradient[at] = (above - loss()) / (2 * STEP)
        array[at] = value
    return gradient


def assert_same(got, want, name):
    size = np.max(np.abs(want))
    assert size > 0.1, name
    assert np.max(np.abs(got - want)) <= 1e-6 * size, name


@pytest.mark.parametrize(("shape", "axis", "layout"), CASES)
def test_backward(shape, axis, layout):
    x, dy, gamma, beta = problem(shape, axis, layout)

    def loss():
        return np.sum(dy * bn.batch_norm(x, gamma, beta, axis=axis)[0])

    saved = bn.batch_norm(x, gamma, beta, axis=axis)[1]
    grads = bn.batch_norm_backward(dy, x, saved, gamma)
    assert_same(grads.dx, slopes(loss, x), "dx")
    assert_same(grads.dgamma, slopes(loss, gamma), "dgamma")
    assert_same(grads.dbeta, slopes(loss, beta), "dbeta")


@pytest.mark.parametrize(("shape", "axis", "layout"), CASES)
def test_inference_backward(shape, axis, layout):
    x, dy, gamma, beta = problem(shape, axis, layout)
    mean, var = np.add(gamma, 1), np.abs(beta) + 0.5

    def loss():
        return np.sum(dy * bn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis))

    grads = bn.batch_norm_inference_backward(dy, x, mean, var, gamma, axis=axis)
    assert_same(grads.dx, slopes(loss, x), "dx")
    assert_same(grads.dgamma, slopes(loss, gamma), "dgamma")
    assert_same(grads.dbeta, slopes(loss, beta), "dbeta")


def test_eps_in_backward():
    x, dy, gamma, beta = problem((4, 3, 5), 1, np.asarray)
    x *= 0.1  # where eps is a large part of the variance

    def loss():
        return np.sum(dy * bn.batch_norm(x, gamma, beta, eps=0.1)[0])

    saved = bn.batch_norm(x, gamma, beta, eps=0.1)[1]
    assert_same(bn.batch_norm_backward(dy, x, saved, gamma).dx, slopes(loss, x), "dx")


def test_layer():
    x, dy, gamma, beta = problem((4, 3, 5), 1, np.asarray)
    layer = bn.BatchNorm(3, dtype="float64")
    layer.gamma[...], layer.beta[...] = gamma, beta

    def loss():
        return np.sum(dy * layer(x))

    for start in (layer.train, layer.freeze):
        start()
        layer(x)
        dx = layer.backward(dy)
        dgamma, dbeta = layer.dgamma.copy(), layer.dbeta.copy()
        assert_same(dx, slopes(loss, x), "dx")
        assert_same(dgamma, slopes(loss, layer.gamma), "dgamma")
        assert_same(dbeta, slopes(loss, layer.beta), "dbeta")
