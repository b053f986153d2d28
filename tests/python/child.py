"""Python in a process of its own."""

import concurrent.futures
import os
import subprocess
import sys
import textwrap
import time


def plain_environment():
    """This one, without the library's own variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("BATCHNORM_", "OMP_"))}


def run_python(*arguments, timeout=120, modules=None, **environment):
    """Run it in this environment, without this library's own variables, and with the given ones.

    modules is a folder whose modules come before all others.
    """
    env = plain_environment()
    if modules is not None:  # before what the variable has: the library may be installed there
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(modules), env.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments], env=env | environment, capture_output=True, text=True, timeout=timeout
    )


def run_together(commands, timeout=60, **environment):
    """Run commands at the same time, and return what each leaves. After the timeout all of them are ended."""
    processes = [
        subprocess.Popen(
            command, env=plain_environment() | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in map(list, commands)
    ]
    deadline = time.monotonic() + timeout

    def wait(process):
        try:
            printed = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()  # which mpiexec passes on
            try:
                printed = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                printed = process.communicate()
            return subprocess.CompletedProcess(process.args, -1, printed[0], f"after {timeout} s:\n" + printed[1])
        return subprocess.CompletedProcess(process.args, process.returncode, *printed)

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:  # all pipes are read at once
        return list(pool.map(wait, processes))


def output_of(code, timeout=120, **environment):
    """What the code prints."""
    done = run_python("-c", textwrap.dedent(code), timeout=timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
