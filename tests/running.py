"""The command line, run by tests."""

import atexit
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    from tests.warm import Warm, warm_process

_PASSWORD = "IMAGEFS_PASSWORD"


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()


def run_imagefs(
    *arguments: str | Path, stdin: bytes = b"", password: str | None = None, timeout: float = 120
) -> Ran:
    """Run the command line, in a fork of a process that has it loaded: most of a short run is loading."""
    words = [str(argument) for argument in arguments]
    if sys.platform != "win32" and _one_at_a_time.acquire(blocking=False):  # which has no forks
        try:
            code, output, errors = _starter().run_with(words, _environment(password), stdin, timeout)
        finally:
            _one_at_a_time.release()
        return Ran(code, output, errors.decode(errors="replace"))
    return run_afresh(*words, stdin=stdin, password=password, timeout=timeout)


def run_afresh(
    *arguments: str | Path, stdin: bytes = b"", password: str | None = None, timeout: float = 120
) -> Ran:
    """Run the command line as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "imagefs", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        env=_environment(password),
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def _environment(password: str | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != _PASSWORD}
    return environment if password is None else {**environment, _PASSWORD: password}


_one_at_a_time = threading.Lock()

if sys.platform != "win32":

    @cache
    def _starter() -> Warm:
        """Start what runs are forked from; it ends with this process."""
        stack = ExitStack()
        atexit.register(stack.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imagefs-runs-"))
        return stack.enter_context(warm_process(Path(folder, "run")))
