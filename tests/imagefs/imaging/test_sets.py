"""Which set an image goes into, and what is refused; on a small disk without file systems."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import imagefs
from fixtures.content import noise
from fixtures.disks import plain_disk
from fixtures.partition_tables import MIB, BuiltDisk, Volume, create_file, gpt_disk, mbr_disk
from fixtures.volumes import ext_volume, fat_volume, make_ntfs
from formats.errors import IncompleteSetError, PasswordError
from imagefs.errors import ImagingError, RefusedError, UsageError
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions, BackupReport, Listener
from tests.fixtures import plain_reader
from tests.imagefs.imaging.moments import cut_out, later
from tests.imagefs.imaging.others import check_sound, used_only

GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
QUICK = BackupOptions(key_iterations=1000)
INC, DIFF, FULL = (dataclasses.replace(QUICK, type=kind) for kind in ("inc", "diff", "full"))


@pytest.fixture
def disk(tmp_path: Path) -> BuiltDisk:
    """Return a disk of two partitions of noise."""
    return plain_disk(tmp_path, sizes=(MIB + 4096, 600_064))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def made(disk: BuiltDisk, folder: Path, options: BackupOptions = QUICK, password: str | None = None,
         ) -> tuple[BackupReport, list[str]]:  # fmt: skip
    """Image a disk; return the report and what was said."""
    said: list[str] = []
    report = backup(disk.path, folder, options, password=password, listener=Listener(say=said.append))
    return report, said


@pytest.mark.parametrize("kind", ["inc", "diff"])
def test_no_set_to_build_upon(disk: BuiltDisk, folder: Path, kind: str) -> None:
    with pytest.raises(RefusedError, match="no set of this source is here") as caught:
        backup(disk.path, folder, dataclasses.replace(QUICK, type=kind))
    assert caught.value.exit_code == 6
    assert names(folder) == []


def test_full_always_begins_a_set(disk: BuiltDisk, folder: Path) -> None:
    first, second = (made(disk, folder, FULL)[0] for _ in range(2))
    assert first.image_id != second.image_id
    assert (first.file_number, second.file_number) == (0, 0)
    third, _ = made(disk, folder)
    assert (third.image_id, third.role, third.file_number) == (second.image_id, "inc", 1)


def test_the_counts_of_a_report(disk: BuiltDisk, folder: Path) -> None:
    full, _ = made(disk, folder)
    blocks = -(-(MIB + 4096) // 65536) + -(-600_064 // 65536)
    size = MIB + 4096 + 600_064
    assert (full.role, full.blocks_written, full.blocks_unchanged, full.bytes_read) == (
        "full", blocks, 0, size,
    )  # fmt: skip
    nothing, _ = made(disk, folder)
    assert (nothing.role, nothing.blocks_written, nothing.blocks_unchanged) == ("inc", 0, blocks)
    assert nothing.bytes_stored == nothing.path.stat().st_size < 16_000
    with disk.path.open("r+b") as stream:
        stream.seek(disk.partition(2).offset + 3 * 65536 + 5)
        stream.write(b"changed")
    one, _ = made(disk, folder)
    assert (one.role, one.blocks_written, one.blocks_unchanged) == ("inc", 1, blocks - 1)
    assert plain_reader.restore(folder, one.file_number) == _without_backup_table(disk)


def test_a_differential_needs_the_full_alone(disk: BuiltDisk, folder: Path) -> None:
    """An incremental that is missing hinders the next one, not a differential, which skips it."""
    made(disk, folder)
    lost, _ = made(disk, folder, INC)
    made(disk, folder, INC)
    lost.path.unlink()
    with pytest.raises(IncompleteSetError):
        backup(disk.path, folder, INC)
    differential, _ = made(disk, folder, DIFF)
    assert differential.blocks_written == 0
    with imagefs.open(differential.path) as source:
        assert source.point is not None
        reader = source.point.disks[0].reader()
        assert reader.read_at(0, reader.size) == disk.path.read_bytes()


def test_disks_without_a_signature(tmp_path: Path, folder: Path) -> None:
    """A signature of zeros tells nothing: only the same size and hardware are taken for the same disk."""
    volume = create_file(tmp_path / "volume", MIB)
    built = mbr_disk(tmp_path / "none.raw", [Volume(volume, MIB, "unknown")])
    with built.path.open("r+b") as file:
        file.seek(440)
        file.write(bytes(4))
    first, again = (made(built, folder)[0] for _ in range(2))
    os.truncate(built.path, built.size + MIB)
    larger, _ = made(built, folder)
    assert again.image_id == first.image_id
    assert (larger.role, larger.image_id != first.image_id) == ("full", True)


def _without_backup_table(disk: BuiltDisk) -> bytes:
    """Return a disk as the plain reader restores it."""
    data = bytearray(disk.path.read_bytes())
    data[-33 * 512 :] = bytes(33 * 512)
    return bytes(data)


def test_a_differential_holds_what_changed_since_the_full(
    disk: BuiltDisk, folder: Path, tmp_path: Path
) -> None:
    made(disk, folder)
    once = later(disk, tmp_path / "once.raw", 1, (1,))
    twice = later(once, tmp_path / "twice.raw", 2, (2,))
    first, _ = made(once, folder, INC)
    second, _ = made(twice, folder, DIFF)
    changed_once, changed_twice = first.blocks_written, second.blocks_written
    assert 0 < changed_once < changed_twice
    third, _ = made(twice, folder, INC)
    assert third.blocks_written == 0
    first.path.unlink()  # nothing after it needs it
    assert plain_reader.restore(folder, third.file_number) == _without_backup_table(twice)
    with imagefs.open(third.path) as container:
        assert container.point is not None
        assert container.point.problem is None


def test_chosen_partitions(disk: BuiltDisk, folder: Path) -> None:
    """Only what is named is stored; the next image of all is another set's."""
    only = dataclasses.replace(QUICK, partitions=(2,))
    report, _ = made(disk, folder, only)
    restored, source = plain_reader.restore(folder, 0), disk.path.read_bytes()
    one, two = disk.partitions
    assert restored[two.offset : two.offset + two.size] == source[two.offset : two.offset + two.size]
    assert not any(restored[one.offset : one.offset + one.size])
    assert made(disk, folder, only)[0].role == "inc"
    every, said = made(disk, folder)
    assert every.role == "full"
    assert said == [
        f"set {report.image_id} is of this disk, but it has partitions 2, the source 1, 2: a new full is made"
    ]
    with pytest.raises(UsageError, match="there is no partition 3; there are 1, 2"):
        made(disk, folder, dataclasses.replace(QUICK, partitions=(3,)))


def _other_shape(folder: Path, first: int, second: int) -> BuiltDisk:
    """Make a disk of the same GUID with partitions of other sizes."""
    volumes = []
    for number, size in enumerate((first, second)):
        path = create_file(folder / f"other-{number}.volume", size)
        path.write_bytes(noise(number, 0, size))
        volumes.append(Volume(path, size, "unknown"))
    return gpt_disk(folder / "other.raw", volumes, GUID)


def _format_ntfs(disk: BuiltDisk) -> None:
    part = disk.partition(1)
    volume = make_ntfs(disk.path.with_name("ntfs.volume"), part.size, "new")
    with disk.path.open("r+b") as stream:
        stream.seek(part.offset)
        stream.write(volume.read_bytes())


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (2 * MIB, MIB, "partition 1 was moved or resized"),
        (MIB, MIB + 512, "partition 2 was moved or resized"),
    ],
)
def test_another_shape(folder: Path, tmp_path: Path, first: int, second: int, says: str) -> None:
    """A partition that was moved or resized since begins a new set, whatever was asked for."""
    before, _ = made(_other_shape(tmp_path, MIB, MIB), folder)
    after = _other_shape(tmp_path, first, second)
    reports = [made(after, folder, options) for options in (INC, DIFF)]
    line = f"set {before.image_id} is of this disk, but {says}: a new full is made"
    assert (reports[0][0].role, reports[0][1]) == ("full", [line])
    assert reports[0][0].image_id != before.image_id
    assert (reports[1][0].role, reports[1][0].image_id) == ("diff", reports[0][0].image_id)


def test_formatted_anew_with_clusters_elsewhere(folder: Path, tmp_path: Path) -> None:
    """A FAT's reserved sectors put its blocks elsewhere; NTFS in its place has none: the disk begins anew."""
    fat = fat_volume(tmp_path, "FAT16", size=16 * MIB, big=MIB, many=3)
    disk = gpt_disk(tmp_path / "disk.raw", [fat], GUID)
    before, _ = made(disk, folder)
    _format_ntfs(disk)
    after, said = made(disk, folder)
    assert after.role == "full"
    assert said == [
        f"set {before.image_id} is of this disk, but partition 1 was formatted anew: a new full is made"
    ]


def test_another_file_system_in_the_same_place(folder: Path, tmp_path: Path) -> None:
    """Its blocks lie where the old ones did: an incremental frees what is no longer used."""
    ext = ext_volume(tmp_path, size=16 * MIB, big=6 * MIB, many=3)
    disk = gpt_disk(tmp_path / "disk.raw", [ext], GUID)
    made(disk, folder)
    _format_ntfs(disk)
    report, _ = made(disk, folder)
    assert report.role == "inc"
    assert report.blocks_freed > 90
    part = disk.partition(1)
    (tmp_path / "restored").write_bytes(plain_reader.restore(folder, 1))
    volume = cut_out(tmp_path / "restored", part, tmp_path / "volume")
    check_sound(volume, "NTFS")
    assert volume.read_bytes() == used_only(cut_out(disk.path, part, tmp_path / "source"), "NTFS")


def test_a_password_for_a_set_without_one(disk: BuiltDisk, folder: Path) -> None:
    before, _ = made(disk, folder)
    with pytest.raises(RefusedError, match=f"set {before.image_id} is not encrypted"):
        made(disk, folder, INC, "secret")
    after, said = made(disk, folder, QUICK, "secret")
    assert (after.role, after.image_id != before.image_id) == ("full", True)
    assert said == [f"set {before.image_id} is not encrypted: a new full is made"]
    assert plain_reader.open_file(after.path).document["_encryption"]["enable"] is True


@pytest.mark.parametrize("kind", ["auto", "inc", "diff"])
@pytest.mark.parametrize("password", [None, "wrong", "secret "])
def test_an_encrypted_set_without_its_password(
    disk: BuiltDisk, folder: Path, kind: str, password: str | None
) -> None:
    made(disk, folder, QUICK, "secret")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(PasswordError):
        made(disk, folder, dataclasses.replace(QUICK, type=kind), password)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert made(disk, folder, QUICK, "secret")[0].role == "inc"


def test_what_a_set_has_stays(disk: BuiltDisk, folder: Path, tmp_path: Path) -> None:
    """Compression and cipher never change within a set, and that is said."""
    made(disk, folder, dataclasses.replace(QUICK, compression="none", aes="aes-128"), "secret")
    changed = later(disk, tmp_path / "changed.raw", 1, (1,))
    wish = dataclasses.replace(QUICK, compression="high", aes="aes-256")
    report, said = made(changed, folder, wish, "secret")
    assert report.role == "inc"
    assert said == [
        "the set has compression none, which stays: high needs a new full",
        "the set has encryption aes-128, which stays: aes-256 needs a new full",
    ]
    found = plain_reader.open_file(report.path).document
    assert (found["_compression"]["compression_level"], found["_encryption"]["aes_type"]) == (
        "none", "aes-128",
    )  # fmt: skip
    assert plain_reader.restore(folder, 1, password="secret") == _without_backup_table(changed)


@pytest.mark.parametrize("name", ["", "plain", "größe", "with spaces (and) dots.1"])
def test_a_sets_name_stays(disk: BuiltDisk, folder: Path, name: str) -> None:
    reports = [made(disk, folder, dataclasses.replace(QUICK, name=name))[0], made(disk, folder)[0]]
    middle = f"-{name}" if name else ""
    for number, report in enumerate(reports):
        assert report.path.name == f"{reports[0].image_id}{middle}-0{number}-0{number}.mrimgx"


def test_other_disks_have_their_own_sets(disk: BuiltDisk, folder: Path, tmp_path: Path) -> None:
    other = _other_shape(tmp_path, MIB, MIB)
    reports = [made(each, folder)[0] for each in (disk, other, disk, other)]
    assert [report.role for report in reports] == ["full", "full", "inc", "inc"]
    assert reports[0].image_id == reports[2].image_id != reports[1].image_id == reports[3].image_id


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: BackupOptions(type="none"), UsageError),
        (lambda: BackupOptions(compression="lzma"), UsageError),
        (lambda: BackupOptions(aes="aes-512"), UsageError),
        (lambda: BackupOptions(split=MIB - 1), UsageError),
        (lambda: BackupOptions(name="a/b"), UsageError),
        (lambda: BackupOptions(name="a\nb"), UsageError),
    ],
)
def test_options_that_are_none(make: Callable[[], BackupOptions], error: type[ImagingError]) -> None:
    with pytest.raises(error):
        make()


def test_a_cipher_without_a_password(disk: BuiltDisk, folder: Path) -> None:
    with pytest.raises(UsageError, match="needs a password"):
        made(disk, folder, dataclasses.replace(QUICK, aes="aes-256"))
    assert names(folder) == []
