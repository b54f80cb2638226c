"""Start a process that goes on in the background, and learn from it when it is ready.

The starter passes the number of a pipe's writing end in the environment, on Windows that of its handle. The
process reports through it once: a line, which is a JSON document. A process that ends without reporting has
failed; its end is seen as the end of the pipe.
"""

import json
import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mounters.errors import MountError

if sys.platform == "win32":
    import msvcrt

READY_FD = "IMAGEFS_READY_FD"
_DROP_OUTPUT = "IMAGEFS_DROP_OUTPUT"  # Windows: once the process is ready nobody reads its output
_GRACE = 5.0  # seconds between asking a process to end and killing it
_POLL = 0.1  # seconds; on Windows Ctrl-C is heeded between two waits
_LONGEST_REPORT = 65536  # bytes


@dataclass(frozen=True, slots=True)
class Started:
    """A process in the background that is ready."""

    pid: int
    mountpoint: str  # where it serves a mount, as it has reported; "" when it has not


def start_in_background(
    argv: Sequence[str],
    timeout: float = 60.0,
    *,
    stdin: bytes = b"",
    log: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Started:
    """Start a detached process, wait until it reports that it is ready, and return what it reports.

    The process gets its own session, ``stdin`` (such as a password; at most 64 KiB) as standard input
    and its output in the file ``log``, or nowhere. Raises MountError, with the exit code and the message
    that the process reports, when it fails or has not reported after ``timeout`` seconds; it has ended
    then.
    """
    variables = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryFile() as scratch, _output(log, scratch) as output:
        if log is None:
            variables[_DROP_OUTPUT] = "1"
        reading, writing = os.pipe()
        try:
            process = _start(argv, variables, writing, output)
        except OSError as error:
            os.close(reading)
            raise MountError(f"{argv[0]}: cannot start: {error.strerror}") from None
        finally:
            os.close(writing)
        try:
            answers = _read_report(reading)
            _give(process, stdin)
            report = _wait_for_report(answers, timeout)
        except BaseException:
            _end(process)
            raise
        if report is not None and report.get("ready"):
            # Collects the process whenever it ends, should we live that long.
            threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
            return Started(process.pid, str(report.get("mountpoint", "")))
        _end(process)
        raise _failure(process, report, timeout, output)


def _start(
    argv: Sequence[str], variables: dict[str, str], writing: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    if sys.platform == "win32":
        return _start_on_windows(argv, variables, writing, output)
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=(writing,),
        start_new_session=True,
        env={**variables, READY_FD: str(writing)},
    )


if sys.platform == "win32":

    def _start_on_windows(
        argv: Sequence[str], variables: dict[str, str], writing: int, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a process with a console that nobody sees; a detached one's own would start with a window.

        It leaves the job that it is started from, where that allows it: remote shells and terminals
        end all processes of theirs.
        """
        handle = msvcrt.get_osfhandle(writing)
        os.set_handle_inheritable(handle, True)
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        for flag in (subprocess.CREATE_BREAKAWAY_FROM_JOB, 0):
            try:
                return subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    startupinfo=subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]}),
                    creationflags=flags | flag,
                    env={**variables, READY_FD: str(handle)},
                )
            except PermissionError:
                if not flag:
                    raise
        raise AssertionError


def _output(log: str | os.PathLike[str] | None, scratch: IO[bytes]) -> IO[bytes]:
    """Return the file for a process's output: the log, or a nameless one, which it drops when ready."""
    if log is None:
        return os.fdopen(os.dup(scratch.fileno()), "rb+")
    output = Path(log).open("ab+")  # noqa: SIM115  (the caller's)
    output.seek(0, os.SEEK_END)  # Windows: who inherits it goes on from here, not at the end of the file
    return output


def _give(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:  # BrokenPipeError, or on Windows EINVAL
        pipe.write(stdin)


def _read_report(reading: int) -> queue.SimpleQueue[bytes]:
    """Read a line from a pipe, in a thread: Windows can't wait for a pipe with a limit.

    The thread ends with the process at the latest. The pipe is its own: closing one that is being read
    from would wait for the reader.
    """
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            answers.put(pipe.readline(_LONGEST_REPORT))

    threading.Thread(target=read, name="mount-report", daemon=True).start()
    return answers


def _wait_for_report(answers: queue.SimpleQueue[bytes], timeout: float) -> dict[str, object] | None:
    """Return what a process reports, {} if it ends without, None if the time runs out."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        with suppress(queue.Empty):
            received = answers.get(timeout=min(left, _POLL))
            break
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
    try:
        if sys.platform == "win32":
            fd = msvcrt.open_osfhandle(int(text), os.O_WRONLY)
        else:
            fd = int(text)
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd


def report_ready(fd: int, mountpoint: str = "") -> None:
    """Tell the starter that this process is ready, and where it serves a mount.

    Output to nobody goes to /dev/null from here on.
    """
    _send(fd, {"ready": True, "mountpoint": mountpoint})
    dropped = os.environ.pop(_DROP_OUTPUT, "")
    for stream in (1, 2):
        with suppress(OSError):
            if dropped and _is_nameless(stream):
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream)


def _is_nameless(stream: int) -> bool:
    """Tell whether a stream may be the starter's nameless file, and not one that was opened since."""
    if sys.platform == "win32":
        return stat.S_ISREG(os.fstat(stream).st_mode)  # it has a name there as long as it is open
    return os.fstat(stream).st_nlink == 0 and not os.isatty(stream)


def report_failure(fd: int, exit_code: int, message: str) -> None:
    """Tell the starter that this process failed, with its exit code and a line for the user."""
    _send(fd, {"exit_code": exit_code, "message": message})


def _send(fd: int, report: dict[str, object]) -> None:
    with suppress(OSError), os.fdopen(fd, "w") as pipe:  # BrokenPipeError, or on Windows EINVAL
        pipe.write(json.dumps(report) + "\n")
