"""The command line from a process that has it loaded: every run is a fork, to be killed as any process.

As a program it takes orders, a JSON document on each line, and answers each with an exit code.
"""

import gc
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows forks nothing, but reads this file
_POINTS = ("fsync", "fdatasync", "link", "unlink", "replace", "rename", "rmdir", "ftruncate")


class Warm:
    """The starter of runs, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log

    def run(
        self,
        *arguments: str | Path,
        password: str | None = None,
        die_at: int = 0,
        after: float = 0,
        begun: Path | None = None,
        number: int = _KILL,
    ) -> int:
        """Run the command line; return its exit code, or minus the signal that ended it.

        With ``after`` seconds it gets a signal, counted from when an unfinished run is in the folder
        ``begun``; with ``die_at`` it kills itself at that step of the finish.
        """
        environment = {key: value for key, value in os.environ.items() if key != "IMAGEFS_PASSWORD"}
        if password is not None:
            environment["IMAGEFS_PASSWORD"] = password
        order = {
            "arguments": [str(each) for each in arguments],
            "environment": environment,
            "die_at": die_at,
            "after": after,
            "begun": str(begun or ""),
            "number": number,
        }
        return self._order(order, (os.devnull, str(self._log), str(self._log)))

    def run_with(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes, timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Run the command line; return its exit code, and what it wrote to standard output and error.

        Raises subprocess.TimeoutExpired after so many seconds; the starter has ended then.
        """
        files = [self._log.with_name(f"{self._log.name}.{name}") for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        order = {"arguments": [*arguments], "environment": {**environment}}
        code = self._order(order, [str(file) for file in files], timeout)
        return code, files[1].read_bytes(), files[2].read_bytes()

    def _order(self, order: dict[str, Any], streams: Sequence[str], timeout: float | None = None) -> int:
        order = {**order, "streams": streams, "folder": str(Path.cwd())}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._process.kill()
            raise subprocess.TimeoutExpired(order["arguments"], timeout or 0)
        return int(self._process.stdout.readline())

    @property
    def errors(self) -> str:
        """What the last run printed."""
        return self._log.read_text()


@contextmanager
def warm_process(log: Path) -> Iterator[Warm]:
    """Start a starter, and end it whatever happens."""
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Warm(process, log)
        finally:
            process.kill()


def _serve() -> None:
    from imagefs.cli import COMMANDS, main

    for command in COMMANDS:
        import_module(f"imagefs.cli.{command.replace('-', '_')}")
    sys.argv = ["imagefs", "backup", "--discard", "nothing is here"]  # loads what is loaded when it is needed
    with suppress(SystemExit), redirect_stderr(StringIO()):
        main()
    gc.freeze()  # lest every fork copies what is loaded
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(order)
            try:
                main()
            except SystemExit as end:
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError, ValueError):
                        stream.flush()
                os._exit(int(end.code or 0))  # the interpreter's own end takes longer than a run
        print(os.waitstatus_to_exitcode(_ended(pid, order)), flush=True)


def _ended(pid: int, order: dict[str, Any]) -> int:
    """Wait for a process; return how it ended."""
    if order.get("after"):
        end = 0.0 if order["begun"] else time.monotonic() + order["after"]
        while not end or time.monotonic() < end:
            if not end and any(Path(order["begun"]).glob("*.unfinished/state.json")):
                end = time.monotonic() + order["after"]
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.002)
        os.kill(pid, order["number"])  # not waited for, so it is still this process
    return os.waitpid(pid, 0)[1]


def _become(order: dict[str, Any]) -> None:
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    stdin, stdout, stderr = order["streams"]
    into = os.open(stdout, write, 0o600)
    for number, fd in enumerate((os.open(stdin, os.O_RDONLY), into)):
        os.dup2(fd, number)
    os.dup2(into if stderr == stdout else os.open(stderr, write, 0o600), 2)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.argv = ["imagefs", *order["arguments"]]
    if order.get("die_at"):
        _die_while_finishing(order["die_at"])


def _die_while_finishing(at: int) -> None:
    """Be killed before the ``at``-th step from the moment that the metadata is to be written."""
    from formats.mrimgx import writer
    from imagefs.imaging.run import Run

    steps = itertools.count(1)
    is_finishing = False

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if is_finishing and next(steps) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return step

    def finish(run: Run, own: dict[str, object] | None) -> Any:
        nonlocal is_finishing
        is_finishing = True
        return real_finish(run, own)

    real_finish = Run.finish
    setattr(Run, "finish", finish)  # noqa: B010
    setattr(writer._ListWriter, "_write", counted(writer._ListWriter._write))  # noqa: B010
    for name in _POINTS:
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    _serve()
