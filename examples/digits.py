"""Batch norm in a small convolutional network, written in plain NumPy around bn.BatchNorm.

Trains on the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, with and without batch norm, at several
learning rates and with several seeds each. Prints a table and draws the test accuracy over the epochs::

    pip install "batchnorm[examples]"
    python examples/digits.py

The two networks differ in the batch norm layers alone: initial weights, data, order of the batches, learning rates and
their schedule are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import batchnorm as bn

LEARNING_RATES = (0.03, 0.1, 0.3, 1.0)
BATCH_SIZE = 64
TARGET = 0.95  # the test accuracy to reach in few epochs
DIVERGED = 0.5  # a run that ends below this test accuracy has diverged; chance is 0.1

# ---------------------------------------------------------------------------------------------------------- layers
# A layer maps x to y when called, takes dL/dy to dL/dx in backward, and yields (name, value, gradient) of all that it
# learns. bn.BatchNorm is such a layer as well. Images are float32 arrays of shape (samples, channels, height, width).


class Conv:
    """3x3 convolution with zero padding, as a matrix product with the nine shifted copies of the images (im2col)."""

    def __init__(self, inputs, outputs, rng, bias=True):
        scale = np.sqrt(2 / (9 * inputs))  # He et al., 2015: the variance survives the ReLU
        self.weight = rng.normal(0, scale, (outputs, inputs, 3, 3)).astype(np.float32)
        self.bias = np.zeros((outputs, 1), np.float32) if bias else None
        self.dweight, self.dbias = np.zeros_like(self.weight), np.zeros((outputs, 1), np.float32)

    def __call__(self, x):
        n, _, h, w = x.shape
        self.columns = im2col(x)
        y = self.weight.reshape(len(self.weight), -1) @ self.columns
        if self.bias is not None:
            y += self.bias
        return y.reshape(n, len(self.weight), h, w)

    def backward(self, dy):
        n, outputs, h, w = dy.shape
        flat = dy.reshape(n, outputs, h * w)
        self.dweight[...] = (flat @ self.columns.transpose(0, 2, 1)).sum(axis=0).reshape(self.weight.shape)
        self.dbias[...] = flat.sum(axis=(0, 2))[:, None]
        # dx is a convolution too: of dy, with the kernels turned by 180 degrees, from outputs to inputs.
        turned = self.weight[:, :, ::-1, ::-1].swapaxes(0, 1)
        return (turned.reshape(len(turned), -1) @ im2col(dy)).reshape(n, len(turned), h, w)

    def parameters(self):
        yield "weight", self.weight, self.dweight
        if self.bias is not None:
            yield "bias", self.bias, self.dbias


def im2col(x):
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.stack(shifted, axis=2).reshape(n, c * 9, h * w)


class ReLU:
    def __call__(self, x):
        self.y = np.maximum(x, 0)
        return self.y

    def backward(self, dy):
        return dy * (self.y > 0)

    def parameters(self):
        return ()


class Pool:
    """Average of each 2x2 block."""

    def __call__(self, x):
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4

    def backward(self, dy):
        return dy.repeat(2, axis=2).repeat(2, axis=3) / 4

    def parameters(self):
        return ()


class Dense:
    def __init__(self, inputs, outputs, rng):
        self.weight = rng.normal(0, np.sqrt(1 / inputs), (inputs, outputs)).astype(np.float32)
        self.bias = np.zeros(outputs, np.float32)
        self.dweight, self.dbias = np.zeros_like(self.weight), np.zeros_like(self.bias)

    def __call__(self, x):
        self.shape, self.x = x.shape, x.reshape(len(x), len(self.weight))
        return self.x @ self.weight + self.bias

    def backward(self, dy):
        self.dweight[...] = self.x.T @ dy
        self.dbias[...] = dy.sum(axis=0)
        return (dy @ self.weight.T).reshape(self.shape)

    def parameters(self):
        yield "weight", self.weight, self.dweight
        yield "bias", self.bias, self.dbias


def cross_entropy(logits, labels):
    """The mean loss of a softmax, and its gradient by the logits."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(labels)


# --------------------------------------------------------------------------------------------- network and training


class Network:
    """Four convolutions, then a dense layer: 1x8x8 -> 8x8x8 -> 8x4x4 -> 16x4x4 -> 16x2x2 -> 10."""

    def __init__(self, rng, batch_norm):
        self.layers = []
        for inputs, outputs, pool in ((1, 8, False), (8, 8, True), (8, 16, False), (16, 16, True)):
            # Batch norm subtracts each channel's mean, and any bias with it: its own beta is the bias.
            self.layers.append(Conv(inputs, outputs, rng, bias=not batch_norm))
            if batch_norm:
                self.layers.append(bn.BatchNorm(outputs))
            self.layers.append(ReLU())
            if pool:
                self.layers.append(Pool())
        self.layers.append(Dense(16 * 2 * 2, 10, rng))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def train(self):
        """Normalize by the batch."""
        for layer in self.layers:
            if isinstance(layer, bn.BatchNorm):
                layer.train()

    def eval(self):
        """Normalize by the running statistics: a prediction depends on its own image alone."""
        for layer in self.layers:
            if isinstance(layer, bn.BatchNorm):
                layer.eval()

    def accuracy(self, images, labels) -> float:
        return float((self(images).argmax(axis=1) == labels).mean())


class SGD:
    """Gradient descent with momentum. Every layer keeps its arrays, so they can be listed once and updated in place."""

    def __init__(self, layers, momentum=0.9):
        self.momentum = momentum
        self.parameters = [
            (value, grad, np.zeros_like(value)) for layer in layers for _, value, grad in layer.parameters()
        ]

    def step(self, learning_rate):
        for value, grad, velocity in self.parameters:
            velocity *= self.momentum
            velocity -= learning_rate * grad
            value += velocity


@dataclass
class Data:
    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def load(cls) -> Data:
        digits = load_digits()
        images = digits.images[:, None].astype(np.float32)
        data = cls(*train_test_split(images, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0))
        mean, std = data.train_images.mean(), data.train_images.std()
        data.train_images = (data.train_images - mean) / std
        data.test_images = (data.test_images - mean) / std
        return data


@dataclass
class Run:
    """One training: test accuracy after each epoch, and at the end in train mode, by the test set's own statistics."""

    accuracies: list[float]
    train_mode: float

    @property
    def final(self) -> float:
        return self.accuracies[-1]

    @property
    def diverged(self) -> bool:
        return self.final < DIVERGED

    @property
    def reached(self) -> bool:
        return max(self.accuracies) >= TARGET

    @property
    def epochs(self) -> int:
        """Epochs to the target accuracy; one more than there were if it was not reached."""
        return next((i for i, a in enumerate(self.accuracies, 1) if a >= TARGET), len(self.accuracies) + 1)


def train(data: Data, batch_norm: bool, learning_rate: float, seed: int, epochs: int, progress: tqdm) -> Run:
    rng = np.random.default_rng(seed)  # draws the same weights and the same batches with and without batch norm
    network = Network(rng, batch_norm)
    optimizer = SGD(network.layers)
    accuracies = []
    schedule = iter(np.linspace(learning_rate, 0, epochs * -(-len(data.train_images) // BATCH_SIZE)).tolist())
    with np.errstate(all="ignore"):  # a diverging network overflows, and its accuracy says so
        for _ in range(epochs):
            network.train()
            for batch in batches(len(data.train_images), rng):
                _, dlogits = cross_entropy(network(data.train_images[batch]), data.train_labels[batch])
                network.backward(dlogits)
                optimizer.step(next(schedule))
            network.eval()
            accuracies.append(network.accuracy(data.test_images, data.test_labels))
            progress.update()
        network.train()  # moves the running statistics as well, which nobody needs any more
        return Run(accuracies, network.accuracy(data.test_images, data.test_labels))


def batches(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(count)
    for start in range(0, count, BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


# ---------------------------------------------------------------------------------------------------------- results

Results = dict[tuple[float, bool], list[Run]]  # of each learning rate, with and without batch norm: a run per seed


def print_table(results: Results) -> None:
    print(
        "learning                epochs to   final test                train mode,\n"
        "    rate   batch norm       95 %    accuracy, %   diverged    accuracy, %\n"
        "--------   ----------   ---------   -----------   --------   ------------"
    )
    for (rate, batch_norm), runs in results.items():
        reached, diverged = sum(run.reached for run in runs), sum(run.diverged for run in runs)
        epochs = f"{statistics.mean(run.epochs for run in runs):.1f}" if reached == len(runs) else "-"
        final = "-" if diverged == len(runs) else spread([run.final for run in runs])
        train_mode = spread([run.train_mode for run in runs]) if batch_norm else ""
        count = f"{diverged} of {len(runs)}" if diverged else ""
        name = "with" if batch_norm else "without"
        print(f"{rate:8g}   {name:10}   {epochs:>9}   {final:>11}   {count:>8}   {train_mode:>12}".rstrip())
    print("Means, and standard deviations, over the seeds. -: not every seed got there.")
    print(f"diverged: ended below {100 * DIVERGED:.0f} %. train mode: by the test set's own mean and variance.")


def spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.pstdev(values):4.1f}"


def broken_claims(results: Results) -> list[str]:
    """What batch norm should show here and these results do not."""
    broken = []
    rates = {rate for rate, _ in results}
    for rate in sorted(rates):
        with_, without = (statistics.mean(run.epochs for run in results[rate, b]) for b in (True, False))
        if with_ >= without:
            broken.append(f"at learning rate {rate:g}: {with_:.1f} epochs with batch norm, {without:.1f} without")
        gap = max(abs(run.final - run.train_mode) for run in results[rate, True])
        if gap > 0.01:
            broken.append(f"at learning rate {rate:g}: {100 * gap:.1f} points between train mode and inference")
    if not any(
        all(run.reached for run in results[rate, True]) and all(run.diverged for run in results[rate, False])
        for rate in rates
    ):
        broken.append("no learning rate at which every run without batch norm diverges and every run with it learns")
    return broken


def draw(results: Results, path: Path) -> None:
    rates = sorted({rate for rate, _ in results})
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for batch_norm, color, label in (
            (False, "tab:orange", "without batch norm"),
            (True, "tab:blue", "with batch norm"),
        ):
            curves = 100 * np.array([run.accuracies for run in results[rate, batch_norm]])
            epochs = np.arange(1, curves.shape[1] + 1)
            panel.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)
            panel.plot(epochs, np.median(curves, axis=0), color=color, label=label)
        panel.set_title(f"learning rate {rate:g}", fontsize=10)
        panel.set_ylim(0, 102)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy, %")
    figure.supxlabel(f"epoch (lines: median of {len(curves)} seeds; shaded: lowest to highest)", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("digits.png"), help="the drawing")
    args = parser.parse_args()
    if min(args.seeds, args.epochs) < 1:
        parser.error("--seeds and --epochs must be at least 1")

    start = time.perf_counter()
    data = Data.load()
    kinds = [(rate, batch_norm) for rate in LEARNING_RATES for batch_norm in (False, True)]
    with tqdm(total=len(kinds) * args.seeds * args.epochs, unit="epoch") as progress:
        results = {
            kind: [train(data, kind[1], kind[0], seed, args.epochs, progress) for seed in range(args.seeds)]
            for kind in kinds
        }
    print_table(results)
    draw(results, args.output)
    print(f"{args.output} drawn; {time.perf_counter() - start:.0f} s in all")

    if args.seeds < 5 or args.epochs < 12:
        print("Too few seeds or epochs to compare the two")
        return 0
    broken = broken_claims(results)
    for claim in broken:
        print(f"NOT AS EXPECTED: {claim}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
