"""The model of what SyncBatchNorm costs on many ranks: its arithmetic, its payloads, and that it runs; no times."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from child import run_python

from batchnorm.bench import scaling
from batchnorm.bench.scaling import LAYERS, SCHEMES, Costs, Network, exchange
from batchnorm.distributed import SyncBatchNorm

COLLECTIVES = [scaling.ring_allgather, scaling.tree_allgather, scaling.ring_allreduce, scaling.tree_allreduce]
NETWORK = Network("a message takes 3 s and 2 s for each byte", 3.0, 2.0)
CHANNELS = {layer.channels for layer in LAYERS}
NOTHING = Costs({c: np.zeros(2) for c in CHANNELS}, {c: np.zeros(2) for c in CHANNELS}, 1.0)


def scheme(name):
    [found] = [scheme for scheme in SCHEMES if scheme.name == name]
    return found


def test_layers_of_resnet_50():
    assert len(LAYERS) == 53
    assert sum(layer.channels for layer in LAYERS) == 26_560
    assert {(layer.channels, layer.side) for layer in LAYERS} == {
        (64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)
    }  # fmt: skip
    joined, downsample = ([layer[:2] for layer in LAYERS if layer.role == role] for role in ("joined", "downsample"))
    assert joined == downsample == [(256, 56), (512, 28), (1024, 14), (2048, 7)]


@pytest.mark.parametrize(
    ("ranks", "size", "seconds"),
    [
        (1, 10, [0, 0, 0, 0]),
        (2, 0, [3, 3, 6, 6]),
        (2, 10, [3 + 20, 3 + 20, 6 + 20, 6 + 40]),
        (8, 10, [21 + 140, 9 + 140, 42 + 35, 18 + 120]),
        (5, 0, [12, 9, 24, 18]),
    ],
)
def test_collectives(ranks, size, seconds):
    assert [collective(ranks, size, NETWORK) for collective in COLLECTIVES] == seconds


def test_a_step_is_the_sum_over_the_layers():
    latency, bandwidth = Network("", 1.0, 0.0), Network("", 0.0, 1.0)
    assert exchange(scheme("today, ring"), 8, latency, NOTHING) == (53 * 7, 53 * 7)
    assert exchange(scheme("allreduce, tree"), 8, latency, NOTHING) == (53 * 6, 53 * 6)
    assert exchange(scheme("tree, 4 pairs"), 8, latency, NOTHING) == (49 * 6, 49 * 6)
    forward, backward = 8 * (53 + 4 * 26_560), 8 * (53 + 2 * 26_560)
    assert exchange(scheme("today, tree"), 8, bandwidth, NOTHING) == (7 * forward, 7 * backward)
    for name in ("allreduce, tree", "tree, 4 pairs"):  # the same bytes
        assert exchange(scheme(name), 8, bandwidth, NOTHING) == (6 * forward, 6 * backward)


def test_work_of_the_ranks_themselves():
    costs = Costs({c: np.array([1.0, 2.0]) for c in CHANNELS}, {c: np.array([10.0, 20.0]) for c in CHANNELS}, 1.0)
    free = Network("", 0.0, 0.0)
    assert exchange(scheme("today, ring"), 8, free, costs) == (53 * 81, 53 * 162)
    assert exchange(scheme("allreduce, tree"), 8, free, costs) == (53 * 31, 53 * 62)
    assert exchange(scheme("tree, 4 pairs"), 8, free, costs) == (49 + 53 * 30, 98 + 53 * 60)


def test_overlap_hides_backward_alone_and_no_more_than_there_is():
    overlap, latency = scheme("4 pairs, overlap"), Network("", 1.0, 0.0)
    assert exchange(overlap, 8, latency, NOTHING, 0.0) == (49 * 6, 49 * 6)
    assert exchange(overlap, 8, latency, NOTHING, 2.0) == (49 * 6, 49 * 4)
    assert exchange(overlap, 8, latency, NOTHING, 100.0) == (49 * 6, 0)


def test_groups_bound_the_ranks():
    group = scheme("today, groups of 8")
    few, many = (exchange(group, ranks, NETWORK, NOTHING) for ranks in (8, 100_000))
    assert few == many == exchange(scheme("today, tree"), 8, NETWORK, NOTHING)


@pytest.mark.parametrize("channels", sorted(CHANNELS))
def test_payload_is_what_is_sent(channels):
    sent = []

    class Counting(scaling.SameParts):
        def allgather(self, buffer):
            sent.append(buffer.nbytes)
            return super().allgather(buffer)

    layer = SyncBatchNorm(channels, comm=Counting(2))
    sent.clear()  # making the layer compares num_features
    x = np.random.default_rng(0).standard_normal((3, channels, 2, 2), np.float32)
    layer.backward(layer(x))
    assert tuple(sent) == scaling.payload(channels)


def test_it_runs(tmp_path):
    drawing = tmp_path / "scaling.png"
    picture = importlib.util.find_spec("matplotlib") is not None
    options = [f"--png={drawing}"] if picture else []
    done = run_python("-m", "batchnorm.bench.scaling", "--quick", *options, MPLCONFIGDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 100,000 |") == len(scaling.NETWORKS)
    if not picture:
        pytest.skip("the picture needs matplotlib")
    assert drawing.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_page_has_the_payloads():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    for channels in CHANNELS:
        assert "| {} | {:,} / {:,} |".format(channels, *scaling.payload(channels)) in page
