"""What Windows says of a target that fails: tried again where that may help, and explained."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.errors import ImagingError, TargetWriteError
from imagefs.imaging.target import Retries, with_retries, write_error
from imagefs.restore.target import cannot_open
from imagefs.restore.target import write_error as restore_error

# Numbers and texts of Microsoft's "System Error Codes"; the errnos are those that Python makes of them.
NETNAME_DELETED = (64, errno.EINVAL, "The specified network name is no longer available")
BAD_NETPATH = (53, errno.ENOENT, "The network path was not found")
SEM_TIMEOUT = (121, errno.EINVAL, "The semaphore timeout period has expired")
SHARING_VIOLATION = (32, errno.EACCES, "The process cannot access the file")
ACCESS_DENIED = (5, errno.EACCES, "Access is denied")
DISK_FULL = (112, errno.ENOSPC, "There is not enough space on the disk")
HANDLE_DISK_FULL = (39, errno.ENOSPC, "The disk is full")
WRITE_PROTECT = (19, errno.EACCES, "The media is write protected")

PATH = Path("E:/set/data-0")


def error_of(told: tuple[int, int, str]) -> OSError:
    code, number, text = told
    error = OSError(number, text)
    error.winerror = code  # type: ignore[attr-defined,unused-ignore]
    return error


def failing(told: tuple[int, int, str], times: int) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def action() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error_of(told)
        return "written"

    return action, calls


@pytest.mark.parametrize("told", [NETNAME_DELETED, BAD_NETPATH, SEM_TIMEOUT, SHARING_VIOLATION])
def test_what_may_pass_is_tried_again(told: tuple[int, int, str]) -> None:
    action, calls = failing(told, 2)
    waits: list[float] = []
    assert with_retries(action, Retries(3, 1.0), PATH, wait=waits.append) == "written"
    assert (len(calls), waits) == (3, [1.0, 2.0])
    action, calls = failing(told, 9)
    with pytest.raises(TargetWriteError, match=told[2]):
        with_retries(action, Retries(3, 0.0), PATH, wait=waits.append)
    assert len(calls) == 4


@pytest.mark.parametrize("told", [ACCESS_DENIED, DISK_FULL, HANDLE_DISK_FULL, WRITE_PROTECT])
def test_what_stays_is_told_at_once(told: tuple[int, int, str]) -> None:
    action, calls = failing(told, 1)
    with pytest.raises(TargetWriteError, match=told[2]):
        with_retries(action, Retries(3, 1.0), PATH)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("told", "make", "hint"),
    [
        (SHARING_VIOLATION, write_error, "another program has it open"),
        (ACCESS_DENIED, write_error, "or another program has it open"),
        (DISK_FULL, write_error, "make room"),
        (HANDLE_DISK_FULL, write_error, "make room"),
        (SHARING_VIOLATION, restore_error, "end the program that has it open"),
        (SHARING_VIOLATION, cannot_open, "a virtual machine"),
        (DISK_FULL, restore_error, "free some room"),
    ],
)
def test_it_is_said_what_to_do(
    told: tuple[int, int, str], make: Callable[[OSError, Path], ImagingError], hint: str
) -> None:
    error = make(error_of(told), PATH)
    assert str(PATH) in str(error)
    assert hint in error.hint
