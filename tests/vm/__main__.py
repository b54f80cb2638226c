"""Run the tests that need machines: ``python -m tests.vm [guest|host] [pytest's arguments]``.

guest: what is in ``guest_*.py`` runs in a machine that has devices and a device mapper of its own.
host: what is in ``host_*.py`` runs here as root, and starts machines from the disks that it makes.

Without either word both run; the arguments are then for both.
"""

import os
import shlex
import subprocess
import sys

import pytest

from tests.vm.machine import run_guest


def _run_host(arguments: list[str]) -> int:
    options = ["-p", "no:cacheprovider", "-o", "python_files=host_*.py", "--durations=0", "-v"]
    command = [sys.executable, "-m", "pytest", *options, "tests/vm", *arguments]
    return subprocess.run(command, check=False, env={**os.environ, "CI": "1"}).returncode


def _main(arguments: list[str]) -> int:
    kinds = ["host", "guest"]
    if arguments and arguments[0] in kinds:
        kinds = [arguments[0]]
        arguments = arguments[1:]
    codes = []
    for kind in kinds:
        codes.append(_run_host(arguments) if kind == "host" else run_guest(shlex.join(arguments)))
    nothing = int(pytest.ExitCode.NO_TESTS_COLLECTED)  # by one kind: the arguments chose tests of the other
    return next((code for code in codes if code not in {0, nothing}), min(codes))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
