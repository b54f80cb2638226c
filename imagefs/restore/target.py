"""What is written to: a file that becomes a disk, and what a device has in common with one.

A new file gets its name when it is complete: until then it is ``NAME.unfinished`` beside it, from which a
delta restore goes on. Offsets are bytes.
"""

import errno
import mmap
import os
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from formats.files import (
    forget_cached,
    lock_file,
    open_alone,
    read_into,
    replace_file,
    sync,
    truncate,
    write_at,
)
from imagefs.errors import ImagingError, RefusedError, SourceReadError, TargetWriteError
from imagefs.machine.sparse import allocated, make_sparse, punch_hole
from imagefs.machine.system_errors import is_in_use

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_PAGE = mmap.PAGESIZE
_ZEROS = 1 << 20  # bytes written at a time where a range is made zeros by writing
_ROOT = "writing to a device needs root"
UNFINISHED = ".unfinished"


class Target:
    """An opened target of ``size`` bytes: a file. Reads and writes may come from several threads.

    ``fresh`` tells that all of it is a hole. Devices are subclasses, which are given by ``this_machine``.
    """

    is_device = False
    direct = False  # whether the cache is passed by
    sector_size = 1  # bytes: a device's logical one

    def __init__(self, fd: int, path: Path, name: Path, size: int, *, fresh: bool) -> None:
        self.path = path  # what is asked for
        self.size = size
        self.fresh = fresh
        self._fd = fd
        self._name = name  # of the file while it is written
        self._lost: OSError | None = None

    @classmethod
    def open_file(cls, path: Path, size: int, *, delta: bool) -> Self:
        """Open a disk file of ``size`` bytes: with ``delta`` what is there, else a new one in its place.

        Raises RefusedError where it can't be opened, or another restore writes it.
        """
        name = path if delta and path.exists() else path.with_name(path.name + UNFINISHED)
        fresh = not (delta and name.exists())
        try:
            if name != path and name.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            fd = open_alone(name, os.O_RDWR | os.O_CREAT | _NO_FOLLOW * (name != path))
        except OSError as error:
            raise cannot_open(error, path) from error
        try:
            try:
                lock_file(fd)
            except BlockingIOError as error:
                raise RefusedError("another restore writes it now", path=path) from error
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RefusedError("not a file", path=name, hint="remove it")
            if fresh:
                truncate(fd, 0)
                if sys.platform != "win32" and path.exists():
                    os.fchmod(fd, stat.S_IMODE(path.stat().st_mode))
            make_sparse(fd)
            if os.fstat(fd).st_size != size:
                truncate(fd, size)
            return cls(fd, path, name, size, fresh=fresh)
        except OSError as error:
            os.close(fd)
            raise write_error(error, path) from error
        except BaseException:
            os.close(fd)
            raise

    # --- Reading and writing ---

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill page-aligned memory; raises SourceReadError."""
        done = 0
        while done < len(view):
            try:
                step = read_into(self._fd, view[done:], offset + done)
            except OSError as error:
                what = f"can't be read at {offset + done}: {error.strerror or error}"
                raise SourceReadError(what, path=self.path, offset=offset, length=len(view)) from error
            if not step:
                what = f"ends at {offset + done}"
                raise SourceReadError(what, path=self.path, offset=offset, length=len(view))
            done += step

    def write(self, offset: int, view: memoryview) -> None:
        """Write page-aligned memory, whole sectors on a device; raises TargetWriteError."""
        done = 0
        while done < len(view):
            try:
                step = write_at(self._fd, view[done:], offset + done)
            except OSError as error:
                raise write_error(error, self.path, offset + done) from error
            if not step:
                raise TargetWriteError(f"takes no more at {offset + done}", path=self.path)
            done += step

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Write a few bytes anywhere, sectors around them kept."""
        first = offset - offset % self.sector_size
        end = offset + len(data)
        end += -end % self.sector_size
        buffer = aligned(end - first)
        if (first, end) != (offset, offset + len(data)):
            self.read_into(first, buffer)
        buffer[offset - first : offset - first + len(data)] = data
        self.write(first, buffer)

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Return bytes from anywhere."""
        first = offset - offset % self.sector_size
        end = offset + length
        end += -end % self.sector_size
        buffer = aligned(end - first)
        self.read_into(first, buffer)
        return bytes(buffer[offset - first : offset - first + length])

    def discard(self, offset: int, length: int, *, zeros: bool) -> bool:
        """Give a range back to what stores it; return False where that can't be done.

        With ``zeros`` only where the range reads as zeros then.
        """
        try:
            return punch_hole(self._fd, offset, length)
        except OSError as error:
            raise write_error(error, self.path, offset) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros, by whatever way is the quickest; raises TargetWriteError."""
        if self.discard(offset, length, zeros=True):
            return
        self.write_zeros(offset, length)

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros; raises TargetWriteError."""
        buffer = aligned(min(length, _ZEROS))
        for at in range(offset, offset + length, _ZEROS):
            self.write(at, buffer[: min(_ZEROS, offset + length - at)])

    def holes(self, offset: int, length: int) -> bool:
        """Whether a file has nothing but zeros in a range, and nothing stored but at its ends."""
        end = offset + length
        low, high = min(end, offset + -offset % _PAGE), max(offset, end // _PAGE * _PAGE)
        if low < high:
            try:
                if any(allocated(self._fd, low, high)):
                    return False
            except OSError:
                return False
        # A page may hold both what is free and what is in use.
        edges = ((offset, low), (high, end)) if low < high else ((offset, end),)
        return not any(any(self.read_bytes(start, stop - start)) for start, stop in edges if start < stop)

    # --- Ending ---

    def flush(self) -> None:
        """Return once everything is on stable storage; a failure is final: what was lost is not known."""
        if self._lost is None:
            try:
                sync(self._fd)
                return
            except OSError as error:
                self._lost = error
        raise write_error(self._lost, self.path)

    def forget_cached(self) -> None:
        """Have what is read from now on come from the medium, as far as this user may."""
        forget_cached(self._fd)

    def complete(self) -> None:
        """Give a new file its name."""
        if self._name != self.path:
            try:
                replace_file(self._name, self.path)
            except OSError as error:
                raise write_error(error, self.path) from error
            self._name = self.path

    def read_table_anew(self) -> bool:
        """Have the kernel see a device's new partitions; False where it can't now."""
        return True

    def drop(self) -> None:
        """Remove a new file that will never be complete."""
        if self._name != self.path:
            with suppress(OSError):
                self._name.unlink()

    @property
    def left(self) -> Path | None:
        """Where a new file is that has not got its name yet."""
        return self._name if self._name != self.path else None

    def close(self) -> None:
        """Close it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Memory(threading.local):
    """Page-aligned memory that a thread uses again and again."""

    def __init__(self) -> None:
        self._views: dict[str, memoryview] = {}

    def get(self, what: str, length: int) -> memoryview:
        """Return so many bytes, with whatever is in them; ``what`` tells one use from another."""
        view = self._views.get(what)
        if view is None or len(view) < length:
            view = self._views[what] = aligned(length)
        return view[:length]


def aligned(length: int) -> memoryview:
    """Return page-aligned zeros."""
    return memoryview(mmap.mmap(-1, max(1, length)))[:length]


def write_error(error: OSError, path: Path, offset: int | None = None) -> ImagingError:
    """Return the error of this package for one of the operating system."""
    where = "" if offset is None else f" at {offset}"
    hint = "free some room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if is_in_use(error):
        hint = "end the program that has it open"
    return TargetWriteError(f"can't be written{where}: {error.strerror or error}", path=path, hint=hint)


def cannot_open(error: OSError, path: Path) -> RefusedError:
    """Return the error for a target that the system does not let us write."""
    hint = {
        errno.EBUSY: "something uses it: unmount it, or end what holds it",
        errno.EACCES: "see who may write there" if sys.platform == "win32" else _ROOT,
        errno.EPERM: _ROOT,
        errno.ELOOP: "remove the link",
    }.get(error.errno or 0, "")
    if is_in_use(error):
        hint = "end the program that has it open: a virtual machine, say"
    return RefusedError(f"can't be opened for writing: {error.strerror or error}", path=path, hint=hint)
