"""Files by descriptor, at positions: one way on every system.

Nothing here depends on a file position, so one descriptor serves any number of threads.
Errors are OSErrors, as those of ``os``; on Windows with their ``winerror``, and ENOSPC for a full disk.
On Windows a file opened here can still be read, written, renamed, replaced and deleted by others, as on POSIX
systems, and long paths need nothing special.
"""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

if sys.platform == "win32":
    from formats.files_windows import (
        forget_cached,
        lock_file,
        move_new,
        open_alone,
        open_file,
        read_at,
        read_into,
        replace_file,
        sync,
        sync_folder,
        system_path,
        truncate,
        write_at,
        write_many,
    )
else:
    import fcntl

    _O_BINARY = getattr(os, "O_BINARY", 0)
    _MOST_PIECES = os.sysconf("SC_IOV_MAX")

    def open_file(path: str | Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
        """Open a file as ``os.open`` does, for bytes, not inherited by children; return its descriptor.

        It can be the ``opener`` of ``open``. On Windows ``mode`` means nothing: rights come from the folder.
        """
        return os.open(path, flags | os.O_CLOEXEC | _O_BINARY, mode)

    def open_alone(path: str | Path, flags: int) -> int:
        """Open a file for writing as ``open_file`` does; on Windows nobody else can write to it meanwhile."""
        return open_file(path, flags)

    def read_at(fd: int, length: int, offset: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer at the end, or as ``os.pread`` does."""
        return os.pread(fd, length, offset)

    def read_into(fd: int, buffer: memoryview | bytearray, offset: int) -> int:
        """Fill a buffer from ``offset``; return how many bytes were read, as ``read_at`` would."""
        return os.preadv(fd, [buffer], offset)

    def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write bytes at ``offset``; return how many were written, at least one of any."""
        return os.pwrite(fd, data, offset)

    def write_many(fd: int, pieces: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write pieces one behind the other from ``offset`` on; return how many bytes were written."""
        return os.pwritev(fd, pieces if len(pieces) <= _MOST_PIECES else pieces[:_MOST_PIECES], offset)

    def truncate(fd: int, size: int) -> None:
        """Cut or extend a file; what is added reads as zeros and takes no time."""
        os.ftruncate(fd, size)

    def sync(fd: int) -> None:
        """Put what was written to a file on stable storage."""
        os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)

    def lock_file(fd: int) -> None:
        """Lock an open file for this descriptor alone, until it is closed; others can still read and write.

        Raises BlockingIOError where another has it locked, else OSError where its file system has no locks.
        """
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def replace_file(source: Path, target: Path) -> None:
        """Rename a file, durably, in the place of another that may be there; on Windows tried for 3 seconds.

        There it fails where another program has either open in a way that does not allow it.
        """
        source.replace(target)
        sync_folder(target.parent)

    def move_new(source: Path, target: Path) -> None:
        """Rename a file durably, never over another; raises FileExistsError, or another OSError."""
        try:
            os.link(source, target)
        except FileExistsError:
            if not target.samefile(source):  # else linked before an interruption
                raise
        except OSError:  # no hard links: FAT, exFAT, some network shares
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            source.rename(target)
            sync_folder(target.parent)
            return
        sync_folder(target.parent)  # the new name must last before the old one goes
        source.unlink()

    def forget_cached(fd: int) -> None:
        """Have what is read from a file from now on come from the medium, as far as this user may."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_folder(folder: Path) -> None:
        """Make a folder's names durable, where the system can; on Windows nothing needs doing."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Some network file systems refuse; their renames are durable when they return.
            with suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)

    def system_path(path: str | Path) -> str:
        r"""Return the path that the system is to be given: on Windows with ``\\?\`` where it is long."""
        return os.fspath(path)


def open_stream(path: str | Path, mode: str = "rb", buffering: int = -1) -> BinaryIO:
    """Open a file as ``open`` does, for bytes, by ``open_file``."""
    return cast(BinaryIO, open(path, mode, buffering, opener=open_file))


__all__ = [
    "forget_cached",
    "lock_file",
    "move_new",
    "open_alone",
    "open_file",
    "open_stream",
    "read_at",
    "read_into",
    "replace_file",
    "sync",
    "sync_folder",
    "system_path",
    "truncate",
    "write_at",
    "write_many",
]
