"""The parts between a tree and a kernel, without a mount."""

import errno
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mounters import mountpoints
from mounters.errors import error_number
from mounters.session import captured_stderr, mount_label
from mounters.translation import (
    Handles,
    InodeNumbers,
    clipped,
    kernel_name,
    open_checked,
    read_checked,
    stat_blocks,
)
from mounters.tree import Attributes, Handle, NodeType
from tests.mounters.memory_tree import DamagedBlockError, MemoryTree

NUMBERS = st.one_of(st.integers(0, 3), st.integers(0, 2**63))


@given(root=NUMBERS, others=st.sets(NUMBERS))
def test_inode_numbers_are_one_to_one(root: int, others: set[int]) -> None:
    numbers = InodeNumbers(root)
    assert numbers.kernel(root) == 1
    shown = {number: numbers.kernel(number) for number in others | {root, 0, 1}}
    assert len(set(shown.values())) == len(shown)
    assert all(0 < kernel < 2**64 for kernel in shown.values())
    assert all(numbers.tree(kernel) == number for number, kernel in shown.items())
    assert numbers.all_to_kernel(np.array(list(shown), np.uint64)).tolist() == list(shown.values())


class Known(Handle):
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.closed = False

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed = True


@given(data=st.binary(max_size=50), offset=st.integers(0, 60), length=st.integers(0, 60))
def test_reads_are_clipped_at_the_end(data: bytes, offset: int, length: int) -> None:
    assert read_checked(Known(data), offset, length) == data[offset : offset + length]
    assert clipped(Known(data), offset, length) == len(data[offset : offset + length])


def test_a_short_read_is_no_answer() -> None:
    handle = Known(b"12345678")
    handle.data = b"1234567"
    with pytest.raises(ValueError, match="8 bytes gave 7"):
        read_checked(handle, 0, 100)


def test_a_handle_of_another_size_is_closed() -> None:
    tree = MemoryTree()
    with pytest.raises(ValueError, match="5000 bytes, its handle 4999"):
        open_checked(tree, tree.resolve("mismatched.bin"))
    assert tree.opened == []


def test_handle_numbers_are_never_used_twice() -> None:
    handles, first, second = Handles(), Known(b""), Known(b"")
    number = handles.add(7, first)
    assert handles.pop(number) == (7, first)
    assert handles.pop(number) is None
    assert handles.add(8, second) != number
    handles.close_all()
    assert (first.closed, second.closed) == (False, True)


@pytest.mark.parametrize(
    ("size", "allocated", "blocks"),
    [(0, None, 0), (1, None, 1), (512, None, 1), (513, None, 2), (9999, 0, 0)],
)
def test_blocks(size: int, allocated: int | None, blocks: int) -> None:
    assert stat_blocks(Attributes(2, NodeType.FILE, size=size, allocated=allocated)) == blocks


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "\ud800", "x" * 1025])
def test_names_that_no_kernel_takes_are_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert kernel_name(name) is None
    assert repr(name) in caplog.text


def test_names_with_undecodable_bytes() -> None:
    assert kernel_name("\udcff\udc80x") == b"\xff\x80x"


def test_errors_of_the_tree(caplog: pytest.LogCaptureFixture) -> None:
    assert error_number(OSError(errno.ENOENT, "x"), "stat", "/a") == errno.ENOENT
    assert caplog.records == []
    assert error_number(DamagedBlockError("bad hash"), "read", "inode 7 offset 4096") == errno.EIO
    damage = caplog.records.pop()
    assert (damage.levelno, damage.exc_info) == (logging.WARNING, None)
    assert damage.getMessage() == "read inode 7 offset 4096: bad hash"
    for unexpected in (RuntimeError("x"), OSError(0, "x"), OSError(70_000, "x"), OSError("x")):
        assert error_number(unexpected, "read", "inode 7") == errno.EIO
        fault = caplog.records.pop()
        assert fault.levelno == logging.ERROR
        assert fault.exc_info is not None


def test_labels_fit_into_mount_options() -> None:
    assert mount_label("a b,c\\d\nü") == "a b_c_d__"
    assert mount_label("") == "imagefs"


def test_captured_stderr() -> None:
    with captured_stderr() as captured:
        os.write(2, b"fuse: no\n")
    assert captured.text == "fuse: no"


@pytest.mark.skipif(sys.platform == "win32", reason="a table of Linux")
def test_mount_points_with_blanks_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:21 / / rw - ext4 /dev/root rw\n"
        b"90 22 0:44 / /mnt/a\\040b\\134c rw,nosuid shared:7 - fuse.first x ro\n"
        b"91 22 0:45 / /mnt/a\\040b\\134c rw,nosuid - fuse.second x ro\n"
        b"92 22 0:46 / /mnt/\xff rw - fuse x ro\n"
    )
    monkeypatch.setattr(mountpoints, "_MOUNTS", table)
    found = mountpoints.find_mount("/mnt/a b\\c")
    assert found is not None
    assert (found.identifier, found.device, found.kind) == (91, "0:45", "fuse.second")
    assert mountpoints.find_mount("/mnt/a") is None
    assert mountpoints.find_mount("/mnt/\udcff") is not None


@given(st.text(st.sampled_from("a \t\n\\0134"), min_size=1, max_size=12))
def test_names_in_the_mount_table(name: str) -> None:
    """The kernel writes blank, tab, newline and backslash as octal numbers, and nothing else."""
    written = name
    for character in ("\\", " ", "\t", "\n"):
        written = written.replace(character, f"\\{ord(character):03o}")
    assert mountpoints._unescaped(written.encode()) == name.encode()
