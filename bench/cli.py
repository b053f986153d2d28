"""The command line of the benchmark, and the processes that it starts."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import batchnorm as bn

from . import gpu
from .cases import DTYPES, LAYOUTS, PAGES, TASKS, Pages, Settings, chosen_cases, jobs
from .peers import PEERS
from .progress import Progress
from .report import Table, step_line, summary, variant_lines
from .step import step_count
from .variants import variant_jobs

DESCRIPTION = """\
Times batchnorm, PyTorch, oneDNN, JAX and NumPy, as far as they are installed, on the same arrays, in turns, after
checking their results; each with outputs that exist already. The unit is the fastest of four ways to copy the tensor
with the same threads, in the same turns. What is shown are medians and quartiles of the ratios within a turn.

PyTorch's backward takes no output. Its rows are measured twice: in a process whose allocator keeps its pages, and in
one as users have it, where page faults come on top.

--step and --variants measure something else instead, with all threads, over the shapes of ResNet-50 with 32 samples
(--variants with --quick or --case: over those that are asked for). The unit of --variants is the plain float32 call
of the same task in the same turns; its goals are for tensors past the last-level cache.

--gpu measures on an NVIDIA GPU instead, float32 and bfloat16, beside PyTorch's own kernels, cuDNN's, torch.compile and
the device's copy, over the shapes of ResNet-50 with 32 and 256 samples and three large ones; of the options below it
takes --case, --task, --layout, --dtype, --runs, --json, --from, --save and --no-compile. A few minutes.
"""

# glibc's allocator then never gives memory back: the next array of a size lies in pages that exist already. One arena,
# since those of other threads are given back whatever the threshold.
_KEPT_PAGES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


class WorkerError(Exception):
    """The process that measures has failed; what it said went to standard error."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m batchnorm bench``."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few cases and turns, float32, all threads: a minute")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--step", action="store_true", help="a layer's training step beside PyTorch's, instead")
    instead.add_argument(
        "--variants",
        action="store_true",
        help="fused, masked, weighted, grouped and 16-bit calls beside plain ones, instead",
    )
    instead.add_argument(
        "--gpu", action="store_true", help="calls on an NVIDIA GPU beside PyTorch's and cuDNN's, instead"
    )
    which = parser.add_argument_group("what is measured (all of it, unless you say)")
    which.add_argument(
        "--case", action="append", default=[], metavar="TEXT", help="a shape, or part of one or of a name"
    )
    which.add_argument("--task", action="append", choices=TASKS)
    which.add_argument("--layout", action="append", choices=LAYOUTS, help="channels first or last")
    which.add_argument(
        "--dtype", action="append", choices=(*DTYPES, "bfloat16"), help=f"with --gpu: {' or '.join(gpu.DTYPES)}"
    )
    which.add_argument("--threads", action="append", type=_positive, metavar="N", help="default: 1, and all")
    which.add_argument("--peers", default=",".join(PEERS), metavar="NAMES", help="default: %(default)s; '' for none")
    which.add_argument("--large-numpy", action="store_true", help="NumPy on tensors above 8 MB, too: slow")
    which.add_argument("--pages", choices=(*PAGES, "both"), default="both", help="for PyTorch's backward")
    which.add_argument("--runs", type=_positive, metavar="N", help="turns; default: 15, quick 5")
    which.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="before a row, until other processes are quiet; default: 0",
    )
    which.add_argument(
        "--past",
        type=int,
        choices=(0, 8, 16, 32, 48),
        default=0,
        help="bytes past a cache line that arrays start: NumPy's own large ones by 16; default: 0, as PyTorch's",
    )
    which.add_argument(
        "--no-compile",
        action="store_false",
        dest="compile",
        help="with --gpu, without torch.compile, which takes a while",
    )
    output = parser.add_argument_group("what comes out besides the table")
    output.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    output.add_argument("--png", type=Path, metavar="FILE", help="a bar for each case")
    output.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=gpu.RESULTS,
        metavar="FOLDER",
        help="with --gpu: all of it as a page of Markdown, <gpu>-<date>.md; default: %(const)s",
    )
    output.add_argument(
        "--from", type=Path, metavar="FILE", dest="earlier", help="show what --json wrote; measure nothing"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; the exit status."""
    if arguments.gpu and arguments.earlier is None:
        return gpu.run(arguments)
    failed = False
    if arguments.earlier is not None:
        found: dict[str, Any] = json.loads(arguments.earlier.read_text(encoding="utf-8"))
        if "gpu" in found:
            return gpu.show(found, arguments)
        table = Table()
        for row in found["rows"]:
            print(table.line(row))
        for step in found["steps"]:
            print(step_line(step))
        for variant in found.get("variants", []):
            print(variant_lines(variant))
    else:
        settings = _settings(arguments)
        if not chosen_cases(settings):
            print("no case matches: --case takes part of a shape, such as 32x64x56x56, or of a network's name")
            return 2
        found = {"settings": asdict(settings), "machine": {}, "notes": [], "rows": [], "steps": [], "variants": []}
        try:
            _measure(settings, arguments, found)
        except (KeyboardInterrupt, WorkerError) as stop:
            failed = True
            print(f"{str(stop) or 'interrupted'}; what follows is of the rows above")
    print(summary(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if arguments.png is not None:
        failed |= not _draw(found, arguments.png)
    return 1 if failed else 0


def _settings(arguments: argparse.Namespace) -> Settings:
    quick = arguments.quick
    every_thread = bn.get_num_threads()
    peers = tuple(name for name in arguments.peers.split(",") if name)
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise SystemExit(f"unknown peers {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    if "bfloat16" in (arguments.dtype or ()):
        raise SystemExit("--dtype=bfloat16 is for --gpu; --variants measures 16 bits beside float32")
    if arguments.past and (arguments.step or arguments.variants):
        raise SystemExit("--past is for calls of the functions, not for --step or --variants")
    return Settings(
        case=tuple(arguments.case),
        tasks=tuple(arguments.task or TASKS),
        layouts=tuple(arguments.layout or LAYOUTS),
        dtypes=tuple(arguments.dtype or (DTYPES[:1] if quick else DTYPES)),
        threads=tuple(arguments.threads or ([every_thread] if quick else sorted({1, every_thread}))),
        peers=peers,
        runs=arguments.runs or (5 if quick else 15),
        quick=quick and not arguments.case,
        large_numpy=arguments.large_numpy,
        wait=arguments.wait,
        past=arguments.past,
    )


def _measure(settings: Settings, arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Fill found, and print its rows as they come."""
    if arguments.step:
        parts: list[tuple[str, Pages]] = [("step", "fresh")]
        total = step_count(settings)
    elif arguments.variants:
        parts = [("variants", "kept")]
        total = len(list(variant_jobs(settings)))
    else:
        wanted: list[Pages] = [pages for pages in PAGES if arguments.pages in (pages, "both")]
        if "pytorch" not in settings.peers:
            wanted = ["kept"]  # no other rows differ
        parts = [("functions", pages) for pages in wanted]
        total = sum(len(list(jobs(settings, pages))) for pages in wanted)
    lines = {"row": Table().line, "step": step_line, "variant": variant_lines}
    with Progress(total) as progress:
        for part, pages in parts:
            for kind, value in _work(part, pages, settings):
                if kind == "machine":
                    found["machine"] = {**value, **found["machine"]}
                elif kind == "versions":
                    found["machine"].setdefault("versions", {}).update(value)
                elif kind == "note":
                    if value not in found["notes"]:
                        found["notes"].append(value)
                        progress.write(value)
                else:
                    found[f"{kind}s"].append(value)
                    progress.write(lines[kind](value))
                    progress.step()


def _work(part: str, pages: Pages, settings: Settings) -> Iterator[tuple[str, Any]]:
    """What the worker emits, as it comes."""
    inherited = {name: value for name, value in os.environ.items() if name not in _KEPT_PAGES}
    environment = {**inherited, **(_KEPT_PAGES if pages == "kept" else {})}
    command = [sys.executable, "-m", f"{__package__}.worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8"
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        json.dump({"part": part, "pages": pages, "settings": asdict(settings)}, worker.stdin)
        worker.stdin.close()
        for line in worker.stdout:
            yield from json.loads(line).items()
    if worker.returncode:
        raise WorkerError(f"the process that measures ended with status {worker.returncode}")


def _draw(found: dict[str, Any], file: Path) -> bool:
    try:
        from .picture import draw
    except ImportError as error:
        print(f"no picture: {error}; pip install batchnorm[bench]")
        return False
    draw(found, file)
    return True
