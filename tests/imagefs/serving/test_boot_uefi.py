"""Which firmware a disk needs; and a hand-made EFI program that is started from its image."""

import struct
from pathlib import Path

import pytest

import imagefs
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import MIB, BuiltDisk, Volume, create_file, gpt_disk, mbr_disk
from fixtures.tools import find_tool, run
from imagefs.serving.firmware import boot_disk, loader_by_name
from tests.conftest import run_imagefs

GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
SAYS = b"the EFI program runs"


def efi_program() -> bytes:
    """Return a PE32+ application: it tells COM1 and switches the machine off."""
    code = bytes.fromhex(
        "488d351a000000"  # lea rsi, text
        "ac 84c0 7407 66baf803 ee ebf4"  # up to a zero: to the port of COM1
        "66ba0406 66b80020 66ef f4 ebfd"  # the chipset's sleep register
    )
    text_at = 7 + 0x1A
    code = code.ljust(text_at, b"\x90") + SAYS + b"\r\n\0"
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 0x200, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QII6HIIIIHH", 0, 0x1000, 0x200, *[0] * 6, 0, 0x2000, 0x200, 0, 10, 0)
    optional += struct.pack("<4QII", *[0] * 4, 0, 16) + bytes(128)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x22) + optional
    head += b".text\0\0\0" + struct.pack("<6I2HI", 0x1000, 0x1000, 0x200, 0x200, 0, 0, 0, 0, 0x60000020)
    assert len(optional) == 240
    return head.ljust(0x200, b"\0") + code.ljust(0x200, b"\0")


def system_disk(folder: Path, loader: str) -> BuiltDisk:
    """Make a GPT disk of an EFI system partition, with the program at a path."""
    volume, program = create_file(folder / "esp.volume", 16 * MIB), folder / "program"
    program.write_bytes(efi_program())
    run("mkfs.vfat", "-F", "16", volume)
    parents = list(Path(loader).parents)[-2::-1]
    for parent in parents:
        run("mmd", "-i", volume, f"::/{parent}")
    run("mcopy", "-i", volume, program, f"::/{loader}")
    return gpt_disk(folder / "disk.raw", [Volume(volume, 16 * MIB, "unknown", gpt_type="esp")], GUID)


def image_of(folder: Path, *built: BuiltDisk) -> Path:
    return SetWriter(folder / "set", image_id="B007B007B007B007").full(list(built)).path


def volume(folder: Path, name: str, gpt_type: str = "basic") -> Volume:
    return Volume(create_file(folder / f"{name}.volume", MIB), MIB, "unknown", gpt_type=gpt_type)


def test_which_firmware(tmp_path: Path) -> None:
    """As the disk's table says; the first disk that tells is the one to start from."""
    data = gpt_disk(tmp_path / "data.raw", [volume(tmp_path, "data")], GUID)
    esp = gpt_disk(tmp_path / "esp.raw", [volume(tmp_path, "a", "esp"), volume(tmp_path, "b")], GUID)
    both = gpt_disk(tmp_path / "both.raw", [volume(tmp_path, "c"), volume(tmp_path, "d", "esp")], GUID)
    run("sgdisk", "--typecode=1:EF02", both.path)
    old = mbr_disk(tmp_path / "old.raw", [volume(tmp_path, "e")])
    active = mbr_disk(tmp_path / "active.raw", [volume(tmp_path, "f")])
    run("sfdisk", "--activate", active.path, "1")
    for number, (disks, wanted) in enumerate(
        [
            ([esp], (0, "uefi")),
            ([both], (0, "bios")),
            ([active], (0, "bios")),
            ([old], (0, "bios")),
            ([data, esp], (1, "uefi")),
            ([data, active], (1, "bios")),
            ([data], (0, "bios")),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with imagefs.open(image_of(folder, *disks)) as source:
            assert source.point is not None
            assert boot_disk(source.point.disks) == wanted


@pytest.mark.parametrize(
    ("loader", "told"),
    [("EFI/BOOT/BOOTX64.EFI", ""), ("EFI/debian/shimx64.efi", "EFI/debian/shimx64.efi")],
)
def test_an_efi_program_runs(tmp_path: Path, loader: str, told: str) -> None:
    """Where firmware looks by itself, and where only the old machine's firmware knew of it."""
    find_tool("qemu-system-x86_64")
    image = image_of(tmp_path, system_disk(tmp_path, loader))
    with imagefs.open(image) as source:
        assert source.point is not None
        assert loader_by_name(source.point.disks[0]).lower() == told.lower()
    done = run_imagefs("boot", image, "--serial", "--accel", "tcg", "--memory", "256M", "--cpus", "1")
    assert done.code == 0, done.errors
    assert SAYS in done.output
    assert ("its firmware knew of" in done.errors) == bool(told)
