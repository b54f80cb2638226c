"""Start a process that goes on in the background, and learn from it when it is ready.

The starter passes the number of a pipe's writing end in the environment. The process reports through
it once: one JSON document, then the end of the file. A process that ends without reporting has failed.
"""

import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mounters.errors import MountError

READY_FD = "IMAGEFS_READY_FD"
_GRACE = 5.0  # seconds between asking a process to end and killing it


def start_in_background(
    argv: Sequence[str],
    timeout: float = 60.0,
    *,
    stdin: bytes = b"",
    log: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a detached process, wait until it reports that it is ready, and return its number.

    The process gets its own session, ``stdin`` (such as a password; at most 64 KiB) as standard input
    and its output in the file ``log``, or nowhere. Raises MountError, with the exit code and the message
    that the process reports, when it fails or has not reported after ``timeout`` seconds; it has ended
    then.
    """
    with tempfile.TemporaryFile() as scratch, _output(log, scratch) as output:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing,),
                    start_new_session=True,
                    env={**(os.environ if environment is None else environment), READY_FD: str(writing)},
                )
            except OSError as error:
                raise MountError(f"{argv[0]}: cannot start: {error.strerror}") from None
            finally:
                os.close(writing)
            _give(process, stdin)
            report = _report(pipe, timeout)
        if report is not None and report.get("ready"):
            # Collects the process whenever it ends, should we live that long.
            threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
            return process.pid
        _end(process)
        raise _failure(process, report, timeout, output)


def _output(log: str | os.PathLike[str] | None, scratch: IO[bytes]) -> IO[bytes]:
    """Return the file for a process's output: the log, or a nameless one, which it drops when ready."""
    return os.fdopen(os.dup(scratch.fileno()), "rb+") if log is None else Path(log).open("ab+")


def _give(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(stdin)


def _report(pipe: IO[bytes], timeout: float) -> dict[str, object] | None:
    """Return what a process reports, {} if it ends without, None if the time runs out."""
    deadline = time.monotonic() + timeout
    received = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        part = os.read(pipe.fileno(), 65536)
        if not part:
            break
        received += part
    try:
        report = json.loads(received)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(
    process: subprocess.Popen[bytes], report: dict[str, object] | None, timeout: float, output: IO[bytes]
) -> MountError:
    if report is None:
        return MountError(f"the serving process was not ready after {timeout:.0f} seconds; it was ended")
    message, code = report.get("message"), report.get("exit_code")
    if isinstance(message, str) and isinstance(code, int):
        return MountError(message, code)
    output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
    lines = output.read().decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return MountError(f"the serving process ended with status {process.returncode}{said}")


def ready_fd() -> int | None:
    """Return the pipe to report through when this process was started in the background, else None.

    The environment is cleared of it, so that processes started from here do not report in our place.
    """
    text = os.environ.pop(READY_FD, "")
    if not text.isdecimal():
        return None
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd


def report_ready(fd: int) -> None:
    """Tell the starter that this process is ready. Output to nobody goes to /dev/null from here on."""
    _send(fd, {"ready": True})
    for stream in (1, 2):
        with suppress(OSError):
            if os.fstat(stream).st_nlink == 0 and not os.isatty(stream):  # the starter's nameless file
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream)


def report_failure(fd: int, exit_code: int, message: str) -> None:
    """Tell the starter that this process failed, with its exit code and a line for the user."""
    _send(fd, {"exit_code": exit_code, "message": message})


def _send(fd: int, report: dict[str, object]) -> None:
    with suppress(BrokenPipeError), os.fdopen(fd, "w") as pipe:
        json.dump(report, pipe)
