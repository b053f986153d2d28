"""What SyncBatchNorm's exchanges cost ResNet-50 on 8 to 100,000 ranks, on paper: measured here, modelled there.

The layers' and SyncBatchNorm's own work is measured; a message of n bytes takes alpha + n * beta (Hockney 1994), in the
collectives of Thakur, Rabenseifner and Gropp (2005). docs/scaling.md tells what comes out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import batchnorm as bn
from batchnorm.distributed import SyncBatchNorm
from batchnorm.parts import merged_sums

RANKS = (8, 64, 512, 4096, 32768, 100_000)
ACCELERATOR = 0.013  # seconds of a whole step with 32 samples, an assumption
GROUP = 8  # ranks_per_group
_STAGES = ((56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3))  # side, channels, blocks


class Layer(NamedTuple):
    """A batch norm layer: its channels and the side of its planes."""

    channels: int
    side: int
    role: str = ""  # "downsample", and "joined": the block's last one, whose output that branch is added to


def _layers() -> list[Layer]:
    found = [Layer(64, 112)]
    for side, channels, blocks in _STAGES:
        found += [Layer(channels, side)] * (2 * blocks) + [Layer(4 * channels, side)] * (blocks - 1)
        found += [Layer(4 * channels, side, "joined"), Layer(4 * channels, side, "downsample")]
    return found


LAYERS = _layers()


class Network(NamedTuple):
    """Seconds before a message's first byte, and seconds for each byte."""

    name: str
    alpha: float
    beta: float


NETWORKS = (
    Network("Ethernet, 20 us, 25 Gb/s", 20e-6, 8 / 25e9),
    Network("InfiniBand, 2 us, 200 Gb/s", 2e-6, 8 / 200e9),
    Network("NVLink-like, 5 us, 2400 Gb/s", 5e-6, 8 / 2400e9),
)
Pair = npt.NDArray[np.float64]
Collective = Callable[[int, float, Network], float]
"""Seconds for so many ranks, each with a buffer of so many bytes."""


def _rounds(ranks: int) -> int:
    return (ranks - 1).bit_length()  # log2, rounded up


def ring_allgather(ranks: int, size: float, network: Network) -> float:
    return (ranks - 1) * (network.alpha + size * network.beta)


def tree_allgather(ranks: int, size: float, network: Network) -> float:
    """By recursive doubling."""
    return _rounds(ranks) * network.alpha + (ranks - 1) * size * network.beta


def ring_allreduce(ranks: int, size: float, network: Network) -> float:
    return 2 * (ranks - 1) * (network.alpha + size / ranks * network.beta)


def tree_allreduce(ranks: int, size: float, network: Network) -> float:
    """Up a binomial tree and down again."""
    return 2 * _rounds(ranks) * (network.alpha + size * network.beta)


def payload(channels: int) -> tuple[int, int]:
    """Bytes that a rank sends forward (counts, squares, mean, m2) and backward (two sums), a status before each."""
    return 8 * (1 + 4 * channels), 8 * (1 + 2 * channels)


class Costs(NamedTuple):
    """Measured here, forward and backward: seconds of packing, of merging one part more, and of all layers' work."""

    packing: dict[int, Pair]  # by channels
    merging: dict[int, Pair]
    compute: float


class Scheme(NamedTuple):
    """A way to exchange statistics: what carries them, and how many parts each rank then merges by itself."""

    name: str
    collective: Collective
    merged: Callable[[int], float]
    coalesced: bool = False
    overlapped: bool = False
    group: int | None = None


SCHEMES = (
    Scheme("today, ring", ring_allgather, float),
    Scheme("today, tree", tree_allgather, float),
    Scheme("allreduce, ring", ring_allreduce, lambda ranks: 1.0),
    Scheme("allreduce, tree", tree_allreduce, _rounds),
    Scheme("tree, 4 pairs", tree_allreduce, _rounds, coalesced=True),
    Scheme("4 pairs, overlap", tree_allreduce, _rounds, coalesced=True, overlapped=True),
    Scheme(f"today, groups of {GROUP}", tree_allgather, float, group=GROUP),
)


def exchange(scheme: Scheme, ranks: int, network: Network, costs: Costs, window: float = 0.0) -> tuple[float, float]:
    """Seconds of a step that all layers wait, forward and backward; window: other work for each backward exchange."""
    ranks, waits = min(ranks, scheme.group or ranks), [0.0, 0.0]
    for layer in LAYERS:
        if scheme.coalesced and layer.role == "downsample":
            continue
        messages = 2 if scheme.coalesced and layer.role == "joined" else 1
        for direction, size in enumerate(payload(layer.channels)):
            merging = messages * scheme.merged(ranks) * costs.merging[layer.channels][direction]
            sent = scheme.collective(ranks, messages * size, network)
            hidden = min(sent, window) if scheme.overlapped and direction == 1 else 0.0
            waits[direction] += costs.packing[layer.channels][direction] + merging + sent - hidden
    return waits[0], waits[1]


class SameParts:
    """A communicator whose ranks all have this one's buffer."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def allgather(self, buffer: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        return list(np.tile(buffer, (self.ranks, 1)))  # received into memory of their own, as from an engine

    def allreduce(self, buffer: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return merged_sums(self.allgather(buffer))


def _fastest(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _compute(channels: int, side: int, samples: int, repeats: int) -> tuple[float, float]:
    x = np.random.default_rng(0).standard_normal((samples, channels, side, side), np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    saved = bn.normalize(x, bn.moments(x), out=y)[1]
    forward = _fastest(lambda: bn.normalize(x, bn.moments(x), out=y), repeats)
    return forward, _fastest(lambda: bn.input_grad(y, x, saved, bn.grad_sums(y, x, saved), out=dx), repeats)


def _both_ways(layer: bn.BatchNorm, x: npt.NDArray[np.float32], repeats: int) -> Pair:
    def backward() -> None:
        layer(x)
        layer.backward(x)

    forward = _fastest(lambda: layer(x), repeats)
    return np.array([forward, _fastest(backward, repeats) - forward])


def measure(samples: int, repeats: int) -> tuple[dict[tuple[int, int], tuple[float, float]], Costs]:
    """Seconds of each shape's forward and backward, and the `Costs`, merging as 64 parts take longer than 2."""
    shapes = Counter((layer.channels, layer.side) for layer in LAYERS)
    times = {shape: _compute(*shape, samples, repeats) for shape in shapes}
    packing, merging = {}, {}
    for channels in sorted({channels for channels, _ in shapes}):
        x = np.random.default_rng(0).standard_normal((2, channels), np.float32)
        layers = bn.BatchNorm(channels), *(SyncBatchNorm(channels, comm=SameParts(ranks)) for ranks in (2, 64))
        plain, few, many = (_both_ways(layer, x, 20 * repeats) for layer in layers)
        part = np.maximum((many - few) / 62, 0)
        packing[channels], merging[channels] = np.maximum(few - 2 * part - plain, 0), part
    return times, Costs(packing, merging, sum(sum(times[shape]) * count for shape, count in shapes.items()))


def _gloo_rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    engine = bn.distributed.communicator(dist.group.WORLD)
    times = [_fastest(partial(engine.allgather, np.zeros(n)), 500) for n in (1, 8193)]
    np.save(f"{folder}/{rank}.npy", times)
    dist.barrier()
    dist.destroy_process_group()


def measure_gloo() -> Network:
    """Alpha and beta from allgathers of 8 and of 65,544 bytes by two processes on this machine."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_gloo_rank, (folder,), nprocs=2)
        short, long = map(float, np.load(f"{folder}/0.npy"))
    beta = max(long - short, 1e-9) / (65_544 - 8)
    return Network(f"gloo here, {1e6 * short:.0f} us, {8e-9 / beta:.1f} Gb/s", short, beta)


def _share(seconds: float, step: float) -> float:
    return 100 * seconds / (seconds + step)


def draw(file: Path, costs: Costs, step: float) -> None:
    """The exchange's share of a step against the ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.4), layout="constrained")
    axes = figure.subplots(2, len(NETWORKS), sharex=True, sharey=True)
    ranks = [8 * 2**power for power in range(14)] + [RANKS[-1]]
    rows = (
        ("batch norm's own time (measured)", costs.compute, 0.0),
        (f"an accelerator's whole step of {1e3 * step:.0f} ms (assumed)", step, step / 3 / len(LAYERS)),
    )
    for (what, compute, window), panels in zip(rows, axes, strict=True):
        panels[0].set_ylabel(f"exchange, % of itself and\n{what}", fontsize=9)
        for network, panel in zip(NETWORKS, panels, strict=True):
            for color, scheme in enumerate(SCHEMES):
                if scheme.overlapped and not window:
                    continue
                shares = [_share(sum(exchange(scheme, r, network, costs, window)), compute) for r in ranks]
                style = {"linestyle": "--" if scheme.coalesced else "-", "linewidth": 3.0 if color == 0 else 1.4}
                panel.semilogx(ranks, shares, f"C{color}", label=scheme.name, **style)
            panel.set(title=network.name, xlabel="ranks", ylim=(0, 102))
            panel.grid(color="#dddddd", linewidth=0.6)
    figure.legend(
        *axes[-1][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(SCHEMES),
        frameon=False,
        fontsize=9,
    )
    figure.savefig(file, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="of each rank (default: %(default)s)")
    parser.add_argument("--step-ms", type=float, default=1e3 * ACCELERATOR, help="of an accelerator (assumed)")
    parser.add_argument("--png", type=Path, help="draw the picture")
    parser.add_argument("--quick", action="store_true", help="one sample, few repeats, no processes")
    options = parser.parse_args()
    bn.set_num_threads(1)  # a rank for each core
    step, networks = options.step_ms / 1e3, list(NETWORKS)
    times, costs = measure(1 if options.quick else options.samples, 1 if options.quick else 9)

    print("| layer (measured) | forward ms | backward ms |\n|---|---|---|")
    for (channels, side), (forward, backward) in times.items():
        print(f"| {channels} x {side} x {side} | {1e3 * forward:.2f} | {1e3 * backward:.2f} |")
    fixed, part = (sum(sum(cost[layer.channels]) for layer in LAYERS) for cost in (costs.packing, costs.merging))
    print(f"\nall {len(LAYERS)}: {1e3 * costs.compute:.0f} ms; packing {1e3 * fixed:.1f}, a part {1e3 * part:.2f} ms\n")
    print("| channels | bytes sent | packing us (measured) | each part us (measured) |\n|---|---|---|---|")
    for channels, (forward, backward) in costs.packing.items():
        each = " / ".join(f"{1e6 * seconds:.2f}" for seconds in costs.merging[channels])
        sent = " / ".join(f"{size:,}" for size in payload(channels))
        print(f"| {channels} | {sent} | {1e6 * forward:.0f} / {1e6 * backward:.0f} | {each} |")
    if not options.quick:
        try:
            networks.append(measure_gloo())
        except ImportError as error:
            print(f"\nno gloo: {error}")
    for network in networks:
        print(f"\n{network.name}: ms of exchange in a step (% of it and a step of {options.step_ms:.0f} ms)\n")
        print("| ranks | " + " | ".join(scheme.name for scheme in SCHEMES) + " |\n|" + "---|" * (1 + len(SCHEMES)))
        for ranks in RANKS:
            found = [sum(exchange(s, ranks, network, costs, step / 3 / len(LAYERS))) for s in SCHEMES]
            print(
                f"| {ranks:,} | "
                + " | ".join(f"{1e3 * t:,.{int(t < 0.1)}f} ({_share(t, step):.0f})" for t in found)
                + " |"
            )
    if options.png:
        draw(options.png, costs, step)


if __name__ == "__main__":
    main()
