"""Volumes that are put elsewhere: what they say of their place, held against the tools that wrote it."""

import dataclasses
import struct
from pathlib import Path

import pytest

from fixtures.partition_tables import create_file
from fixtures.tools import run
from fixtures.volumes import fat_volume, make_ntfs
from formats.blockreader import BlockReader, BytesReader
from imagefs.restore.layout import Volume
from imagefs.restore.moved import moved, moved_bytes

MIB = 1 << 20
OLD, NEW = 2048 * 512, 99 * MIB


def volume_of(path: Path, offset: int = OLD) -> Volume:
    data = path.read_bytes()
    return Volume(1, offset, len(data), "", "", None, BytesReader(data))


def all_of(reader: BlockReader) -> bytes:
    return reader.read_at(0, reader.size)


def written(path: Path, volume: Volume) -> Path:
    path.write_bytes(all_of(volume.reader))
    return path


def differing(one: bytes, other: bytes) -> set[int]:
    return {at // 512 for at in range(0, len(one), 512) if one[at : at + 512] != other[at : at + 512]}


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_ntfs_says_its_new_place_in_both_boot_sectors(tmp_path: Path, sector_size: int) -> None:
    path = make_ntfs(tmp_path / "old", 16 * MIB, "x", OLD // sector_size, sector_size)
    before = volume_of(path)
    after = moved(before, NEW, before.size, sector_size)
    assert after.offset == NEW
    expected = bytearray(path.read_bytes())
    # mkntfs writes the backup into the last sector
    for at in (0, len(expected) - sector_size):
        assert expected[at + 3 : at + 7] == b"NTFS"
        struct.pack_into("<I", expected, at + 0x1C, NEW // sector_size)
    assert all_of(after.reader) == expected
    run("ntfsfix", "--no-action", written(tmp_path / "new", after))
    assert sum(extent.length for extent in after.reader.extents()) == before.size


@pytest.mark.parametrize("kind", ["FAT12", "FAT16", "FAT32"])
def test_fat_says_its_new_place_as_mkfs_would(tmp_path: Path, kind: str) -> None:
    built = fat_volume(tmp_path, kind, many=3, big=1000)
    assert built.path is not None
    after = moved(volume_of(built.path), NEW, built.size, 512)
    changed = differing(built.path.read_bytes(), all_of(after.reader))
    assert changed == ({0, 6} if kind == "FAT32" else {0})
    shown = run("fsck.vfat", "-n", "-v", written(tmp_path / "new", after)).decode()
    assert f"{NEW // 512} hidden sectors" in shown
    assert "differences between boot sector and its backup" not in shown


def test_exfat_says_its_new_place_under_its_checksums(tmp_path: Path) -> None:
    path = create_file(tmp_path / "old", 16 * MIB)
    run("mkfs.exfat", path)
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<Q", data, 64)[0] == 0  # of a file; a device's would be its start
    before = dataclasses.replace(volume_of(path), offset=0)
    after = moved(before, NEW, before.size, 512)
    new = all_of(after.reader)
    assert differing(bytes(data), new) == {0, 11, 12, 23}
    assert [struct.unpack_from("<Q", new, at + 64)[0] for at in (0, 12 * 512)] == [NEW // 512] * 2
    run("fsck.exfat", "-n", written(tmp_path / "new", after))
    damaged = dataclasses.replace(before, reader=BytesReader(bytes(data[:700]) + b"x" + bytes(data[701:])))
    assert [at // 512 for at, _ in moved_bytes(damaged, NEW, before.size, 512)] == [12, 23]


def test_what_is_not_its_place_stays(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "old", 16 * MIB, "x", 63)
    before = volume_of(path)
    assert moved_bytes(before, NEW, before.size, 512) == []
    assert moved_bytes(volume_of(path, 63 * 512), (1 << 32) * 512, before.size, 512) == []
    assert moved(before, NEW, before.size, 512).reader is before.reader
    zeros = Volume(1, OLD, MIB, "unknown", "", None, BytesReader(bytes(MIB)))
    assert moved_bytes(zeros, NEW, MIB, 512) == []
    stale = bytearray(path.read_bytes())
    stale[-512 + 0x48] ^= 1  # the last sector belongs to another volume
    other = dataclasses.replace(volume_of(path, 63 * 512), reader=BytesReader(bytes(stale)))
    assert [at for at, _ in moved_bytes(other, NEW, len(stale), 512)] == [0x1C]
