"""What is written to: a block device, or a file that becomes a disk.

A new file gets its name when it is complete: until then it is ``NAME.unfinished`` beside it, from which a
delta restore goes on. Offsets are bytes.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from imagefs.errors import ImagingError, RefusedError, SourceReadError, TargetWriteError
from imagefs.machine import devices

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # <linux/falloc.h>
_BLKDISCARD, _BLKZEROOUT, _BLKRRPART = 0x1277, 0x127F, 0x125F  # <linux/fs.h>
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
_PAGE = mmap.PAGESIZE
_ZEROS = 1 << 20  # bytes written at a time where a range is made zeros by writing
UNFINISHED = ".unfinished"


class Target:
    """An opened target of ``size`` bytes. Reads and writes may come from several threads.

    ``sector_size`` is a device's logical one; 1 for a file. ``fresh`` tells that all of it is a hole.
    """

    def __init__(self, fd: int, path: Path, name: Path, size: int, *, fresh: bool) -> None:
        self.path = path  # what is asked for
        self.size = size
        self.fresh = fresh
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.sector_size = 1
        self.direct = False
        self._fd = fd
        self._name = name  # of the file while it is written
        self._lost: OSError | None = None
        if self.is_device:
            device = devices.require(path)
            self.sector_size = devices.sector_sizes(fd, device)[0]
            self._set_direct(on=True)

    # --- Opening ---

    @classmethod
    def open_device(cls, path: Path) -> Self:
        """Open a block device for writing, so that nobody mounts it meanwhile; raises RefusedError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)
        except OSError as error:
            raise _cannot_open(error, path) from error
        try:
            return cls(fd, path, path, os.lseek(fd, 0, os.SEEK_END), fresh=False)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open_file(cls, path: Path, size: int, *, delta: bool) -> Self:
        """Open a disk file of ``size`` bytes: with ``delta`` what is there, else a new one in its place.

        Raises RefusedError where it can't be opened, or another restore writes it.
        """
        name = path if delta and path.exists() else path.with_name(path.name + UNFINISHED)
        fresh = not (delta and name.exists())
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW * (name != path), 0o666)
        except OSError as error:
            raise _cannot_open(error, path) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RefusedError("another restore writes it now", path=path) from error
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RefusedError("not a file", path=name, hint="remove it")
            if fresh:
                os.ftruncate(fd, 0)
                if path.exists():
                    os.fchmod(fd, stat.S_IMODE(path.stat().st_mode))
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
            return cls(fd, path, name, size, fresh=fresh)
        except OSError as error:
            os.close(fd)
            raise write_error(error, path) from error
        except BaseException:
            os.close(fd)
            raise

    def _set_direct(self, *, on: bool) -> None:
        """Pass the cache by, or not, as far as the device lets us."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
            self.direct = on

    # --- Reading and writing ---

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill page-aligned memory; raises SourceReadError."""
        done = 0
        while done < len(view):
            try:
                step = os.preadv(self._fd, [view[done:]], offset + done)
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
                step = os.pwrite(self._fd, view[done:], offset + done)
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
        if not self.is_device:
            return self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)
        if self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
            return True
        return not zeros and self._ioctl_range(_BLKDISCARD, offset, length)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros, by whatever way is the quickest; raises TargetWriteError."""
        if self.discard(offset, length, zeros=True):
            return
        if self.is_device and self._ioctl_range(_BLKZEROOUT, offset, length):
            return
        buffer = aligned(min(length, _ZEROS))
        for at in range(offset, offset + length, _ZEROS):
            self.write(at, buffer[: min(_ZEROS, offset + length - at)])

    def holes(self, offset: int, length: int) -> bool:
        """Whether a file has nothing but zeros in a range, and nothing stored but at its ends."""
        if self.is_device:
            return False
        end = offset + length
        low, high = min(end, offset + -offset % _PAGE), max(offset, end // _PAGE * _PAGE)
        if low < high:
            try:
                if os.lseek(self._fd, low, os.SEEK_DATA) < high:
                    return False
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return False
        # A page may hold both what is free and what is in use.
        edges = ((offset, low), (high, end)) if low < high else ((offset, end),)
        return not any(any(self.read_bytes(start, stop - start)) for start, stop in edges if start < stop)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        if _allocate is None:
            return False
        try:
            _allocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise write_error(error, self.path, offset) from error
        return True

    def _ioctl_range(self, request: int, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._fd, request, struct.pack("=QQ", offset, length))
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise write_error(error, self.path, offset) from error
        return True

    # --- Ending ---

    def flush(self) -> None:
        """Return once everything is on stable storage; a failure is final: what was lost is not known."""
        if self._lost is None:
            try:
                os.fsync(self._fd)
                return
            except OSError as error:
                self._lost = error
        raise write_error(self._lost, self.path)

    def forget_cached(self) -> None:
        """Have what is read from now on come from the medium, as far as this user may."""
        if self.is_device:
            devices.forget_cached(self._fd)
        elif hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def complete(self) -> None:
        """Give a new file its name."""
        if self._name != self.path:
            try:
                self._name.replace(self.path)
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            except OSError as error:
                raise write_error(error, self.path) from error
            self._name = self.path

    def read_table_anew(self) -> bool:
        """Have the kernel see a device's new partitions; False where it can't now."""
        if self.is_device:
            try:
                fcntl.ioctl(self._fd, _BLKRRPART)
            except OSError:  # it is in use, or is no disk whose partitions the kernel looks for
                device = devices.require(self.path)
                _forget_neighbours(device)
                return device.partition is not None or not any(device.partitions())
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
    return TargetWriteError(f"can't be written{where}: {error.strerror or error}", path=path, hint=hint)


def _forget_neighbours(device: devices.BlockDevice) -> None:
    """Drop what is cached of a device's disk and partitions: each has a cache of its own."""
    for other in (device.parent, *device.parent.partitions()):
        if other.number != device.number:
            with suppress(OSError, SourceReadError):
                fd = devices.open_device(other)
                try:
                    devices.forget_cached(fd)
                finally:
                    os.close(fd)


def _cannot_open(error: OSError, path: Path) -> RefusedError:
    hint = {
        errno.EBUSY: "something uses it: unmount it, or end what holds it",
        errno.EACCES: "writing to a device needs root",
        errno.EPERM: "writing to a device needs root",
        errno.ELOOP: "remove the link",
    }.get(error.errno or 0, "")
    return RefusedError(f"can't be opened for writing: {error.strerror or error}", path=path, hint=hint)


def _find_fallocate() -> Callable[[int, int, int, int], None] | None:
    """Return fallocate(2) of the C library: Python has only the one that allocates."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        if function(fd, mode, offset, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return fallocate


_allocate = _find_fallocate()
