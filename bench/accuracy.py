"""Largest errors of y and dx in float32, over the largest value, against float64: batchnorm and PyTorch."""

from __future__ import annotations

import numpy as np
import torch

import batchnorm as bn

SHAPE = (8, 16, 28, 28)  # NCHW
EPS = 1e-5
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal(SHAPE)

# name: (x, dy)
CASES = {
    "standard normal": (NOISE, RNG.standard_normal(SHAPE)),
    "x with \\|mean\\|/std = 1e6": (1e6 + NOISE, RNG.standard_normal(SHAPE)),
    "x near 1e30": (1e30 * NOISE, RNG.standard_normal(SHAPE)),
    "dy with \\|mean\\|/std = 1e6": (NOISE, 1e6 + RNG.standard_normal(SHAPE)),
}


def reference(x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and dx of the float32 arrays, in extended precision."""
    reduced = (0, 2, 3)
    x, dy = x.astype(np.longdouble), dy.astype(np.longdouble)
    centred = x - x.mean(reduced, keepdims=True)
    inv_std = 1 / np.sqrt((centred**2).mean(reduced, keepdims=True) + EPS)
    xhat = centred * inv_std
    dy = dy - dy.mean(reduced, keepdims=True)
    return xhat, inv_std * (dy - xhat * (dy * xhat).mean(reduced, keepdims=True))


def with_batchnorm(x: np.ndarray, dy: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    y, saved = bn.batch_norm(x, axis=axis, eps=EPS)
    return y, bn.batch_norm_backward(dy, x, saved).dx


def with_pytorch(x: np.ndarray, dy: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    def to_torch(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array if axis == 1 else array.transpose(0, 3, 1, 2))

    def to_numpy(tensor: torch.Tensor) -> np.ndarray:
        return np.asarray(tensor if axis == 1 else tensor.permute(0, 2, 3, 1))

    leaf = to_torch(x).requires_grad_()
    y = torch.nn.functional.batch_norm(leaf, None, None, training=True, eps=EPS)
    y.backward(to_torch(dy))
    assert leaf.grad is not None
    return to_numpy(y.detach()), to_numpy(leaf.grad)


def main() -> None:
    print("| input | layout | y: batchnorm | y: PyTorch | dx: batchnorm | dx: PyTorch |\n|---|---|---|---|---|---|")
    for name, (x, dy) in CASES.items():
        for layout, axis in (("NCHW", 1), ("NHWC", -1)):
            x_there, dy_there = (np.ascontiguousarray(np.moveaxis(a.astype(np.float32), 1, axis)) for a in (x, dy))
            exact = reference(np.moveaxis(x_there, axis, 1), np.moveaxis(dy_there, axis, 1))
            found = with_batchnorm(x_there, dy_there, axis), with_pytorch(x_there, dy_there, axis)
            errors = [
                float(abs(np.moveaxis(result, axis, 1) - want).max() / abs(want).max())
                for want, results in zip(exact, zip(*found, strict=True), strict=True)
                for result in results
            ]
            print(f"| {name} | {layout} | " + " | ".join(f"{error:.0e}" for error in errors) + " |")


if __name__ == "__main__":
    main()
