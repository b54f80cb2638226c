"""Disks of Windows as sources: images of them hold their disks; nothing stays open, locked or left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copyfile

import pytest

from fixtures.bitlocker import write_bitlocker
from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume, create_file, gpt_disk
from fixtures.tools import run
from fixtures.volumes import fat_volume, ntfs_volume
from imagefs.errors import ImagingError, RefusedError, SnapshotError, SourceReadError, UsageError
from imagefs.imaging import backup, sources, this_machine, windows_disks
from imagefs.imaging.names import find_source
from imagefs.imaging.options import BackupOptions, BackupReport, Listener
from imagefs.imaging.sources import open_source
from imagefs.machine.windows import disks as windows_numbers
from imagefs.restore import clone, job, restore
from imagefs.restore.options import RestoreOptions
from tests.fixtures import plain_reader
from tests.imagefs.imaging.attached import logical_disk, volume_of
from tests.imagefs.imaging.moments import cut_out
from tests.imagefs.imaging.others import check_files, check_sound
from tests.imagefs.machine.windows import model
from tests.imagefs.machine.windows.model import Disk, Windows
from tests.imagefs.machine.windows.wmi_model import Machine

GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
DRIVE = "\\\\.\\PhysicalDrive0"
EXACT = BackupOptions(exact=True, compression="none")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: nothing here is about a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def shadows(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "shadows")


class Running:
    """A machine that runs Windows, to this process: its calls and its shadow copies are models."""

    def __init__(self, windows: Windows, shadows: Machine, patch: pytest.MonkeyPatch) -> None:
        self.windows = windows
        self.shadows = shadows
        windows.shadows = shadows.device_file
        machine = windows_disks.Machine(windows, lambda: shadows)
        patch.setattr(sources, "is_device", windows_disks.is_device)
        patch.setattr(sources, "open_device", partial(windows_disks.open_device, machine=machine))
        patch.setattr(this_machine, "volume_path", partial(windows_disks.volume_path, windows))
        patch.setattr(this_machine, "disk_paths", self._paths)

    def _paths(self) -> dict[int, Path]:
        numbers = windows_numbers.disk_numbers(self.windows)
        return {number: Path(windows_numbers.disk_path(number)) for number in numbers}

    def add(self, built: BuiltDisk, number: int, root: str, kind: str, disk: int = 0) -> model.Volume:
        """Mount a partition, by default as it lies on the disk now."""
        part = built.partition(number)
        with built.path.open("rb") as stream:
            stream.seek(part.offset)
            name = self.shadows.add_volume(stream.read(part.size), kind)
        volume = model.Volume(name, (root,) if root else (), ((disk, part.offset, part.size),), kind)
        self.windows.all_volumes.append(volume)
        return volume

    def assert_clean(self) -> None:
        self.windows.assert_untouched()
        assert self.shadows.shadows == []


Run = Callable[[dict[int, Disk]], Running]


@pytest.fixture
def run_windows(shadows: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    started: list[Running] = []

    def start(disks: dict[int, Disk]) -> Running:
        started.append(Running(Windows(disks), shadows, monkeypatch))
        return started[-1]

    yield start
    for running in started:
        running.assert_clean()


def imaged(
    source: str, folder: Path, options: BackupOptions = EXACT
) -> tuple[bytes, BackupReport, list[str]]:
    """Image a disk and return what another reader restores of it, the report, and the lines shown."""
    said: list[str] = []
    report = backup(source, folder, options, listener=Listener(say=said.append))
    return without_end(plain_reader.restore(folder, report.file_number)), report, said


def without_end(data: bytes) -> bytes:
    """Return a disk without its last MiB: images don't hold the GPT there, restoring makes it anew."""
    return data[:-MIB]


def content(built: BuiltDisk) -> bytes:
    return without_end(built.path.read_bytes())


def noise_disk(folder: Path, *types: str, sector_size: int = 512) -> BuiltDisk:
    """Make a GPT disk with a partition of noise for each type."""
    volumes = [
        Volume(volume_of(folder, str(at), MIB, at).path, MIB, "unknown", gpt_type=kind)
        for at, kind in enumerate(types)
    ]
    return gpt_disk(folder / "noise.raw", volumes, GUID, sector_size)


def overwrite(built: BuiltDisk, number: int) -> None:
    part = built.partition(number)
    with built.path.open("r+b") as stream:
        stream.seek(part.offset)
        stream.write(noise(99, 0, part.size))


# --- Whole disks ---


@pytest.mark.parametrize(("sector_size", "direct"), [(512, False), (512, True), (4096, True)])
def test_image_of_a_gpt_disk(tmp_path: Path, run_windows: Run, sector_size: int, direct: bool) -> None:
    built = noise_disk(tmp_path, "basic", "msr", "linux", sector_size=sector_size)
    data = content(built)
    running = run_windows({0: Disk(built.path, sector_size, 4096)})
    options = BackupOptions(exact=True, direct=direct)
    restored, report, said = imaged(DRIVE, tmp_path / "sets", options)
    assert restored == data
    assert (report.warnings, said) == ([], [])
    restore(report.path, tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == built.path.read_bytes()
    assert running.windows.reads


def test_image_of_an_mbr_disk(tmp_path: Path, run_windows: Run) -> None:
    built = logical_disk(tmp_path)
    run_windows({0: Disk(None), 3: Disk(built.path)})
    report = backup("disk3", tmp_path / "sets", EXACT)
    restore(report.path, tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == built.path.read_bytes()


def test_clone_of_a_disk(tmp_path: Path, run_windows: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "refuse_unsafe", lambda *_, **__: None)  # Linux's, which knows no such device
    built = noise_disk(tmp_path, "basic", "msr")
    running = run_windows({1: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS", disk=1)
    before = built.path.read_bytes()
    overwrite(built, 1)
    clone("disk1", tmp_path / "copy", RestoreOptions(new_ids=False))
    assert (tmp_path / "copy").read_bytes() == before


def test_an_image_records_what_the_disk_says_of_itself(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    run_windows({5: Disk(built.path, removable=True, physical_sector_size=4096)})
    with open_source(Path("\\\\.\\PhysicalDrive5")) as source:
        (disk,) = source.disks
        assert (source.kind, disk.number, disk.size, disk.removable) == ("disk", 5, built.size, True)
        assert (disk.sector_size, disk.physical_sector_size) == (512, 4096)
        assert disk.identity.serial == "MODEL-SERIAL-7"


def test_file_systems_come_back_whole(tmp_path: Path, run_windows: Run) -> None:
    """As Windows has it: an ESP that is in use, an MSR, NTFS with a shadow copy, FAT that is locked."""
    volumes = [
        fat_volume(tmp_path, "FAT16", "esp", size=16 * MIB, big=MIB, many=5, label="SYSTEM"),
        volume_of(tmp_path, "msr", MIB, 4),
        ntfs_volume(tmp_path, size=16 * MIB, big=MIB, many=20, fragments=0),
        fat_volume(tmp_path, "FAT16", "data", size=16 * MIB, big=MIB, many=5, label="DATA"),
    ]
    kinds = ("esp", "msr", "basic", "basic")
    built = gpt_disk(
        tmp_path / "windows.raw",
        [
            Volume(v.path, v.size, v.kind, v.label, kind, v.contents)
            for v, kind in zip(volumes, kinds, strict=True)
        ],
        GUID,
    )
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "", "FAT32").in_use = True
    running.add(built, 3, "C:\\", "NTFS")
    running.add(built, 4, "D:\\", "FAT")
    restored, _, said = imaged(DRIVE, tmp_path / "sets", BackupOptions())
    assert any("C:: read from shadow copies" in line for line in said)
    path = tmp_path / "restored"
    path.write_bytes(restored)
    for number in (1, 3, 4):
        part = built.partition(number)
        volume = cut_out(path, part, tmp_path / f"volume{number}")
        check_sound(volume, part.kind)
        check_files(volume, part)


# --- Standing still ---


def test_a_mounted_volume_is_read_from_its_shadow_copy(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic", "basic", "basic")
    data = content(built)
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS")
    running.add(built, 3, "", "NTFS")  # one without a letter is mounted as well
    overwrite(built, 1)  # what was written since
    overwrite(built, 3)
    restored, _, _ = imaged(DRIVE, tmp_path / "sets")
    assert restored == data
    assert running.shadows.calls.count("Create") == 2


def test_shadow_copies_of_an_unfinished_backup_are_read_again(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    data = noise(0, 0, MIB)
    state = tmp_path / "sets" / "unfinished" / "state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS")
    with open_source(Path(DRIVE)) as source:
        assert source.snapshots is not None
        source.snapshots.needed_by(state)
        kept = source.snapshots.id
    overwrite(built, 1)
    assert len(running.shadows.shadows) == 1
    with open_source(Path(DRIVE), snapshots=kept) as source:
        assert source.disks[0].partitions[0].reader.read_at(0, MIB) == data
        source.check()
        state.unlink()
    assert running.shadows.calls.count("Create") == 1


def test_a_shadow_copy_that_is_lost_meanwhile(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS")
    with pytest.raises(SnapshotError, match="gone"), open_source(Path(DRIVE), live=True) as source:
        running.shadows.lose(running.shadows.shadows[0]["ID"])
        source.check()


def test_shadow_copies_are_removed_when_imaging_fails(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic", "linux")
    second = built.partition(2)
    running = run_windows({0: Disk(built.path, bad={second.offset // 512 + 100})})
    running.add(built, 1, "C:\\", "NTFS")
    with pytest.raises(SourceReadError, match="error 23"), open_source(Path(DRIVE)) as source:
        assert running.shadows.shadows
        for part in source.disks[0].partitions:
            part.reader.read_at(0, part.size)


def test_no_shadow_copy_no_image(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS")
    running.shadows.returned = [6]  # too little room
    with pytest.raises(SnapshotError, match="room"):
        imaged(DRIVE, tmp_path / "sets")
    assert not (tmp_path / "sets").exists()
    running.shadows.returned = [6]
    restored, _, said = imaged(DRIVE, tmp_path / "sets", BackupOptions(exact=True, live=True))
    assert restored == content(built)
    assert any("may be inconsistent" in line for line in said)


@pytest.mark.parametrize("kind", ["FAT32", "exFAT", "NTFS"])
def test_other_volumes_are_locked_while_they_are_read(tmp_path: Path, run_windows: Run, kind: str) -> None:
    built = noise_disk(tmp_path, "basic")
    running = run_windows({0: Disk(built.path)})
    volume = running.add(built, 1, "D:\\", kind)
    with open_source(Path(DRIVE), snapshot=False) as source:
        assert volume.locked_by is not None
        part = source.disks[0].partitions[0]
        assert part.reader.read_at(0, part.size) == noise(0, 0, part.size)
        assert source.warnings == ()
    assert volume.locked_by is None


def test_a_volume_that_can_not_be_locked_is_refused(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic", "basic")
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "D:\\", "FAT32").in_use = True
    running.add(built, 2, "C:\\", "NTFS")
    with pytest.raises(RefusedError, match="partition 1 \\(D:\\) is in use") as caught:
        imaged(DRIVE, tmp_path / "sets")
    assert "--live" in caught.value.hint
    assert not running.shadows.calls  # it is refused before anything is made
    restored, _, said = imaged("disk0/p2", tmp_path / "sets")  # it is in nobody's way
    assert restored[2 * MIB :] == content(built)[2 * MIB :]
    assert not any("D:" in line for line in said)
    _, _, said = imaged(DRIVE, tmp_path / "live", BackupOptions(live=True))
    assert any("partition 1 (D:): is in use; the image may be inconsistent" in line for line in said)


@pytest.mark.parametrize("kind", ["esp", "recovery"])
def test_what_nobody_works_on_is_read_as_it_is(tmp_path: Path, run_windows: Run, kind: str) -> None:
    built = noise_disk(tmp_path, "esp")
    if kind == "recovery":
        run("sfdisk", "--part-type", built.path, "1", "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC")
    running = run_windows({0: Disk(built.path)})
    volume = running.add(built, 1, "", "NTFS" if kind == "recovery" else "FAT32")
    for in_use in (False, True):
        volume.in_use = in_use
        restored, _, said = imaged(DRIVE, tmp_path / f"sets-{in_use}")
        assert (restored, said) == (content(built), [])
    assert not running.shadows.calls


# --- BitLocker ---


Encrypted = tuple[BuiltDisk, bytes]


@pytest.fixture(scope="module")
def encrypted_once(tmp_path_factory: pytest.TempPathFactory) -> Encrypted:
    folder = tmp_path_factory.mktemp("encrypted")
    plain = noise(1, 0, MIB) + bytes(MIB)
    volume = write_bitlocker(folder / "encrypted", plain, free=MIB)
    volumes = [Volume(volume.path, 2 * MIB, "unknown"), volume_of(folder, "other", MIB, 7)]
    return gpt_disk(folder / "disk.raw", volumes, GUID), plain


@pytest.fixture
def encrypted(tmp_path: Path, encrypted_once: Encrypted) -> Encrypted:
    """Return a disk of a partition that BitLocker encrypted, and one of noise; and the plain bytes."""
    built, plain = encrypted_once
    path = tmp_path / "disk.raw"
    copyfile(built.path, path)
    return replace(built, path=path), plain


@pytest.mark.parametrize("kind", ["NTFS", "FAT32"])
def test_an_unlocked_volume_is_imaged_decrypted(
    tmp_path: Path, encrypted: Encrypted, run_windows: Run, kind: str
) -> None:
    built, plain = encrypted
    data = bytearray(content(built))
    running = run_windows({0: Disk(built.path)})
    volume = running.add(built, 1, "C:\\", kind)
    volume.plain = running.shadows.file_of(volume.name)
    volume.plain.write_bytes(plain)
    restored, _, said = imaged(DRIVE, tmp_path / "sets")
    data[MIB : 3 * MIB] = plain
    assert restored == data
    assert not any("locked" in line for line in said)


@pytest.mark.parametrize("how", ["told", "reads as on the disk", "reads fail"])
def test_a_locked_volume_is_imaged_as_it_is(
    tmp_path: Path, encrypted: Encrypted, run_windows: Run, how: str
) -> None:
    built, _ = encrypted
    running = run_windows({0: Disk(built.path)})
    volume = running.add(built, 1, "C:\\", "")
    volume.problems = {
        "told": {"GetVolumeInformationW": 0x80310000},
        "reads as on the disk": {},
        "reads fail": {"read": 0x80310000},
    }[how]
    restored, _, said = imaged(DRIVE, tmp_path / "sets")
    assert restored == content(built)
    assert any("partition 1 (C:): is locked by BitLocker" in line for line in said)


def test_half_of_an_unlocked_volume_is_no_image(
    tmp_path: Path, encrypted: Encrypted, run_windows: Run
) -> None:
    built, plain = encrypted
    running = run_windows({0: Disk(built.path)})
    volume = running.add(built, 1, "C:\\", "NTFS")
    volume.plain = running.shadows.file_of(volume.name)
    volume.plain.write_bytes(plain[:MIB])  # and so is the shadow copy's device
    with pytest.raises(RefusedError, match="only 1048576 of its 2097152 bytes can be read decrypted"):
        imaged(DRIVE, tmp_path / "sets")


# --- Volumes as sources ---


@pytest.mark.parametrize("name", ["C:", "c:\\", "\\\\.\\C:", "GUID", "GUID\\", "disk0/p2", "DISK0\\p2"])
def test_one_volume(tmp_path: Path, run_windows: Run, name: str) -> None:
    built = noise_disk(tmp_path, "basic", "basic", "basic")
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "D:\\", "FAT32").in_use = True
    volume = running.add(built, 2, "C:\\", "NTFS")
    text = name.replace("GUID\\", volume.name).replace("GUID", volume.name[:-1])
    named = find_source(text)
    with open_source(named.path, partitions=named.partitions) as source:
        (disk,) = source.disks
        assert [(part.number, part.offset) for part in disk.partitions] == [(2, 2 * MIB)]
        (part,) = disk.partitions
        assert part.reader.read_at(0, part.size) == noise(1, 0, part.size)
    assert running.shadows.calls.count("Create") == 1


def test_a_volume_on_two_disks_is_imaged_by_itself(tmp_path: Path, run_windows: Run) -> None:
    paths = [create_file(tmp_path / str(number), 8 * MIB) for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(noise(number, 0, 8 * MIB)[: 8 * MIB])
    plain = noise(0, 0, 8 * MIB)[MIB : 3 * MIB] + noise(1, 0, 8 * MIB)[2 * MIB : 5 * MIB]
    running = run_windows({0: Disk(paths[0]), 1: Disk(paths[1])})
    name = running.shadows.add_volume(plain, "exFAT")
    extents = ((0, MIB, 2 * MIB), (1, 2 * MIB, 3 * MIB))
    running.windows.all_volumes.append(model.Volume(name, ("E:\\",), extents, "exFAT"))
    restored, _, said = imaged("E:", tmp_path / "sets")
    assert restored == without_end(plain)
    assert any("E:: is no partition of one disk" in line for line in said)


def test_a_disk_with_half_a_volume_is_refused(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic", "basic")
    part = built.partition(1)
    running = run_windows({0: Disk(built.path), 1: Disk(None)})
    name = running.shadows.add_volume(b"", "NTFS")
    extents = ((0, part.offset, part.size), (1, 0, MIB))
    running.windows.all_volumes.append(model.Volume(name, ("E:\\",), extents, "NTFS"))
    with pytest.raises(RefusedError, match="holds bytes of the volume E:") as caught:
        open_source(Path(DRIVE))
    assert "by their letters" in caught.value.hint
    with open_source(Path(DRIVE), partitions=[2]) as source:
        assert source.warnings == ()
    with open_source(Path(DRIVE), live=True) as source:
        assert "may be inconsistent" in source.warnings[0]


def test_members_of_pools_are_refused(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    run("sfdisk", "--part-type", built.path, "1", "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D")
    run_windows({0: Disk(built.path)})
    with pytest.raises(RefusedError, match="partition 1 belongs to a storage pool"):
        open_source(Path(DRIVE))


# --- What goes wrong ---


def failing(running: Running, source: str, error: type[ImagingError], text: str) -> ImagingError:
    with pytest.raises(error, match=text) as caught, ExitStack() as owned:
        owned.enter_context(open_source(Path(source)))
    running.assert_clean()
    return caught.value


def test_disks_that_are_not_there(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    running = run_windows({0: Disk(built.path), 2: Disk(None)})
    failing(running, "\\\\.\\PhysicalDrive7", SourceReadError, "error 2")
    failing(running, "\\\\.\\PhysicalDrive2", RefusedError, "no medium")
    with pytest.raises(UsageError, match="there is no disk1; there are: disk0, disk2"):
        find_source("disk1")
    with pytest.raises(UsageError, match="no volume of this machine's disks"):
        find_source("Q:")


def test_without_rights(tmp_path: Path, run_windows: Run) -> None:
    running = run_windows({0: Disk(noise_disk(tmp_path, "basic").path)})
    running.windows.is_admin = False
    found = failing(running, DRIVE, SourceReadError, "error 5")
    assert found.hint == "run it as administrator"


def test_a_disk_that_goes_away_while_it_is_read(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic", "linux")
    disk = Disk(built.path)
    running = run_windows({0: disk})
    running.add(built, 1, "C:\\", "NTFS")
    with pytest.raises(SourceReadError, match="error 1167"), open_source(Path(DRIVE)) as source:
        disk.gone_after = 1
        source.disks[0].partitions[1].reader.read_at(0, 100)
        source.disks[0].partitions[1].reader.read_at(MIB // 2, MIB // 2)


def test_bad_sectors_are_lost_by_themselves(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    sector = built.partition(1).offset // 512 + 1001
    run_windows({0: Disk(built.path, bad={sector})})
    options = BackupOptions(exact=True, skip_bad=True)
    restored, report, _ = imaged(DRIVE, tmp_path / "sets", options)
    data = bytearray(content(built))
    data[sector * 512 : sector * 512 + 512] = bytes(512)
    assert restored == data
    assert [(lost["partition"], lost["offset"], lost["length"]) for lost in report.unreadable] == [
        (0, 1001 * 512, 512)
    ]


def test_where_a_volume_lies_that_can_not_be_asked(tmp_path: Path, run_windows: Run) -> None:
    built = noise_disk(tmp_path, "basic")
    running = run_windows({0: Disk(built.path)})
    running.add(built, 1, "C:\\", "NTFS").problems["IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS"] = 1117
    with open_source(Path(DRIVE)) as source:
        assert "where the volume C: lies can't be told" in source.warnings[0]
