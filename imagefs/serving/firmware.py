"""What a machine starts with: the firmware that a disk was made for, and where it is on this system."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from formats.container import Disk
from formats.partition_table import PartitionTable, read_table
from imagefs.errors import UsageError
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.serving.children import ProgramError
from mounters.tree import NodeType

FIRMWARES = ("auto", "bios", "uefi")
_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # GPT types
_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_DEFAULT_LOADER = "efi/boot/bootx64.efi"  # what firmware starts that was told of no other
_LOADERS = ("shimx64.efi", "grubx64.efi", "bootmgfw.efi", "systemd-bootx64.efi", "refind_x64.efi")
_DEPTH = 3  # folders above a loader: EFI/Microsoft/Boot
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
    programs = Path(os.environ.get("PROGRAMFILES", "")) / "qemu" / "share"
    windows = (str(programs / "edk2-x86_64-code.fd"), str(programs / "edk2-i386-vars.fd"))
    for code, variables in _PLACES if sys.platform != "win32" else [windows]:
        if Path(code).is_file() and Path(variables).is_file():
            own = folder / "variables.fd"
            shutil.copyfile(variables, own)
            own.chmod(0o600)
            return [
                "-drive", f"if=pflash,format=raw,readonly=on,file={escaped(code)}",
                "-drive", f"if=pflash,format=raw,file={escaped(own)}",
            ]  # fmt: skip
    package = "QEMU for Windows" if sys.platform == "win32" else "ovmf in Debian"
    raise ProgramError("there is no UEFI firmware for the machine", hint=f"it comes with {package}")


def loader_by_name(disk: Disk) -> str:
    """Return the loader that firmware must be told of, as "EFI/debian/shimx64.efi"; "" where it need not.

    Systems are installed beside the default loader's place as often as in it, and the machine that had them
    knew where. Raises FormatError where the EFI system partition can't be read.
    """
    table = read_table(disk.reader(), disk.sector_size)
    offsets = {entry.offset for entry in table.partitions if entry.type == _EFI_SYSTEM} if table else set()
    for part in disk.partitions:
        volume = open_file_system(part.reader(), disk.sector_size) if part.offset in offsets else None
        if volume is None:
            continue
        try:
            files = {name.lower(): name for name in _files(volume, volume.root, "", _DEPTH)}
        finally:
            volume.close()
        if _DEFAULT_LOADER in files:
            return ""
        for loader in _LOADERS:
            found = sorted(name for name in files if name.startswith("efi/") and name.endswith(f"/{loader}"))
            if found:
                return files[found[0]]
    return ""


def _files(volume: FileSystem, folder: int, path: str, depth: int) -> Iterator[str]:
    """Yield the paths of the files in a folder, and in those below it down to a depth."""
    for entry in volume.entries(folder):
        if entry.type is NodeType.DIRECTORY:
            if depth and entry.name not in (".", "..") and (path or entry.name.lower() == "efi"):
                yield from _files(volume, entry.inode, f"{path}{entry.name}/", depth - 1)
        else:
            yield path + entry.name


def starter_options(folder: Path, loader: str) -> list[str]:
    """Return qemu's options for a small drive with a script that starts a loader, made in ``folder``.

    The firmware's shell runs it, when the firmware has found nothing to start by itself.
    """
    drive = folder / "starter"
    drive.mkdir()
    path = "\\" + loader.replace("/", "\\")
    lines = [
        "@echo -off",
        "for %a run (0 9)",
        f"if exist fs%a:{path} then",
        f"fs%a:{path}",
        "endif",
        "endfor",
    ]
    (drive / "startup.nsh").write_text("".join(f"{line}\r\n" for line in lines), newline="")
    node = {"driver": "vvfat", "node-name": "starter", "dir": str(drive), "read-only": True}
    # The firmware looks only at drives that are in the order of booting.
    return ["-blockdev", json.dumps(node), "-device", "usb-storage,drive=starter,bootindex=99"]


def check_firmware(name: str) -> None:
    """Raise UsageError for a firmware that is not known."""
    if name not in FIRMWARES:
        raise UsageError(f"there is no firmware {name!r}", hint=f"one of {', '.join(FIRMWARES)}")


def escaped(path: str | os.PathLike[str]) -> str:
    """Return a path as a value among qemu's options, which commas separate."""
    return os.fspath(path).replace(",", ",,")
