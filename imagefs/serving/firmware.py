"""What a machine starts with: the firmware that a disk was made for, and where it is on this system."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from formats.container import Disk
from formats.partition_table import PartitionTable, read_table
from imagefs.errors import UsageError
from imagefs.serving.children import ProgramError

FIRMWARES = ("auto", "bios", "uefi")
_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # GPT types
_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
# OVMF: its code, and variables that are still empty. Debian and Ubuntu; Fedora; Arch; openSUSE; qemu's own.
_PLACES = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
    ("/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"),
    ("/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"),
)


def boot_disk(disks: Sequence[Disk]) -> tuple[int, str]:
    """Return which of the disks a machine starts from, and the firmware that it needs: "bios" or "uefi".

    It is the first that shows how it is started; the first at all where none does, by its BIOS. Raises
    FormatError where a disk can't be read.
    """
    for at, disk in enumerate(disks):
        table = read_table(disk.reader(), disk.sector_size)
        if table is not None and (firmware := _firmware_of(table)):
            return at, firmware
    return 0, "bios"


def _firmware_of(table: PartitionTable) -> str:
    """Return the firmware that a partition table tells of; "" where it tells of none."""
    if table.scheme == "gpt":
        types = {entry.type for entry in table.partitions}
        if _BIOS_BOOT in types:
            return "bios"
        return "uefi" if _EFI_SYSTEM in types else ""
    return "bios" if any(entry.bootable for entry in table.partitions) else ""


def uefi_options(folder: Path) -> list[str]:
    """Return qemu's options for UEFI; the firmware's variables become a file in ``folder``.

    Raises ProgramError where there is no such firmware.
    """
    for code, variables in _PLACES:
        if Path(code).is_file() and Path(variables).is_file():
            own = folder / "variables.fd"
            shutil.copyfile(variables, own)
            own.chmod(0o600)
            return [
                "-drive", f"if=pflash,format=raw,readonly=on,file={code}",
                "-drive", f"if=pflash,format=raw,file={escaped(own)}",
            ]  # fmt: skip
    raise ProgramError("there is no UEFI firmware for the machine", hint="in Debian it comes with ovmf")


def check_firmware(name: str) -> None:
    """Raise UsageError for a firmware that is not known."""
    if name not in FIRMWARES:
        raise UsageError(f"there is no firmware {name!r}", hint=f"one of {', '.join(FIRMWARES)}")


def escaped(path: str | os.PathLike[str]) -> str:
    """Return a path as a value among qemu's options, which commas separate."""
    return os.fspath(path).replace(",", ",,")
