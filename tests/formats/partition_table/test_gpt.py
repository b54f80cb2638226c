"""GPT read and rebuilt, held against sgdisk, sfdisk, partx and mmls."""

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from formats.blockreader import BytesReader, ConcatReader, FileReader
from formats.errors import DamagedError, UnsupportedError
from formats.partition_table import (
    PartitionEntry,
    PartitionTable,
    backup_gpt,
    build_gpt,
    build_table,
    disk_size_from_gpt,
    read_table,
)
from tests.formats.partition_table.tools import (
    GPT_MAKERS,
    MIB,
    SECTOR_SIZES,
    check_against_tools,
    gpt_by_sfdisk,
    gpt_by_sgdisk,
    gpt_of_256,
    made,
    mbr_by_sfdisk,
    sfdisk_json,
    sgdisk,
    sparse,
    table_of,
    verify,
    write,
)

SIZE = 64 * MIB
BASIC_DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
DISK = "2D37A83C-3F86-4734-849E-FD9A833D874A"


@pytest.fixture(params=SECTOR_SIZES)
def sector_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=GPT_MAKERS, ids=lambda maker: maker.__name__)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, sector_size: int, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return made(request.param, sector_size, tmp_path, tmp_path_factory)


def table_bytes(path: Path, sector_size: int) -> bytes:
    """Return the first sectors of a disk up to the end of its entry array, whose length sgdisk tells."""
    last = re.search(r"Main partition table begins .* ends at sector (\d+)", sgdisk(path, sector_size, "-p"))
    assert last
    with path.open("rb") as file:
        return file.read((int(last[1]) + 1) * sector_size)


def test_reads_what_other_tools_read(disk: Path, sector_size: int) -> None:
    table = check_against_tools(disk, sector_size)
    holds = re.search(r"holds up to (\d+) entries", sgdisk(disk, sector_size, "-p"))
    assert holds
    assert table.entry_count == int(holds[1])
    for entry in table.partitions:
        info = sgdisk(disk, sector_size, f"-i {entry.number}")
        flags = re.search(r"Attribute flags: ([0-9A-F]{16})", info)
        assert flags
        assert entry.attributes == int(flags[1], 16)
        assert entry.bootable == bool(int(flags[1], 16) & 4)
        assert f"Partition unique GUID: {entry.id}" in info
        assert f"Partition GUID code: {entry.type}" in info
        assert f"Partition name: '{entry.name}'" in info


def test_backup_equals_the_real_one(disk: Path, sector_size: int) -> None:
    primary = table_bytes(disk, sector_size)
    (array_offset, array), (header_offset, header) = backup_gpt(primary, sector_size)
    assert header_offset + len(header) == SIZE
    assert array_offset + len(array) == header_offset
    with disk.open("rb") as file:
        file.seek(array_offset)
        assert file.read() == array + header


def test_rebuilt_backup_satisfies_other_tools(disk: Path, sector_size: int) -> None:
    before = sfdisk_json(disk, sector_size)
    pieces = backup_gpt(table_bytes(disk, sector_size), sector_size)
    write(disk, [(pieces[0][0], bytes(SIZE - pieces[0][0]))])
    write(disk, pieces)
    verify(disk, sector_size)
    assert sfdisk_json(disk, sector_size) == before


def test_disk_size(disk: Path, sector_size: int) -> None:
    primary = bytearray(table_bytes(disk, sector_size))
    assert disk_size_from_gpt(primary, sector_size) == SIZE
    assert disk_size_from_gpt(primary[: 2 * sector_size], sector_size) == SIZE
    assert disk_size_from_gpt(primary[: 2 * sector_size - 1], sector_size) is None
    primary[sector_size + 40] ^= 1
    assert disk_size_from_gpt(primary, sector_size) is None


def test_no_backup_rather_than_a_wrong_one(disk: Path, sector_size: int) -> None:
    primary = table_bytes(disk, sector_size)
    needed = 2 * sector_size + table_of(disk, sector_size).entry_count * 128
    assert backup_gpt(primary[:needed], sector_size)
    assert backup_gpt(primary[: needed - 1], sector_size) == []
    assert backup_gpt(b"", sector_size) == []
    for place in (sector_size, sector_size + 24, 2 * sector_size, needed - 1):
        damaged = bytearray(primary)
        damaged[place] ^= 0x10
        assert backup_gpt(damaged, sector_size) == []


def test_damaged_primary_is_read_from_the_backup(disk: Path, sector_size: int) -> None:
    good = table_of(disk, sector_size)
    content = disk.read_bytes()
    for place in (sector_size, sector_size + 60, 2 * sector_size + 33):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        table = read_table(BytesReader(bytes(damaged)), sector_size)
        assert table is not None
        assert "backup" in table.problems[0]
        assert replace(table, problems=()) == good
        damaged[-sector_size + 16] ^= 1
        with pytest.raises(DamagedError, match="no valid backup GPT"):
            read_table(BytesReader(bytes(damaged)), sector_size)


def test_first_sectors_are_enough(disk: Path, sector_size: int) -> None:
    primary = BytesReader(table_bytes(disk, sector_size))
    assert read_table(primary, sector_size, disk_size=SIZE) == table_of(disk, sector_size)
    assert read_table(primary, sector_size) == table_of(disk, sector_size)


@pytest.mark.parametrize("size", [SIZE, SIZE + 4096, 3 * SIZE, 5 << 40])
def test_built_table_satisfies_other_tools(disk: Path, sector_size: int, size: int, tmp_path: Path) -> None:
    table = table_of(disk, sector_size)
    target = sparse(tmp_path / "target.img", size)
    write(target, build_table(table, size))
    verify(target, sector_size)
    assert check_against_tools(target, sector_size) == table
    expected, built = sfdisk_json(disk, sector_size), sfdisk_json(target, sector_size)
    assert built["partitions"] == expected["partitions"]


def test_built_table_equals_sgdisks(
    sector_size: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = made(gpt_by_sgdisk, sector_size, tmp_path, tmp_path_factory)
    _, *pieces = build_gpt(table_of(path, sector_size), SIZE)
    content = path.read_bytes()
    assert [offset // sector_size for offset, _ in pieces[:2]] == [1, 2]
    for offset, data in pieces:
        assert content[offset : offset + len(data)] == data


def test_boot_code_is_kept(tmp_path: Path) -> None:
    table = PartitionTable("gpt", DISK, 512, ())
    (_, sector), *_ = build_gpt(table, SIZE, boot_code=bytes(range(256)) * 2)
    assert sector[:440] == (bytes(range(256)) * 2)[:440]
    assert sector[440:446] == bytes(6)


def test_hybrid_mbr_yields_to_the_gpt(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.img", SIZE)
    gpt_by_sfdisk(path, 512)
    expected = table_of(path, 512)
    sgdisk(path, 512, "-h 5:6")
    assert sfdisk_json(path, 512)["label"] == "gpt"
    assert sum(kind != 0 for kind in path.read_bytes()[450:512:16]) == 3
    assert table_of(path, 512) == expected


def test_unprotected_gpt_yields_to_an_mbr(tmp_path: Path) -> None:
    path, other = sparse(tmp_path / "disk.img", SIZE), sparse(tmp_path / "mbr.img", SIZE)
    gpt_by_sfdisk(path, 512)
    mbr_by_sfdisk(other, 512)
    write(other, [(512, path.read_bytes()[512:17408])])
    assert sfdisk_json(other, 512)["label"] == "dos"
    table = table_of(other, 512)
    assert table.scheme == "mbr"
    assert "ignored" in table.problems[0]


def test_lost_mbr(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.img", SIZE)
    gpt_by_sfdisk(path, 512)
    expected = table_of(path, 512)
    write(path, [(0, bytes(512))])
    table = table_of(path, 512)
    assert table.problems == ("there is no protective MBR",)
    assert table.partitions == expected.partitions


def test_wrong_sector_size_is_named(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.img", SIZE)
    gpt_by_sfdisk(path, 512)
    with FileReader(path) as reader, pytest.raises(DamagedError, match="sectors of 512 bytes") as caught:
        read_table(reader, 4096)
    assert caught.value.path == path


def test_resized_disk_is_a_problem(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.img", SIZE)
    gpt_by_sfdisk(path, 512)
    with FileReader(path) as reader:
        grown = read_table(ConcatReader.from_placed(2 * SIZE, [(0, reader)]), 512, disk_size=2 * SIZE)
    assert grown is not None
    assert grown.problems == (f"the disk has {2 * SIZE} bytes, its GPT was made for {SIZE}",)


def by_hand(*, entry_size: int, count: int, header_size: int, sectors: int = 4096) -> bytearray:
    """Make the primary half of a GPT as UEFI 2.10 tables 5.5 and 5.6 give it, backup left out."""
    disk = bytearray(sectors * 512)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, sectors - 1)
    disk[510:512] = b"\x55\xaa"
    array = bytearray(entry_size * count)
    for slot, first, last, name in ((0, 200, 299, "one"), (count - 1, 300, 300, "a single sector")):
        struct.pack_into(
            "<16s16sQQQ72s",
            array,
            slot * entry_size,
            UUID(BASIC_DATA).bytes_le,
            UUID(int=slot + 1).bytes_le,
            first,
            last,
            1 << 60,
            name.encode("utf-16-le"),
        )
    disk[4 * 512 : 4 * 512 + len(array)] = array
    header = bytearray(header_size)
    struct.pack_into("<8sIIII", header, 0, b"EFI PART", 0x10000, header_size, 0, 0)
    struct.pack_into("<QQQQ16s", header, 24, 1, sectors - 1, 150, sectors - 150, UUID(DISK).bytes_le)
    struct.pack_into("<QIII", header, 72, 4, count, entry_size, zlib.crc32(array))
    header[92:] = b"\x77" * (header_size - 92)
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    disk[512 : 512 + header_size] = header
    return disk


@pytest.mark.parametrize(
    ("entry_size", "count", "header_size"),
    [(128, 128, 92), (256, 128, 92), (512, 20, 92), (136, 5, 92), (128, 3, 512), (256, 130, 96)],
)
def test_unusual_entry_and_header_sizes(
    entry_size: int, count: int, header_size: int, tmp_path: Path
) -> None:
    disk = by_hand(entry_size=entry_size, count=count, header_size=header_size)
    table = read_table(BytesReader(bytes(disk)), 512, disk_size=len(disk))
    assert table == PartitionTable(
        "gpt",
        DISK,
        512,
        (
            PartitionEntry(1, 200 * 512, 100 * 512, BASIC_DATA, "one", str(UUID(int=1)), 1 << 60),
            PartitionEntry(count, 300 * 512, 512, BASIC_DATA, "a single sector",
                           str(UUID(int=count)).upper(), 1 << 60),
        ),
        entry_count=count,
        entry_size=entry_size,
    )  # fmt: skip
    pieces = backup_gpt(disk, 512)
    for offset, data in pieces:
        disk[offset : offset + len(data)] = data
    disk[512 + 8] ^= 1
    restored = read_table(BytesReader(bytes(disk)), 512)
    assert restored is not None
    assert restored.partitions == table.partitions
    disk[512 + 8] ^= 1
    if entry_size == 256 and header_size == 92:  # sfdisk reads such a table, from either copy
        path = tmp_path / "disk.img"
        path.write_bytes(disk)
        assert [row["start"] for row in sfdisk_json(path, 512)["partitions"]] == [200, 300]


def test_oversized_array_is_refused() -> None:
    disk = by_hand(entry_size=128, count=4, header_size=92)
    struct.pack_into("<I", disk, 512 + 80, 1 << 30)
    struct.pack_into("<I", disk, 512 + 16, 0)
    struct.pack_into("<I", disk, 512 + 16, zlib.crc32(disk[512 : 512 + 92]))
    with pytest.raises(UnsupportedError, match="too many"):
        read_table(BytesReader(bytes(disk)), 512)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"offset": SIZE - 20 * 512}, "lies outside"),
        ({"offset": 33 * 512}, "lies outside"),
        ({"offset": SIZE}, "behind the disk"),
        ({"offset": 1000 * 512 + 1}, "whole 512-byte sectors"),
        ({"size": 0}, "whole 512-byte sectors"),
        ({"number": 129}, "no slot"),
        ({"number": 0}, "no slot"),
        ({"name": "x" * 37}, "36 UTF-16 units"),
        ({"name": "🦊" * 19}, "36 UTF-16 units"),
        ({"type": str(UUID(int=0))}, "unused slot"),
        ({"type": "07"}, "UUID"),
    ],
)
def test_impossible_tables_are_refused(change: dict[str, object], match: str) -> None:
    entry = PartitionEntry(1, 2048 * 512, 4096, BASIC_DATA, "x", DISK)
    table = PartitionTable("gpt", DISK, 512, (entry,))
    assert len(build_gpt(table, SIZE)) == 5
    broken = replace(table, partitions=(replace(entry, **change),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        build_gpt(broken, SIZE)


def test_overlap_and_small_disks_are_refused() -> None:
    first = PartitionEntry(1, 2048 * 512, 4096, BASIC_DATA, id=DISK)
    table = PartitionTable("gpt", DISK, 512, (first, replace(first, number=2, offset=2050 * 512)))
    with pytest.raises(ValueError, match="overlap"):
        build_gpt(table, SIZE)
    with pytest.raises(ValueError, match="one number"):
        build_gpt(replace(table, partitions=(first, replace(first, offset=4096 * 512))), SIZE)
    empty = replace(table, partitions=())
    assert build_gpt(empty, (3 + 2 * 32 + 1) * 512)
    with pytest.raises(ValueError, match="too small"):
        build_gpt(empty, (3 + 2 * 32) * 512)


def test_labels_with_unpaired_surrogates_survive() -> None:
    entry = PartitionEntry(1, 2048 * 512, 4096, BASIC_DATA, "a\ud800b", DISK)
    table = PartitionTable("gpt", DISK, 512, (entry,))
    pieces = [(offset, BytesReader(data)) for offset, data in build_gpt(table, SIZE)]
    assert read_table(ConcatReader.from_placed(SIZE, pieces), 512) == table


def test_table_of_256_entries_does_not_fit_a_track(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = made(gpt_of_256, 512, tmp_path, tmp_path_factory)
    with path.open("rb") as file:
        track0 = file.read(32256)
    assert disk_size_from_gpt(track0, 512) == SIZE
    assert backup_gpt(track0, 512) == []
    with pytest.raises(DamagedError, match="entry array"):
        read_table(BytesReader(track0), 512, disk_size=SIZE)
