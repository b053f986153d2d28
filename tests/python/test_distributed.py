"""SyncBatchNorm: ranks as threads for what it computes and refuses, ranks as processes for the engines."""

import concurrent.futures
import copy
import functools
import importlib.util
import operator
import pickle
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from checks import random_like, same_bits
from child import output_of, run_python, run_together

import batchnorm as bn
from batchnorm.distributed import SyncBatchNorm

WORKER = Path(__file__).with_name("digits_rank.py")
ARRAYS = ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked")


# ------------------------------------------------------------------------------------------------- ranks as threads


class Hub:
    """Where ranks in threads meet."""

    def __init__(self, size, timeout=20):
        self.size, self.timeout = size, timeout
        self.slots = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.hubs = {}
        self.lock = threading.Lock()

    def hub_of(self, first, size):
        with self.lock:
            return self.hubs.setdefault(first, Hub(size, self.timeout))


class Rank:
    """A communicator with no more than the protocol, and split."""

    def __init__(self, hub, rank):
        self.hub, self.rank, self.sent = hub, rank, []

    def allgather(self, buffer):
        assert buffer.dtype == np.float64
        assert buffer.ndim == 1
        self.sent.append(buffer.copy())
        self.hub.slots[self.rank] = buffer.copy()
        self.hub.barrier.wait()
        parts = [part.copy() for part in self.hub.slots]
        self.hub.barrier.wait()
        return parts

    def allreduce(self, buffer):
        return functools.reduce(operator.add, self.allgather(buffer))

    def split(self, ranks_per_group):
        first = self.rank // ranks_per_group * ranks_per_group
        size = min(ranks_per_group, self.hub.size - first)
        return Rank(self.hub.hub_of(first, size), self.rank - first)


class FakeMPI:
    """The methods of mpi4py.MPI.Comm that are used, over the same threads."""

    def __init__(self, rank):
        self.rank = rank

    def Get_size(self):  # noqa: N802
        return self.rank.hub.size

    def Get_rank(self):  # noqa: N802
        return self.rank.rank

    def Allgather(self, send, receive):  # noqa: N802
        assert receive.dtype == send.dtype
        receive[...] = self.rank.allgather(send)

    def Split(self, color, key):  # noqa: N802
        assert key == self.rank.rank
        colors = [int(c[0]) for c in self.rank.allgather(np.array([float(color)]))]
        members = [r for r, c in enumerate(colors) if c == color]
        return FakeMPI(Rank(self.rank.hub.hub_of(members[0], len(members)), members.index(key)))


@pytest.fixture(params=["protocol", "mpi4py"])
def comm_of(request, monkeypatch):
    """Makes the comm of a rank."""
    if request.param == "protocol":
        return lambda rank: rank
    module = types.ModuleType("mpi4py.MPI")
    module.Comm = FakeMPI
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    return FakeMPI


def on_ranks(size, work, timeout=20):
    """What work(rank) returns, or raises, on each rank."""
    hub = Hub(size, timeout)

    def run(rank):
        try:
            return work(Rank(hub, rank))
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def parts_of(sizes, dtype=np.float32, shape=(3, 5)):
    """x and dy of each rank, whose means differ."""
    rng = np.random.default_rng(0)
    xs = [(rng.standard_normal((n, *shape)) + 5 * i).astype(dtype) for i, n in enumerate(sizes)]
    return [(x, random_like(x, seed=i)) for i, x in enumerate(xs)]


def set_parameters(layer):
    rng = np.random.default_rng(9)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        getattr(layer, name)[...] = rng.uniform(0.5, 2, layer.gamma.shape)
    return layer


def a_sync_layer(comm, num_features=3, **options):
    return set_parameters(SyncBatchNorm(num_features, comm=comm, **options))


def assert_close(got, want, tolerance):
    assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))


def step_of(parts, layer_of, **calls):
    """One step on each rank: the layer, y and dx."""

    def work(rank):
        layer = layer_of(rank)
        x, dy = parts[rank.rank]
        y = layer(x, **{name: values[rank.rank] for name, values in calls.items()})
        return layer, y, layer.backward(dy)

    results = on_ranks(len(parts), work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


# ---------------------------------------------------------------------------------------------------- what it gives


@pytest.mark.parametrize("sizes", [(4,), (3, 9), (1, 0, 7, 2), (0, 0, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_ranks_are_one_batch(sizes, dtype, tolerance, activation, comm_of):
    parts = parts_of(sizes, dtype)
    options = {"dtype": dtype, "activation": activation}
    results = step_of(parts, lambda rank: a_sync_layer(comm_of(rank), **options))

    whole = set_parameters(bn.BatchNorm(3, **options))
    y = whole(np.concatenate([x for x, _ in parts]))
    dx = whole.backward(np.concatenate([dy for _, dy in parts]))
    assert_close(np.concatenate([y for _, y, _ in results]), y, tolerance)
    assert_close(np.concatenate([dx for *_, dx in results]), dx, tolerance)
    layers = [layer for layer, *_ in results]
    for name in ("dgamma", "dbeta"):  # each rank has its own share
        assert_close(sum(getattr(layer, name) for layer in layers), getattr(whole, name), tolerance)
    for name in ARRAYS:
        assert_close(getattr(layers[0], name), getattr(whole, name), tolerance)
        assert all(same_bits(getattr(layer, name), getattr(layers[0], name)) for layer in layers)

    # The bits of one process that merges the same parts.
    again = set_parameters(bn.BatchNorm(3, **options))

    def step(part):
        y = again(part[0])
        dx = again.backward(part[1])
        return y, dx, again.dgamma.copy(), again.dbeta.copy()

    for (layer, *got), (*want, dgamma, dbeta) in zip(results, bn.accumulate(step, parts, [again]), strict=True):
        assert all(map(same_bits, (*got, layer.dgamma, layer.dbeta), (*want, dgamma, dbeta)))
        assert all(same_bits(getattr(layer, name), getattr(again, name)) for name in ARRAYS)
    if len(sizes) == 1:
        assert same_bits(results[0][1], y)
        assert same_bits(results[0][2], dx)


def test_weights_and_residual():
    parts = parts_of((4, 0, 3), np.float64)
    rng = np.random.default_rng(1)
    weights = [rng.uniform(0, 1, x.shape[::2]) * (i != 2) for i, (x, _) in enumerate(parts)]
    residual = [rng.standard_normal(x.shape) for x, _ in parts]
    options = {"dtype": "float64", "activation": "leaky_relu"}
    results = step_of(parts, lambda rank: a_sync_layer(rank, **options), weights=weights, residual=residual)
    whole = set_parameters(bn.BatchNorm(3, **options))
    x, dy = map(np.concatenate, zip(*parts, strict=True))
    y = whole(x, weights=np.concatenate(weights), residual=np.concatenate(residual))
    dx = whole.backward(dy)
    assert_close(np.concatenate([y for _, y, _ in results]), y, 1e-12)
    assert_close(np.concatenate([dx for *_, dx in results]), dx, 1e-12)
    assert_close(np.concatenate([layer.dresidual for layer, *_ in results]), whole.dresidual, 1e-12)
    for layer, *_ in results:
        assert_close(layer.running_mean, whole.running_mean, 1e-12)
        assert_close(layer.running_var, whole.running_var, 1e-12)  # by (sum w)^2 / sum(w^2) of all ranks


def test_several_kept_axes_and_channels_last():
    for shape, axis, kept in (((3, 5), (1, 2), (3, 5)), ((5, 3), -1, (3,)), ((3, 5), (), ())):
        parts = parts_of((2, 6), np.float64, shape)
        options = {"axis": axis, "dtype": "float64"}
        results = step_of(parts, lambda rank, o=options, k=kept: a_sync_layer(rank, k, **o))
        whole = set_parameters(bn.BatchNorm(kept, **options))
        whole(np.concatenate([x for x, _ in parts]))
        dx = whole.backward(np.concatenate([dy for _, dy in parts]))
        assert_close(np.concatenate([dx for *_, dx in results]), dx, 1e-12)


@pytest.mark.parametrize("ranks_per_group", [1, 2, 3, 5])
def test_groups_of_ranks(ranks_per_group, comm_of):
    parts = parts_of((2, 6, 3, 4, 5), np.float64)

    def layer_of(rank):
        return a_sync_layer(comm_of(rank), ranks_per_group=ranks_per_group, dtype="float64")

    results = step_of(parts, layer_of)
    for first in range(0, 5, ranks_per_group):
        group = slice(first, first + ranks_per_group)
        whole = set_parameters(bn.BatchNorm(3, dtype="float64"))
        whole(np.concatenate([x for x, _ in parts[group]]))
        dx = whole.backward(np.concatenate([dy for _, dy in parts[group]]))
        assert_close(np.concatenate([dx for *_, dx in results[group]]), dx, 1e-12)
        assert_close(results[first][0].running_mean, whole.running_mean, 1e-12)


def test_one_buffer_each_way():
    def work(rank):
        layer = a_sync_layer(rank)
        rank.sent.clear()
        layer(parts[rank.rank][0])
        layer.backward(parts[rank.rank][1])
        return rank.sent

    parts = parts_of((2, 6))
    for sent in on_ranks(2, work):
        assert [buffer.size for buffer in sent] == [1 + 4 * 3, 1 + 2 * 3]


def test_in_other_modes_ranks_do_not_meet():
    def work(rank):
        layer = a_sync_layer(rank)
        rank.sent.clear()
        x = parts[rank.rank][0]
        plain = set_parameters(bn.BatchNorm(3))
        assert same_bits(layer.eval()(x), plain.eval()(x))
        assert same_bits(layer.freeze()(x), plain.freeze()(x))
        assert same_bits(layer.backward(x), plain.backward(x))
        return rank.sent

    parts = parts_of((2, 6))
    assert on_ranks(2, work) == [[], []]


def test_micro_batches_on_each_rank():
    parts = parts_of((2, 6, 3, 1, 0), np.float64)
    shares = [parts[:2], parts[2:]]

    def work(rank):
        layer = a_sync_layer(rank, dtype="float64")

        def step(part):
            layer(part[0])
            return layer.backward(part[1])

        return bn.accumulate(step, shares[rank.rank], [layer]), layer

    (first, layer), (second, other) = on_ranks(2, work)
    whole = set_parameters(bn.BatchNorm(3, dtype="float64"))
    whole(np.concatenate([x for x, _ in parts]))
    dx = whole.backward(np.concatenate([dy for _, dy in parts]))
    assert_close(np.concatenate(first + second), dx, 1e-12)
    assert_close(layer.running_var, whole.running_var, 1e-12)
    assert same_bits(layer.running_var, other.running_var)
    assert layer.num_batches_tracked == 1


def test_an_empty_batch_on_all_ranks():
    for layer, y, dx in step_of(parts_of((0, 0)), a_sync_layer):
        assert y.shape == dx.shape == (0, 3, 5)
        assert layer.num_batches_tracked == 0
        assert not layer.dgamma.any()


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    parts = parts_of((2, 0, 6))
    ours = step_of(parts, a_sync_layer)
    theirs = step_of([tuple(map(torch.from_numpy, part)) for part in parts], a_sync_layer)
    for (_, *want), (_, *got) in zip(ours, theirs, strict=True):
        assert all(isinstance(t, torch.Tensor) for t in got)
        assert all(same_bits(t.numpy(), a) for t, a in zip(got, want, strict=True))


def through_float32(parts, eps):
    """The variances of all parts when each sends its mean and 1/sqrt(var + eps) in float32, as PyTorch's ranks do
    (torch/nn/modules/_functions.py and aten/src/ATen/native/cuda/Normalization.cuh). Merging is exact here."""
    sent = [(np.float32(p.mean(0)), np.float32(1 / np.sqrt(p.var(0) + eps)), len(p)) for p in parts]
    return bn.Moments.merge(
        bn.Moments(np.float64(mean), (1 / np.float64(inv_std) ** 2 - eps) * n, n) for mean, inv_std, n in sent
    ).var()


@pytest.mark.parametrize("mean", [0, 1])
def test_a_small_variance_keeps_its_digits(mean):
    """1e-9, below eps: exact here, while 1/sqrt(var + eps) in float32 leaves three digits of it.

    A relative error of 2**-25 in it is one of 2 * 2**-25 * (var + eps) in var, 6e-4 of 1e-9.
    """
    rng = np.random.default_rng(0)
    xs = [(mean + np.sqrt(1e-9) * rng.standard_normal((n, 64))).astype(np.float32) for n in (300, 500)]
    results = step_of([(x, x) for x in xs], lambda rank: SyncBatchNorm(64, comm=rank, momentum=1.0, dtype="float64"))
    whole = np.concatenate(xs).astype(np.float64)
    # The mean is a float64 number of size 1: it is known to 2**-53, 4e-12 standard deviations, the deviations likewise.
    assert np.max(np.abs(results[0][0].running_var / whole.var(0, ddof=1) - 1)) < 1e-11
    assert np.max(np.abs(through_float32([x.astype(np.float64) for x in xs], 1e-5) / whole.var(0) - 1)) > 1e-4


# -------------------------------------------------------------------------------------------------- what it refuses


def test_ranks_that_disagree_on_channels():
    errors = on_ranks(3, lambda rank: SyncBatchNorm(4 if rank.rank == 1 else 3, comm=rank))
    assert all(isinstance(error, ValueError) for error in errors)
    assert "num_features is (4,) on rank 1 and (3,) here" in str(errors[0])
    assert "num_features is (3,) on rank 0 and (4,) here" in str(errors[1])
    shapes = [{"num_features": 6}, {"num_features": (2, 3), "axis": (1, 2)}]
    errors = on_ranks(2, lambda rank: SyncBatchNorm(comm=rank, **shapes[rank.rank]))
    assert all(isinstance(error, ValueError) for error in errors)


def test_an_error_of_one_rank_reaches_all():
    good = parts_of((4, 4, 4))
    x = good[0][0]

    def forward(rank):
        layer = a_sync_layer(rank)
        before = layer.state_dict()
        try:
            layer(x[:, :2] if rank.rank == 1 else x)
        except (ValueError, RuntimeError) as error:
            assert all(same_bits(layer.state_dict()[key], before[key]) for key in before)
            layer(x)  # and all are in step again
            return error

    def backward(rank):
        layer = a_sync_layer(rank)
        layer(x)
        try:
            layer.backward(x[:2] if rank.rank == 1 else x)
        except (ValueError, RuntimeError) as error:
            layer.backward(x)
            return error

    first, culprit, last = on_ranks(3, forward)
    assert isinstance(culprit, ValueError)
    assert "features" in str(culprit)
    for error in (first, last):
        assert isinstance(error, RuntimeError)
        assert "forward of SyncBatchNorm(3" in str(error)
        assert "rank 1" in str(error)
    first, culprit, last = on_ranks(3, backward)
    assert isinstance(culprit, ValueError)
    assert "dy has shape" in str(culprit)
    for error in (first, last):
        assert isinstance(error, RuntimeError)
        assert "backward of SyncBatchNorm(3" in str(error)


def overlapping(x):
    """An array like x whose memory it shares in part."""
    memory = np.zeros(x.size + 1, x.dtype)
    memory[:-1] = x.ravel()
    return memory[:-1].reshape(x.shape), memory[1:].reshape(x.shape)


def assert_reached_all(raised, error, message, said):
    """Rank 1's error is its own, and what all others are told."""
    first, culprit, last = raised
    assert isinstance(culprit, error)
    assert re.search(message, str(culprit))
    for other in (first, last):
        assert isinstance(other, RuntimeError)
        assert said in str(other)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: {"residual": x[:2]}, ValueError, r"residual has shape \(2, 3, 5\), expected"),
        (lambda x: {"residual": x.astype(np.float64)}, TypeError, "residual is float64, expected"),
        (lambda x: {"residual": x.tolist()}, TypeError, "residual is list"),
        (lambda x: {"out": x[:, :, :2].copy()}, ValueError, "out has shape"),
        (lambda x: {"out": x.astype(np.float16)}, TypeError, "out is float16"),
        (lambda x: dict(zip(("x", "out"), overlapping(x), strict=True)), ValueError, "out overlaps x"),
    ],
)
def test_a_wrong_residual_or_out_of_one_rank_reaches_all(wrong, error, message, weighted):
    """Before the exchange, as a wrong x does: no rank goes on, and none waits."""
    x = parts_of((4,))[0][0]
    weights = np.random.default_rng(0).uniform(1, 2, (4, 5)) if weighted else None

    def work(rank):
        layer = a_sync_layer(rank)
        before = layer.state_dict()
        out = np.full_like(x, 7)
        call = {"x": x, "residual": x, "out": out, "weights": weights}
        try:
            layer(**{**call, **(wrong(x) if rank.rank == 1 else {})})
        except (TypeError, ValueError, RuntimeError) as raised:
            assert np.all(out == 7)
            assert all(same_bits(layer.state_dict()[key], before[key]) for key in before)
            layer(**call)  # and all are in step again
            return raised

    assert_reached_all(on_ranks(3, work), error, message, "rank 1")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x[:2].copy(), ValueError, "out has shape"),
        (lambda x: x.astype(np.float64), TypeError, "out is float64"),
        (lambda x: (np.empty_like(x),) * 3, TypeError, "out is a tuple of 3"),
    ],
)
def test_a_wrong_out_of_one_rank_s_backward_reaches_all(wrong, error, message, residual):
    x, dy = parts_of((4,))[0]

    def work(rank):
        layer = a_sync_layer(rank, activation="relu")
        layer(x, residual=dy if residual else None)
        out = np.full_like(x, 7)
        try:
            layer.backward(dy, out=wrong(x) if rank.rank == 1 else out)
        except (TypeError, ValueError, RuntimeError) as raised:
            assert np.all(out == 7)
            assert layer.backward(dy, out=out) is out
            return raised

    assert_reached_all(on_ranks(3, work), error, message, "backward of SyncBatchNorm(3")


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_outputs_of_one_s_own(kind):
    """Which the check before the exchange leaves alone: what they hold at the end is what is returned."""
    parts = parts_of((4, 0, 3))
    wanted = step_of(parts, lambda rank: a_sync_layer(rank, activation="relu"), residual=[dy for _, dy in parts])
    as_kind = np.asarray if kind == "numpy" else pytest.importorskip("torch").from_numpy

    def work(rank):
        x, dy = (as_kind(array.copy()) for array in parts[rank.rank])
        layer = a_sync_layer(rank, activation="relu")
        y, dx, dresidual = (as_kind(np.empty_like(parts[rank.rank][0])) for _ in range(3))
        assert layer(x, residual=dy, out=y) is y
        assert layer.backward(dy, out=(dx, dresidual)) is dx
        return np.asarray(y), np.asarray(dx), np.asarray(dresidual)

    for (y, dx, dresidual), (layer, want, want_dx) in zip(on_ranks(3, work), wanted, strict=True):
        assert same_bits(y, want)
        assert same_bits(dx, want_dx)
        assert same_bits(dresidual, layer.dresidual)


def test_one_value_per_channel_on_all_ranks_together():
    x = np.zeros((1, 3), np.float32)
    for error in on_ranks(2, lambda rank: a_sync_layer(rank)(x[rank.rank :])):
        assert isinstance(error, ValueError)
        assert "one value per channel" in str(error)


def test_a_rank_that_never_comes():
    """The engine gives up, here after half a second, and the error says so."""
    x = np.zeros((4, 3), np.float32)

    def work(rank):
        layer = a_sync_layer(rank)
        return None if rank.rank == 1 else layer(x)

    first, _, last = on_ranks(3, work, timeout=0.5)
    for error in (first, last):
        assert isinstance(error, RuntimeError)
        assert "allgather of comm failed" in str(error)
        assert "has died, or did not call the same layer" in str(error)
        assert isinstance(error.__cause__, threading.BrokenBarrierError)


def test_ranks_in_different_layers():
    def work(rank):
        layers = [a_sync_layer(rank, n) for n in (3, 4)]
        layer = layers[rank.rank]
        return layer(np.zeros((4, layer.num_features), np.float32))

    for error, count in zip(on_ranks(2, work), (4, 3), strict=True):
        assert isinstance(error, RuntimeError)
        assert f"{count} statistics came from rank" in str(error)


class Alone:
    """The least communicator: of one rank."""

    def allgather(self, buffer):
        return [buffer]

    def allreduce(self, buffer):
        return buffer


def test_wrong_arguments():
    for comm in (None, "gloo", object()):
        with pytest.raises(TypeError, match=r"comm is \w+, expected an mpi4py.MPI.Comm.*no allgather"):
            SyncBatchNorm(3, comm=comm)
    with pytest.raises(ValueError, match="group_size must be None, got 4"):
        SyncBatchNorm(3, comm=Alone(), group_size=4)
    with pytest.raises(ValueError, match="ranks_per_group must be at least 1, got 0"):
        SyncBatchNorm(3, comm=Alone(), ranks_per_group=0)
    with pytest.raises(TypeError, match="ranks_per_group needs a comm with a method split, Alone has none"):
        SyncBatchNorm(3, comm=Alone(), ranks_per_group=2)
    with pytest.raises(TypeError, match=r"ranks_per_group must be an int, got 2\.5"):
        SyncBatchNorm(3, comm=Alone(), ranks_per_group=2.5)
    with pytest.raises(ValueError, match="eps must be positive"):
        SyncBatchNorm(3, comm=Alone(), eps=0)


def test_copies():
    x = parts_of((4,))[0][0]
    layer = a_sync_layer(Alone())
    again = copy.deepcopy(layer)
    assert same_bits(again(x), layer(x))
    assert not np.shares_memory(again.gamma, layer.gamma)
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        pickle.dumps(layer)
    plain = bn.BatchNorm(3)
    plain.load_state_dict(layer.state_dict())
    assert same_bits(plain.running_var, layer.running_var)
    assert repr(layer) == "SyncBatchNorm(3, axis=1, eps=1e-05, momentum=0.1, dtype='float32', mode='train')"


# ----------------------------------------------------------------------------------------------- ranks as processes


def test_importing_it_imports_no_engine():
    code = """
        import sys, batchnorm
        print(batchnorm.distributed.SyncBatchNorm.__name__, "torch" in sys.modules, "mpi4py" in sys.modules)
        """
    assert output_of(code) == "SyncBatchNorm False False"


# One thread to each: the sums of a matrix product may depend on how many share it, and the cores are few.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "BATCHNORM_NUM_THREADS": "1",
               "GLOO_SOCKET_IFNAME": "lo", "PYTHONUTF8": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the digits, and what one process learns from them."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    folder = tmp_path_factory.mktemp("digits")
    digits = datasets.load_digits()
    images = ((digits.images[:1280, None] - digits.images.mean()) / digits.images.std()).astype(np.float32)
    np.savez(folder / "data.npz", images=images, labels=digits.target[:1280])
    done = run_python(WORKER, folder, "alone", **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder


def learned(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return list(arrays.values())


def check_training(folder, engine, size):
    merged, whole = learned(folder, f"alone-{size}"), learned(folder, "alone-1")
    assert len(merged) == 4 * (1 + 2) + 2 + 4 * 2  # convolutions with gamma and beta, dense layer; running statistics
    for rank in range(size):
        ours = learned(folder, f"{engine}-{size}-{rank}")
        assert all(map(same_bits, ours, merged))
    for a, b in zip(ours, whole, strict=True):
        assert_close(a, b, 1e-6)


def assert_passed(processes):
    assert all(p.returncode == 0 for p in processes), "\n".join(p.stderr for p in processes)


@pytest.mark.parametrize("size", [2, 4])
def test_training_over_gloo(folder, size):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("gloo comes with torch, which is not installed")
    assert_passed(run_together([[sys.executable, WORKER, folder, "gloo", str(size)]], **ENVIRONMENT))
    check_training(folder, "gloo", size)


@functools.cache
def mpiexec():
    """Its path; skips where MPI does not run."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install batchnorm[mpi]")
    beside = Path(sys.executable).with_name("mpiexec")
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        pytest.skip("mpi4py is installed, mpiexec is not: pip install mpich")
    [done] = run_together([[path, "-n", "2", sys.executable, "-c", "from mpi4py import MPI"]])
    if done.returncode != 0:
        pytest.skip(f"mpiexec does not run mpi4py here: {(done.stderr or done.stdout).strip()[-300:]}")
    return path


@pytest.mark.parametrize("size", [2, 4])
def test_training_over_mpi(folder, size):
    # -m mpi4py: an error on one rank ends all.
    command = [mpiexec(), "-n", str(size), sys.executable, "-m", "mpi4py", WORKER, folder, "mpi", str(size)]
    assert_passed(run_together([command], **ENVIRONMENT))
    check_training(folder, "mpi", size)


GLOO = """
import datetime, os, sys
import numpy as np
import torch.distributed as dist
import batchnorm as bn

rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
limit = datetime.timedelta(seconds=20)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=size, timeout=limit)
x = np.arange(12, dtype=np.float32).reshape(4, 3) + 100 * rank
"""


def run_gloo(tmp_path, size, code):
    pytest.importorskip("torch", reason="gloo comes with torch")
    commands = [[sys.executable, "-c", GLOO + code, str(r), str(size), str(tmp_path / "store")] for r in range(size)]
    return run_together(commands, **ENVIRONMENT)


def test_a_gloo_rank_that_dies(tmp_path):
    code = """
layer = bn.distributed.SyncBatchNorm(3, comm=dist.group.WORLD)
layer(x)
if rank == 1:
    os._exit(3)
try:
    layer.backward(x)
except RuntimeError as error:
    print(error, flush=True)
    os._exit(0)
"""
    first, dead = run_gloo(tmp_path, 2, code)
    assert dead.returncode == 3, dead.stderr
    assert first.returncode == 0, first.stderr
    assert "of comm failed" in first.stdout
    assert "another rank has died" in first.stdout


def test_gloo_groups_and_channels(tmp_path):
    code = """
layer = bn.distributed.SyncBatchNorm(3, comm=dist.group.WORLD, ranks_per_group=2, momentum=1.0)
layer(x)
print(layer.running_mean.tolist())
print(layer._exchange.engine.group.size(), layer._exchange.engine.group._get_backend(
    __import__("torch").device("cpu")).options._timeout)
try:
    bn.distributed.SyncBatchNorm(3 + rank, comm=dist.group.WORLD)
except ValueError as error:
    print(error)
import torch
try:
    torch.nn.SyncBatchNorm(3)(torch.from_numpy(x))
except ValueError as error:
    print("PyTorch's:", error)
dist.barrier()
dist.destroy_process_group()
"""
    done = run_gloo(tmp_path, 3, code)
    assert_passed(done)
    means = [[54.5, 55.5, 56.5], [54.5, 55.5, 56.5], [204.5, 205.5, 206.5]]
    for rank, (process, mean) in enumerate(zip(done, means, strict=True)):
        lines = process.stdout.splitlines()
        assert lines[:2] == [str(mean), f"{1 if rank == 2 else 2} 0:00:20"]  # its own engine's timeout too
        assert lines[2].startswith("num_features is (")
        assert lines[3].startswith("PyTorch's: SyncBatchNorm expected input tensor to be on")
