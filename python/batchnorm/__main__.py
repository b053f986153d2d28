"""Command line: ``python -m batchnorm info``, ``python -m batchnorm bench``, ``python -m batchnorm --cmake-dir``."""

from __future__ import annotations

import argparse
import sys

from .bench import cli as bench
from .config import cmake_dir, show_config


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m batchnorm", description="batch normalization")
    parser.add_argument("--cmake-dir", action="store_true", help="print the directory of the CMake package")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("info", help="print version, instruction sets, threads and backends")
    bench.add_options(commands.add_parser("bench", help="measure speed beside a copy and other libraries"))
    arguments = parser.parse_args()
    if arguments.cmake_dir:
        print(cmake_dir())
    elif arguments.command == "info":
        show_config()
    elif arguments.command == "bench":
        return int(bench.run(arguments))
    else:
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
