"""Errors of mounting, and the one table that turns a tree's errors into the kernel's numbers."""

import errno
import logging

log = logging.getLogger(__name__)

_LARGEST_ERRNO = 511  # the kernel refuses a reply with a greater one, and its caller would wait for ever


class MountError(Exception):
    """A mount or an unmount that failed; the message says what to do about it.

    ``exit_code`` is the command line's: 6 for a mount point that is refused, 7 for everything else.
    """

    def __init__(self, message: str, exit_code: int = 7) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MountPointError(MountError):
    """The mount point is refused: it is missing, no directory, not empty or in use."""

    def __init__(self, message: str, exit_code: int = 6) -> None:
        super().__init__(message, exit_code)


def error_number(error: Exception, doing: str, where: str) -> int:
    """Return the errno to answer with for an exception of the tree.

    ``doing`` names the operation and ``where`` the path or inode and the offset, for the log: damage
    (EIO) is logged as one line, anything without a usable ``errno`` attribute with its traceback.
    """
    number = getattr(error, "errno", None)
    if isinstance(number, int) and 0 < number <= _LARGEST_ERRNO:
        if number == errno.EIO:
            log.warning("%s %s: %s", doing, where, error)
        return number
    log.error("%s %s: unexpected %s", doing, where, type(error).__name__, exc_info=error)
    return errno.EIO
