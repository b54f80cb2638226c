"""One writer for a set at a time."""

import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Self

from formats.files import lock_file, open_file, read_at, sync, truncate, write_at
from imagefs.errors import ImagingError, RefusedError
from imagefs.imaging.target import write_error
from imagefs.machine.processes import boot, is_running, started
from imagefs.machine.system_errors import ACCESS_DENIED, windows_code

_PATIENCE, _PAUSE = 1.0, 0.05  # seconds
_SETTLE_SECONDS = 0.2  # in which another's word would be there, where the system has no locks
_NAME = re.compile(r"[0-9A-F]{16}\.lock")


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
        deadline = time.monotonic() + _PATIENCE
        while self._fd < 0:
            try:
                fd = open_file(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                if windows_code(error) == ACCESS_DENIED and time.monotonic() < deadline:
                    time.sleep(_PAUSE)  # it may be removed, and still open
                    continue
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
        try:
            lock_file(fd)
            locked = True
        except BlockingIOError:
            raise self._refused(_read(fd)) from None
        except OSError:
            locked = False  # this file system has no locks
        try:
            if os.fstat(fd).st_ino != self.path.stat().st_ino:
                return False
        except (FileNotFoundError, PermissionError):  # removed; on Windows perhaps not quite
            return False
        holder = _read(fd)
        if holder and _is_elsewhere(holder):
            raise self._refused(holder)
        if holder and not locked and _is_alive(holder):
            raise self._refused(holder)
        try:
            truncate(fd, 0)
            write_at(fd, json.dumps(_self()).encode(), 0)
            sync(fd)
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
            fd = open_file(path)
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
        "boot": boot(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
    }


def _read(fd: int) -> dict[str, Any]:
    try:
        holder = json.loads(read_at(fd, 4096, 0) or b"{}")
        if isinstance(holder, dict) and isinstance(holder.get("pid"), int) and "host" in holder:
            return holder
    except (OSError, ValueError):
        pass
    return {}


def _is_elsewhere(holder: dict[str, Any]) -> bool:
    return bool(holder["host"] != socket.gethostname())


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a holder on this machine still runs."""
    if holder.get("boot") != boot() or not is_running(holder["pid"]):
        return False
    found = started(holder["pid"])
    return not found or bool(holder.get("started", "") == found)
