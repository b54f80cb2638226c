"""What errors of the operating system mean: by errno, and on Windows by its own numbers as well.

Python makes one of a few errnos of Windows' numbers, EINVAL of most. Source: Microsoft, "System Error Codes".
"""

import errno

ACCESS_DENIED = 5
_IN_USE = frozenset((32, 33, 1224))  # ERROR_SHARING_VIOLATION, _LOCK_VIOLATION, _USER_MAPPED_FILE
# What may pass by itself: a network that is away for a moment, a drive that wakes up.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN", "EINTR", "EIO", "ETIMEDOUT", "ESTALE", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN",
        "ENETUNREACH", "ENETRESET", "ECONNRESET", "ENOTCONN", "EBUSY", "ENOBUFS",
    )
    if hasattr(errno, name)
)  # fmt: skip
_TRANSIENT_CODES = _IN_USE | {
    21,  # ERROR_NOT_READY
    31,  # ERROR_GEN_FAILURE
    51,  # ERROR_REM_NOT_LIST
    53,  # ERROR_BAD_NETPATH
    54,  # ERROR_NETWORK_BUSY
    55,  # ERROR_DEV_NOT_EXIST
    58,  # ERROR_BAD_NET_RESP
    59,  # ERROR_UNEXP_NET_ERR
    64,  # ERROR_NETNAME_DELETED
    71,  # ERROR_REQ_NOT_ACCEP
    121,  # ERROR_SEM_TIMEOUT
    145,  # ERROR_DIR_NOT_EMPTY, while a file in it is still open
    170,  # ERROR_BUSY
    1117,  # ERROR_IO_DEVICE
    1231,  # ERROR_NETWORK_UNREACHABLE
    1232,  # ERROR_HOST_UNREACHABLE
    1236,  # ERROR_CONNECTION_ABORTED
    1237,  # ERROR_RETRY
    1450,  # ERROR_NO_SYSTEM_RESOURCES
}


def windows_code(error: OSError) -> int | None:
    """Return Windows' own number of an error, None elsewhere."""
    return getattr(error, "winerror", None)


def is_transient(error: OSError) -> bool:
    """Whether it may be gone when the same is tried again."""
    return error.errno in _TRANSIENT or windows_code(error) in _TRANSIENT_CODES


def is_in_use(error: OSError) -> bool:
    """Whether another program's use of a file is in the way."""
    return windows_code(error) in _IN_USE
