"""Command line: ``python -m batchnorm info``, ``python -m batchnorm --cmake-dir``."""

from __future__ import annotations

import argparse

from .config import cmake_dir, show_config


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m batchnorm", description="batch normalization")
    parser.add_argument("--cmake-dir", action="store_true", help="print the directory of the CMake package")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("info", help="print version, instruction sets, threads and backends")
    arguments = parser.parse_args()
    if arguments.cmake_dir:
        print(cmake_dir())
    elif arguments.command == "info":
        show_config()
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
