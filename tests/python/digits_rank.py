"""Twenty training steps of the digits network by several ranks, each with its share of every batch, or by one process.

    python digits_rank.py FOLDER mpi SIZE          one of the ranks that mpiexec starts
    python digits_rank.py FOLDER gloo SIZE         all ranks, forked when PyTorch is imported, which takes longest
    python digits_rank.py FOLDER alone             the same shares in one process, and whole batches

Reads FOLDER/data.npz; writes all that the network has learned into FOLDER.
"""

import datetime
import multiprocessing
import sys
import types
from pathlib import Path

import numpy as np

import batchnorm as bn

STEPS, BATCH = 20, 64
SHARES = {1: (64,), 2: (45, 19), 4: (23, 0, 34, 7)}  # samples of each rank
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.py"


def load_example():
    # Ranks neither draw nor load the data, whose packages take longer to import than the training.
    wanted = {"matplotlib.figure": "Figure", "sklearn.datasets": "load_digits", "tqdm": "tqdm"}
    for name, attribute in (*wanted.items(), ("sklearn.model_selection", "train_test_split")):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, None)
        sys.modules.setdefault(name.partition(".")[0], types.ModuleType("absent"))
    digits = sys.modules["digits"] = types.ModuleType("digits")  # where its dataclasses look for their names
    exec(compile(EXAMPLE.read_text(encoding="utf-8"), str(EXAMPLE), "exec"), digits.__dict__)
    return digits


class Training:
    def __init__(self, folder, comm=None):
        digits = load_example()
        self.folder, self.comm = folder, comm
        self.network = digits.Network(np.random.default_rng(0), batch_norm=True)
        if comm is not None:
            self.network.layers = [
                bn.distributed.SyncBatchNorm(layer.num_features, comm=comm)
                if isinstance(layer, bn.BatchNorm)
                else layer
                for layer in self.network.layers
            ]
        self.norms = [layer for layer in self.network.layers if isinstance(layer, bn.BatchNorm)]
        self.parameters = [pair[1:] for layer in self.network.layers for pair in layer.parameters()]
        self.optimizer = digits.SGD(self.network.layers)
        with np.load(folder / "data.npz") as data:
            self.images, self.labels = data["images"], data["labels"]

    def gradient(self, samples):
        """All gradients of one share, side by side: of the mean loss of the whole batch."""
        logits = self.network(self.images[samples])
        p = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(p)), self.labels[samples]] -= 1
        self.network.backward(p / np.float32(BATCH))
        return np.concatenate([grad.ravel() for _, grad in self.parameters]).astype(np.float64)

    def run(self, shares, rank, name):
        for step in range(STEPS):
            parts = np.split(np.arange(step * BATCH, (step + 1) * BATCH), np.cumsum(shares)[:-1])
            if self.comm is not None:
                total = bn.distributed.communicator(self.comm).allreduce(self.gradient(parts[rank]))
            elif len(parts) > 1:
                total = sum(bn.accumulate(self.gradient, parts, self.norms))
            else:
                total = self.gradient(parts[0])
            start = 0
            for _, grad in self.parameters:
                grad[...] = total[start : start + grad.size].reshape(grad.shape)
                start += grad.size
            self.optimizer.step(0.03)
        learned = [value for value, _ in self.parameters]
        running = [array for norm in self.norms for array in (norm.running_mean, norm.running_var)]
        np.savez(self.folder / f"{name}.npz", *learned, *running)


def main(folder, engine, size=None):
    folder = Path(folder)
    if engine == "alone":
        for size, shares in SHARES.items():
            Training(folder).run(shares, 0, f"alone-{size}")
        return
    size = int(size)
    if engine == "mpi":
        from mpi4py import MPI

        comm, rank = MPI.COMM_WORLD, MPI.COMM_WORLD.Get_rank()
        assert comm.Get_size() == size
        Training(folder, comm).run(SHARES[size], rank, f"mpi-{size}-{rank}")
        return
    import torch.distributed as dist

    def run(rank):
        store, limit = f"file://{folder / f'store-{size}'}", datetime.timedelta(seconds=30)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)
        Training(folder, dist.group.WORLD).run(SHARES[size], rank, f"gloo-{size}-{rank}")
        dist.barrier()  # the ranks stay until all have what they wait for
        dist.destroy_process_group()

    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
