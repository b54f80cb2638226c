"""Holes of files: where they are, and how they are made. Ranges are bytes.

On POSIX systems every file can have them; on Windows one that was marked as sparse. Sources: lseek(2),
fallocate(2); Microsoft, "Sparse Files", FSCTL_SET_SPARSE, FSCTL_SET_ZERO_DATA, FSCTL_QUERY_ALLOCATED_RANGES.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

Control = Callable[[int, bytes, int], tuple[bytes, bool]]  # code, input, room → output, whether there is more

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}

_SET_SPARSE, _SET_ZERO_DATA, _QUERY_ALLOCATED = 0x900C4, 0x980C8, 0x940CF  # winioctl.h
_RANGE = struct.Struct(
    "<qq"
)  # FILE_ALLOCATED_RANGE_BUFFER: offset, length; FILE_ZERO_DATA_INFORMATION: start, end
_ROOM = 1024 * _RANGE.size
_UNKNOWN_TO_IT = {
    1,
    50,
    87,
}  # ERROR_INVALID_FUNCTION, _NOT_SUPPORTED, _INVALID_PARAMETER: FAT, exFAT, some shares


if sys.platform == "win32":
    from formats import files_windows

    def _control(fd: int) -> Control:
        return lambda code, data, room: files_windows.control(fd, code, data, room)

    def make_sparse(fd: int) -> None:
        """Let a file have holes from now on, where its file system can; OSErrors pass."""
        mark_sparse(_control(fd))

    def allocated(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the starts and ends of what is no hole in a range of a file, in order; OSErrors pass."""
        return allocated_by(_control(fd), offset, end)

    def punch_hole(fd: int, offset: int, length: int) -> bool:
        """Make bytes of a file a hole; False where that can't be done, the bytes stay as they are then.

        A file that is not sparse gets zeros in its place. OSErrors of the medium pass.
        """
        return zero_by(_control(fd), offset, length)

else:

    def make_sparse(fd: int) -> None:
        """Do nothing: every file can have holes."""

    def allocated(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the starts and ends of what is no hole in a range of a file, in order; OSErrors pass.

        Where the file system knows of no holes that is all of it. It moves the file's position.
        """
        while offset < end:
            start = min(_seek(fd, offset, os.SEEK_DATA, end), end)
            stop = min(_seek(fd, start, os.SEEK_HOLE, end), end) if start < end else end
            if start < stop:
                yield start, stop
            offset = stop

    def _seek(fd: int, offset: int, whence: int, end: int) -> int:
        try:
            return os.lseek(fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end  # nothing but a hole up to the end
            if error.errno != errno.EINVAL:
                raise
            return offset if whence == os.SEEK_DATA else end  # it knows of no holes

    @cache
    def _fallocate() -> Callable[[int, int, int, int], int] | None:
        """Return the C library's fallocate, None where it has none; Python's allocates only."""
        with suppress(AttributeError, OSError):
            function = ctypes.CDLL(None, use_errno=True).fallocate64
            function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            return function
        return None

    def punch_hole(fd: int, offset: int, length: int) -> bool:
        """Make bytes of a file or device a hole; False where that can't be done: the bytes stay as they are.

        OSErrors of the medium pass.
        """
        function = _fallocate()
        if function is None:
            return False
        while function(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
            number = ctypes.get_errno()
            if number in _NOT_SUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True


# --- What Windows is asked, on every system, so that it can be tested on any ---


def mark_sparse(control: Control) -> bool:
    """Ask for a file that can have holes; False where its file system has none."""
    return _done(control, _SET_SPARSE, b"")


def zero_by(control: Control, offset: int, length: int) -> bool:
    """Ask for zeros in a range, which in a sparse file are a hole; False where it can't be asked."""
    return _done(control, _SET_ZERO_DATA, _RANGE.pack(offset, offset + length))


def _done(control: Control, code: int, data: bytes) -> bool:
    try:
        control(code, data, 0)
    except OSError as error:
        if _code_of(error) in _UNKNOWN_TO_IT:
            return False
        raise
    return True


def allocated_by(control: Control, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Ask for what is allocated of a range, a thousand runs at a time; all of it where it can't be asked."""
    while offset < end:
        try:
            answer, more = control(_QUERY_ALLOCATED, _RANGE.pack(offset, end - offset), _ROOM)
        except OSError as error:
            if _code_of(error) not in _UNKNOWN_TO_IT:
                raise
            yield offset, end
            return
        last = offset
        for start, length in _RANGE.iter_unpack(answer):
            last = min(start + length, end)
            if max(start, offset) < last:
                yield max(start, offset), last
        if not more:
            return
        if last <= offset:
            raise OSError(errno.EIO, "the file's runs are told without end")
        offset = last


def _code_of(error: OSError) -> int | None:
    return getattr(error, "winerror", None)
