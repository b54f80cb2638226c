"""Which kind of map a volume has."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.detect import recognise, signatures
from imagefs.imaging.used_space.base import Facts, UsedSpace, WholeVolume
from imagefs.imaging.used_space.exfat import exfat_space
from imagefs.imaging.used_space.ext import ext_space
from imagefs.imaging.used_space.fat import fat_space
from imagefs.imaging.used_space.ntfs import ntfs_space
from imagefs.imaging.used_space.options import Options


class _Mark(NamedTuple):
    """What something that takes a whole volume for itself is recognised by."""

    name: str
    offset: int  # bytes
    magic: bytes


_KINDS: dict[str, Callable[[BlockReader, Options], UsedSpace]] = {
    "NTFS": ntfs_space,
    "FAT": fat_space,
    "exFAT": exfat_space,
    "ext": ext_space,
}
_ENCRYPTED = ("BitLocker", "LUKS")  # no file system's names
# Whoever makes one of these need not wipe the boot sector of the file system that was there before.
_OTHERS = (
    *(_Mark("LVM", 512 * sector, b"LABELONE") for sector in range(4)),
    *(_Mark("Linux RAID", offset, b"\xfc\x4e\x2b\xa9") for offset in (0, 4096)),
    *(_Mark("swap space", page - 10, b"SWAPSPACE2") for page in (4096, 8192, 16384, 65536)),
    _Mark("bcache", 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    _Mark("BitLocker To Go", 424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),
)
_ZFS_RING = 128 << 10  # bytes, and its offset; its records have 1 KiB or more
_ZFS_MAGIC = (0x00BAB10C, 0x0CB1BA0000000000)


def used_space(
    volume: BlockReader,
    sector_size: int = 512,
    *,
    exclude: Sequence[str] = (),
    exact: bool = False,
    shadows: bool = True,
) -> UsedSpace:
    """Tell which bytes of a volume are used.

    ``sector_size`` is the device's, in bytes. ``exact`` makes every byte used. ``exclude`` are patterns of
    files of NTFS, FAT and exFAT whose contents are left out: as of a shell, ``**`` for any number of
    directories; one without "/" is held against every name, also a directory's, which takes all files below
    it; any other against the path from the volume's root. Case does not matter. With ``exact`` they
    have no effect. ``shadows`` tells whether what only shadow copies in a volume of NTFS use is used.

    Everything is used, and a warning says why, where the file system's structures are damaged, contradict
    one another, or wait for a journal. Raises what the volume's reader raises, ReadError above all.
    """
    families = signatures(volume)
    family = recognise(volume) or "unknown"
    others = [mark.name for mark in _OTHERS if _bears(volume, mark)] + ["ZFS"] * _bears_zfs(volume)
    if family == "unknown" or others or len(families) > 1:
        warnings = []
        if family != "unknown":
            names = " and ".join([*families, *others])
            warnings = [f"the volume bears the signs of {names}: all of it is stored"]
        return WholeVolume(volume.size, Facts("unknown", sector_size=sector_size), warnings)
    if family not in _KINDS:
        name = "unknown" if family in _ENCRYPTED else family
        return WholeVolume(volume.size, Facts(name, sector_size=sector_size))
    try:
        return _KINDS[family](volume, Options(sector_size, tuple(exclude), exact, shadows))
    except (DamagedError, UnsupportedError) as error:
        return WholeVolume(
            volume.size, Facts("unknown", sector_size=sector_size), [f"{error}: all of the volume is stored"]
        )


def _bears_zfs(volume: BlockReader) -> bool:
    """Whether there are records of a pool's states: a ring of them, in the order of bytes of its machine."""
    if volume.size < 2 * _ZFS_RING:
        return False
    found = np.frombuffer(volume.read_at(_ZFS_RING, _ZFS_RING), "<u8")[:: 1024 // 8]
    return bool(max(np.count_nonzero(found == magic) for magic in _ZFS_MAGIC) >= 4)


def _bears(volume: BlockReader, mark: _Mark) -> bool:
    end = mark.offset + len(mark.magic)
    return end <= volume.size and volume.read_at(mark.offset, len(mark.magic)) == mark.magic
