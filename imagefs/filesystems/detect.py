"""Which file system a volume holds, told by its own signatures, never by a partition's type."""

import struct
from collections.abc import Callable
from typing import NamedTuple

import pytsk3

from formats.blockreader import BlockReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.base import FileSystem, VolumeOptions
from imagefs.filesystems.ext import ExtFileSystem
from imagefs.filesystems.ext_deleted import DeletedExt
from imagefs.filesystems.fat import FatFileSystem
from imagefs.filesystems.fat_deleted import DeletedFat
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.deleted import DeletedNtfs
from imagefs.filesystems.tsk import TskFileSystem
from imagefs.filesystems.tsk_image import TskImage
from mounters.tree import NodeType


class Signature(NamedTuple):
    """What a file system is recognised by."""

    family: str
    offset: int  # bytes from the volume's start
    magic: bytes


_SMALLEST = 4096  # bytes; no volume is smaller
_SIGNATURES = (
    Signature("NTFS", 3, b"NTFS    "),
    Signature("exFAT", 3, b"EXFAT   "),
    Signature("BitLocker", 3, b"-FVE-FS-"),
    Signature("BitLocker", 424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),  # To Go: looks like FAT
    Signature("ReFS", 3, b"ReFS\0\0\0\0"),
    Signature("APFS", 32, b"NXSB"),
    Signature("LUKS", 0, b"LUKS\xba\xbe"),
    Signature("XFS", 0, b"XFSB"),
    Signature("HFS+", 0x400, b"H+\0\4"),
    Signature("HFS+", 0x400, b"HX\0\5"),
    Signature("ISO 9660", 0x8001, b"CD001"),
    Signature("UFS", 65536 + 1372, b"\x19\x01\x54\x19"),
    Signature("UFS", 8192 + 1372, b"\x54\x19\x01\x00"),
    Signature("UFS", 65536 + 1372, b"\x19\x54\x01\x19"),
    Signature("Btrfs", 0x10040, b"_BHRfS_M"),
)
_TSK_TYPES = {
    "HFS+": pytsk3.TSK_FS_TYPE_HFS,
    "ISO 9660": pytsk3.TSK_FS_TYPE_ISO9660,
    "UFS": pytsk3.TSK_FS_TYPE_FFS_DETECT,
}


def open_file_system(
    reader: BlockReader,
    sector_size: int = 512,
    options: VolumeOptions | None = None,
    known_as: Callable[[], frozenset[str] | None] = lambda: None,
) -> FileSystem | None:
    """Return the file system of a volume, None when none is recognised.

    ``known_as`` returns the names that absolute links of Windows have for it ("C:", "VOLUME{…}"), None
    where no volume's letter is known; it is asked when the first of them is met.

    Raises UnsupportedError for one that is recognised but can't be read, DamagedError when its own
    structures are broken, and what the reader raises.
    """
    family = recognise(reader)
    if family is None:
        return None
    opened = _open(family, reader, sector_size, options or VolumeOptions(), known_as)
    if opened.attributes(opened.root).type is not NodeType.DIRECTORY:
        raise DamagedError(f"{opened.kind}: the root directory is none")
    return opened


def _open(
    family: str,
    reader: BlockReader,
    sector_size: int,
    options: VolumeOptions,
    known_as: Callable[[], frozenset[str] | None],
) -> FileSystem:
    if family == "NTFS":
        return NtfsFileSystem(reader, options, known_as)
    if family == "ext":
        return ExtFileSystem(reader)
    if family in ("FAT", "exFAT"):
        return FatFileSystem(reader, is_exfat=family == "exFAT")
    if family not in _TSK_TYPES:
        raise UnsupportedError(f"{family} is recognised, but can't be read")
    image = TskImage(reader, sector_size)
    with image.calls(f"{family} volume"):
        fs = pytsk3.FS_Info(image, 0, _TSK_TYPES[family])
    label = ""
    if family == "ISO 9660":
        label = reader.read_at(0x8000 + 40, 32).decode("ascii", "replace").rstrip(" \0")
    return TskFileSystem(reader, image, fs, kind=family, label=label, direct=family != "ISO 9660")


def open_deleted(
    reader: BlockReader, sector_size: int = 512, options: VolumeOptions | None = None, *, is_held: bool
) -> FileSystem | None:
    """Return the deleted files of a volume as a file system, None where those of its kind can't be found.

    ``is_held`` says that free clusters are as they were on the source. Raises as ``open_file_system`` does.
    """
    family = recognise(reader)
    if family == "NTFS":
        return DeletedNtfs(reader, options, is_held=is_held)
    if family in ("FAT", "exFAT"):
        return DeletedFat(reader, sector_size, is_exfat=family == "exFAT", is_held=is_held)
    return DeletedExt(reader, sector_size, is_held=is_held) if family == "ext" else None


def recognise(reader: BlockReader) -> str | None:
    """Return the family of a volume's file system ("NTFS", "FAT", "ext", …), None if there is none."""
    if reader.size < _SMALLEST:
        return None
    for family, offset, magic in _SIGNATURES:
        if offset + len(magic) <= reader.size and reader.read_at(offset, len(magic)) == magic:
            return family
    if _is_ext(reader.read_at(1024, 1024)):
        return "ext"
    if _is_fat(reader.read_at(0, 512)):
        return "FAT"
    return None


def signatures(reader: BlockReader) -> list[str]:
    """Return the families of all file systems whose signature a volume bears; more than one is a doubt."""
    if reader.size < _SMALLEST:
        return []
    found = {
        family
        for family, offset, magic in _SIGNATURES
        if offset + len(magic) <= reader.size and reader.read_at(offset, len(magic)) == magic
    }
    if _is_ext(reader.read_at(1024, 1024)):
        found.add("ext")
    if _is_fat(reader.read_at(0, 512)):
        found.add("FAT")
    return sorted(found)


def _is_ext(block: bytes) -> bool:
    """Whether this is an ext superblock: its magic has two bytes only, so its sizes must make sense."""
    inodes, blocks = struct.unpack_from("<II", block)
    first, log_size = struct.unpack_from("<II", block, 20)
    blocks_per_group, clusters_per_group, inodes_per_group = struct.unpack_from("<III", block, 32)
    revision = struct.unpack_from("<I", block, 76)[0]
    return (
        block[56:58] == b"\x53\xef"
        and log_size <= 6
        and first <= 1
        and revision <= 1
        and blocks_per_group > 0
        and clusters_per_group <= 8 << (10 + log_size)
        and 0 < inodes_per_group <= 8 << (10 + log_size)
        and inodes > 0
        and blocks > 0
    )


def _is_fat(sector: bytes) -> bool:
    """Whether a boot sector's parameter block describes a FAT (Microsoft's FAT specification, 3)."""
    if sector[510:512] != b"\x55\xaa" or sector[0] not in (0xEB, 0xE9):
        return False
    bytes_per_sector, sectors_per_cluster, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
    media, fat_sectors_16 = struct.unpack_from("<BH", sector, 21)
    (fat_sectors_32,) = struct.unpack_from("<I", sector, 36)
    return (
        bytes_per_sector in (512, 1024, 2048, 4096)
        and sectors_per_cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and fats in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
        and (fat_sectors_16 or fat_sectors_32) > 0
    )
