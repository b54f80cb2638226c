"""MBR and EBR chains read and rebuilt, held against sfdisk, parted, partx and mmls."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from formats.blockreader import BytesReader, FileReader, SliceReader
from formats.errors import DamagedError
from formats.partition_table import (
    Kind,
    PartitionEntry,
    PartitionTable,
    build_mbr,
    build_table,
    read_table,
)
from tests.formats.partition_table.tools import (
    MBR_MAKERS,
    MIB,
    SECTOR_SIZES,
    check_against_tools,
    device,
    made,
    mbr_by_sfdisk,
    run,
    sfdisk_json,
    sparse,
    table_of,
    write,
)

SIZE = 64 * MIB


@pytest.fixture(params=SECTOR_SIZES)
def sector_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=MBR_MAKERS, ids=lambda maker: maker.__name__)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, sector_size: int, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return made(request.param, sector_size, tmp_path, tmp_path_factory)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Return a disk with a chain of four logical partitions, the extended one at 5 MiB."""
    path = sparse(tmp_path / "disk.img", SIZE)
    mbr_by_sfdisk(path, 512)
    return path


def test_reads_what_other_tools_read(disk: Path, sector_size: int) -> None:
    check_against_tools(disk, sector_size)


def test_kinds_and_records(chain: Path) -> None:
    table = check_against_tools(chain, 512)
    kinds = [(entry.number, entry.kind) for entry in table.partitions]
    primary = [(1, Kind.PRIMARY), (2, Kind.PRIMARY), (3, Kind.EXTENDED), (4, Kind.PRIMARY)]
    assert kinds == primary + [(number, Kind.LOGICAL) for number in (5, 6, 7, 8)]
    content = chain.read_bytes()
    for entry in table.partitions[4:]:  # an EBR lies where the entry says, and leads to the partition
        assert content[entry.record_offset + 510 : entry.record_offset + 512] == b"\x55\xaa"
        start, sectors = struct.unpack_from("<II", content, entry.record_offset + 454)
        assert entry.record_offset + start * 512 == entry.offset
        assert sectors * 512 == entry.size


@pytest.mark.parametrize("gone", [5, 6, 8])
def test_chain_with_a_partition_deleted(chain: Path, gone: int) -> None:
    run("sfdisk", "--delete", chain, str(gone))
    assert len(check_against_tools(chain, 512).partitions) == 7


def test_empty_first_record_links_on(chain: Path) -> None:
    table = table_of(chain, 512)
    write(chain, [(table.partitions[4].record_offset + 446, bytes(16))])
    cleared = table_of(chain, 512)
    renumbered = tuple(replace(entry, number=entry.number - 1) for entry in table.partitions[5:])
    assert cleared.partitions == table.partitions[:4] + renumbered
    target = sparse(chain.with_name("target.img"), SIZE)
    write(target, build_mbr(cleared, SIZE))
    assert table_of(target, 512) == cleared


@pytest.mark.parametrize("size", [SIZE, 3 * SIZE + 4096, 5 << 40])
def test_built_table_satisfies_other_tools(disk: Path, sector_size: int, size: int, tmp_path: Path) -> None:
    table = table_of(disk, sector_size)
    target = sparse(tmp_path / "target.img", size)
    write(target, build_table(table, size))
    assert check_against_tools(target, sector_size) == table
    assert sfdisk_json(target, sector_size) == sfdisk_json(disk, sector_size)
    with device(target, sector_size) as place:
        assert "unallocated" in run("sfdisk", "--verify", place)


def test_places_of_records_are_found(disk: Path, sector_size: int, tmp_path: Path) -> None:
    table = table_of(disk, sector_size)
    anywhere = tuple(replace(entry, record_offset=0) for entry in table.partitions)
    target = sparse(tmp_path / "target.img", SIZE)
    write(target, build_mbr(replace(table, partitions=anywhere), SIZE))
    built = check_against_tools(target, sector_size)
    assert tuple(replace(entry, record_offset=0) for entry in built.partitions) == anywhere


def test_boot_code_and_signature(chain: Path) -> None:
    table = table_of(chain, 512)
    assert table.disk_id == "0A1B2CD3"
    (_, sector), *_ = build_mbr(table, SIZE, boot_code=b"\x33\xc0" * 400)
    assert sector[:440] == b"\x33\xc0" * 220
    assert sector[440:444] == bytes.fromhex("d32c1b0a")


def test_beginning_of_a_disk_only(chain: Path) -> None:
    whole = table_of(chain, 512)
    with FileReader(chain) as reader:
        track0 = SliceReader(reader, 0, 32256)
        table = read_table(track0, 512, disk_size=SIZE)
        assert table is not None
        assert table.partitions == whole.partitions[:4]
        assert "not known" in table.problems[0]
        with pytest.raises(DamagedError, match="EBR at 5242880"):
            read_table(track0, 512)


def links(path: Path) -> list[int]:
    return [entry.record_offset for entry in table_of(path, 512).partitions[4:]]


def test_loops_are_damage(chain: Path) -> None:
    places = links(chain)
    for source, target in ((0, 0), (1, 0), (3, 1), (2, 2)):
        damaged = bytearray(chain.read_bytes())
        struct.pack_into(
            "<B3xB3xII", damaged, places[source] + 462, 0, 5, (places[target] - places[0]) // 512, 9
        )
        with pytest.raises(DamagedError, match="loops"):
            read_table(BytesReader(bytes(damaged)), 512)


@pytest.mark.parametrize("start", [20 * 2048, 0xFFFFFFFF, 1 << 31])
def test_links_out_of_the_partition_are_damage(chain: Path, start: int) -> None:
    places = links(chain)
    damaged = bytearray(chain.read_bytes())
    struct.pack_into("<I", damaged, places[1] + 470, start)
    with pytest.raises(DamagedError, match="leaves partition 3"):
        read_table(BytesReader(bytes(damaged)), 512)


def test_link_to_something_else_is_damage(chain: Path) -> None:
    places = links(chain)
    write(chain, [(places[2] + 510, b"\0\0")])
    with (
        FileReader(chain) as reader,
        pytest.raises(DamagedError, match=f"EBR at {places[2]}: signature") as caught,
    ):
        read_table(reader, 512)
    assert caught.value.path == chain


def test_endless_chain_is_damage() -> None:
    disk = bytearray(4 * MIB)
    struct.pack_into("<B3xB3xII", disk, 446, 0, 5, 1, 8000)
    disk[510:512] = b"\x55\xaa"
    for number in range(7000):
        at = 512 + number * 512
        struct.pack_into("<B3xB3xII", disk, at + 462, 0, 5, number + 1, 1)
        disk[at + 510 : at + 512] = b"\x55\xaa"
    with pytest.raises(DamagedError, match="more than 1024"):
        read_table(BytesReader(bytes(disk)), 512)


def test_partitions_behind_the_end_and_overlaps_are_problems(chain: Path) -> None:
    damaged = bytearray(chain.read_bytes())
    struct.pack_into("<I", damaged, 446 + 12, 10 * 2048)
    struct.pack_into("<I", damaged, 494 + 12, 100 * 2048)
    table = read_table(BytesReader(bytes(damaged)), 512)
    assert table is not None
    assert any("overlap" in line for line in table.problems)
    assert any("behind the disk" in line for line in table.problems)


FAT12, FAT16, FAT32 = (["mkfs.vfat", "-F", bits] for bits in ("12", "16", "32"))


@pytest.mark.parametrize(
    "command",
    [
        FAT12,
        FAT16,
        FAT32,
        [*FAT32, "--mbr=y"],
        ["mkfs.ntfs", "-F", "-q"],
        ["mkfs.exfat"],
        ["mkfs.ext4", "-q"],
    ],
    ids=" ".join,
)
def test_a_bare_volume_has_no_table(command: list[str], tmp_path: Path) -> None:
    path = sparse(tmp_path / "volume.img", (8 if "12" in command else 64) * MIB)
    run(*command, path)
    with FileReader(path) as reader:
        assert read_table(reader, 512) is None
        assert read_table(SliceReader(reader, 0, 32256), 512, disk_size=reader.size) is None


def test_boot_sector_fields_left_in_an_mbr(chain: Path, tmp_path: Path) -> None:
    volume = sparse(tmp_path / "volume.img", 64 * MIB)
    run(*FAT32, volume)
    expected = table_of(chain, 512)
    write(chain, [(0, volume.read_bytes()[:440])])
    assert table_of(chain, 512) == expected


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096])
def test_nothing_is_no_table(size: int) -> None:
    assert read_table(BytesReader(bytes(size)), 512) is None
    assert read_table(BytesReader(b"\x55\xaa" * (size // 2)), 512) is None


@pytest.mark.parametrize("sector_size", [0, 256, 513, 8192, -512])
def test_impossible_sector_sizes(sector_size: int) -> None:
    with pytest.raises(ValueError, match="sector"):
        read_table(BytesReader(bytes(8192)), sector_size)


PRIMARY = PartitionEntry(1, MIB, MIB, "07")
EXTENDED = PartitionEntry(2, 4 * MIB, 8 * MIB, "0F", kind=Kind.EXTENDED)
LOGICAL = PartitionEntry(5, 5 * MIB, MIB, "83", kind=Kind.LOGICAL)


@pytest.mark.parametrize(
    ("partitions", "match"),
    [
        ((replace(PRIMARY, number=5),), "no slot"),
        ((replace(PRIMARY, type="05"),), "can't have type"),
        ((replace(PRIMARY, type="00"),), "can't have type"),
        ((replace(PRIMARY, attributes=4),), "status"),
        ((replace(PRIMARY, offset=63 * MIB + 512),), "behind the disk"),
        ((replace(EXTENDED, type="07"),), "can't have type"),
        ((PRIMARY, LOGICAL), "no extended"),
        ((EXTENDED, replace(LOGICAL, offset=4 * MIB)), "no room"),
        ((EXTENDED, replace(LOGICAL, record_offset=5 * MIB)), "no room"),
        ((EXTENDED, LOGICAL, replace(LOGICAL, number=6, offset=6 * MIB)), "no room"),
        ((EXTENDED, LOGICAL, replace(LOGICAL, number=6, offset=11 * MIB, size=2 * MIB)), "no extended"),
        ((EXTENDED, LOGICAL, replace(LOGICAL, number=6, offset=5 * MIB + 512)), "overlap"),
    ],
)
def test_impossible_tables_are_refused(partitions: tuple[PartitionEntry, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build_mbr(PartitionTable("mbr", "00000001", 512, partitions), SIZE)


def test_partitions_beyond_32_bits_are_refused() -> None:
    table = PartitionTable("mbr", "00000001", 512, (replace(PRIMARY, offset=3 << 40),))
    with pytest.raises(ValueError, match="32 bits"):
        build_mbr(table, 4 << 40)
    assert build_mbr(replace(table, sector_size=4096), 4 << 40)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="apm"):
        build_table(PartitionTable("apm", "", 512, ()), SIZE)


def slots(record: bytes) -> list[tuple[int, ...]]:
    """Return status, type, start and sectors of a boot record's slots: all but the CHS addresses."""
    return list(struct.iter_unpack("<B3xB3xII", record[446:510]))


def test_built_records_equal_the_real_ones(disk: Path, sector_size: int) -> None:
    content = disk.read_bytes()
    for offset, data in build_mbr(table_of(disk, sector_size), SIZE):
        real = content[offset : offset + 512]
        assert slots(data) == slots(real), f"record at {offset}"
        assert data[440:444] == real[440:444]
        assert data[510:512] == real[510:512]
