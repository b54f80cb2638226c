"""Programs that are run and watched: qemu and its kin. They end when we do, however we end."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from imagefs.errors import ImagingError

if sys.platform == "win32":
    from imagefs.machine.windows.job import confine

# Where its installer puts qemu on Windows, which adds nothing to PATH.
_PROGRAMS = str(Path(os.environ.get("PROGRAMFILES", "")) / "qemu") if sys.platform == "win32" else "/usr/sbin"
PACKAGES = {"qemu-img": "qemu-utils", "qemu-system-x86_64": "qemu-system-x86"}  # of Debian
_GRACE = 10.0  # seconds between asking a program to end and killing it
_KEPT = 64 * 1024  # bytes of what a program says
_PROGRESS = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
# Becomes the program, after asking the kernel to kill it when its parent ends: for that, no code of ours may
# run between fork and exec in a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ProgramError(ImagingError):
    """Another program that is needed is not there, or has failed."""


def find_program(name: str) -> str:
    """Return the path of a program; raises ProgramError that names the package it comes with."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), _PROGRAMS]))
    if found is None and sys.platform == "win32":
        raise ProgramError(f"{name} is not installed", hint="it comes with QEMU for Windows: www.qemu.org")
    if found is None:
        package = PACKAGES.get(name, name)
        raise ProgramError(f"{name} is not installed", hint=f"in Debian it comes with {package}")
    return found


@contextmanager
def running(
    command: Sequence[str],
    said: IO[bytes],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, what it says on standard error in ``said``; it has ended when the block is left.

    To be called in the main thread: the kernel counts the end of the thread that started it.
    """
    if sys.platform.startswith("linux"):
        shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        command = [*shim, *command]
    try:
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=said)
    except OSError as error:
        raise ProgramError(f"{command[0]} can't be started: {error.strerror}") from error
    release = _bound(process)
    try:
        yield process
    finally:
        _end(process)
        release()
        if process.stdout is not None:
            process.stdout.close()


def _bound(process: subprocess.Popen[bytes]) -> Callable[[], None]:
    """Have Windows end a process with this one; return what ends that."""
    if sys.platform == "win32":
        try:
            return confine(process)
        except OSError as error:
            _end(process)
            raise ProgramError(f"it can't be made sure that it ends with us: {error.strerror}") from error
    return lambda: None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def run_watched(command: Sequence[str], progress: Callable[[float], None]) -> None:
    """Run one of qemu's tools with -p to its end; ``progress`` gets the part that is done, 0 to 1.

    Raises ProgramError with what it said.
    """
    with tempfile.TemporaryFile() as said:
        with running(command, said, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            rest = b""
            while data := os.read(process.stdout.fileno(), 4096):
                rest += data
                if told := _PROGRESS.findall(rest):
                    progress(float(told[-1]) / 100)
                rest = rest[-32:]
            code = process.wait()
        if code:
            raise ProgramError(failure_text(command[0], code, said))


def failure_text(program: str, code: int, said: IO[bytes]) -> str:
    """Return one line about a program that failed: what it said last, or how it ended."""
    name = os.path.basename(program)  # noqa: PTH119
    lines: list[str] = []
    with suppress(OSError):
        said.seek(max(0, said.seek(0, os.SEEK_END) - _KEPT))
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    if lines:
        text = lines[-1].strip()
        return text if text.startswith(name) else f"{name}: {text}"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
    return f"{name} {how}"
