"""Batch normalization over a batch that several processes share, on the engine that they have.

SyncBatchNorm's comm is one of

- an ``mpi4py.MPI.Comm`` (``MPI.COMM_WORLD``);
- a ``torch.distributed.ProcessGroup`` (``torch.distributed.group.WORLD``), by gloo, or by NCCL, through whose GPU the
  statistics then go while the data stay where they are;
- any object with the two methods of `Communicator`, such as what `communicator` makes of the first two.

An error of one rank in its part (a wrong x, residual, out or dy) is raised there, and as a RuntimeError on all others
in the same call. A rank that has died, or that does not call the layer, is known to the engine alone: what it says when
it gives up, after its own timeout, becomes a RuntimeError too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .arguments import integer
from .layers import BatchNorm
from .parts import Packed, Parts, merged_moments, merged_sums

__all__ = ["Communicator", "SyncBatchNorm", "communicator"]

Buffer = npt.NDArray[np.float64]


class Communicator(Protocol):
    """What `SyncBatchNorm` asks of an engine. All ranks call the same methods in the same order.

    A comm may also have ``split(ranks_per_group)``, which returns the communicator of this rank's group of so many
    consecutive ranks, the last group being what is left; SyncBatchNorm needs it for its ranks_per_group alone.
    """

    def allgather(self, buffer: Buffer) -> list[Buffer]:
        """The buffers of all ranks, in the order of ranks: one-dimensional, float64, of the same size on each."""

    def allreduce(self, buffer: Buffer) -> Buffer:
        """The sum of the buffers of all ranks, with the same bits on each.

        If it is added in the order of ranks, its bits are also those of one process that adds the same parts, as with
        `bn.accumulate`; the communicators here do that.
        """


class SyncBatchNorm(BatchNorm):
    """A `BatchNorm` whose batch is that of all ranks: in training it takes the statistics of all of them together.

    Arguments and use are BatchNorm's (group_size excepted), with comm, the engine: see this module. Each rank has its
    own samples in x, as many as it likes, or none (an x of shape (0, C, ...)), but takes part in each forward and
    backward in training, and in making the layer: that compares num_features, and a rank that disagrees is a ValueError
    on all. In eval and freeze mode ranks do not meet.

    Forward sends one float64 buffer, the counts, mean and m2 of each statistic, which every rank merges in the order of
    ranks; backward one with the two sums, added in the same order. So results and running statistics have the same bits
    on all ranks, from run to run, and as in one process with the same parts (`bn.accumulate`). dx is that of the whole
    batch; dgamma and dbeta are those of the rank's own samples, as the gradients of all other layers are and as in
    PyTorch: add them up over the ranks with those.

    ranks_per_group makes the batch that of so many consecutive ranks (the last group may have fewer).
    """

    def __init__(
        self, num_features: int | tuple[int, ...], *, comm: Any, ranks_per_group: int | None = None, **options: Any
    ) -> None:
        if options.get("group_size") is not None:
            raise ValueError(
                f"group_size must be None, got {options['group_size']}: groups of samples have statistics of their "
                "own, which need no other rank; for groups of ranks there is ranks_per_group"
            )
        super().__init__(num_features, **options)
        engine = communicator(comm)
        if ranks_per_group is not None:
            if integer("ranks_per_group", ranks_per_group) < 1:
                raise ValueError(f"ranks_per_group must be at least 1, got {ranks_per_group}")
            if not callable(getattr(engine, "split", None)):
                raise TypeError(f"ranks_per_group needs a comm with a method split, {type(comm).__name__} has none")
            engine = engine.split(integer("ranks_per_group", ranks_per_group))
        self.ranks_per_group = ranks_per_group
        self._exchange = _Ranks(engine)
        self._exchange.agree(self)

    def __repr__(self) -> str:
        groups = "" if self.ranks_per_group is None else f"ranks_per_group={self.ranks_per_group}, "
        return "Sync" + super().__repr__().replace("dtype=", groups + "dtype=")


class _Ranks(Parts):
    """The parts of all ranks. The first number of each buffer is the number of statistics; -1: this rank cannot."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def agree(self, layer: BatchNorm) -> None:
        shape = layer._shape
        mine = np.full(9, -1.0)  # an array has no more than 8 axes
        mine[0] = len(shape)
        mine[1 : 1 + len(shape)] = shape
        for rank, other in enumerate(_call(self.engine.allgather, mine)):
            if not np.array_equal(other, mine):
                theirs = tuple(int(size) for size in other[1 : 1 + int(other[0])])
                raise ValueError(
                    f"num_features is {theirs} on rank {rank} and {shape} here, expected the same on all ranks"
                )

    def moments(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, bool]:
        buffer, error = self._attempt(measure, (4, *layer._shape))
        parts = _call(self.engine.allgather, buffer)
        if error is not None:
            raise error
        failed = [rank for rank, part in enumerate(parts) if part[0] < 0]
        if failed:
            raise RuntimeError(f"forward of {layer} failed on rank {_listed(failed)}, whose own error tells why")
        for rank, part in enumerate(parts):
            if part.shape != buffer.shape or part[0] != buffer[0]:
                raise RuntimeError(
                    f"{int(part[0])} statistics came from rank {rank}, expected the {int(buffer[0])} of {layer}: "
                    "all ranks must call the same layers in the same order"
                )
        return merged_moments(part[1:].reshape(4, *layer._shape) for part in parts), True

    def sums(self, layer: BatchNorm, measure: Callable[[], Packed]) -> tuple[Packed, Packed]:
        buffer, error = self._attempt(measure, (2, *layer._shape))
        buffer[0] = error is not None  # added up: how many could not
        total = np.asarray(_call(self.engine.allreduce, buffer))
        if error is not None:
            raise error
        if total.shape != buffer.shape:
            raise RuntimeError(f"comm.allreduce returned shape {total.shape}, expected {buffer.shape}")
        if total[0] > 0:
            raise RuntimeError(f"backward of {layer} failed on {int(total[0])} other ranks, whose own errors tell why")
        own, all_ = (b[1:].reshape(2, *layer._shape) for b in (buffer, total))
        return own, all_

    def _attempt(self, measure: Callable[[], Packed], shape: tuple[int, ...]) -> tuple[Buffer, Exception | None]:
        # A rank that cannot do its part still joins: the others would wait for it until the engine gives up.
        buffer = np.zeros(1 + int(np.prod(shape)))
        try:
            buffer[1:] = measure().ravel()
        except Exception as error:
            buffer[0] = -1
            return buffer, error
        buffer[0] = np.prod(shape[1:])
        return buffer, None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Ranks:
        return self  # a copy of the layer talks to the same ranks

    def __reduce__(self) -> Any:
        raise TypeError("a SyncBatchNorm is not pickled, since its comm belongs to this process; save its state_dict()")


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _call(method: Callable[[Buffer], Any], buffer: Buffer) -> Any:
    try:
        return method(buffer)
    except Exception as error:
        raise RuntimeError(
            f"{method.__name__} of comm failed ({error}): another rank has died, or did not call the same layer in time"
        ) from error


# --------------------------------------------------------------------------------------------------------- engines


def communicator(comm: Any) -> Any:
    """The `Communicator` that `SyncBatchNorm` makes of its comm, for a training loop's own sums, such as of gradients.

    Those for MPI and PyTorch gather the buffers and add them in the order of ranks.
    """
    # By the packages that are imported already: an object of theirs is in no other program.
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and isinstance(comm, mpi.Comm):
        return _MPI(comm)
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and isinstance(comm, torch.distributed.ProcessGroup):
        return _Torch(comm)
    for name in ("allgather", "allreduce"):
        if not callable(getattr(comm, name, None)):
            raise TypeError(
                f"comm is {type(comm).__name__}, expected an mpi4py.MPI.Comm, a torch.distributed.ProcessGroup of "
                f"which this process is a member, or an object with methods allgather and allreduce (no {name} here)"
            )
    return comm


class _InRankOrder:
    # An engine's own sum may be added in any order, and another one in each part of the buffer (a ring).
    def allgather(self, buffer: Buffer) -> list[Buffer]:
        raise NotImplementedError

    def allreduce(self, buffer: Buffer) -> Buffer:
        return merged_sums(self.allgather(buffer))


class _MPI(_InRankOrder):
    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def allgather(self, buffer: Buffer) -> list[Buffer]:
        parts = np.empty((self.comm.Get_size(), buffer.size))
        self.comm.Allgather(buffer, parts)
        return list(parts)

    def split(self, ranks_per_group: int) -> _MPI:
        rank = self.comm.Get_rank()
        return _MPI(self.comm.Split(rank // ranks_per_group, rank))


class _Torch(_InRankOrder):
    def __init__(self, group: Any) -> None:
        self.group = group

    def allgather(self, buffer: Buffer) -> list[Buffer]:
        import torch
        import torch.distributed as dist

        gpu = dist.get_backend(self.group) == "nccl"
        mine = torch.from_numpy(buffer).to(f"cuda:{torch.cuda.current_device()}" if gpu else "cpu")
        parts = [torch.empty_like(mine) for _ in range(self.group.size())]
        dist.all_gather(parts, mine, group=self.group)
        return [part.cpu().numpy() for part in parts]

    def split(self, ranks_per_group: int) -> _Torch:
        import torch.distributed as dist

        ranks, first = dist.get_process_group_ranks(self.group), self.group.rank() // ranks_per_group * ranks_per_group
        members = ranks[first : first + ranks_per_group]
        # Members alone make their group: the default waits for all processes, of other groups too.
        return _Torch(dist.new_group(members, timeout=_timeout(self.group), use_local_synchronization=True))


def _timeout(group: Any) -> Any:
    """The group's, which its sub-groups would not have otherwise; None, the engine's own, where it is not told."""
    import torch

    device = torch.device("cuda" if torch.distributed.get_backend(group) == "nccl" else "cpu")
    options = getattr(group._get_backend(device), "options", None)
    return getattr(options, "_timeout", None)
