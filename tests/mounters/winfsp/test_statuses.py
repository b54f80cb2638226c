"""Errors as statuses; the numbers are those of [MS-ERREF] 2.3.1."""

import errno
import logging

import pytest

from mounters.winfsp_statuses import PathNotFoundError, Status, status_of
from tests.mounters.memory_tree import DamagedBlockError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError(errno.ENOENT, "no"), 0xC0000034),  # STATUS_OBJECT_NAME_NOT_FOUND
        (PathNotFoundError("\\a\\b"), 0xC000003A),  # STATUS_OBJECT_PATH_NOT_FOUND
        (NotADirectoryError(errno.ENOTDIR, "no"), 0xC0000103),  # STATUS_NOT_A_DIRECTORY
        (IsADirectoryError(errno.EISDIR, "no"), 0xC00000BA),  # STATUS_FILE_IS_A_DIRECTORY
        (PermissionError(errno.EACCES, "no"), 0xC0000022),  # STATUS_ACCESS_DENIED
        (PermissionError(errno.EPERM, "no"), 0xC0000022),
        (OSError(errno.EROFS, "no"), 0xC00000A2),  # STATUS_MEDIA_WRITE_PROTECTED
        (DamagedBlockError("a bad hash"), 0xC0000102),  # STATUS_FILE_CORRUPT_ERROR
        (OSError(errno.EIO, "the disk fails"), 0xC0000185),  # STATUS_IO_DEVICE_ERROR
        (OSError(errno.EHOSTUNREACH, "no"), 0xC000023D),  # STATUS_HOST_UNREACHABLE
        (TimeoutError(errno.ETIMEDOUT, "no"), 0xC00000B5),  # STATUS_IO_TIMEOUT
        (OSError(errno.ENOMEM, "no"), 0xC000009A),  # STATUS_INSUFFICIENT_RESOURCES
        (OSError(errno.EMFILE, "no"), 0xC000011F),  # STATUS_TOO_MANY_OPENED_FILES
        (OSError(errno.EOPNOTSUPP, "no"), 0xC00000BB),  # STATUS_NOT_SUPPORTED
        (OSError(70_000, "no such number"), 0xC0000185),
        (OSError("without a number"), 0xC0000185),
        (KeyError("a fault"), 0xC0000185),
    ],
)
def test_each_error(error: Exception, status: int) -> None:
    assert status_of(error, "read", "\\a") == status


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (53, Status.HOST_UNREACHABLE),
        (64, Status.HOST_UNREACHABLE),
        (23, Status.IO_DEVICE_ERROR),
        (2, Status.IO_DEVICE_ERROR),
    ],
)
def test_an_error_of_the_system_says_nothing_of_names(number: int, status: Status) -> None:
    """ERROR_BAD_NETPATH is ENOENT to Python: what is not there is the image, not the name."""
    error = FileNotFoundError(errno.ENOENT, "the network path was not found")
    error.winerror = number  # type: ignore[attr-defined]
    assert status_of(error, "read", "\\a") is status


def test_damage_is_logged_in_a_line_and_faults_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    status_of(DamagedBlockError("a bad hash"), "read", "'\\\\a' 4096")
    assert [record.getMessage() for record in caplog.records] == ["read '\\\\a' 4096: a bad hash"]
    assert caplog.records[0].exc_info is None
    caplog.clear()
    status_of(KeyError("a fault"), "read", "'\\\\a' 4096")
    (record,) = caplog.records
    assert record.getMessage() == "read '\\\\a' 4096: unexpected KeyError"
    assert record.exc_info is not None
    caplog.clear()
    status_of(FileNotFoundError(errno.ENOENT, "no"), "open", "'\\\\a'")
    assert not caplog.records


def test_every_status_is_an_error_but_one() -> None:
    assert [status.name for status in Status if status >> 30 != 3] == ["BUFFER_OVERFLOW"]
