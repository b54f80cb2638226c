"""What is known of Windows' disks and volumes, from the answers that its drivers give."""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest

from fixtures.partition_tables import GPT_TYPES, MIB, create_file, write_gpt_by_hand
from imagefs.machine.windows import disks, layouts, volumes
from imagefs.machine.windows.api import ApiError
from imagefs.machine.windows.layouts import DiskExtent
from tests.imagefs.imaging.attached import logical_disk, two_partitions
from tests.imagefs.machine.windows.model import ALL_CODES, Disk, Volume, Windows, sfdisk

# sizeof and offsetof of winioctl.h, as a program prints that was compiled with mingw-w64 for x86_64
SIZES = {
    layouts._QUERY: 12,
    layouts._ALIGNMENT: 28,
    layouts._LENGTH: 8,
    layouts._PARTITION: 144,
    layouts._PARTITION_GPT: 112,
    layouts._EXTENT: 24,
    layouts._DESCRIPTOR: 36,  # offsetof RawDeviceProperties
    layouts._GEOMETRY: 32,  # offsetof Data
    layouts._LAYOUT: 48,  # offsetof PartitionEntry
    layouts._EXTENTS: 8,  # offsetof Extents
}
GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
C = "\\\\?\\Volume{4c1b02c1-d990-11dc-99ae-806e6f6e6963}\\"
D = "\\\\?\\Volume{4c1b02c4-d990-11dc-99ae-806e6f6e6963}\\"


def test_structures_are_as_long_as_the_compiler_has_them() -> None:
    assert {one: one.size for one in SIZES} == SIZES


def test_control_codes_are_those_of_the_header() -> None:
    known = {name: code for code, name in ALL_CODES.items()}
    for name, value in vars(layouts).items():
        if name.startswith(("IOCTL_", "FSCTL_")) and name in known:
            assert value == known[name], name


# --- Disks ---


def test_disks_are_found_by_name_whatever_their_numbers(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", MIB)
    windows = Windows({11: Disk(path), 2: Disk(path), 0: Disk(path)})
    windows.names += ["PhysicalDrive", "PHYSICALDRIVE7x", "CdRom0"]
    assert [disk.number for disk in disks.all_disks(windows)] == [0, 2, 11]
    assert disks.all_disks(windows)[1].path == r"\\.\PhysicalDrive2"
    windows.assert_untouched()


def test_what_a_disk_says_of_itself(tmp_path: Path) -> None:
    windows = Windows({0: Disk(create_file(tmp_path / "disk", 8 * MIB), physical_sector_size=4096)})
    (disk,) = disks.all_disks(windows)
    assert (disk.size, disk.sector_size, disk.physical_sector_size) == (8 * MIB, 512, 4096)
    assert (disk.bus, disk.removable, disk.problem) == ("sata", False, "")
    identity = disk.identity
    assert (identity.manufacturer, identity.product) == ("ATA", "Model Disk 1000")
    assert (identity.revision, identity.serial) == ("1.0a", "MODEL-SERIAL-7")
    assert identity.description == "ATA Model Disk 1000 1.0a"
    assert disk.layout == layouts.DriveLayout("", "", ())


@pytest.mark.parametrize(
    ("told", "serial"),
    [
        (b"S3Z9NB0K123456X", "S3Z9NB0K123456X"),
        (b"0025_3853_81B2_1234.", "0025_3853_81B2_1234."),
        (b"6" * 40, "f" * 20),
        (b"00" * 20, "0" * 40),  # these would be no text: they are the number
        (b"", ""),
        (b"bad\x01\x02", ""),
    ],
)
def test_serial_numbers(tmp_path: Path, told: bytes, serial: str) -> None:
    windows = Windows({0: Disk(create_file(tmp_path / "disk", MIB), serial=told)})
    assert disks.look_at(windows, 0).identity.serial == serial


def test_serial_numbers_of_old_drivers_are_put_in_order(tmp_path: Path) -> None:
    serial = "WD-WCAV5C123456"  # IDENTIFY DEVICE of ATA has 20 characters in words, their bytes swapped
    words = serial.rjust(20).encode()
    swapped = b"".join(words[at : at + 2][::-1] for at in range(0, 20, 2))
    windows = Windows({0: Disk(create_file(tmp_path / "disk", MIB), serial=swapped.hex().encode())})
    assert disks.look_at(windows, 0).identity.serial == serial


def test_a_disk_that_says_nothing_of_itself(tmp_path: Path) -> None:
    silent = Disk(
        create_file(tmp_path / "disk", MIB), vendor=b"", revision=b"", serial=b"", has_alignment=False
    )
    mute = dataclasses.replace(silent, problems={"IOCTL_STORAGE_QUERY_PROPERTY": 1})
    windows = Windows({0: silent, 1: mute})
    first, second = disks.all_disks(windows)
    assert (first.identity.description, first.physical_sector_size) == ("Model Disk 1000", 512)
    assert (second.identity.description, second.size) == ("", MIB)


def test_empty_drives_are_told(tmp_path: Path) -> None:
    windows = Windows({0: Disk(None, removable=True, bus=7)})
    (disk,) = disks.all_disks(windows)
    assert (disk.size, disk.problem, disk.removable, disk.bus) == (0, "no medium", True, "usb")


def test_a_disk_that_can_not_be_asked_hides_no_other(tmp_path: Path) -> None:
    path = create_file(tmp_path / "disk", MIB)
    windows = Windows(
        {
            0: Disk(path, problems={"open": 5}),
            1: Disk(path, problems={"open": 2}),  # pulled out since its name was listed
            2: Disk(path, problems={"IOCTL_DISK_GET_DRIVE_LAYOUT_EX": 1117}),
            3: Disk(path),
        }
    )
    found = disks.all_disks(windows)
    assert [disk.number for disk in found] == [0, 2, 3]
    assert "error 5" in found[0].problem
    assert ("error 1117" in found[1].problem, found[1].size) == (True, MIB)
    assert found[2].problem == ""
    windows.assert_untouched()


def test_disks_are_told_without_an_administrator(tmp_path: Path) -> None:
    windows = Windows({0: Disk(two_partitions(tmp_path).path)})
    windows.is_admin = False
    (disk,) = disks.all_disks(windows)
    assert (disk.problem, disk.size) == ("", 22 * MIB)
    assert disk.layout is not None
    assert len(disk.layout.entries) == 2


# --- Partition tables ---


def told(windows: Windows, number: int = 0) -> layouts.DriveLayout:
    found = disks.look_at(windows, number).layout
    assert found is not None
    return found


def test_gpt_layout(tmp_path: Path) -> None:
    built = two_partitions(tmp_path)
    layout = told(Windows({0: Disk(built.path)}))
    assert (layout.scheme, layout.disk_id) == ("gpt", built.signature)
    parts = sfdisk(built.path)["partitions"]
    assert [(one.number, one.offset, one.size, one.type, one.id, one.name) for one in layout.entries] == [
        (number, part["start"] * 512, part["size"] * 512, part["type"], part["uuid"], part["name"])
        for number, part in enumerate(parts, 1)
    ]


def test_mbr_layout_is_numbered_as_the_table_is(tmp_path: Path) -> None:
    built = logical_disk(tmp_path)
    layout = told(Windows({0: Disk(built.path)}))
    assert (layout.scheme, layout.disk_id) == ("mbr", built.signature)
    assert [(one.number, one.offset, one.size) for one in layout.entries] == [
        (part.number, part.offset, part.size) for part in built.partitions
    ]
    assert {one.type for one in layout.entries} == {f"{part.type_code:02X}" for part in built.partitions}


def test_a_long_table_is_asked_for_again_with_more_room(tmp_path: Path) -> None:
    path = create_file(tmp_path / "long", 128 * MIB)
    spans = [((1 + number) * MIB, MIB) for number in range(100)]
    write_gpt_by_hand(path, GUID, spans, [GPT_TYPES["linux"]] * 100, 512)
    layout = told(Windows({0: Disk(path)}))
    assert [(one.offset, one.size) for one in layout.entries] == spans


@pytest.mark.parametrize("length", [0, 7, 47, 48, 48 + 143])
def test_answers_that_are_cut_short_are_errors(length: int) -> None:
    whole = struct.pack("<II40x", 1, 1) + bytes(144)
    with pytest.raises(ApiError, match=f"{length} bytes only"):
        layouts.parse_layout(whole[:length])


# --- Volumes ---


def spanned(parts: Sequence[tuple[int, int, int]]) -> Windows:
    return Windows({0: Disk(None)}, [Volume(C, ("C:\\",), tuple(parts), "NTFS", "Windows")])


def test_where_a_volume_is(tmp_path: Path) -> None:
    windows = Windows(
        {0: Disk(None)},
        [Volume(C, ("D:\\mounted\\", "C:\\"), ((0, MIB, 5 * MIB),), "NTFS", "Windows"),
         Volume(D, (), ((1, 0, 10),), "")],
    )  # fmt: skip
    first, second = volumes.all_volumes(windows)
    assert (first.mount_points, first.title, first.device) == (("C:\\", "D:\\mounted\\"), "C:", C[:-1])
    assert first.extents == (DiskExtent(0, MIB, 5 * MIB),)
    assert (first.file_system, first.label, first.size) == ("NTFS", "Windows", 5 * MIB)
    assert first.is_partition(0, MIB, 5 * MIB)
    assert not first.is_partition(1, MIB, 5 * MIB)
    assert not first.is_partition(0, MIB, 4 * MIB)
    assert (second.title, second.file_system, second.problem) == (D[:-1], "", "")
    windows.assert_untouched()


def test_a_volume_on_many_disks() -> None:
    parts = [(number, MIB, (number + 1) * MIB) for number in range(9)]
    (volume,) = volumes.all_volumes(spanned(parts))
    assert volume.extents == tuple(DiskExtent(*part) for part in parts)
    assert volume.touches(3, [(2 * MIB, 3 * MIB)])
    assert not volume.touches(3, [(0, MIB), (5 * MIB, 6 * MIB)])
    assert not volume.touches(9, [(0, 100 * MIB)])


def test_volumes_that_can_not_be_asked() -> None:
    windows = spanned([(0, MIB, MIB)])
    (volume,) = windows.all_volumes
    volume.problems["GetVolumeInformationW"] = 0x80310000  # FVE_E_LOCKED_VOLUME
    assert volumes.look_at(windows, C).is_locked
    volume.problems["GetVolumeInformationW"] = 1005
    assert not volumes.look_at(windows, C).is_locked
    volume.problems["open"] = 5
    assert "error 5" in volumes.look_at(windows, C).problem
    windows.assert_untouched()


def test_a_cd_is_not_asked() -> None:
    windows = spanned([(0, MIB, MIB)])
    windows.cd_roots = (C,)
    found = volumes.look_at(windows, C)
    assert (found.is_cd, found.extents, windows.opened) == (True, (), [])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (C, C),
        (C[:-1], C),
        (C.replace("\\\\?\\", "\\\\.\\").upper(), f"\\\\?\\VOLUME{{{UUID(C[11:47])!s}}}\\".upper()),
        ("\\\\?\\Volume{4c1b02c1}\\", None),
        ("Volume{4c1b02c1-d990-11dc-99ae-806e6f6e6963}", None),
        (C + "file", None),
    ],
)
def test_names_of_volumes(text: str, name: str | None) -> None:
    assert volumes.volume_name(text) == name


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("c:", "C:\\"),
        ("C:\\", "C:\\"),
        ("\\\\.\\d:", "D:\\"),
        ("\\\\?\\D:\\", "D:\\"),
        ("C:x", None),
        ("CC:", None),
    ],
)
def test_roots_of_letters(text: str, root: str | None) -> None:
    assert volumes.root_of(text) == root


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\\\\.\\PhysicalDrive0", 0),
        ("\\\\.\\physicaldrive12\\", 12),
        ("\\\\?\\PHYSICALDRIVE3", 3),
        ("PhysicalDrive0", None),
        ("\\\\.\\PhysicalDrive", None),
        ("\\\\.\\PhysicalDrive0\\x", None),
    ],
)
def test_names_of_disks(text: str, number: int | None) -> None:
    assert disks.disk_number(text) == number
