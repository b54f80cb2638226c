"""Devices as sources, and the refusal of what is written meanwhile."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.disks import BuiltDisk
from fixtures.partition_tables import GPT_TYPES, MIB, Volume, create_file, gpt_disk, write_gpt_by_hand
from fixtures.tools import find_tool, fuse_mount, run
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.sources import Identity, open_source
from tests.imagefs.imaging.attached import (
    attached,
    layout,
    logical_disk,
    make_file_system,
    mounted_on,
    need_root,
    only_disk,
    partition_node,
    swapped_on,
    two_partitions,
)

LINUX = GPT_TYPES["linux"]


@pytest.fixture
def logical(tmp_path: Path) -> BuiltDisk:
    return logical_disk(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> BuiltDisk:
    return two_partitions(tmp_path)


# --- Devices ---


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("direct", [False, True])
def test_whole_device(tmp_path: Path, sector_size: int, direct: bool) -> None:
    need_root()
    path = create_file(tmp_path / "disk.raw", 16 * MIB)
    spans = [(MIB, 4 * MIB), (8 * MIB, 4 * MIB)]
    write_gpt_by_hand(path, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AB", spans, [LINUX] * 2, sector_size)
    with path.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(noise(3, 0, 12 * MIB))
    data = path.read_bytes()
    with attached(path, sector_size=sector_size) as node:
        with open_source(node, direct=direct) as source:
            assert (source.kind, source.warnings) == ("disk", ())
            (disk,) = source.disks
            assert (disk.name, disk.size) == (str(node), len(data))
            assert (disk.sector_size, disk.physical_sector_size) == (sector_size, sector_size)
            assert disk.identity == Identity(f"Loop device {path}", "Linux", "Loop device", "", "")
            assert layout(disk) == [(1, *spans[0]), (2, *spans[1])]
            chance = random.Random(7)
            for _ in range(200):
                offset = chance.randrange(disk.size)
                length = chance.randrange(min(disk.size - offset, 200_000) + 1)
                assert disk.reader.read_at(offset, length) == data[offset : offset + length]
            assert disk.reader.read_at(0, disk.size) == data
            source.check()
        assert only_disk(node).number == disk.number


def test_partition_device(logical: BuiltDisk) -> None:
    need_root()
    data = logical.path.read_bytes()
    with attached(logical.path) as node:
        for built in logical.partitions:
            with open_source(partition_node(node, built.number)) as source:
                assert source.kind == "partition"
                (disk,) = source.disks
                assert (disk.name, disk.size) == (str(node), logical.size)
                assert layout(disk) == [(built.number, built.offset, built.size)]
                start, end = built.offset, built.offset + built.size
                assert disk.partitions[0].reader.read_at(0, built.size) == data[start:end]
                assert len(disk.extended_records) == 3
        with pytest.raises(UsageError, match="extended"):
            open_source(partition_node(node, 2))
        with pytest.raises(UsageError, match="no partition 5; there are 6"):
            open_source(partition_node(node, 6), partitions=[5])


def test_a_node_anywhere(logical: BuiltDisk, tmp_path: Path) -> None:
    """A device is known by its number: the node's name and folder say nothing, links are followed."""
    need_root()
    with attached(logical.path) as node:
        number = partition_node(node, 6).stat().st_rdev
        made = tmp_path / "sda1"
        os.mknod(made, stat.S_IFBLK | 0o600, number)
        (tmp_path / "link").symlink_to(made)
        for path in (made, tmp_path / "link"):
            assert [part.number for part in only_disk(path).partitions] == [6]


def test_a_table_that_the_kernel_does_not_know(logical: BuiltDisk) -> None:
    need_root()
    with attached(logical.path) as node:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--delete", node, "6")
        with pytest.raises(RefusedError, match="partprobe"):
            open_source(partition_node(node, 6))


def test_what_was_written_through_a_partition_is_read(two: BuiltDisk) -> None:
    """The disk's own cache does not see it while something keeps the disk open."""
    need_root()
    with attached(two.path) as node, node.open("rb") as held:
        built = two.partitions[1]
        os.pread(held.fileno(), two.size, 0)
        with partition_node(node, 2).open("r+b") as stream:
            stream.seek(MIB)
            stream.write(b"new" * 5000)
        assert os.pread(held.fileno(), 3, built.offset + MIB) != b"new"  # else nothing is tested here
        with open_source(node) as source:
            assert source.disks[0].partitions[1].reader.read_at(MIB, 15000) == b"new" * 5000


# --- What is written meanwhile ---


@pytest.fixture
def systems(two: BuiltDisk) -> Iterator[tuple[Path, Path]]:
    """Return a loop device with an ext4 file system in both of its partitions, and its file."""
    with attached(two.path) as node:
        for number in (1, 2):
            make_file_system("ext4", partition_node(node, number))
        yield node, two.path


def test_mounted_read_write(systems: tuple[Path, Path], tmp_path: Path) -> None:
    node, path = systems
    first, second = partition_node(node, 1), partition_node(node, 2)
    where = tmp_path / "a mount\\point"
    with mounted_on(where, second):
        for source, name in ((node, node), (second, second), (path, path)):
            with pytest.raises(RefusedError) as refused:
                open_source(source)
            assert str(refused.value).startswith(f"{name}: ")
            for word in (str(second), f"mounted read-write on {where}", f"umount {where}", "--live", "LVM"):
                assert word in str(refused.value)
            assert refused.value.exit_code == 6
            with open_source(source, live=True) as alive:
                (line,) = alive.warnings
                assert str(second) in line
                assert "inconsistent" in line
        for source in (node, path):
            assert len(only_disk(source, partitions=[1]).partitions) == 1
        assert len(only_disk(first).partitions) == 1
    for source in (node, first, second, path):
        only_disk(source)


def test_mounted_read_only(systems: tuple[Path, Path], tmp_path: Path) -> None:
    node, path = systems
    with mounted_on(tmp_path / "m", "-o", "ro", partition_node(node, 2)):
        for source in (node, partition_node(node, 2), path):
            only_disk(source)


def test_read_only_bind_mount_of_what_is_written(systems: tuple[Path, Path], tmp_path: Path) -> None:
    node, _ = systems
    with (
        mounted_on(tmp_path / "first", partition_node(node, 1)) as first,
        mounted_on(tmp_path / "second", "--bind", "-o", "ro", first),
        pytest.raises(RefusedError, match="mounted read-write"),
    ):
        open_source(node)


def test_mounted_through_a_loop_device_with_an_offset(two: BuiltDisk, tmp_path: Path) -> None:
    """As `mount -o loop,offset=` does it: the loop device is the partition."""
    with attached(two.path) as node:
        make_file_system("ext4", partition_node(node, 2))
    offset, size = two.partitions[1].offset, two.partitions[1].size
    with mounted_on(tmp_path / "m", "-o", f"loop,offset={offset},sizelimit={size}", two.path):
        with pytest.raises(RefusedError, match="mounted read-write"):
            open_source(two.path)
        only_disk(two.path, partitions=[1])
        link = tmp_path / "link"
        link.hardlink_to(two.path)
        with pytest.raises(RefusedError, match="mounted read-write"):
            open_source(link)


def test_mounted_through_a_loop_device_upon_a_partition(systems: tuple[Path, Path], tmp_path: Path) -> None:
    node, _ = systems
    with attached(partition_node(node, 2), partitions=False) as upper, mounted_on(tmp_path / "m", upper):
        with pytest.raises(RefusedError, match=f"{upper}, which it holds, is mounted read-write"):
            open_source(node)
        only_disk(node, partitions=[1])


def test_mounted_by_fuse(two: BuiltDisk, tmp_path: Path) -> None:
    with attached(two.path) as node:
        second = partition_node(node, 2)
        run("mkntfs", "-Q", "-F", "-q", second)
        with fuse_mount(tmp_path / "m", "ntfs-3g", "-o", "no_detach", second, tmp_path / "m"):
            for source in (node, second, two.path):
                with pytest.raises(RefusedError, match=f"mounted read-write on {tmp_path}/m"):
                    open_source(source)
            only_disk(node, partitions=[1])
        with fuse_mount(tmp_path / "m", "ntfs-3g", "-o", "no_detach,ro", second, tmp_path / "m"):
            only_disk(node)
        only_disk(node)


def test_btrfs_of_two_devices(tmp_path: Path) -> None:
    """Its mounts have a number of their own, and name one of the devices."""
    find_tool("mkfs.btrfs")
    need_root()
    volumes = [Volume(None, 120 * MIB, "unknown") for _ in range(3)]
    built = gpt_disk(tmp_path / "disk.raw", volumes, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AC")
    with attached(built.path) as node:
        first, second = partition_node(node, 1), partition_node(node, 2)
        run("mkfs.btrfs", "-q", "-f", "-d", "single", "-m", "raid1", first, second)
        with mounted_on(tmp_path / "m", "-t", "btrfs", "-o", f"device={second}", first):
            for source in (first, second, node):
                with pytest.raises(RefusedError, match=f"mounted read-write on {tmp_path}/m"):
                    open_source(source)
            only_disk(node, partitions=[3])


def test_swap(systems: tuple[Path, Path]) -> None:
    node, _ = systems
    with swapped_on(partition_node(node, 2)):
        with pytest.raises(RefusedError, match="used as swap"):
            open_source(node)
        only_disk(node, partitions=[1])


def test_held_by_another_program(systems: tuple[Path, Path]) -> None:
    """So is what is mounted in another namespace, or belongs to ZFS."""
    node, _ = systems
    held = os.open(partition_node(node, 2), os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(RefusedError, match="held by another program"):
            open_source(node)
        only_disk(node, partitions=[1])
        with open_source(node, live=True):
            pass
    finally:
        os.close(held)


def test_mounting_while_it_is_read(systems: tuple[Path, Path], tmp_path: Path) -> None:
    node, _ = systems
    (tmp_path / "m").mkdir()
    with open_source(node, partitions=[2]):
        run("mount", partition_node(node, 2), tmp_path / "m", accept=(32,))
        with mounted_on(tmp_path / "m", partition_node(node, 1)):
            pass  # nobody reads that one
    with mounted_on(tmp_path / "m", partition_node(node, 2)):
        pass
