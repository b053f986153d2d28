"""The process that measures: reads what to do from standard input, and writes what comes out, a line of JSON each.

It is a process of its own because the allocator's settings can only be given when one starts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from . import machine, ours, step, variants
from .arrays import Buffers, Problem, buffers, problem, reserve_pages
from .cases import Case, Job, Pages, Settings, jobs
from .check import check_against, check_against_reference, check_copy
from .contestant import Contestant, Peer, UnavailableError
from .copies import Copies
from .goals import floor, goal, is_read_once
from .measure import fastest, quartiles_of_ratios, rounded, undisturbed_turns
from .peers import load

Emit = Callable[[str, Any], None]


def measure_functions(settings: Settings, pages: Pages, emit: Emit) -> None:
    """Measure every job, and emit its row as soon as it is there."""
    copies = Copies()
    peers = []
    for name in settings.peers:
        # Of fresh pages nothing is asked but the times of the peer that cannot take an output.
        if pages == "kept" or name == "pytorch":
            try:
                peers.append(load(name, settings.large_numpy))
            except UnavailableError as reason:
                emit("note", str(reason))
    emit("versions", {peer.name: peer.version for peer in peers})

    memory: Buffers | None = None
    holds: tuple[Case, str] | None = None
    for job in jobs(settings, pages):
        if holds != (job.case, job.dtype):
            memory = None  # given back first: two large tensors need not fit
            memory, holds = buffers(job.case, job.dtype, settings.past), (job.case, job.dtype)
            if pages == "kept":
                reserve_pages(job.case, job.dtype)
        assert memory is not None
        row = _measure(job, problem(job.case, job.layout, memory), copies, peers, settings, emit)
        emit("row", {**row, "pages": pages})


def _measure(
    job: Job, problem: Problem, copies: Copies, peers: list[Peer], settings: Settings, emit: Emit
) -> dict[str, object]:
    contestants = [*_checked_libraries(job, problem, peers, emit), *_checked_copies(problem, copies, job.threads)]
    in_cache = problem.x.nbytes <= machine.last_level_cache()
    seconds, others = undisturbed_turns({c.name: c.call for c in contestants}, settings, in_cache)
    copy = fastest(seconds, copies.names)
    libraries = [name for name in seconds if name not in copies.names]
    ratios = {f"{name}/copy": quartiles_of_ratios(seconds[name], seconds[copy]) for name in libraries}
    for name in libraries[1:]:
        ratios[f"{name}/{ours.NAME}"] = quartiles_of_ratios(seconds[name], seconds[ours.NAME])
    channel = problem.x.nbytes // job.case.c
    read_once = is_read_once(job.task, job.layout, channel, machine.last_level_cache())
    aim, group = goal(job.task, read_once, job.case.plane)
    return {
        "case": job.case.shape,
        "networks": job.case.networks,
        "dtype": job.dtype,
        "layout": job.layout,
        "task": job.task,
        "threads": job.threads,
        "bytes": problem.x.nbytes,
        "fits": machine.holder(2 * problem.x.nbytes, job.threads),
        "large": not in_cache,
        "floor": floor(job.task, read_once),
        "goal": aim,
        "group": group,
        "copy": copy,
        "others": round(others, 2),
        "ratios": ratios,
        "seconds": {name: rounded(values) for name, values in seconds.items()},
    }


def _checked_libraries(job: Job, problem: Problem, peers: list[Peer], emit: Emit) -> list[Contestant]:
    """batchnorm, and the peers that can take part; all their results were found right."""
    own = ours.contestant(problem, job.task, job.threads)
    results = own.results()
    check_against_reference(problem, job.task, results)
    expected = {name: array.copy() for name, array in results.items()}  # the others write to the same output
    contestants = [own]
    for peer in peers:
        try:
            for contestant in peer.contestants(problem, job.task, job.threads):
                problem.out.fill(float("nan"))
                check_against(problem, contestant.name, contestant.results(), expected)
                contestants.append(contestant)
        except UnavailableError as reason:
            emit("note", str(reason))
        except ArithmeticError as error:
            emit("note", f"not timed: {job.case.shape} {job.dtype}, {job.task}, channels {job.layout}: {error}")
    return contestants


def _checked_copies(problem: Problem, copies: Copies, threads: int) -> list[Contestant]:
    contestants = copies.contestants(problem, threads)
    for contestant in contestants:
        problem.out.fill(float("nan"))
        check_copy(contestant.name, contestant.results()["copy"], problem.x)
    return contestants


def main() -> None:
    """Do what standard input says."""
    # Libraries may print: what is written to standard output by others goes to standard error.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(kind: str, value: object) -> None:
        print(json.dumps({kind: value}), file=lines, flush=True)

    order = json.load(sys.stdin)
    settings = Settings(**order["settings"])
    emit("machine", machine.describe())
    try:
        if order["part"] == "step":
            step.measure_steps(settings, emit)
        elif order["part"] == "variants":
            variants.measure_variants(settings, emit)
        else:
            measure_functions(settings, order["pages"], emit)
    except UnavailableError as reason:
        emit("note", str(reason))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
