"""What images are made from: disk files, volumes, images."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.disks import BuiltDisk, plain_disk
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import GPT_TYPES, MIB, create_file, write_gpt_by_hand
from fixtures.tools import run
from formats.errors import DamagedError, IncompleteSetError, PasswordError
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.sources import Identity, open_source
from tests.imagefs.imaging.attached import (
    layout,
    logical_disk,
    make_file_system,
    only_disk,
    two_partitions,
)

LINUX = GPT_TYPES["linux"]


@pytest.fixture
def logical(tmp_path: Path) -> BuiltDisk:
    return logical_disk(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> BuiltDisk:
    return two_partitions(tmp_path)


def open_files() -> list[str]:
    """Return what this process has open, but for the listing itself."""
    return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


# --- Files ---


def test_gpt_file(two: BuiltDisk) -> None:
    data = two.path.read_bytes()
    with open_source(two.path) as source:
        assert (source.kind, source.path, source.warnings) == ("file", two.path, ())
        (disk,) = source.disks
        assert (disk.name, disk.number, disk.size) == ("two.raw", 0, len(data))
        assert (disk.sector_size, disk.physical_sector_size, disk.removable) == (512, 512, False)
        assert disk.identity == Identity("two.raw", "", "", "", "")
        assert disk.table is not None
        assert (disk.table.scheme, disk.table.disk_id) == ("gpt", two.signature)
        assert layout(disk) == [(part.number, part.offset, part.size) for part in two.partitions]
        assert [part.entry for part in disk.partitions] == list(disk.table.partitions)
        assert disk.extended_records == ()
        chance = random.Random(5)
        for _ in range(200):
            part = chance.choice(disk.partitions)
            offset = chance.randrange(part.size)
            length = chance.randrange(min(part.size - offset, 100_000))
            start = part.offset + offset
            assert part.reader.read_at(offset, length) == data[start : start + length]
        assert disk.reader.read_at(0, 4096) == data[:4096]
        source.check()


def test_mbr_file_with_logical_partitions(logical: BuiltDisk) -> None:
    disk = only_disk(logical.path)
    assert layout(disk) == [(part.number, part.offset, part.size) for part in logical.partitions]
    assert [part.number for part in disk.partitions] == [1, 5, 6, 7]
    data = logical.path.read_bytes()
    assert len(disk.extended_records) == 3
    for offset, record in disk.extended_records:
        assert record == data[offset : offset + 512]
        assert record[510:] == b"\x55\xaa"
    assert [offset for offset, _ in disk.extended_records] == [
        part.entry.record_offset for part in disk.partitions if part.entry and part.entry.record_offset
    ]


def test_an_ebr_without_a_partition_is_kept(logical: BuiltDisk) -> None:
    """Deleting the first logical partition leaves its EBR as the chain's start."""
    run("sfdisk", "--quiet", "--delete", "--no-reread", logical.path, "5")
    disk = only_disk(logical.path)
    kept = [part for part in logical.partitions if part.number != 5]
    assert [part.offset for part in disk.partitions] == [part.offset for part in kept]
    assert disk.table is not None
    start = next(entry.offset for entry in disk.table.partitions if entry.kind == "extended")
    assert start in [offset for offset, _ in disk.extended_records]


def test_chosen_partitions(logical: BuiltDisk) -> None:
    assert [part.number for part in only_disk(logical.path, partitions=[6, 1]).partitions] == [1, 6]
    with pytest.raises(UsageError, match=r"no partition 2; there are 1, 5, 6, 7"):
        open_source(logical.path, partitions=[1, 2])


@pytest.mark.parametrize("content", ["zeros", "noise", "boot sector", "ext4"])
def test_bare_volumes(tmp_path: Path, content: str) -> None:
    path = create_file(tmp_path / "volume.raw", 8 * MIB)
    if content == "noise":
        path.write_bytes(noise(1, 0, 8 * MIB))
    elif content == "boot sector":
        run("mkntfs", "-Q", "-F", "-q", "-s", "512", "-p", "0", "-H", "0", "-S", "0", path)
    elif content == "ext4":
        make_file_system("ext4", path)
    with open_source(path) as source:
        (disk,) = source.disks
        assert (source.warnings, disk.table) == ((), None)
        assert layout(disk) == [(1, 0, 8 * MIB)]
        assert disk.partitions[0].entry is None
        assert disk.partitions[0].reader.read_at(0, 8 * MIB) == path.read_bytes()
    with pytest.raises(UsageError, match=r"no partition 5; there are 1"):
        open_source(path, partitions=[5])


@pytest.mark.parametrize("sector_size", [4096, 2048, 1024])
def test_sector_size_is_found(tmp_path: Path, sector_size: int) -> None:
    path = create_file(tmp_path / "disk.raw", 16 * MIB)
    spans = [(MIB, 4 * MIB), (8 * MIB, 4 * MIB)]
    write_gpt_by_hand(path, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AB", spans, [LINUX] * 2, sector_size)
    disk = only_disk(path)
    assert disk.sector_size == sector_size
    assert layout(disk) == [(1, *spans[0]), (2, *spans[1])]
    assert only_disk(path, sector_size=sector_size).table == disk.table
    with pytest.raises(DamagedError):
        open_source(path, sector_size=512)
    with pytest.raises(UsageError, match="520"):
        open_source(path, sector_size=520)


def test_table_problems_are_warnings(two: BuiltDisk) -> None:
    with two.path.open("r+b") as stream:
        stream.seek(512 + 16)
        stream.write(b"\xff")  # the primary header's CRC
    with open_source(two.path) as source:
        (line,) = source.warnings
        assert "backup GPT" in line
        assert layout(source.disks[0]) == [(part.number, part.offset, part.size) for part in two.partitions]


def test_overlapping_partitions(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk.raw", 16 * MIB)
    spans = [(MIB, 4 * MIB), (4 * MIB, 4 * MIB), (10 * MIB, MIB)]
    write_gpt_by_hand(path, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AB", spans, [LINUX] * 3, 512)
    with pytest.raises(RefusedError, match="partitions 1 and 2 overlap"):
        open_source(path)
    with open_source(path, partitions=[2, 3]) as source:
        assert layout(source.disks[0]) == [(2, *spans[1]), (3, *spans[2])]
        assert any("overlap" in line for line in source.warnings)


def test_partition_behind_the_end(two: BuiltDisk) -> None:
    last = two.partitions[-1]
    os.truncate(two.path, last.offset + last.size - MIB)
    with pytest.raises(RefusedError, match="partition 2 ends at"):
        open_source(two.path)
    with open_source(two.path, partitions=[1]) as source:
        assert [part.number for part in source.disks[0].partitions] == [1]


def test_empty_table(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk.raw", 4 * MIB)
    run("sfdisk", "--quiet", "--no-reread", path, stdin=b"label: gpt\n")
    with open_source(path) as source:
        assert source.disks[0].partitions == ()
        (line,) = source.warnings
        assert "empty" in line


def test_odd_size_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(noise(3, 0, 5000))
    with open_source(path) as source:
        (disk,) = source.disks
        assert disk.size == 5120
        assert disk.reader.read_at(4990, 130) == path.read_bytes()[4990:] + bytes(120)
        (line,) = source.warnings
        assert "120 zeros" in line


def test_holes_are_known(tmp_path: Path) -> None:
    built = plain_disk(tmp_path, sizes=(8 * MIB,))
    with built.path.open("r+b") as stream:
        stream.truncate(built.size)
        os.posix_fallocate(stream.fileno(), 0, MIB)  # something that is surely there
    run("fallocate", "--punch-hole", "--offset", str(4 * MIB), "--length", str(2 * MIB), built.path)
    with open_source(built.path) as source:
        (part,) = source.disks[0].partitions
        holes = [(item.offset, item.end) for item in part.reader.extents() if not item.is_data]
        assert any(start <= 3 * MIB and end >= 5 * MIB for start, end in holes)
        assert sum(item.length for item in part.reader.extents()) == part.size
        for start, end in holes:
            assert not any(part.reader.read_at(start, end - start))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody write it meanwhile")
def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "volume.raw"
    path.write_bytes(noise(1, 0, MIB))
    os.utime(path, (1, 1))
    with open_source(path) as source, open_source(path, live=True) as alive:
        source.check()
        with path.open("r+b") as stream:
            stream.write(b"changed")
        with pytest.raises(RefusedError, match="was changed while it was read"):
            source.check()
        alive.check()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty.raw").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, text in (
        ("", "neither"),
        ("nothing", "no such file"),
        ("empty.raw", "empty"),
        ("pipe", "neither"),
    ):
        with pytest.raises(UsageError, match=text):
            open_source(tmp_path / name)


@pytest.mark.parametrize("direct", [False, True])
def test_closed_sources_keep_nothing_open(two: BuiltDisk, direct: bool) -> None:
    before = open_files()
    with open_source(two.path, direct=direct):
        assert len(open_files()) > len(before)
    with pytest.raises(UsageError):
        open_source(two.path, partitions=[9], direct=direct)
    assert open_files() == before


# --- Images ---


def test_image(tmp_path: Path, two: BuiltDisk, logical: BuiltDisk) -> None:
    writer = SetWriter(tmp_path / "set", disk_numbers=[4, 7], password="secret")
    written = writer.full([two, logical])
    with pytest.raises(PasswordError):
        open_source(written.path)
    with pytest.raises(PasswordError):
        open_source(written.path, password="wrong")
    with open_source(written.path, password="secret") as source:
        assert (source.kind, source.warnings) == ("image", ())
        assert [disk.number for disk in source.disks] == [4, 7]
        assert [disk.name for disk in source.disks] == [f"{written.path.name} disk{n}" for n in (4, 7)]
        for disk, built in zip(source.disks, (two, logical), strict=True):
            assert disk.size == built.size
            assert layout(disk) == [(part.number, part.offset, part.size) for part in built.partitions]
            data = built.path.read_bytes()
            for part in disk.partitions:
                assert part.entry is not None
                assert (part.entry.number, part.entry.offset) == (part.number, part.offset)
                assert part.reader.read_at(0, part.size) == data[part.offset : part.offset + part.size]
        assert source.disks[1].extended_records == only_disk(logical.path).extended_records
        source.check()
    with open_source(written.path, password="secret", partitions=[5]) as source:
        assert [(disk.number, [part.number for part in disk.partitions]) for disk in source.disks] == [
            (7, [5])
        ]
    with pytest.raises(UsageError, match="no partition 9; there are 1, 2, 5, 6, 7"):
        open_source(written.path, password="secret", partitions=[9])


def test_incomplete_image(tmp_path: Path, two: BuiltDisk) -> None:
    writer = SetWriter(tmp_path / "set")
    full = writer.full([two])
    later = writer.incremental([two])
    full.path.unlink()
    with pytest.raises(IncompleteSetError):
        open_source(later.path)


def test_real_image(full_sample: Path) -> None:
    disk = only_disk(full_sample)
    assert (disk.number, disk.size, disk.sector_size, disk.removable) == (4, 128_849_018_880, 512, False)
    assert disk.identity == Identity("Msft Virtual Disk 1.0", "Msft", "Virtual Disk", "1.0", "")
    assert layout(disk) == [(1, 16_777_216, 128_830_144_512)]
    assert disk.table is not None
    assert disk.table.disk_id == "2D37A83C-3F86-4734-849E-FD9A833D874A"
