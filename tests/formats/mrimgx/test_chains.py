"""Which file a block is taken from: members that vanished, contradict each other, or are of another set."""

import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import formats
from fixtures import damage, disks
from fixtures.mrimgx_blocks import Block, Parts
from fixtures.mrimgx_writer import SetWriter, WrittenFile, every_block
from fixtures.partition_tables import BuiltDisk
from formats.container import BadBlock, Role
from formats.errors import DamagedError, IncompleteSetError, PasswordError
from tests.formats.mrimgx.conftest import check_point, opened_point
from tests.formats.reader_contract import check_reader

BLOCK = 65536
EMPTY_INDEX = struct.pack("<II", 0, 0)


def folder_faults(folder: Path) -> list[BadBlock]:
    (container,), unreadable = formats.open_folder(folder)
    assert not unreadable
    with container:
        return [bad for check in container.checks() for bad in check.run().bad]


def without(disk: BuiltDisk, position: int) -> BuiltDisk:
    """Return a disk of whose partitions one is not imaged."""
    chosen = [part for at, part in enumerate(disk.partitions) if at != position]
    return dataclasses.replace(disk, partitions=tuple(chosen))


# --- A full index with nothing of a partition that was imaged whole before ---


def test_an_empty_full_index_means_that_an_earlier_file_has_the_blocks(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    """The second partition never changes: like an MSR, it is imaged once."""
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]])
    second = writer.incremental([plain[2]], delta=False)
    damage.set_index_payload(second.path, 1, EMPTY_INDEX)
    check_point(second)
    check_point(writer.incremental([plain[3]]))
    third = writer.differential([plain[1]])
    damage.set_index_payload(third.path, 1, EMPTY_INDEX)
    check_point(third)
    assert not folder_faults(tmp_path)


def test_the_newest_index_that_is_not_empty_counts(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]], delta=False)
    third = writer.incremental([plain[1]], delta=False)
    damage.set_index_payload(third.path, 0, EMPTY_INDEX)
    check_point(third)


@pytest.mark.parametrize("split_at", [None, 500_000])
def test_the_earlier_file_of_an_empty_index_counts_for_completeness(
    tmp_path: Path, split_at: int | None
) -> None:
    disk = disks.plain_disk(tmp_path, "one", sizes=(1 << 20,))
    writer = SetWriter(tmp_path / "set")
    writer.full([disk], split_at=split_at)
    second = writer.incremental([disk], delta=False)
    damage.set_index_payload(second.path, 0, EMPTY_INDEX)
    check_point(second)
    writer.remove(0)
    with opened_point(second) as point:
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.missing == (0,)


def test_an_empty_index_that_deltas_contradict_is_refused(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]])
    third = writer.incremental([plain[1]], delta=False)
    damage.set_index_payload(third.path, 0, EMPTY_INDEX)
    with opened_point(third) as point:
        with pytest.raises(DamagedError, match="empty"):
            point.disks[0].partitions[0].reader()
        assert point.disks[0].partitions[1].reader().read_at(0, 10)


def test_an_empty_index_of_the_only_file_is_damage(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path).full([plain[0]])
    damage.set_index_payload(full.path, 0, EMPTY_INDEX)
    with opened_point(full) as point, pytest.raises(DamagedError, match="0 of"):
        point.disks[0].partitions[0].reader()
    assert [bad.partition for bad in point_faults(full)] == ["disk1/p1"]


def point_faults(written: WrittenFile) -> list[BadBlock]:
    with opened_point(written) as point:
        return [bad for check in point.checks() for bad in check.run().bad]


# --- Other disks and partitions at the same positions ---


def test_a_partition_that_took_the_position_of_another_is_refused(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([without(plain[1], 0)])
    with opened_point(delta) as point, pytest.raises(DamagedError, match="another one"):
        point.disks[0].partitions[0].reader()


def test_disks_that_changed_places_are_refused(plain: list[BuiltDisk], tmp_path: Path) -> None:
    other = dataclasses.replace(disks.plain_disk(tmp_path, "other", seed=5), signature="AB")
    writer = SetWriter(tmp_path / "set", disk_numbers=[1, 2])
    first, second = without(plain[0], 1), other
    writer.full([first, second])
    writer.disk_numbers = [2, 1]
    delta = writer.incremental([second, first])
    with opened_point(delta) as point, pytest.raises(DamagedError, match="another one"):
        point.disks[0].partitions[0].reader()


def test_a_disk_that_was_renumbered_is_the_same(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, disk_numbers=[1])
    writer.full([plain[0]])
    writer.disk_numbers = [3]
    check_point(writer.incremental([plain[1]]))


def test_a_partition_that_its_base_lacks_is_refused_alone(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([without(plain[0], 1)])
    delta = writer.incremental([plain[1]])
    with opened_point(delta) as point:
        first, second = point.disks[0].partitions
        source = plain[1].path.read_bytes()
        assert first.reader().read_at(0, first.size) == source[first.offset : first.offset + first.size]
        with pytest.raises(DamagedError, match="no disk 1, partition 2"):
            second.reader()
        assert {bad.partition for check in point.checks() for bad in check.run().bad} == {second_name(point)}


def second_name(point: object) -> str:
    return f"disk1/{point.disks[0].partitions[1].name}"  # type: ignore[attr-defined]


def test_a_partition_that_vanished_later_is_still_in_the_base(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    delta = writer.incremental([without(plain[1], 1)])
    check_point(full)
    with opened_point(delta) as point:
        (partition,) = point.disks[0].partitions
        source = plain[1].path.read_bytes()
        assert (
            partition.reader().read_at(0, partition.size)
            == source[partition.offset : partition.offset + partition.size]
        )
    assert not folder_faults(tmp_path)


def test_another_layout_of_blocks_is_refused(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    start = plain[1].partitions[0].offset
    damage.set_json(delta.path, start + 512, "disks", 0, "partitions", 0, "_file_system", "lcn0_offset")
    with opened_point(delta) as point, pytest.raises(DamagedError, match="layout"):
        point.disks[0].partitions[0].reader()


@pytest.mark.parametrize("sizes", [(1_003_520, 2_500_608), (2_500_608, 1_003_520), (65536, 4096 * 99)])
@pytest.mark.parametrize("delta", [True, False])
def test_partitions_grow_and_shrink(
    plain: list[BuiltDisk], tmp_path: Path, sizes: tuple[int, int], delta: bool
) -> None:
    writer = SetWriter(tmp_path)
    for at, size in enumerate((*sizes, sizes[1])):
        first = dataclasses.replace(plain[at].partitions[0], size=size)
        disk = dataclasses.replace(plain[at], partitions=(first,))
        written = writer.incremental([disk], delta=delta or at == 2) if at else writer.full([disk])
        with opened_point(written) as point:
            source = disk.path.read_bytes()[first.offset : first.offset + size]
            check_reader(point.disks[0].partitions[0].reader(), source, seed=at, reads=100)
    assert not folder_faults(tmp_path)


def test_holes_between_the_base_s_end_and_a_delta_s_blocks(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, used=every_block)
    first = plain[0].partitions[0]
    small, large = (
        dataclasses.replace(plain[0], partitions=(dataclasses.replace(first, size=blocks * BLOCK),))
        for blocks in (2, 12)
    )
    writer.full([small])
    grown = writer.incremental([large], hole_blocks={(0, 0): range(2, 10)})
    damage.set_index_payload(grown.path, 0, without_holes(Parts.load(grown.path).index(0, 0)))
    with opened_point(grown) as point:
        reader = point.disks[0].partitions[0].reader()
        assert list(reader.extents()) == [
            (0, 2 * BLOCK, True),
            (2 * BLOCK, 8 * BLOCK, False),
            (10 * BLOCK, 2 * BLOCK, True),
        ]
        assert list(reader.extents(3 * BLOCK + 5, 100)) == [(3 * BLOCK + 5, 100, False)]
        assert list(reader.extents(9 * BLOCK, BLOCK + 1)) == [
            (9 * BLOCK, BLOCK, False),
            (10 * BLOCK, 1, True),
        ]
        assert reader.read_at(2 * BLOCK, 8 * BLOCK) == bytes(8 * BLOCK)


def without_holes(payload: bytes) -> bytes:
    """Return a delta's index that does not name its holes."""
    rows = [payload[at : at + 34] for at in range(8, len(payload), 34)]
    kept = [row for row in rows if any(row[:28])]
    assert len(kept) < len(rows)
    return struct.pack("<II", 0, len(kept)) + b"".join(kept)


# --- Numbers ---


def test_blocks_of_a_number_beyond_the_highest_are_missed(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path).full([plain[0]])
    damage.change_element(full.path, 0, 1, file_number=65535)
    with opened_point(full) as point, pytest.raises(IncompleteSetError, match="65535"):
        point.disks[0].partitions[0].reader().read_at(BLOCK, 1)
    assert [bad.block for bad in point_faults(full)] == [1]
    assert [bad.block for bad in folder_faults(tmp_path)] == [1]


def test_the_highest_numbers(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    check_point(writer.full([plain[0]], file_number=65534))
    check_point(writer.incremental([plain[1]], file_number=65535))
    assert not folder_faults(tmp_path)


def test_equal_increments_are_told_apart_by_their_file_numbers(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    writer = SetWriter(tmp_path)
    files = [writer.full([plain[0]], increment=7)]
    files += [writer.incremental([plain[number]], increment=7) for number in (1, 2)]
    files.append(writer.incremental([plain[3]], increment=3))
    for written in files:
        check_point(written)


def test_a_missing_delta_is_missed_without_a_history(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Without a history a gap in the numbers can't be told from a delta that is lost."""
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]])
    last = writer.incremental([plain[2]])
    for partition in (0, 1):
        damage.set_json(last.path, [], "disks", 0, "partitions", partition, "_header", "file_history")
    check_point(last)
    writer.remove(1)
    with opened_point(last) as point:
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.missing == (1,)


def test_a_merged_file_beside_one_that_it_absorbed_is_refused(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """A consolidation that was interrupted before it removed what it merged."""
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    for state in (1, 2, 3):
        writer.incremental([plain[state]])
    left = writer.member(2).path.read_bytes()
    merged = writer.merge(1, 2)
    last = writer.member(3)
    check_point(last)
    (tmp_path / "left over.mrimgx").write_bytes(left)
    check_point(full)
    with opened_point(last) as point:
        assert point.problem is not None
        assert merged.path.name in str(point.problem)
        assert "left over" in str(point.problem)


def test_image_ids_are_bytes(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    damage.set_json(delta.path, writer.image_id.lower(), "_header", "imageid")
    check_point(delta)
    assert len(formats.open_folder(tmp_path)[0]) == 1


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_of_two_names_is_one_member(
    plain: list[BuiltDisk], tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    link(full.path, tmp_path / "a link")
    link(delta.path, tmp_path / "the newest.mrimgx")
    check_point(delta)
    with opened_point(tmp_path / "the newest.mrimgx") as point:
        assert point.problem is None
        assert point.path.name == "the newest.mrimgx"


def test_the_disks_in_a_data_only_file_mean_nothing(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    last = writer.full([plain[0]], split_at=500_000)
    part = writer.members[0].path
    damage.set_json(part, last.document["disks"], "disks")
    check_point(last)
    assert not folder_faults(tmp_path)


def test_the_roles_of_split_files(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """The parts of one backup are no other backups, whatever its increment."""
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]], increment=5, split_at=500_000)
    differential = writer.differential([plain[3]], split_at=30_000)
    for written, role in ((full, Role.FULL), (differential, Role.DIFFERENTIAL)):
        with opened_point(written) as point:
            assert point.role is role


def test_the_last_file_of_a_split_comes_after_its_parts(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]], increment=0)
    last = writer.incremental([plain[3]], increment=0, split_at=30_000)
    with opened_point(writer.members[1].path) as point:
        assert point.path == last.path


# --- Blocks ---


def test_blocks_that_became_free(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, used=every_block)
    full = writer.full([plain[0]])
    check_point(full)
    freed = writer.incremental([plain[0]], hole_blocks={(0, 0): [3, 4]})
    with opened_point(freed) as point:
        reader = point.disks[0].partitions[0].reader()
        source = plain[0].path.read_bytes()[point.disks[0].partitions[0].offset :]
        assert reader.read_at(3 * BLOCK - 9, 2 * BLOCK + 18) == (
            source[3 * BLOCK - 9 : 3 * BLOCK] + bytes(2 * BLOCK) + source[5 * BLOCK : 5 * BLOCK + 9]
        )
        assert (3 * BLOCK, 2 * BLOCK, False) in list(reader.extents())
    check_point(writer.incremental([plain[0]]))


@pytest.mark.parametrize("block", [32, 2**31, 2**32 - 1])  # there are 32 of them
def test_a_delta_that_names_a_block_outside_is_refused(
    plain: list[BuiltDisk], tmp_path: Path, block: int
) -> None:
    """Not cut off, and not counted one by one up to there."""
    writer = SetWriter(tmp_path)
    writer.full([without(plain[0], 0)])
    delta = writer.incremental([without(plain[1], 0)])
    payload = struct.pack("<IIq16sIHI", 0, 1, 0, bytes(16), 5, 1, block)
    damage.set_index_payload(delta.path, 0, payload)
    with opened_point(delta) as point:
        partition = point.disks[0].partitions[0]
        for use in (partition.reader, partition.stored_blocks):
            with pytest.raises(DamagedError, match=str(block)):
                use()
    assert folder_faults(tmp_path)


def test_a_length_that_two_indexes_tell_differently_is_found(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    second = writer.incremental([plain[0]], delta=False)
    length = damage.stored_at(second.path, 0, 1)[1]
    damage.change_element(second.path, 0, 1, length=length - 5)
    assert [(bad.file.name, bad.block) for bad in folder_faults(tmp_path)] == [
        (writer.member(0).path.name, 1)
    ]


# --- Whole disks ---


def test_a_disk_that_grew_since_its_base(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    for written, size in ((writer.full([plain[0]]), 0), (writer.incremental([plain[1]]), 9 << 20)):
        damage.set_json(written.path, "mbr", "disks", 0, "_header", "disk_format")
        damage.set_json(written.path, size or plain[0].size, "disks", 0, "_geometry", "disk_size")
    with opened_point(writer.member(1)) as point:
        assert point.disks[0].size == 9 << 20


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_a_disk_whose_base_is_missing(plain: list[BuiltDisk], tmp_path: Path, scheme: str) -> None:
    """A delta's disk_size is too small; its GPT knows better, else its partitions tell what is there."""
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    damage.set_json(delta.path, 1 << 20, "disks", 0, "_geometry", "disk_size")
    damage.set_json(delta.path, scheme, "disks", 0, "_header", "disk_format")
    writer.remove(0)
    last = plain[1].partitions[-1]
    with opened_point(delta) as point:
        assert point.disks[0].size == (plain[1].size if scheme == "gpt" else last.offset + last.size)


def test_reserved_sectors_that_start_later(tmp_path: Path) -> None:
    built = disks.fat_disk(tmp_path, "FAT12")
    full = SetWriter(tmp_path / "set").full([built])
    start, reserved = built.partitions[0].offset, reserved_length(full)
    damage.set_json(full.path, 512, "disks", 0, "partitions", 0, "_geometry", "boot_sector_offset")
    damage.set_json(
        full.path, start + 512 + reserved, "disks", 0, "partitions", 0, "_file_system", "lcn0_offset"
    )
    with opened_point(full) as point:
        source = built.path.read_bytes()[start:]
        data = point.disks[0].partitions[0].reader().read_at(0, reserved + BLOCK)
        assert data == bytes(512) + source[: reserved + BLOCK - 512]


def reserved_length(written: WrittenFile) -> int:
    partition = written.document["disks"][0]["partitions"][0]
    return int(partition["_file_system"]["reserved_sectors_byte_length"])


def test_boot_records_lie_over_a_long_track_0(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Up to 1 MiB by the vendor's page, while an extended partition may begin at sector 63."""
    full = SetWriter(tmp_path, compression="none").full([plain[0]])
    parts = Parts.load(full.path)
    parts.document["disks"][0]["_header"]["disk_format"] = "mbr"
    parts.set_document(parts.document)
    record = bytes(range(256)) + bytes(254) + b"\x55\xaa"
    track = bytes(range(251)) * 4200
    entry = record + struct.pack("<QH6x", 32256, 5)
    parts.lists[0] = [Block(b"$TRACK0", track[: 1 << 20]), Block(b"$EPT", struct.pack("<I", 1) + entry)]
    full.path.write_bytes(parts.packed())
    with opened_point(full) as point:
        start = point.disks[0].partitions[0].offset
        reader = point.disks[0].reader()
        head = reader.read_at(0, start)
        assert head[:32256] == track[:32256]
        assert head[32256:32768] == record
        assert not any(head[32768:]) or head[32768:] == track[32768:start]


def test_a_disk_without_its_track_0_is_refused(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path).full([plain[0]])
    parts = Parts.load(full.path)
    parts.lists[0] = [Block(b"$TRACK0", b"")]
    full.path.write_bytes(parts.packed())
    with opened_point(full) as point:
        with pytest.raises(DamagedError, match="TRACK0"):
            point.disks[0].reader()
        assert point.disks[0].partitions[0].reader().read_at(0, 100)


# --- What the document says that must not matter ---


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("locked", ("disks", 0, "partitions", 0, "_file_system", "bitlocker_state")),
        ("decrypted", ("disks", 0, "partitions", 0, "_file_system", "bitlocker_state")),
        ("something new", ("disks", 0, "partitions", 0, "_file_system", "type")),
        ("something new", ("_header", "backup_format")),
        ("something new", ("_header", "backup_type")),
        (2**31, ("_header", "increment_number")),
    ],
)
def test_values_that_are_not_listed_anywhere(
    plain: list[BuiltDisk], tmp_path: Path, value: object, where: tuple[str | int, ...]
) -> None:
    full = SetWriter(tmp_path).full([plain[0]])
    damage.set_json(full.path, value, *where)
    check_point(full)


def test_names_are_unique_where_numbers_are_not(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path, disk_numbers=[2, 2]).full([plain[0], plain[1]])
    for partition in (0, 1):
        damage.set_json(full.path, 0, "disks", 1, "partitions", partition, "_header", "partition_number")
    check_point(full)
    with opened_point(full) as point:
        assert [disk.name for disk in point.disks] == ["disk2", "disk2-2"]
        assert [part.name for part in point.disks[1].partitions] == ["p0", "p0-2"]


def test_the_aes_type_switches_decryption_on(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, password="p", aes="aes-256")
    full = writer.full([plain[0]])
    damage.set_json(full.path, False, "_encryption", "enable")
    check_point(full, "p")
    open_set = SetWriter(tmp_path / "open").full([plain[0]])
    damage.set_json(open_set.path, True, "_encryption", "enable")
    check_point(open_set)


# --- Passwords ---


def test_members_of_other_passwords_stay_locked_alone(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer, other = SetWriter(tmp_path, password="one"), SetWriter(tmp_path, password="two")
    full = writer.full([plain[0]])
    other.members = writer.members
    delta = other.incremental([plain[1]])
    check_point(full, "one")
    for password in ("one", "two", "three"):  # of the delta's own file, of its base, of none
        with formats.open_container(delta.path) as container, pytest.raises(PasswordError):
            container.unlock(password)
    (container,), _ = formats.open_folder(tmp_path)
    with container:
        with pytest.raises(PasswordError):
            container.unlock("three")
        container.unlock("one")
        container.points[0].require_key()
        with pytest.raises(PasswordError):
            container.points[1].require_key()


@pytest.mark.parametrize("password", ["\udc80\udcff", "pass\ud800word", "", "\0", "x" * 100_000])
def test_any_text_can_be_tried_as_a_password(plain: list[BuiltDisk], tmp_path: Path, password: str) -> None:
    full = SetWriter(tmp_path, password="right").full([plain[0]])
    with formats.open_container(full.path) as container, pytest.raises(PasswordError):
        container.unlock(password)
