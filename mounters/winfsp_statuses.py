"""The one table that turns a tree's errors into the statuses of Windows.

Numbers: [MS-ERREF], section 2.3, https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-erref.
"""

import errno
import logging
from enum import IntEnum

log = logging.getLogger(__name__)


class Status(IntEnum):
    """The NTSTATUS values that a mount answers with."""

    BUFFER_OVERFLOW = 0x80000005
    END_OF_FILE = 0xC0000011
    INVALID_PARAMETER = 0xC000000D
    ACCESS_DENIED = 0xC0000022
    OBJECT_NAME_INVALID = 0xC0000033
    OBJECT_NAME_NOT_FOUND = 0xC0000034
    OBJECT_PATH_NOT_FOUND = 0xC000003A
    INSUFFICIENT_RESOURCES = 0xC000009A
    MEDIA_WRITE_PROTECTED = 0xC00000A2
    FILE_IS_A_DIRECTORY = 0xC00000BA
    NOT_SUPPORTED = 0xC00000BB
    FILE_CORRUPT_ERROR = 0xC0000102
    NOT_A_DIRECTORY = 0xC0000103
    TOO_MANY_OPENED_FILES = 0xC000011F
    CANCELLED = 0xC0000120
    IO_DEVICE_ERROR = 0xC0000185
    IO_TIMEOUT = 0xC00000B5
    HOST_UNREACHABLE = 0xC000023D
    NOT_A_REPARSE_POINT = 0xC0000275


_STATUSES = {
    errno.ENOENT: Status.OBJECT_NAME_NOT_FOUND,
    errno.ENOTDIR: Status.NOT_A_DIRECTORY,
    errno.EISDIR: Status.FILE_IS_A_DIRECTORY,
    errno.EACCES: Status.ACCESS_DENIED,
    errno.EPERM: Status.ACCESS_DENIED,
    errno.EROFS: Status.MEDIA_WRITE_PROTECTED,
    errno.EINVAL: Status.INVALID_PARAMETER,
    errno.ENAMETOOLONG: Status.OBJECT_NAME_INVALID,
    errno.ELOOP: Status.OBJECT_NAME_INVALID,
    errno.ENOMEM: Status.INSUFFICIENT_RESOURCES,
    errno.EMFILE: Status.TOO_MANY_OPENED_FILES,
    errno.ENFILE: Status.TOO_MANY_OPENED_FILES,
    errno.ENOTSUP: Status.NOT_SUPPORTED,
    errno.EOPNOTSUPP: Status.NOT_SUPPORTED,
    errno.ENOSYS: Status.NOT_SUPPORTED,
    errno.EINTR: Status.CANCELLED,
    errno.ETIMEDOUT: Status.IO_TIMEOUT,
    errno.EHOSTUNREACH: Status.HOST_UNREACHABLE,
    errno.ENETUNREACH: Status.HOST_UNREACHABLE,
    errno.ENETDOWN: Status.HOST_UNREACHABLE,
    errno.ECONNREFUSED: Status.HOST_UNREACHABLE,
    errno.ECONNRESET: Status.HOST_UNREACHABLE,
    errno.ECONNABORTED: Status.HOST_UNREACHABLE,
    errno.ENOTCONN: Status.HOST_UNREACHABLE,
    errno.EIO: Status.IO_DEVICE_ERROR,
    errno.ENXIO: Status.IO_DEVICE_ERROR,
    errno.ENODEV: Status.IO_DEVICE_ERROR,
}

# Windows' own errors of reading a file that holds an image ([MS-ERREF] 2.2). Python's errno for them says
# EINVAL or even ENOENT, which here would mean a name of the tree.
_UNREACHABLE = frozenset(
    {
        51,  # ERROR_REM_NOT_LIST
        53,  # ERROR_BAD_NETPATH
        55,  # ERROR_DEV_NOT_EXIST
        59,  # ERROR_UNEXP_NET_ERR
        64,  # ERROR_NETNAME_DELETED
        67,  # ERROR_BAD_NET_NAME
        121,  # ERROR_SEM_TIMEOUT
        1231,  # ERROR_NETWORK_UNREACHABLE
        1232,  # ERROR_HOST_UNREACHABLE
        1236,  # ERROR_CONNECTION_ABORTED
    }
)


class PathNotFoundError(FileNotFoundError):
    """A directory above the name is not there, or is none."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "no such path", path)


def status_of(error: Exception, doing: str, where: str) -> Status:
    """Return the status to answer with for an exception of the tree.

    ``doing`` names the operation and ``where`` the path and the offset, for the log: damage is logged as one
    line, what has no known ``errno`` with its traceback.
    """
    if isinstance(error, PathNotFoundError):
        return Status.OBJECT_PATH_NOT_FOUND
    of_windows = getattr(error, "winerror", None)  # of a call to the system: nothing that the tree says
    if of_windows is not None:
        log.warning("%s %s: %s", doing, where, error)
        return Status.HOST_UNREACHABLE if of_windows in _UNREACHABLE else Status.IO_DEVICE_ERROR
    number = getattr(error, "errno", None)
    status = _STATUSES.get(number) if isinstance(number, int) else None
    if status is None:
        log.error("%s %s: unexpected %s", doing, where, type(error).__name__, exc_info=error)
        return Status.IO_DEVICE_ERROR
    if status is Status.IO_DEVICE_ERROR and not isinstance(error, OSError):
        status = Status.FILE_CORRUPT_ERROR  # the image can be read, and is damaged
    if status in (Status.IO_DEVICE_ERROR, Status.FILE_CORRUPT_ERROR, Status.HOST_UNREACHABLE):
        log.warning("%s %s: %s", doing, where, error)
    return status
