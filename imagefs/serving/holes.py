"""Give back the space of a part of a file, where the system can; Python has no call for it."""

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cache

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>


@cache
def _fallocate() -> "ctypes._NamedFuncPointer | None":
    """Return the C library's fallocate, None where it has none."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(AttributeError, OSError):
        function = ctypes.CDLL(None, use_errno=True).fallocate64
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        return function
    return None


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make bytes of a file a hole; False where that can't be done, the bytes stay as they are then.

    Raises OSError for errors of the medium.
    """
    function = _fallocate()
    if function is None:
        return False
    while function(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
