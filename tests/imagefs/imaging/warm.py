"""The command line from a process that has it loaded: every run is a fork, to be killed as any process.

As a program it takes orders, a JSON document on each line, and answers each with an exit code.
"""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

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
        number: int = signal.SIGKILL,
    ) -> int:
        """Run the command line; return its exit code, or minus the signal that ended it.

        With ``after`` seconds it gets a signal, counted from when an unfinished run is in the folder
        ``begun``; with ``die_at`` it kills itself at that step of the finish.
        """
        order = {
            "arguments": [str(each) for each in arguments],
            "password": password,
            "die_at": die_at,
            "after": after,
            "begun": str(begun or ""),
            "number": number,
            "log": str(self._log),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    @property
    def errors(self) -> str:
        """What the last run printed."""
        return self._log.read_text()


@contextmanager
def warm_process(log: Path) -> Iterator[Warm]:
    """Start a starter, and end it whatever happens."""
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.imagefs.imaging.warm"],
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
    from imagefs.cli import main

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
                sys.stderr.flush()
                os._exit(int(end.code or 0))  # the interpreter's own end takes longer than a run
        print(os.waitstatus_to_exitcode(_ended(pid, order)), flush=True)


def _ended(pid: int, order: dict[str, Any]) -> int:
    """Wait for a process; return how it ended."""
    if order["after"]:
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
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, into in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(fd, into)
    os.environ.pop("IMAGEFS_PASSWORD", None)
    if order["password"] is not None:
        os.environ["IMAGEFS_PASSWORD"] = order["password"]
    sys.argv = ["imagefs", *order["arguments"]]
    if order["die_at"]:
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
