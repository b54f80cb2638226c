"""One writer for a set at a time."""

import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Self

from imagefs.errors import ImagingError, RefusedError
from imagefs.imaging.target import write_error

try:
    import fcntl
except ImportError:  # Windows: the file's own word decides
    fcntl = None  # type: ignore[assignment]

_SETTLE_SECONDS = 0.2  # in which another's word would be there, where the system has no locks
_NAME = re.compile(r"[0-9A-F]{16}\.lock")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SetLock:
    """A lock on a set: ``{image id}.lock`` in its folder, held while it exists and its holder lives.

    The system's own lock on that file decides where there is one: it ends with its holder, however that
    ended. Where a file system has none, or another machine holds it, what the file says decides: a holder on
    this machine that is gone holds nothing; one on another machine does, until the file is removed.
    """

    def __init__(self, folder: Path, image_id: str) -> None:
        self.path = folder / f"{image_id.upper()}.lock"
        self._fd = -1

    def __enter__(self) -> Self:
        """Take the lock; raises RefusedError that says who has it."""
        while self._fd < 0:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise write_error(error, self.path) from error
            try:
                if self._take(fd):
                    self._fd = fd
            finally:
                if self._fd < 0:
                    os.close(fd)
        return self

    def _take(self, fd: int) -> bool:
        """Lock the opened file; False when it was removed meanwhile, so that another must be opened."""
        locked = False
        if fcntl is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                raise self._refused(_read(fd)) from None
            except OSError:
                locked = False  # this file system has no locks
        try:
            if os.fstat(fd).st_ino != self.path.stat().st_ino:
                return False
        except FileNotFoundError:
            return False
        holder = _read(fd)
        if holder and _is_elsewhere(holder):
            raise self._refused(holder)
        if holder and not locked and _is_alive(holder):
            raise self._refused(holder)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_self()).encode(), 0)
            os.fsync(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.unlink()  # it is ours, and tells nothing
            raise write_error(error, self.path) from error
        if not locked:
            time.sleep(_SETTLE_SECONDS)
            holder = _read(fd)
            if holder != _self():
                raise self._refused(holder)
        return True

    def _refused(self, holder: dict[str, Any]) -> RefusedError:
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        elsewhere = bool(holder) and _is_elsewhere(holder)
        hint = f"if it is gone, remove {self.path.name}" if elsewhere else "wait until it is done"
        return RefusedError(f"{who} is writing to this set", path=self.path, hint=hint)

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_ino == self.path.stat().st_ino:  # else it was removed, and another's
                self.path.unlink()
        os.close(self._fd)
        self._fd = -1


def remove_stale(folder: Path) -> None:
    """Remove the locks that holders on this machine left behind when they were killed."""
    for path in folder.glob("*.lock"):
        if not _NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError, ImagingError):
            fd = os.open(path, os.O_RDONLY)
            try:
                holder = _read(fd)
            finally:
                os.close(fd)
            if holder and not _is_elsewhere(holder) and not _is_alive(holder):
                with SetLock(folder, path.stem):
                    pass


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process was started, so that another of the same number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(fd: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(fd, 4096, 0) or b"{}")
        if isinstance(holder, dict) and isinstance(holder.get("pid"), int) and "host" in holder:
            return holder
    except (OSError, ValueError):
        pass
    return {}


def _is_elsewhere(holder: dict[str, Any]) -> bool:
    return bool(holder["host"] != socket.gethostname())


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a holder on this machine still runs."""
    if holder.get("boot") != _boot():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return bool(holder.get("started", "") == _started(holder["pid"]))
