"""Plans for targets of other sizes: what must hold of all of them, and what sgdisk and sfdisk say."""

import dataclasses
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.tools import run
from fixtures.volumes import make_ntfs
from formats.blockreader import BlockReader, FileReader, ZeroReader
from formats.partition_table import Kind, PartitionEntry, PartitionTable, build_table, read_table
from imagefs.errors import RefusedError
from imagefs.restore.fit import Fitted, fit_volume, plan_fit
from imagefs.restore.layout import Volume
from tests.formats.partition_table.tools import device, sparse, write

MIB = 1 << 20
GIB = 1 << 30
LINUX, MSR = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"


class ExtStub(BlockReader):
    """A volume of any size that bears an ext superblock, in a state, and nothing else."""

    def __init__(self, size: int, state: int = 1, features: int = 0x80) -> None:
        super().__init__(size)
        block = bytearray(1024)
        struct.pack_into("<II", block, 0, 1000, min(size // 4096, 2**32 - 1))
        struct.pack_into("<II", block, 20, 0, 2)
        struct.pack_into("<III", block, 32, 32768, 32768, 8192)
        block[56:58] = b"\x53\xef"
        struct.pack_into("<HxxxxxxxxxxxxxxxxI", block, 58, state, 1)
        struct.pack_into("<I", block, 0x60, features)  # 64bit
        self._head = bytes(1024) + bytes(block)

    def _read(self, offset: int, length: int) -> bytes:
        return self._head[offset : offset + length].ljust(length, b"\0")


def volume_of(entry: PartitionEntry, kind: str) -> Volume:
    reader = ExtStub(entry.size) if kind == "ext" else ZeroReader(entry.size)
    return Volume(entry.number, entry.offset, entry.size, kind, "", entry, reader)


def gpt(entries: list[PartitionEntry], sector_size: int = 512) -> PartitionTable:
    disk = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E301"
    return PartitionTable("gpt", disk, sector_size, tuple(entries))


def gpt_entry(number: int, offset: int, size: int, kind: str = LINUX) -> PartitionEntry:
    return PartitionEntry(number, offset, size, kind, f"p{number}", f"0B1F9A54-7C3D-4E8A-9D21-{number:012X}")


def half(volume: Volume) -> int:
    return volume.size // 2


def sizes_of(fitted: Fitted) -> list[tuple[int, int]]:
    return [(placed.offset, placed.size) for placed in fitted.placed]


def check(
    fitted: Fitted, table: PartitionTable, target: int, smallest: Callable[[Volume], int]
) -> PartitionTable:
    """Check what must hold of every plan."""
    new = fitted.table
    assert new is not None
    old = {entry.number: entry for entry in table.partitions}
    assert [entry.number for entry in new.partitions] == sorted(old)
    for entry in new.partitions:
        before = old[entry.number]
        assert before == dataclasses.replace(
            entry, offset=before.offset, size=before.size, record_offset=before.record_offset
        )
        if entry.kind is not Kind.EXTENDED:
            assert entry.offset in (before.offset, entry.offset // MIB * MIB)
            assert entry.size in (before.size, entry.size // MIB * MIB)
    flat = [entry for entry in new.partitions if entry.kind is not Kind.EXTENDED]
    by_old = sorted(flat, key=lambda entry: old[entry.number].offset)
    assert by_old == sorted(flat, key=lambda entry: entry.offset)
    resized = [index for index, entry in enumerate(by_old) if entry.size != old[entry.number].size]
    moved = [index for index, entry in enumerate(by_old) if entry.offset != old[entry.number].offset]
    if resized and min(moved, default=99) < min(resized):
        # only where the gaps before had to be closed
        assert sum(entry.size for entry in flat) < sum(entry.size for entry in old.values())
    entries = {entry.number: entry for entry in new.partitions}
    for placed in fitted.placed:
        entry = entries[placed.volume.number]
        assert (placed.offset, placed.size) == (entry.offset, entry.size)
        assert placed.size >= min(placed.volume.size, smallest(placed.volume))
        if placed.volume.file_system != "ext":
            assert placed.size == placed.volume.size
    build_table(new, target)  # no overlap, inside the disk, room for each EBR and the backup GPT
    return new


@st.composite
def gpt_disks(draw: st.DrawFn) -> tuple[list[Volume], PartitionTable, int]:
    unit = draw(st.sampled_from([512, 4096]))
    position = draw(st.sampled_from([MIB, 24 * unit + 16384, 3 * MIB]))
    entries, kinds = [], []
    for number in draw(st.permutations(range(1, draw(st.integers(1, 6)) + 1))):
        size = draw(st.integers(1, 4 * GIB // unit)) * unit
        if draw(st.booleans()):
            size = max(MIB, size // MIB * MIB)
        kinds.append(draw(st.sampled_from(["ext", "ext", "unknown", "none"])))
        entries.append(gpt_entry(number, position, size))
        position += size + draw(st.sampled_from([0, 0, 5 * unit, 7 * MIB, GIB]))
    ordered = sorted(zip(entries, kinds, strict=True), key=lambda item: item[0].offset)
    volumes = [volume_of(entry, kind) for entry, kind in ordered if kind != "none"]
    return volumes, gpt(sorted(entries, key=lambda entry: entry.number), unit), position


@settings(max_examples=200, deadline=None)
@given(gpt_disks(), st.integers(1, 300), st.integers(1, 100))
def test_any_gpt_disk_on_any_target(
    disk: tuple[list[Volume], PartitionTable, int], percent: int, least: int
) -> None:
    volumes, table, end = disk
    target = max(MIB, end * percent // 100 // table.sector_size * table.sector_size)
    hold(volumes, table, target, lambda volume: volume.size * least // 100)


def hold(
    volumes: list[Volume], table: PartitionTable, target: int, smallest: Callable[[Volume], int]
) -> None:
    """Plan, check the plan; where it is refused, check that the size it asks for will do, and no less."""
    try:
        fitted = plan_fit(volumes, table, table.sector_size, target, smallest)
    except RefusedError as error:
        found = re.search(r"need at least (\d+)", str(error))
        assert found, error
        needed = int(found[1])
        assert needed > target
        check(plan_fit(volumes, table, table.sector_size, needed, smallest), table, needed, smallest)
        with pytest.raises(RefusedError):
            plan_fit(volumes, table, table.sector_size, needed - table.sector_size, smallest)
        return
    check(fitted, table, target, smallest)


def test_a_windows_that_moves_on_an_mbr_disk_is_told_of(tmp_path: Path) -> None:
    ntfs = make_ntfs(tmp_path / "ntfs", 20 * MIB, "x")
    entries = (PartitionEntry(1, MIB, 50 * MIB, "83"), PartitionEntry(2, 51 * MIB, 20 * MIB, "07"))
    table = PartitionTable("mbr", "0A1B2CD3", 512, entries)
    with FileReader(ntfs) as reader:
        moving = Volume(2, 51 * MIB, 20 * MIB, "NTFS", "", entries[1], reader)
        volumes = [volume_of(entries[0], "ext"), moving]
        assert "that move: 2;" in plan_fit(volumes, table, 512, 200 * MIB, half).notes[0]
        assert plan_fit(volumes, table, 512, 71 * MIB, half).notes == ()


@st.composite
def mbr_disks(draw: st.DrawFn) -> tuple[list[Volume], PartitionTable, int]:
    unit = 512
    start = draw(st.sampled_from([63 * unit, MIB]))
    gap = draw(st.sampled_from([unit, 63 * unit, MIB]))
    position, number, logical = start, 1, 5
    entries: list[PartitionEntry] = []
    sizes = st.integers(1, 2 * GIB // unit).map(lambda sectors: sectors * unit)
    extended_at = draw(st.integers(1, 4))
    for number in range(1, draw(st.integers(1, 4)) + 1):
        if number != extended_at:
            entries.append(PartitionEntry(number, position, draw(sizes), "83"))
            position = entries[-1].end + draw(st.sampled_from([0, 0, 10 * MIB]))
            continue
        begin = position
        for _ in range(draw(st.integers(0, 4))):
            size = draw(sizes)
            entries.append(
                PartitionEntry(logical, position + gap, size, "83", kind=Kind.LOGICAL, record_offset=position)
            )
            position, logical = entries[-1].end, logical + 1
        position += draw(st.sampled_from([unit, 100 * MIB]))
        entries.append(PartitionEntry(number, begin, position - begin, "0F", kind=Kind.EXTENDED))
    entries.sort(key=lambda entry: entry.number)
    table = PartitionTable("mbr", "0A1B2CD3", unit, tuple(entries))
    flat = sorted((e for e in entries if e.kind is not Kind.EXTENDED), key=lambda entry: entry.offset)
    volumes = [volume_of(entry, draw(st.sampled_from(["ext", "ext", "unknown"]))) for entry in flat]
    return volumes, table, position


@settings(max_examples=200, deadline=None)
@given(mbr_disks(), st.integers(1, 300), st.integers(1, 100))
def test_any_mbr_disk_on_any_target(
    disk: tuple[list[Volume], PartitionTable, int], percent: int, least: int
) -> None:
    volumes, table, end = disk
    target = max(MIB, end * percent // 100 // 512 * 512)
    hold(volumes, table, target, lambda volume: volume.size * least // 100)


def windows_disk(sector_size: int = 512) -> tuple[list[Volume], PartitionTable]:
    """Return what Windows makes: a reserved partition, a large volume, a recovery partition behind it."""
    recovery = "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC"
    entries = [
        gpt_entry(1, MIB, 100 * MIB, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        gpt_entry(2, 101 * MIB, 16 * MIB, MSR),
        gpt_entry(3, 117 * MIB, 40 * GIB),
        gpt_entry(4, 117 * MIB + 40 * GIB, 500 * MIB, recovery),
        gpt_entry(5, 617 * MIB + 40 * GIB, 10 * GIB),
    ]
    kinds = ["FAT32", "unknown", "ext", "ext", "ext"]
    table = gpt(entries, sector_size)
    return [volume_of(entry, kind) for entry, kind in zip(entries, kinds, strict=True)], table


def test_volumes_grow_in_proportion_and_what_the_machine_needs_does_not() -> None:
    volumes, table = windows_disk()
    fitted = plan_fit(volumes, table, 512, 101 * GIB, half)
    check(fitted, table, 101 * GIB, half)
    placed = fitted.placed
    assert [item.size for item in placed[:2]] == [100 * MIB, 16 * MIB]
    assert placed[3].size == 500 * MIB
    assert placed[2].size / placed[4].size == pytest.approx(4, rel=1e-3)
    assert 101 * GIB - placed[4].end < 2 * MIB  # all of the target is used


def test_what_can_be_spared_is_taken_in_proportion() -> None:
    volumes, table = windows_disk()
    fitted = plan_fit(volumes, table, 512, 41 * GIB, half)
    check(fitted, table, 41 * GIB, half)
    lost = [item.volume.size - item.size for item in fitted.placed]
    assert lost[:2] == [0, 0]
    assert lost[3] == 0
    assert lost[2] / lost[4] == pytest.approx(4, rel=1e-2)


def test_a_disk_that_fits_stays_as_it_is_and_nothing_is_asked() -> None:
    def never(volume: Volume) -> int:
        raise AssertionError(volume)

    volumes, table = windows_disk()
    target = volumes[-1].offset + volumes[-1].size + MIB
    fitted = plan_fit(volumes, table, 512, target, never)
    assert sizes_of(fitted) == [(volume.offset, volume.size) for volume in volumes]
    assert fitted.table == table


def test_small_volumes_shrink_only_where_the_large_ones_are_not_enough() -> None:
    entries = [gpt_entry(1, MIB, 10 * GIB), gpt_entry(2, MIB + 10 * GIB, 600 * MIB)]
    volumes = [volume_of(entry, "ext") for entry in entries]
    asked = []

    def smallest(volume: Volume) -> int:
        asked.append(volume.number)
        return 9 * GIB if volume.number == 1 else 100 * MIB

    fitted = plan_fit(volumes, gpt(entries), 512, 10 * GIB, smallest)
    assert fitted.placed[1].size == 600 * MIB
    assert asked == [1]
    fitted = plan_fit(volumes, gpt(entries), 512, 9 * GIB + 400 * MIB, smallest)
    assert fitted.placed[1].size < 600 * MIB
    assert asked == [1, 1, 2]


def test_a_volume_with_errors_keeps_its_size_and_is_told() -> None:
    entries = [gpt_entry(1, MIB, 10 * GIB), gpt_entry(2, MIB + 10 * GIB, 6 * GIB)]
    broken = dataclasses.replace(volume_of(entries[0], "ext"), reader=ExtStub(10 * GIB, state=3))
    volumes = [broken, volume_of(entries[1], "ext")]
    fitted = plan_fit(volumes, gpt(entries), 512, 20 * GIB, half)
    assert [placed.size > placed.volume.size for placed in fitted.placed] == [False, True]
    assert "partition 1" in fitted.notes[0]
    with pytest.raises(RefusedError, match="e2fsck"):
        plan_fit(volumes, gpt(entries), 512, 10 * GIB, half)


def test_what_a_volume_can_not_take_goes_to_the_others() -> None:
    tib = 1 << 40
    entries = [gpt_entry(1, MIB, 3 * tib), gpt_entry(2, MIB + 3 * tib, tib)]
    narrow = dataclasses.replace(volume_of(entries[0], "ext"), reader=ExtStub(3 * tib, features=0))
    volumes = [narrow, volume_of(entries[1], "ext")]
    fitted = plan_fit(volumes, gpt(entries), 512, 40 * tib, half)
    check(fitted, gpt(entries), 40 * tib, half)
    assert 16 * tib - 2 * MIB < fitted.placed[0].size < 16 * tib  # 2^32 blocks of 4096 bytes
    assert 40 * tib - fitted.placed[1].end < 2 * MIB
    fitted = plan_fit([narrow], gpt(entries[:1]), 512, 40 * tib, half)
    assert 16 * tib - 2 * MIB < fitted.placed[0].size < 16 * tib


def test_an_mbr_addresses_2_to_the_32_sectors() -> None:
    entry = PartitionEntry(1, MIB, 1 << 40, "83")
    table = PartitionTable("mbr", "0A1B2CD3", 512, (entry,))
    fitted = plan_fit([volume_of(entry, "ext")], table, 512, 5 << 40, half)
    assert fitted.placed[0].end == 2 << 40
    build_table(check(fitted, table, 5 << 40, half), 5 << 40)


def test_a_volume_alone_fills_what_it_is_given() -> None:
    bare = Volume(1, 0, GIB, "ext", "", None, ExtStub(GIB))
    assert fit_volume(bare, 3 * GIB + 5000, half).size == 3 * GIB + 4096
    assert fit_volume(bare, 700 * MIB, half).size == 700 * MIB
    assert plan_fit([bare], None, 512, GIB, half).placed[0].size == GIB
    with pytest.raises(RefusedError, match=str(GIB // 2)):
        fit_volume(bare, 100 * MIB, half)
    unknown = Volume(1, 0, GIB, "unknown", "", None, ZeroReader(GIB))
    assert fit_volume(unknown, 3 * GIB, half).size == GIB
    with pytest.raises(RefusedError, match="unknown"):
        fit_volume(unknown, 700 * MIB, half)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("target", [41 * GIB, 101 * GIB])
def test_sgdisk_and_sfdisk_find_nothing_wrong_with_a_gpt(
    tmp_path: Path, sector_size: int, target: int
) -> None:
    volumes, table = windows_disk(sector_size)
    fitted = plan_fit(volumes, table, sector_size, target, half)
    assert fitted.table is not None
    path = sparse(tmp_path / "disk", target)
    write(path, build_table(fitted.table, target))
    with device(path, sector_size) as place:
        assert b"No problems found" in run("sgdisk", "-v", place)
        assert b"No errors detected" in run("sfdisk", "--verify", place)
        shown = run("sfdisk", "--dump", place).decode()
    starts = [int(found) * sector_size for found in re.findall(r"start=\s*(\d+)", shown)]
    lengths = [int(found) * sector_size for found in re.findall(r"size=\s*(\d+)", shown)]
    assert list(zip(starts, lengths, strict=True)) == sizes_of(fitted)


@pytest.mark.parametrize("target", [4 * GIB, 30 * GIB])
def test_sfdisk_finds_nothing_wrong_with_logical_partitions(tmp_path: Path, target: int) -> None:
    source = sparse(tmp_path / "source", 12 * GIB)
    run(
        "sfdisk", "--quiet", source,
        stdin=b"label: dos\n1: start=2048,size=2GiB,type=83\n2: start=5GiB,type=f\n"
        b"3: start=3GiB,size=1GiB,type=83\n5: size=2GiB,type=83\n"
        b"6: size=1GiB,type=83\n7: size=3GiB,type=83\n",
    )  # fmt: skip
    with FileReader(source) as reader:
        table = read_table(reader, 512)
    assert table is not None
    flat = sorted((e for e in table.partitions if e.kind is not Kind.EXTENDED), key=lambda e: e.offset)
    volumes = [volume_of(entry, "ext") for entry in flat]
    quarter = lambda volume: volume.size // 4  # noqa: E731
    fitted = plan_fit(volumes, table, 512, target, quarter)
    new = check(fitted, table, target, quarter)
    path = sparse(tmp_path / "disk", target)
    write(path, build_table(new, target))
    assert b"No errors detected" in run("sfdisk", "--verify", path)
    shown = run("sfdisk", "--dump", path).decode()
    found = {
        int(number): (int(start) * 512, int(size) * 512)
        for number, start, size in re.findall(r"(\d+) : start=\s*(\d+), size=\s*(\d+)", shown)
    }
    assert found == {entry.number: (entry.offset, entry.size) for entry in new.partitions}
