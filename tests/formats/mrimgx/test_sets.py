"""Sets of every shape, made by the reference writer; each point is held against its source disk."""

import shutil
from pathlib import Path

import pytest

import formats
from fixtures import disks
from fixtures.mrimgx_writer import (
    REAL_QUIRKS,
    Quirks,
    SetWriter,
    every_block,
    extended_boot_records,
    file_backup_writer,
)
from fixtures.partition_tables import BuiltDisk
from formats.container import Role
from formats.errors import DuplicateMemberError, IncompleteSetError, PasswordError, UnsupportedError
from tests.formats.mrimgx.conftest import check_point, opened_point

AES = [None, "aes-128", "aes-192", "aes-256"]


@pytest.mark.parametrize("compression", ["none", "medium", "high"])
@pytest.mark.parametrize("aes", AES)
def test_every_kind_of_file(
    plain: list[BuiltDisk], tmp_path: Path, compression: str, aes: str | None
) -> None:
    password = "Pässword 1" if aes else None
    writer = SetWriter(tmp_path, compression=compression, password=password, aes=aes)
    files = [
        (writer.full([plain[0]]), Role.FULL),
        (writer.incremental([plain[1]]), Role.INCREMENTAL),
        (writer.incremental([plain[2]], delta=False), Role.INCREMENTAL),
        (writer.differential([plain[3]]), Role.DIFFERENTIAL),
        (writer.incremental([plain[0]]), Role.INCREMENTAL),
        (writer.incremental([plain[2]]), Role.INCREMENTAL),
    ]
    for seed, (written, role) in enumerate(files):
        check_point(written, password, seed=seed, reads=500)
        with opened_point(written, password) as point:
            assert (point.role, point.increment) == (role, written.increment)
            assert (point.encrypted, point.compression) == (aes is not None, compression)


def test_a_long_chain_of_deltas(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, compression="none")
    files = [writer.full([plain[0]])]
    files += [writer.incremental([plain[number % 4]]) for number in range(1, 12)]
    for written in files:
        check_point(written)


def test_several_disks(plain: list[BuiltDisk], tmp_path: Path) -> None:
    other = disks.plain_disk(tmp_path, "other", seed=77)
    writer = SetWriter(tmp_path / "set", disk_numbers=[4, 2], password="x", aes="aes-256")
    check_point(writer.full([plain[0], other]), "x")
    changed = writer.incremental([plain[1], other])
    check_point(changed, "x")
    with opened_point(changed, "x") as point:
        assert [disk.name for disk in point.disks] == ["disk4", "disk2"]


@pytest.mark.parametrize("role", ["full", "delta", "differential"])
def test_split_files(plain: list[BuiltDisk], tmp_path: Path, role: str) -> None:
    writer = SetWriter(tmp_path)
    if role == "full":
        last = writer.full([plain[0]], split_at=500_000)
    else:
        writer.full([plain[0]])
        write = writer.incremental if role == "delta" else writer.differential
        last = write([plain[3]], split_at=30_000)
    parts = [member for member in writer.members if member.role == "split"]
    assert parts
    check_point(last)
    check_point(writer.incremental([plain[1]]))
    # A part names the point of its last file.
    with opened_point(parts[0].path) as point:
        assert point.path == last.path
    writer.remove(parts[0].file_number)
    with opened_point(last) as point:
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.missing == (parts[0].file_number,)


def test_a_split_without_its_last_file_is_incomplete(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    last = writer.full([plain[0]], split_at=500_000)
    writer.remove(last.file_number)
    with pytest.raises(IncompleteSetError) as caught:
        formats.open_container(writer.members[0].path)
    assert caught.value.missing == (last.file_number,)


@pytest.mark.parametrize("number", ["first", "last"])
@pytest.mark.parametrize("keep_numbers", [True, False])
@pytest.mark.parametrize("password", [None, "secret"])
def test_consolidated_sets(
    plain: list[BuiltDisk], tmp_path: Path, number: str, keep_numbers: bool, password: str | None
) -> None:
    writer = SetWriter(tmp_path, password=password, aes="aes-128")
    writer.full([plain[0]])
    for state in (1, 2, 3, 1, 2, 0):
        writer.incremental([plain[state]])
    writer.merge(2, 4, number=number, keep_numbers=keep_numbers)
    for written in writer.members:
        check_point(written, password)
    # Absorbed numbers pass on when the result is merged again.
    merged = next(member for member in writer.members if member.merged_files)
    writer.merge(merged.file_number, writer.members[3].file_number, number=number, keep_numbers=keep_numbers)
    writer.incremental([plain[3]])
    for written in writer.members:
        check_point(written, password)


@pytest.mark.parametrize("keep_numbers", [True, False])
def test_a_full_that_absorbed_its_increments(
    plain: list[BuiltDisk], tmp_path: Path, keep_numbers: bool
) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    for state in (1, 2, 3):
        writer.incremental([plain[state]])
    full = writer.merge(0, 2, keep_numbers=keep_numbers)
    for written in writer.members:
        check_point(written)
    with opened_point(full) as point:
        assert point.role is Role.FULL


def test_gaps_in_the_numbers_are_no_damage(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """As seen by others on real sets: 0, 13, 18 and 22, the last having absorbed 19 to 21."""
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]], file_number=13, increment=13)
    writer.incremental([plain[2]], file_number=18, increment=18)
    for number, state in ((19, 3), (20, 0), (21, 1), (22, 3)):
        writer.incremental([plain[state]], file_number=number, increment=number)
    writer.merge(19, 22, number="last")
    assert [member.file_number for member in writer.members] == [0, 13, 18, 22]
    for written in writer.members:
        check_point(written)


def test_a_missing_delta_is_missed_though_no_block_names_it(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]])
    later = writer.incremental([plain[2]])
    writer.remove(1)
    with opened_point(later) as point:
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.missing == (1,)
    check_point(writer.member(0))


def test_a_point_that_does_not_need_the_missing_file_is_complete(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.incremental([plain[1]])
    differential = writer.differential([plain[2]])
    later = writer.incremental([plain[3]])
    writer.remove(1)
    check_point(differential)
    check_point(later)
    writer.remove(0)
    with opened_point(later) as point:
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.missing == (0,)


def test_two_files_of_one_number_are_refused_and_named(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    first = writer.incremental([plain[1]])
    second = writer.incremental([plain[2]])
    shutil.copy(first.path, tmp_path / "a copy.mrimgx")
    check_point(full)
    for written in (first, second):
        with opened_point(written) as point:
            assert isinstance(point.problem, DuplicateMemberError)
            assert {path.name for path in point.problem.paths} == {first.path.name, "a copy.mrimgx"}
            assert point.problem.exit_code == 3


def test_names_mean_nothing(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, extension="mrimg")
    full = writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    full.path.rename(tmp_path / "zz.bin")
    delta.path = delta.path.rename(tmp_path / "aa")
    check_point(delta)


def test_sets_of_one_folder_are_told_apart(plain: list[BuiltDisk], tmp_path: Path) -> None:
    first = SetWriter(tmp_path, image_id="00000000000000AA")
    second = SetWriter(tmp_path, image_id="00000000000000BB", password="b")
    files = [
        (first.full([plain[0]]), None),
        (second.full([plain[1]]), "b"),
        (first.incremental([plain[2]]), None),
        (second.incremental([plain[3]]), "b"),
    ]
    (tmp_path / "notes.txt").write_text("not an image")
    for written, password in files:
        check_point(written, password)
    sets, unreadable = formats.open_folder(tmp_path)
    assert [(found.image_id, len(found.points)) for found in sets] == [
        ("00000000000000AA", 2),
        ("00000000000000BB", 2),
    ]
    assert not unreadable
    for found in sets:
        found.close()


def test_passwords(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, password="right", aes="aes-192")
    full = writer.full([plain[0]])
    with formats.open_container(full.path) as container:
        assert container.is_encrypted
        assert container.point is not None
        with pytest.raises(PasswordError) as caught:
            container.unlock("wrong")
        assert caught.value.exit_code == 5
        reader = container.point.disks[0].partitions[0].reader()
        with pytest.raises(PasswordError):
            reader.read_at(0, 512)
        container.unlock("right")
        assert len(reader.read_at(0, 512)) == 512


def test_vectors_of_high_block_numbers(tmp_path: Path) -> None:
    built = disks.plain_disk(tmp_path, "many", sizes=(20 << 20,))
    numbers = (0, 1, 255, 256, 300)
    writer = SetWriter(tmp_path / "set", password="p", used=lambda block, _: block in numbers)
    with opened_point(writer.full([built]), "p") as point:
        reader = point.disks[0].partitions[0].reader()
        source = built.path.read_bytes()[built.partitions[0].offset :]
        for number in numbers:
            at = number * 65536
            assert reader.read_at(at, 65536) == source[at : at + 65536]


@pytest.mark.parametrize("kind", ["FAT12", "FAT16", "FAT32"])
@pytest.mark.parametrize("aes", [None, "aes-256"])
def test_fat_reserved_sectors(tmp_path: Path, kind: str, aes: str | None) -> None:
    built = disks.fat_disk(tmp_path, kind)
    changed = disks.change_disk(built, tmp_path, "changed")
    writer = SetWriter(tmp_path / "set", password="p" if aes else None, aes=aes)
    for written in (
        writer.full([built]),
        writer.incremental([changed]),
        writer.incremental([built], delta=False),
    ):
        check_point(written, "p" if aes else None)


def test_fat_blocks_that_reach_beyond_the_partition(tmp_path: Path) -> None:
    built = disks.fat_disk(tmp_path, "FAT16")
    writer = SetWriter(tmp_path / "set", quirks=Quirks(fat_covers_partition=True))
    check_point(writer.full([built]))


@pytest.fixture(scope="module")
def logical(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltDisk]:
    """Make a disk with logical partitions, and a later state of it."""
    folder = tmp_path_factory.mktemp("logical")
    built = disks.mbr_logical_disk(folder)
    return [built, disks.change_disk(built, folder, "changed", number=6)]


@pytest.mark.parametrize("entry_size", [528, 522])
def test_logical_partitions(logical: list[BuiltDisk], tmp_path: Path, entry_size: int) -> None:
    writer = SetWriter(tmp_path, quirks=Quirks(ept_entry_size=entry_size, chs_disk_size=True))
    check_point(writer.full([logical[0]]))
    check_point(writer.incremental([logical[1]]))
    check_point(writer.incremental([logical[0]], delta=False))


@pytest.mark.parametrize("entry_size", [528, 522])
def test_encrypted_boot_records(logical: list[BuiltDisk], tmp_path: Path, entry_size: int) -> None:
    """Without compression nothing but the entries tells where the padding begins."""
    quirks = Quirks(ept_entry_size=entry_size, encrypt_metadata=True)
    writer = SetWriter(tmp_path, compression="none", password="p", quirks=quirks)
    with opened_point(writer.full([logical[0]], used=no_block), "p") as point:
        source = logical[0].path.read_bytes()
        reader = point.disks[0].reader()
        offsets = extended_boot_records(logical[0])
        assert len(offsets) == 3
        for offset in (0, *offsets):
            assert reader.read_at(offset, 512) == source[offset : offset + 512]


def no_block(_number: int, _data: bytes) -> bool:
    return False


def test_a_disk_of_4096_byte_sectors(tmp_path: Path) -> None:
    built = disks.four_k_disk(tmp_path)
    check_point(SetWriter(tmp_path / "set").full([built]))


def test_encrypted_metadata(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, password="p", aes="aes-256", quirks=Quirks(encrypt_metadata=True))
    check_point(writer.full([plain[0]]), "p")
    check_point(writer.incremental([plain[1]]), "p")


def test_what_real_builds_leave_out(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, quirks=REAL_QUIRKS)
    check_point(writer.full([plain[0]]))
    check_point(writer.incremental([plain[1]]))


def test_an_absent_delta_index_means_true(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    writer.quirks = Quirks(omit_header_keys=("delta_index",))
    check_point(writer.incremental([plain[1]]))


@pytest.mark.parametrize(
    "quirks",
    [
        Quirks(unknown_blocks=True),
        Quirks(no_bitmap=True, no_auxdata=True),
        Quirks(index_alignment=1),
    ],
)
def test_metadata_of_other_shapes(plain: list[BuiltDisk], tmp_path: Path, quirks: Quirks) -> None:
    writer = SetWriter(tmp_path, quirks=quirks)
    check_point(writer.full([plain[0]]))
    check_point(writer.incremental([plain[1]]))


def test_stored_zeros_and_incompressible_blocks(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, used=every_block)
    written = writer.full([plain[0]])
    assert max(length for where in written.blocks.values() for _, length in where.values()) > 65536
    check_point(written)


def test_file_and_folder_backups(tmp_path: Path) -> None:
    """``.mrbakx`` as in the vendor's example: a start of its own, an index that ends early."""
    built = disks.file_backup_disk(tmp_path)
    written = file_backup_writer(tmp_path / "set", built).full([built])
    assert written.path.suffix == ".mrbakx"
    with opened_point(written) as point, built.path.open("rb") as source:
        (disk,) = point.disks
        assert (disk.sector_size, disk.size) == (4096, built.size)
        reader = disk.reader()
        for extent in reader.extents():
            source.seek(extent.offset)
            if extent.is_data:
                assert reader.read_at(extent.offset, extent.length) == source.read(extent.length)
            else:
                head = source.read(min(extent.length, 1 << 20))
                assert head.count(0) == len(head)
        assert not [bad for check in point.checks() for bad in check.run().bad]


def test_sidecars_are_no_members(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    sidecar = writer.sidecar(delta)
    check_point(full)
    check_point(delta)
    with pytest.raises(UnsupportedError):
        formats.open_container(sidecar)
    # By its name, whatever is in it already, and by its content, whatever its name.
    further_on = tmp_path / "further on.metadata"
    shutil.copy(delta.path, further_on)
    check_point(delta)
    further_on.unlink()
    sidecar.rename(tmp_path / "renamed.mrimgx")
    check_point(delta)


def test_the_definition_s_type_is_not_the_role(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]], backup_type="inc")
    writer.incremental([plain[1]], backup_type="full")
    differential = writer.differential([plain[2]], backup_type="full")
    for written, role in (
        (full, Role.FULL),
        (writer.member(1), Role.INCREMENTAL),
        (differential, Role.DIFFERENTIAL),
    ):
        with opened_point(written) as point:
            assert point.role is role


def test_a_folder_is_verified_once_over(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Each stored block of a folder is checked once, whichever points use it."""
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    for state in (1, 2, 3):
        writer.incremental([plain[state]], delta=state != 2)
    writer.differential([plain[1]])
    writer.merge(1, 2)
    stored = sum(len(where) for written in writer.members for where in written.blocks.values())
    sets, _ = formats.open_folder(tmp_path)
    results = [check.run() for check in sets[0].checks()]
    assert not [bad for result in results for bad in result.bad]
    assert sum(result.blocks for result in results) == stored
    sets[0].close()
