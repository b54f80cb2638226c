"""What a disk has besides its volumes, made for targets: held against the source, sfdisk and sgdisk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, copy_sparse, create_file, write_gpt_by_hand
from fixtures.tools import run
from formats.blockreader import FileReader
from formats.partition_table import Kind, read_table
from imagefs.errors import RefusedError
from imagefs.imaging.sources import SourceDisk, open_source
from imagefs.restore.ids import with_new_ids
from imagefs.restore.records import Records, make_records, needed_size, room_behind
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.held import check_tables
from tests.imagefs.restore.places import partitioned


def disk_of(path: Path) -> SourceDisk:
    with open_source(path) as source:
        (disk,) = source.disks
        table = disk.table
        assert table is not None
    return disk


def written(records: Records, path: Path, size: int) -> Path:
    with create_file(path, size).open("r+b") as stream:
        for offset, data in [(0, records.head), *records.others]:
            stream.seek(offset)
            stream.write(data)
    return path


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_the_same_size(scheme: str, gpt: Saved, mbr: Saved, tmp_path: Path) -> None:
    """All that lies outside of partitions is the source's own bytes."""
    built = {"gpt": gpt, "mbr": mbr}[scheme].disk
    with open_source(built.path) as source:
        (disk,) = source.disks
        records = make_records(disk, disk.table, disk.size)
    now = written(records, tmp_path / "disk", built.size).read_bytes()
    was = bytearray(built.path.read_bytes())
    for part in built.partitions:
        was[part.offset : part.offset + part.size] = bytes(part.size)
    assert now == was


def listed(path: Path) -> list[dict[str, object]]:
    table = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    return [{key: part[key] for key in part if key != "node"} for part in table["partitions"]]


@pytest.mark.parametrize("more", [512, 3 * MIB, 1 << 40])
def test_a_gpt_for_a_larger_target(more: int, gpt: Saved, tmp_path: Path) -> None:
    size = gpt.disk.size + more
    with open_source(gpt.disk.path) as source:
        (disk,) = source.disks
        path = written(make_records(disk, disk.table, size), tmp_path / "disk", size)
    check_tables(path, "gpt")
    assert listed(path) == listed(gpt.disk.path)
    with path.open("rb") as stream:
        (protects,) = struct.unpack("<I", stream.read(462)[458:])
    assert protects == min(size // 512 - 1, 0xFFFFFFFF)


def test_what_a_boot_loader_keeps(mbr: Saved, tmp_path: Path) -> None:
    """Boot code, and what lies between the table and the first partition, go along under new ids too."""
    path = create_file(tmp_path / "source", mbr.disk.size)
    copy_sparse(mbr.disk.path, path)
    code, core = noise(1, 0, 440), noise(2, 0, MIB - 512)
    with path.open("r+b") as stream:
        stream.write(code)
        stream.seek(512)
        stream.write(core)
    with open_source(path) as source:
        (disk,) = source.disks
        assert disk.table is not None
        table, ids = with_new_ids(disk.table)
        for wanted in (disk.table, table):
            head = make_records(disk, wanted, disk.size).head
            assert head[:440] == code
            assert head[512:] == core
        assert head[440:444] == int(ids[disk.table.disk_id], 16).to_bytes(4, "little")
        now = written(make_records(disk, table, disk.size), tmp_path / "disk", disk.size)
    check_tables(now, "mbr")
    assert listed(now) == listed(path)


def test_a_hybrid_mbr_stays(tmp_path: Path) -> None:
    """An MBR beside a GPT that names partitions of its own is no protective one."""
    path = partitioned(create_file(tmp_path / "source", 16 * MIB), "gpt", "start=2048, size=4096")
    with path.open("r+b") as stream:
        stream.seek(446 + 16)
        stream.write(struct.pack("<BBBBBBBBII", 0x80, 0, 0, 0, 0x0C, 0, 0, 0, 2048, 4096))
    was = path.read_bytes()[:512]
    with open_source(path) as source:
        (disk,) = source.disks
        assert disk.table is not None
        head = make_records(disk, with_new_ids(disk.table)[0], 20 * MIB).head
    assert head[:512] == was
    assert head[512:520] == b"EFI PART"


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    path = create_file(tmp_path / "source", 16 * MIB)
    kind = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
    write_gpt_by_hand(path, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E4CC", [(MIB, 8 * MIB)], [kind], 4096)
    size = 24 * MIB
    with open_source(path, sector_size=4096) as source:
        (disk,) = source.disks
        now = written(make_records(disk, disk.table, size), tmp_path / "disk", size)
    with FileReader(now) as reader:
        table = read_table(reader, 4096)
        assert table is not None
        assert not table.problems
        assert [(entry.offset, entry.size) for entry in table.partitions] == [(MIB, 8 * MIB)]
        assert reader.read_at(size - 4096, 8) == b"EFI PART"


def test_the_least_size(gpt: Saved, mbr: Saved) -> None:
    """The end of what a table names, and what it needs behind that."""
    last = gpt.disk.partitions[-1]
    table = disk_of(gpt.disk.path).table
    assert room_behind(table) == 33 * 512
    assert needed_size(table, [last.offset + last.size]) == last.offset + last.size + 33 * 512
    table = disk_of(mbr.disk.path).table
    assert table is not None
    (extended,) = [entry for entry in table.partitions if entry.kind is Kind.EXTENDED]
    assert needed_size(table, [MIB]) == extended.end
    assert needed_size(None, [5, 7]) == 7


def test_a_table_that_does_not_fit(gpt: Saved) -> None:
    with open_source(gpt.disk.path) as source, pytest.raises(RefusedError, match="can't be made"):
        (disk,) = source.disks
        make_records(disk, disk.table, 20 * MIB)
