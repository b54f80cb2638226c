"""The target itself: whole sectors, holes, names, and the errors of the system."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import detach
from imagefs.errors import RefusedError, SourceReadError, TargetWriteError
from imagefs.restore.device_target import DeviceTarget
from imagefs.restore.target import UNFINISHED, Target, aligned
from tests.imagefs.imaging.attached import attached, need_root, partition_node
from tests.imagefs.restore.places import noisy, partitioned


def filled(data: bytes) -> memoryview:
    view = aligned(len(data))
    view[:] = data
    return view


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_bytes_anywhere_on_a_device(sector_size: int, tmp_path: Path) -> None:
    """What is written is written, and the sectors around it keep what they had."""
    path = noisy(tmp_path / "disk", 2 * MIB)
    expected = bytearray(path.read_bytes())
    with (
        attached(path, sector_size=sector_size, partitions=False) as node,
        DeviceTarget.open(node) as target,
    ):
        assert (target.sector_size, target.size, target.direct) == (sector_size, 2 * MIB, True)
        for offset, length in ((0, 1), (511, 2), (4095, 4098), (70_000, 12_345), (2 * MIB - 3, 3)):
            data = noise(offset, 0, length)
            target.write_bytes(offset, data)
            expected[offset : offset + length] = data
            assert target.read_bytes(offset, length) == data
            assert target.read_bytes(max(0, offset - 5), length) == expected[max(0, offset - 5) :][:length]
        target.write(65536, filled(noise(3, 0, 131072)))
        expected[65536 : 65536 + 131072] = noise(3, 0, 131072)
        target.flush()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("on_device", [False, True])
def test_a_range_becomes_zeros(on_device: bool, tmp_path: Path) -> None:
    path = noisy(tmp_path / "disk", 4 * MIB)
    expected = bytearray(path.read_bytes())

    def clear(target: Target) -> None:
        for offset, length in ((512, 512), (8192, 1 << 20), (3 * MIB, MIB)):
            target.zero(offset, length)
            expected[offset : offset + length] = bytes(length)
        target.flush()

    if on_device:
        with attached(path, partitions=False) as node, DeviceTarget.open(node) as device:
            clear(device)
    else:
        with Target.open_file(path, 4 * MIB, delta=True) as target:
            clear(target)
    assert path.read_bytes() == expected
    assert path.stat().st_blocks * 512 < 3 * MIB  # the room is given back


def test_zeros_are_written_where_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without holes; what is no whole number of steps."""
    path = noisy(tmp_path / "disk", 4 * MIB)
    expected = bytearray(path.read_bytes())

    monkeypatch.setattr("imagefs.restore.target.punch_hole", lambda *_: False)
    with Target.open_file(path, 4 * MIB, delta=True) as target:
        assert not target.discard(4096, MIB, zeros=True)
        target.zero(1000, 2 * MIB + 777)
    expected[1000 : 1000 + 2 * MIB + 777] = bytes(2 * MIB + 777)
    assert path.read_bytes() == expected


def test_holes_of_a_file(tmp_path: Path) -> None:
    """A range is one where it is zeros and nothing is stored but in pages that it shares."""
    path = create_file(tmp_path / "disk", MIB)
    with path.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(noise(1, 0, 5000))
        stream.seek(400_000)
        stream.write(bytes(100_000))
    with Target.open_file(path, MIB, delta=True) as target:
        assert target.holes(0, 100_000)
        assert target.holes(105_000, 200_000)
        assert not target.holes(0, 100_001)
        assert not target.holes(104_999, 10_000)
        assert not target.holes(350_000, 200_000)  # zeros, but stored
        assert target.holes(600_000, MIB - 600_000)


def test_names(tmp_path: Path) -> None:
    """A new file has its name when it is complete; a delta goes on with what is left of one."""
    path, unfinished = tmp_path / "disk", tmp_path / f"disk{UNFINISHED}"
    with Target.open_file(path, MIB, delta=False) as target:
        assert target.fresh
        assert target.left == unfinished
        target.write_bytes(1000, b"here")
        assert unfinished.stat().st_size == MIB
    assert not path.exists()
    with Target.open_file(path, MIB, delta=True) as target:
        assert not target.fresh
        assert target.read_bytes(1000, 4) == b"here"
        target.complete()
        assert target.left is None
        target.drop()
    assert [each.name for each in tmp_path.iterdir()] == ["disk"]
    with Target.open_file(path, MIB, delta=False) as target:  # another one in its place: what was there stays
        assert target.fresh
        assert path.read_bytes()[1000:1004] == b"here"
        target.drop()
    assert [each.name for each in tmp_path.iterdir()] == ["disk"]


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", 4096)
    path.chmod(0o640)
    with Target.open_file(path, 8192, delta=False) as target:
        target.complete()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_size == 8192


def test_what_stands_in_the_way(tmp_path: Path) -> None:
    """An unfinished file that is a link, or none at all, is never written through."""
    elsewhere = noisy(tmp_path / "elsewhere", 4096)
    before = elsewhere.read_bytes()
    (tmp_path / f"disk{UNFINISHED}").symlink_to(elsewhere)
    with pytest.raises(RefusedError, match="remove the link"):
        Target.open_file(tmp_path / "disk", MIB, delta=False)
    (tmp_path / f"other{UNFINISHED}").mkdir()
    with pytest.raises(RefusedError):
        Target.open_file(tmp_path / "other", MIB, delta=False)
    assert elsewhere.read_bytes() == before


def test_a_device_that_is_held(tmp_path: Path) -> None:
    with attached(create_file(tmp_path / "disk", MIB), partitions=False) as node:
        fd = os.open(node, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(RefusedError, match="something uses it"):
                DeviceTarget.open(node)
        finally:
            os.close(fd)


def test_the_ends_of_a_target(tmp_path: Path) -> None:
    disk = create_file(tmp_path / "disk", MIB)
    with attached(disk, partitions=False) as node, DeviceTarget.open(node) as target:
        with pytest.raises(SourceReadError, match="ends at 1048576"):
            target.read_into(MIB - 4096, aligned(8192))
        with pytest.raises(TargetWriteError, match="at 1048576"):
            target.write(MIB - 4096, aligned(8192))


def test_a_failed_sync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sync that succeeds says nothing of what the first one lost."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Target.open_file(tmp_path / "disk", MIB, delta=False) as target:
        monkeypatch.setattr("imagefs.restore.target.sync", fail)
        with pytest.raises(TargetWriteError, match="Input/output error"):
            target.flush()
        monkeypatch.undo()
        with pytest.raises(TargetWriteError, match="Input/output error"):
            target.flush()


@contextmanager
def scanned(disk: Path) -> Iterator[Path]:
    """Attach a file as a disk whose partitions the kernel looks for itself."""
    need_root()
    node = Path(run("losetup", "--find", "--show", "--partscan", disk).decode().strip())
    try:
        yield node
    finally:
        detach(node)


def kernel_has_partition(node: Path) -> bool:
    return Path("/sys/block", node.name, f"{node.name}p1").exists()


def test_the_kernel_sees_new_partitions(tmp_path: Path) -> None:
    disk = partitioned(create_file(tmp_path / "disk", 8 * MIB), "gpt", "start=2048, size=2048")
    with scanned(disk) as node:
        if not kernel_has_partition(node):
            pytest.skip("this kernel reads no partition tables")
    table = disk.read_bytes()[:MIB]
    with disk.open("r+b") as stream:
        stream.write(bytes(MIB))
    with scanned(disk) as node:
        assert not kernel_has_partition(node)
        with DeviceTarget.open(node) as target:
            target.write_bytes(0, table)
            target.flush()
            assert target.read_table_anew()
        assert kernel_has_partition(node)


def test_what_the_kernel_had_read_of_partitions(tmp_path: Path) -> None:
    """Each partition's device has a cache of its own: it must not go on showing what was there."""
    disk = partitioned(noisy(tmp_path / "disk", 8 * MIB), "gpt", "start=2048, size=2048")
    with attached(disk) as node:
        first = partition_node(node, 1)
        with first.open("rb") as held:
            assert held.read(4096) == noise(77, MIB, 4096)
            with DeviceTarget.open(node) as target:
                target.write(MIB, filled(noise(5, 0, 65536)))
                target.flush()
                assert not target.read_table_anew()  # it keeps the partitions that it was told of
        with first.open("rb") as stream:
            assert stream.read(4096) == noise(5, 0, 4096)
    with attached(disk, partitions=False) as node, DeviceTarget.open(node) as target:
        assert target.read_table_anew()
