"""A worker's process, its pipes, and who ends it when it keeps its starter waiting.

The pipes block: not every system has a way of waiting for one with a limit of time. A thread beside ends a
worker that is late; whoever waits then finds its pipe closed.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from formats.errors import ReadError
from imagefs.filesystems.nested import worker

if sys.platform == "win32":
    from imagefs.machine.windows.job import confine
elif sys.platform == "linux":
    import fcntl

_PIPE = 1 << 20  # bytes that an answer goes through in one go, where there may be so large pipes


class Worker:
    """The process. One request at a time: of ``read`` and ``write`` one runs, ``end`` may come at any time.

    Raises ReadError where none can be started.
    """

    def __init__(self, memory: int) -> None:
        self.process = _start()
        self._release = _confined(self.process, memory)
        self._watch = _Watch(self.process)

    @property
    def is_late(self) -> bool:
        """Tell whether it was ended because it kept its starter waiting."""
        return self._watch.is_late

    def read(self, most: int, patience: float) -> bytes:
        """Return up to ``most`` bytes that it has written; nothing when it ended, within so many seconds."""
        assert self.process.stdout is not None
        with self._watch.for_seconds(patience), suppress(OSError, ValueError):
            return self.process.stdout.read(most) or b""
        return b""

    def write(self, message: bytes, patience: float) -> bool:
        """Give it a message; return False when it has ended, within so many seconds."""
        assert self.process.stdin is not None
        rest = memoryview(message)
        with self._watch.for_seconds(patience), suppress(OSError, ValueError):
            while rest:
                rest = rest[self.process.stdin.write(rest) or 0 :]
        return not rest

    def end(self) -> None:
        """End it at once: there is nothing that it would have to finish."""
        self._watch.end()
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()
        self._release()


class _Watch:
    """Ends a process at a time that is moved on again and again."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._changed = threading.Condition()
        self._until: float | None = None
        self._wakes = 0.0  # when the thread looks next
        self._is_over = False
        self.is_late = False
        threading.Thread(target=self._run, name="imagefs-worker", daemon=True).start()

    @contextmanager
    def for_seconds(self, patience: float) -> Iterator[None]:
        """Wait for the process that long, and no longer."""
        with self._changed:
            self._until = time.monotonic() + patience
            if self._until < self._wakes:
                self._changed.notify()
        try:
            yield
        finally:
            self._until = None

    def end(self) -> None:
        """Watch no longer."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._is_over:
                until = self._until
                now = time.monotonic()
                if until is not None and until <= now:
                    self.is_late = True
                    self._process.kill()
                    return
                # One that nobody waits for is looked at when somebody does: never woken, it costs nothing.
                self._wakes = float("inf") if until is None else until
                self._changed.wait(None if until is None else until - now)


def _start() -> "subprocess.Popen[bytes]":
    python, environment, flags = sys.executable, None, 0
    if sys.platform == "win32":
        # No console of its own, and no Control-C. In a virtual environment the interpreter is a program that
        # starts another; that one can be started at once, and finds the environment by this variable.
        flags = subprocess.CREATE_NO_WINDOW
        base = getattr(sys, "_base_executable", python)
        if base != python:
            python, environment = base, {**os.environ, "__PYVENV_LAUNCHER__": python}
    try:
        process = subprocess.Popen(
            [python, "-P", str(Path(worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            creationflags=flags,
        )
    except OSError as error:
        raise ReadError(f"a process that reads a volume can't be started: {error.strerror}") from error
    if sys.platform == "linux":
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    return process


def _confined(process: "subprocess.Popen[bytes]", memory: int) -> Callable[[], None]:
    """Bound what a worker can't bound itself; return what gives that up again."""
    if sys.platform == "win32":
        try:
            return confine(process, memory)
        except OSError as error:
            process.kill()
            process.wait()
            raise ReadError(f"a process that reads a volume can't be confined: {error.strerror}") from error
    return _nothing


def _nothing() -> None:
    """Give up nothing."""
