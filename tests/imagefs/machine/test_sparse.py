"""Holes of files: on Linux those of the kernel, on Windows what its file systems answer."""

import errno
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.files import open_file, read_at, truncate, write_at
from imagefs.machine.sparse import (
    allocated,
    allocated_by,
    make_sparse,
    mark_sparse,
    punch_hole,
    zero_by,
)

MIB = 1 << 20
# winioctl.h, as "FSCTL_SET_SPARSE IOCTL" and so on have them
SET_SPARSE, SET_ZERO_DATA, QUERY_ALLOCATED_RANGES = 0x000900C4, 0x000980C8, 0x000940CF


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def test_a_hole_reads_as_zeros(fd: int) -> None:
    """Where it can't be made, nothing is changed."""
    make_sparse(fd)
    truncate(fd, 4 * MIB)
    write_at(fd, b"x" * MIB, MIB)
    done = punch_hole(fd, MIB, MIB // 2)
    assert read_at(fd, MIB, MIB) == (bytes(MIB // 2) if done else b"x" * (MIB // 2)) + b"x" * (MIB // 2)
    assert os.fstat(fd).st_size == 4 * MIB
    runs = list(allocated(fd, 0, 4 * MIB))
    assert any(start <= MIB + MIB // 2 and stop >= 2 * MIB for start, stop in runs)
    if sys.platform == "linux":
        assert runs == [(MIB + MIB // 2, 2 * MIB)]
        assert list(allocated(fd, 2 * MIB, 4 * MIB)) == []
        assert list(allocated(fd, 2 * MIB - 100, 3 * MIB)) == [(2 * MIB - 100, 2 * MIB)]


class NtfsFile:
    """What NTFS answers: its ranges overlap what is asked for, at most some at a time."""

    def __init__(self, runs: list[tuple[int, int]], most: int = 1000) -> None:
        self.runs = runs
        self.most = most
        self.asked: list[tuple[int, bytes]] = []

    def __call__(self, code: int, data: bytes, room: int) -> tuple[bytes, bool]:
        self.asked.append((code, data))
        if code != QUERY_ALLOCATED_RANGES:
            return b"", False
        offset, length = struct.unpack("<qq", data)
        found = [(s, e) for s, e in self.runs if s < offset + length and e > offset]
        most = min(self.most, room // 16)
        answer = b"".join(struct.pack("<qq", s, e - s) for s, e in found[:most])
        return answer, len(found) > most


class FatFile:
    """What FAT answers to all of it: ERROR_INVALID_FUNCTION."""

    def __init__(self, code: int = 1) -> None:
        self.code = code

    def __call__(self, *_: object) -> tuple[bytes, bool]:
        error = OSError(errno.EINVAL, "Incorrect function")
        error.winerror = self.code  # type: ignore[attr-defined,unused-ignore]
        raise error


RUNS = [(0, 65536), (131072, 262144), (MIB, 2 * MIB), (5 * MIB, 6 * MIB)]


@pytest.mark.parametrize("most", [1, 2, 3, 1000])
def test_ranges_come_in_pieces(most: int) -> None:
    file = NtfsFile(RUNS, most)
    assert list(allocated_by(file, 0, 8 * MIB)) == RUNS
    assert list(allocated_by(file, 10, 131073)) == [(10, 65536), (131072, 131073)]
    assert list(allocated_by(file, 3 * MIB, 4 * MIB)) == []
    assert list(allocated_by(file, MIB + 5, MIB + 6)) == [(MIB + 5, MIB + 6)]


def test_answers_that_lead_nowhere_end() -> None:
    with pytest.raises(OSError, match="without end"):
        list(allocated_by(lambda *_: (struct.pack("<qq", 0, 0), True), 5, 10))


@pytest.mark.parametrize("code", [1, 50])
def test_file_systems_without_holes(code: int) -> None:
    """ERROR_INVALID_FUNCTION and ERROR_NOT_SUPPORTED: all is data, and nothing was done."""
    assert list(allocated_by(FatFile(code), 5, 10)) == [(5, 10)]
    assert not mark_sparse(FatFile(code))
    assert not zero_by(FatFile(code), 0, 10)


def test_errors_of_the_medium_are_errors() -> None:
    """ERROR_CRC is no answer of a file system that knows no holes."""
    for ask in (lambda file: list(allocated_by(file, 0, 9)), mark_sparse, lambda file: zero_by(file, 0, 9)):
        with pytest.raises(OSError, match="Incorrect function"):
            ask(FatFile(23))


def test_what_is_asked() -> None:
    file = NtfsFile([])
    assert mark_sparse(file)
    assert zero_by(file, 1000, 5000)
    assert file.asked == [(SET_SPARSE, b""), (SET_ZERO_DATA, struct.pack("<qq", 1000, 6000))]
