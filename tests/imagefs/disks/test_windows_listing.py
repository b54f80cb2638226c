"""``imagefs disks`` on Windows: with an administrator's rights, and without them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.bitlocker import write_bitlocker
from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume, create_file, gpt_disk
from fixtures.volumes import fat_volume
from imagefs.cli import disks as command
from imagefs.disks import DiskList, Encryption
from imagefs.disks.windows_listing import disks_of
from imagefs.errors import SourceReadError
from imagefs.machine.windows import bitlocker
from tests.imagefs.imaging.attached import logical_disk, volume_of
from tests.imagefs.machine.windows import model
from tests.imagefs.machine.windows.model import Disk, Windows, error, sfdisk
from tests.imagefs.machine.windows.wmi_model import Items, Value

GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
NAMES = [f"\\\\?\\Volume{{4c1b02c{number}-d990-11dc-99ae-806e6f6e6963}}\\" for number in range(5)]
OFF = Encryption("", "off")
NOT_KNOWN = Encryption("", "not known")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    """Make a disk of FAT, noise, and a volume that BitLocker encrypted."""
    folder = tmp_path_factory.mktemp("disk")
    locked = write_bitlocker(folder / "locked", noise(1, 0, MIB) + bytes(MIB), free=MIB)
    volumes = [
        fat_volume(folder, "FAT16", "fat", size=16 * MIB, big=MIB, many=5, label="SYSTEM"),
        volume_of(folder, "noise", MIB, 4),
        Volume(locked.path, 2 * MIB, "unknown"),
    ]
    return gpt_disk(folder / "disk.raw", volumes, GUID)


@pytest.fixture
def windows(built: BuiltDisk) -> Iterator[Windows]:
    volumes = [
        model.Volume(NAMES[0], ("C:\\", "D:\\x\\"), (place(built, 1),), "FAT", "SYSTEM"),
        model.Volume(NAMES[1], ("E:\\",), (place(built, 3),), ""),
    ]
    made = Windows({0: Disk(built.path, physical_sector_size=4096)}, volumes)
    yield made
    made.assert_untouched()


def place(built: BuiltDisk, number: int, disk: int = 0) -> tuple[int, int, int]:
    part = built.partition(number)
    return disk, part.offset, part.size


def states(found: DiskList) -> list[Encryption]:
    return [part.encryption for disk in found.disks for part in disk.partitions]


def test_with_all_rights(built: BuiltDisk, windows: Windows) -> None:
    found = disks_of(windows, {})
    (disk,) = found.disks
    assert (disk.name, disk.path, disk.model, disk.vendor) == (
        "disk0", "\\\\.\\PhysicalDrive0", "Model Disk 1000", "ATA"
    )  # fmt: skip
    assert (disk.serial, disk.revision, disk.bus) == ("MODEL-SERIAL-7", "1.0a", "sata")
    assert (disk.size, disk.sector_size, disk.physical_sector_size) == (built.size, 512, 4096)
    assert (disk.scheme, disk.id, disk.removable, disk.problem) == ("gpt", GUID, False, "")
    told = [
        (number, part["start"] * 512, part["size"] * 512, part["type"], part["name"], part["uuid"])
        for number, part in enumerate(sfdisk(built.path)["partitions"], 1)
    ]
    assert [(p.number, p.offset, p.size, p.type, p.name, p.id) for p in disk.partitions] == told
    first, second, third = disk.partitions
    assert (first.path, first.mount_points) == (NAMES[0][:-1], ("C:\\", "D:\\x\\"))
    assert (first.file_system, first.label) == ("FAT16", "SYSTEM")
    assert (second.path, second.mount_points, second.file_system) == ("", (), "")
    assert (third.path, third.file_system) == (NAMES[1][:-1], "BitLocker")
    assert states(found) == [OFF, OFF, Encryption("BitLocker", "locked")]
    assert found.volumes == ()


def test_without_rights(built: BuiltDisk, windows: Windows) -> None:
    windows.is_admin = False
    found = disks_of(windows, {})
    (disk,) = found.disks
    assert (disk.size, disk.scheme, disk.id, disk.serial) == (built.size, "gpt", GUID, "MODEL-SERIAL-7")
    assert [(p.number, p.offset, p.size) for p in disk.partitions] == [
        (part.number, part.offset, part.size) for part in built.partitions
    ]
    assert [part.file_system for part in disk.partitions] == ["FAT", "", ""]
    assert [part.label for part in disk.partitions] == ["SYSTEM", "", ""]
    assert states(found) == [NOT_KNOWN] * 3  # it is said, not guessed
    windows.all_volumes[1].problems["GetVolumeInformationW"] = 0x80310000
    assert states(disks_of(windows, {}))[2] == Encryption("BitLocker", "locked")


def test_an_unlocked_volume(tmp_path: Path, windows: Windows) -> None:
    volume = windows.all_volumes[1]
    volume.plain = create_file(tmp_path / "plain", 2 * MIB)
    volume.file_system, volume.label = "NTFS", "Data"
    part = disks_of(windows, {}).disks[0].partitions[2]
    assert (part.file_system, part.label) == ("NTFS", "Data")
    assert part.encryption == Encryption("BitLocker", "unlocked")
    volume.problems["read"] = 1117
    assert disks_of(windows, {}).disks[0].partitions[2].encryption == Encryption("BitLocker", "not known")
    windows.all_volumes.remove(volume)
    part = disks_of(windows, {}).disks[0].partitions[2]
    assert (part.encryption, part.file_system) == (Encryption("BitLocker", "not known"), "BitLocker")


def test_what_windows_tells_of_bitlocker_counts(windows: Windows) -> None:
    told = {NAMES[0].lower(): "off", NAMES[1].lower(): "suspended"}
    for windows.is_admin in (True, False):
        found = states(disks_of(windows, told))
        assert (found[0], found[2]) == (OFF, Encryption("BitLocker", "suspended"))


def test_mbr_numbers_are_the_same_with_and_without_rights(tmp_path: Path) -> None:
    built = logical_disk(tmp_path)
    windows = Windows({4: Disk(built.path)})
    expected = [(part.number, part.offset, part.size) for part in built.partitions]
    for windows.is_admin in (True, False):
        (disk,) = disks_of(windows, {}).disks
        assert (disk.scheme, disk.id) == ("mbr", built.signature)
        assert [(part.number, part.offset, part.size) for part in disk.partitions] == expected


def test_a_disk_without_a_table(tmp_path: Path) -> None:
    fat = fat_volume(tmp_path, "FAT16", "fat", size=16 * MIB, big=MIB, many=5, label="STICK")
    volume = model.Volume(NAMES[0], ("F:\\",), ((2, 0, fat.size),), "FAT", "STICK")
    windows = Windows({2: Disk(fat.path, removable=True, bus=7, has_table=False), 3: Disk(None)}, [volume])
    for windows.is_admin in (True, False):
        stick, empty = disks_of(windows, {}).disks
        (part,) = stick.partitions
        assert (part.number, part.offset, part.size, part.mount_points) == (1, 0, fat.size, ("F:\\",))
        assert (part.label, stick.scheme, stick.removable, stick.bus) == ("STICK", "", True, "usb")
        assert (empty.size, empty.problem, empty.partitions) == (0, "no medium", ())


def test_volumes_on_several_disks(built: BuiltDisk, windows: Windows) -> None:
    extents = ((0, MIB, MIB), (5, 0, 3 * MIB))
    windows.all_volumes.append(model.Volume(NAMES[2], ("G:\\",), extents, "NTFS", "Both"))
    windows.all_volumes.append(model.Volume(NAMES[3], ("R:\\",), (), "UDF"))
    windows.cd_roots = (NAMES[3],)
    (volume,) = disks_of(windows, {}).volumes
    assert (volume.path, volume.disks, volume.size) == (NAMES[2][:-1], (0, 5), 4 * MIB)
    assert (volume.file_system, volume.label, volume.mount_points) == ("NTFS", "Both", ("G:\\",))
    assert volume.encryption == NOT_KNOWN


def test_a_damaged_table(tmp_path: Path, built: BuiltDisk) -> None:
    path = tmp_path / "damaged"
    data = bytearray(built.path.read_bytes())
    data[512 + 16] ^= 1  # the check sums of both headers
    data[-512 + 16] ^= 1
    path.write_bytes(data)
    (disk,) = disks_of(Windows({0: Disk(path)}), {}).disks
    assert "its partition table can't be read" in disk.problem


def test_no_disk_can_be_asked(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str | None) -> list[str]:
        raise error(5, "QueryDosDeviceW")

    monkeypatch.setattr(windows, "query_dos_device", refused)
    with pytest.raises(SourceReadError, match="error 5") as caught:
        disks_of(windows, {})
    assert caught.value.hint == "run it as administrator"


def test_what_people_see(
    windows: Windows, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extents = ((0, MIB, MIB), (5, 0, 3 * MIB))
    windows.all_volumes.append(model.Volume(NAMES[2], ("G:\\",), extents, "NTFS", "Both"))
    windows.disks[7] = Disk(None, removable=True)
    monkeypatch.setattr(command, "list_disks", lambda: disks_of(windows, {}))
    command.disks()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "disk0  \\\\.\\PhysicalDrive0, ATA Model Disk 1000, serial MODEL-SERIAL-7, 21.0 MiB, GPT, 512-byte"
        " sectors (4096 physical), sata",
        "  name      file system  label      offset      size  mounted on",
        "  disk0/p1  FAT16        SYSTEM    1048576  16.0 MiB  C:, D:\\x",
        "  disk0/p2               unknown  17825792   1.0 MiB",
        "  disk0/p3  BitLocker    unknown  18874368   2.0 MiB  E:          BitLocker: locked",
        "disk7  \\\\.\\PhysicalDrive7, ATA Model Disk 1000, serial MODEL-SERIAL-7, sata, removable",
        "  no medium",
        "volumes that are no partition of one disk",
        "  G:  NTFS  Both  4.0 MiB  disk0, disk5  encryption not known",
    ]


# --- What WMI tells ---


class Encryptable:
    """Win32_EncryptableVolume: its methods give numbers, and S_OK or an error, as SWbemObjects do."""

    def __init__(self, name: str, lock: int, conversion: int, protection: int, code: int = 0) -> None:
        self.Properties_ = Items({"DeviceID": Value(name)})
        self._answers = {
            "GetLockStatus": {"LockStatus": lock},
            "GetConversionStatus": {"ConversionStatus": conversion, "EncryptionPercentage": 7},
            "GetProtectionStatus": {"ProtectionStatus": protection},
        }
        self._code = code

    def ExecMethod_(self, name: str) -> Any:
        values = {"ReturnValue": self._code, **({} if self._code else self._answers[name])}
        found = type("Answer", (), {})()
        found.Properties_ = Items({key: Value(value) for key, value in values.items()})
        return found


class Services:
    def __init__(self, *volumes: Encryptable) -> None:
        self.volumes = volumes

    def ExecQuery(self, query: str) -> Iterator[Encryptable]:
        assert query == "SELECT * FROM Win32_EncryptableVolume"
        return iter(self.volumes)


@pytest.mark.parametrize(
    ("lock", "conversion", "protection", "state"),
    [  # the tables in the pages of the three methods
        (0, 0, 0, "off"),
        (0, 1, 1, "unlocked"),
        (0, 1, 0, "suspended"),
        (0, 1, 2, None),
        (0, 2, 0, "encrypting"),
        (0, 4, 0, "encrypting"),
        (0, 3, 0, "decrypting"),
        (0, 5, 0, "decrypting"),
        (1, 1, 2, "locked"),
    ],
)
def test_states(lock: int, conversion: int, protection: int, state: str | None) -> None:
    found = bitlocker.states(Services(Encryptable(NAMES[1], lock, conversion, protection)))
    assert found == ({} if state is None else {NAMES[1].lower(): state})


def test_a_volume_that_is_not_told() -> None:
    silent = Encryptable(NAMES[0], 0, 0, 0, code=0x80310008)
    assert bitlocker.states(Services(silent, Encryptable(NAMES[1], 0, 1, 1))) == {
        NAMES[1].lower(): "unlocked"
    }
