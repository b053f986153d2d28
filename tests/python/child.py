"""Python in a process of its own."""

import os
import subprocess
import sys
import textwrap


def run_python(*arguments, timeout=120, modules=None, **environment):
    """Run it in this environment, without this library's own variables, and with the given ones.

    modules is a folder whose modules come before all others.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BATCHNORM_", "OMP_"))}
    if modules is not None:  # before what the variable has: the library may be installed there
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(modules), env.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments], env=env | environment, capture_output=True, text=True, timeout=timeout
    )


def output_of(code, timeout=120, **environment):
    """What the code prints."""
    done = run_python("-c", textwrap.dedent(code), timeout=timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
