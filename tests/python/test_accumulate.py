"""Micro-batches whose batch norm sees the whole batch: bn.accumulate."""

import contextlib
import itertools
import tracemalloc

import numpy as np
import pytest
from checks import random_like, same_bits

import batchnorm as bn

# dtype: of max|dx|
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}


def uneven_parts(dtype, cuts=(1, 2, 9, 40, 40), seed=0):
    """Parts of a batch whose means differ by many standard deviations, two of one sample and one empty."""
    x = np.random.default_rng(seed).normal(0, 1, (64, 5, 4)).astype(dtype)
    for i, part in enumerate(np.split(x, cuts)):
        part += 10 * i
    return x, list(zip(np.split(x, cuts), np.split(random_like(x), cuts), strict=True))


def a_layer(dtype=np.float32, **options):
    layer = bn.BatchNorm(5, dtype=dtype, **options)
    rng = np.random.default_rng(9)
    for _, value, _ in layer.parameters():
        value[...] = rng.uniform(0.5, 2, 5) * rng.choice([-1, 1], 5)
    return layer


def assert_close(got, want, tolerance):
    assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))


def one_layer(layer, parts):
    """dx of each part, and the sums of dgamma and dbeta over them."""
    totals = [np.zeros_like(grad) for _, _, grad in layer.parameters()]

    def step(part):
        x, dy = part
        layer(x)
        dx = layer.backward(dy)
        for total, (_, _, grad) in zip(totals, layer.parameters(), strict=True):
            total += grad
        return dx

    return bn.accumulate(step, parts, [layer]), totals


# -------------------------------------------------------------------------------------------------------- one layer


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_parts_give_the_gradients_of_the_whole_batch(dtype, activation):
    x, parts = uneven_parts(dtype)
    dy = random_like(x)
    whole, layer = (a_layer(dtype, activation=activation) for _ in range(2))
    whole(x)
    want = whole.backward(dy)
    dxs, (dgamma, dbeta) = one_layer(layer, parts)
    assert len(dxs) == len(parts)
    assert_close(np.concatenate(dxs), want, TOLERANCE[dtype])
    assert_close(dgamma, whole.dgamma, TOLERANCE[dtype])
    assert_close(dbeta, whole.dbeta, TOLERANCE[dtype])
    for name in ("running_mean", "running_var"):
        assert_close(getattr(layer, name), getattr(whole, name), TOLERANCE[dtype])
    assert layer.num_batches_tracked == 1


def test_one_part_has_the_bits_of_a_plain_step():
    x, _ = uneven_parts(np.float32)
    dy = random_like(x)
    whole, layer = a_layer(), a_layer()
    y = whole(x)
    dx = whole.backward(dy)

    def step(x):
        return layer(x), layer.backward(dy)

    [(y_again, dx_again)] = bn.accumulate(step, [x], [layer])
    assert same_bits(y_again, y)
    assert same_bits(dx_again, dx)
    for name in ("dgamma", "dbeta", "running_mean", "running_var"):
        assert same_bits(getattr(layer, name), getattr(whole, name)), name


def test_weights_and_residual():
    rng = np.random.default_rng(0)
    x, dy, residual = rng.standard_normal((3, 12, 5, 4))
    weights = rng.uniform(0, 1, (12, 4)) * (rng.uniform(size=(12, 4)) < 0.7)
    weights[:3] = 0
    whole, layer = (a_layer(np.float64, activation="relu") for _ in range(2))
    y = whole(x, residual=residual, weights=weights)
    dx = whole.backward(dy)

    def step(part):
        y = layer(x[part], residual=residual[part], weights=weights[part])
        dx = layer.backward(dy[part])
        return y, dx, layer.dresidual

    ys, dxs, dresiduals = zip(*bn.accumulate(step, [np.s_[:2], np.s_[2:7], np.s_[7:]], [layer]), strict=True)
    assert_close(np.concatenate(ys), y, 1e-12)
    assert_close(np.concatenate(dxs), dx, 1e-12)
    assert same_bits(np.concatenate(dresiduals), whole.dresidual)
    assert_close(layer.running_mean, whole.running_mean, 1e-12)
    assert_close(layer.running_var, whole.running_var, 1e-12)


def test_several_kept_axes_and_a_scalar_statistic():
    x, dy = np.random.default_rng(0).standard_normal((2, 9, 5, 4))
    for shape, axis in (((5, 4), (1, 2)), ((), ()), ((4,), (-1,))):
        whole, layer = (bn.BatchNorm(shape, axis=axis, dtype="float64") for _ in range(2))
        whole(x)
        want = whole.backward(dy)
        dxs, _ = one_layer(layer, [(x[:2], dy[:2]), (x[2:], dy[2:])])
        assert_close(np.concatenate(dxs), want, 1e-12)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    _, parts = uneven_parts(np.float32)
    numpys, _ = one_layer(a_layer(), parts)
    tensors, _ = one_layer(a_layer(), [tuple(map(torch.from_numpy, part)) for part in parts])
    for a, b in zip(tensors, numpys, strict=True):
        assert isinstance(a, torch.Tensor)
        assert same_bits(a.numpy(), b)


def test_the_layer_is_as_before_afterwards():
    layer = a_layer()
    x, parts = uneven_parts(np.float32)
    one_layer(layer, parts)
    with pytest.raises(RuntimeError, match="backward needs a call"):
        layer.backward(x)
    plain = a_layer()
    assert same_bits(layer(x), plain(x))  # of x alone again
    assert same_bits(layer.backward(x), plain.backward(x))


def test_an_empty_batch():
    layer = a_layer()
    x = np.zeros((0, 5, 4), np.float32)
    dxs, totals = one_layer(layer, [(x, x), (x, x)])
    assert [dx.shape for dx in dxs] == [x.shape] * 2
    assert not np.any(totals)
    assert layer.num_batches_tracked == 0


# -------------------------------------------------------------------------------------------------- whole networks


class Mlp:
    """Dense, batch norm, relu, over and over; the last is dense alone."""

    def __init__(self, sizes, dtype=np.float64):
        rng = np.random.default_rng(5)
        self.weights = [(rng.standard_normal(s) / np.sqrt(s[0])).astype(dtype) for s in itertools.pairwise(sizes)]
        self.norms = [bn.BatchNorm(n, dtype=dtype) for n in sizes[1:-1]]

    def step(self, part):
        """Half the squared output as the loss: its gradients, in the order of parameters, and by x."""
        h, inputs, relus = part, [], []
        for w, norm in itertools.zip_longest(self.weights, self.norms):
            inputs.append(h)
            h = h @ w
            if norm is not None:
                h = np.maximum(norm(h), 0)
                relus.append(h > 0)
        grads = []
        for w, norm, x in reversed(list(itertools.zip_longest(self.weights, self.norms, inputs))):
            if norm is not None:
                h = norm.backward(h * relus.pop())
                grads += [norm.dgamma.copy(), norm.dbeta.copy()]
            grads.append(x.T @ h)
            h = h @ w.T
        return [*grads, h]


def test_a_network():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 6)) * (i + 1) + 3 * i for i, n in enumerate((17, 1, 0, 30, 6))]
    whole, network = Mlp((6, 8, 7, 9, 3)), Mlp((6, 8, 7, 9, 3))
    want = whole.step(np.concatenate(parts))
    runs = []

    def step(part):
        runs.append(len(part))
        return network.step(part)

    results = bn.accumulate(step, parts, network.norms)
    assert runs == [len(part) for part in parts] * 7  # 2 L + 1
    *sums, dxs = zip(*results, strict=True)
    for got, grad in zip([*map(sum, sums), np.concatenate(dxs)], want, strict=True):
        assert_close(got, grad, 1e-12)
    for ours, theirs in zip(network.norms, whole.norms, strict=True):
        assert_close(ours.running_mean, theirs.running_mean, 1e-12)
        assert_close(ours.running_var, theirs.running_var, 1e-12)
        assert ours.num_batches_tracked == 1


def test_memory_is_that_of_one_part():
    sizes, k = (64, 64, 64, 64, 64), 8
    x = np.random.default_rng(0).standard_normal((8 * 256, 64))

    def peak(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    whole, network = Mlp(sizes), Mlp(sizes)
    at_once = peak(lambda: whole.step(x))

    def step(part):
        network.step(part)

    in_parts = peak(lambda: bn.accumulate(step, np.split(x, k), network.norms))
    gradients = sum(w.nbytes for w in network.weights)
    assert at_once > 8 * x.nbytes  # the activations
    assert in_parts - 3 * gradients < at_once / k


def test_accumulated_dgamma():
    """`accumulate=True` gets each part's share once, also in layers that the runs for others pass through."""
    layers, plain = ([a_layer(np.float64) for _ in range(2)] for _ in range(2))
    x, parts = uneven_parts(np.float64)

    def backward(layers, x, dy):
        between = np.tanh(layers[0](x))
        layers[1](between)
        d_between = layers[1].backward(dy, accumulate=True)
        layers[0].backward(d_between * (1 - between**2), accumulate=True)

    backward(plain, x, random_like(x))
    bn.accumulate(lambda part: backward(layers, *part), parts, layers)
    for layer, whole in zip(layers, plain, strict=True):
        assert_close(layer.dgamma, whole.dgamma, 1e-12)
        assert_close(layer.dbeta, whole.dbeta, 1e-12)


def test_layers_in_other_modes_need_no_runs():
    frozen, evaluated, layer = bn.BatchNorm(5).freeze(), bn.BatchNorm(5).eval(), bn.BatchNorm(5)
    runs = []

    def step(x):
        runs.append(x)
        frozen(evaluated(layer(x)))
        return layer.backward(frozen.backward(x))

    _, parts = uneven_parts(np.float32)
    bn.accumulate(step, [x for x, _ in parts], [frozen, evaluated, layer])
    assert len(runs) == 3 * len(parts)
    assert bn.accumulate(lambda part: part + 1, [1, 2], []) == [2, 3]


def test_parts_may_be_made_on_the_way():
    class Batches:
        def __iter__(self):
            return iter(parts)

    _, parts = uneven_parts(np.float32)
    a, b = one_layer(a_layer(), Batches())[0], one_layer(a_layer(), parts)[0]
    assert all(map(same_bits, a, b))


# ------------------------------------------------------------------------------------------------------- bad input


def test_wrong_arguments():
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(TypeError, match=r"parts is an iterator \(generator\).*list"):
        bn.accumulate(len, (part for part in [x]), [])
    with pytest.raises(TypeError, match=r"layers is batchnorm\.layers\.BatchNorm, expected a list of bn.BatchNorm"):
        bn.accumulate(lambda part: part, [1], bn.BatchNorm(3))
    with pytest.raises(TypeError, match=r"layers\[1\] is str, expected bn.BatchNorm"):
        bn.accumulate(len, [x], [bn.BatchNorm(5), "layer"])
    with pytest.raises(ValueError, match=r"layers\[0\] has group_size 2"):
        bn.accumulate(len, [x], [bn.BatchNorm(5, group_size=2)])
    layer = bn.BatchNorm(5)
    with pytest.raises(ValueError, match="twice"):
        bn.accumulate(len, [x], [layer, layer])
    with pytest.raises(ValueError, match="parts is empty"):
        bn.accumulate(len, [], [layer])
    with pytest.raises(ValueError, match="one value per channel"):
        one_layer(layer, [(x[:1], x[:1]), (x[:0], x[:0])])
    with pytest.raises(ValueError, match=r"x has .* features"):
        one_layer(layer, [(x[:, :4], x[:, :4])])
    assert layer._exchange is None


def test_steps_that_do_not_fit():
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    a, b = bn.BatchNorm(5), bn.BatchNorm(5)

    def forward_alone(x):
        a(x)

    def twice(x):
        a(a(x))

    def catches(x):
        with contextlib.suppress(BaseException):
            a(x)

    orders = itertools.cycle([(a, b), (b, a)])

    def in_any_order(x):
        for layer in next(orders):
            layer(x)

    for step, message in (
        (forward_alone, "without backward of BatchNorm"),
        (len, "without forward of BatchNorm"),
        (twice, "twice on one part"),
        (catches, "without"),
        (in_any_order, "same order"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bn.accumulate(step, [x, x], [a, b] if step is in_any_order else [a])

    class Shrinking:
        count = 4

        def __iter__(self):
            self.count -= 1
            return iter([(x, x)] * self.count)

    with pytest.raises(RuntimeError, match="3 parts in the first run, 2 in"):
        one_layer(a, Shrinking())

    def fails(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bn.accumulate(fails, [x], [a])
    plain = bn.BatchNorm(5)
    assert same_bits(a(x), plain(x))  # none of them left anything behind
