"""What a volume holds, in few words: a file system and its label, or what takes it whole."""

from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.errors import ReportedError, UnsupportedError
from imagefs.filesystems.detect import open_file_system, recognise

_SIGNS = (  # of what takes a whole volume for itself, and is no file system
    *(("LVM", 512 * sector, b"LABELONE") for sector in range(4)),
    *(("Linux RAID", offset, b"\xfc\x4e\x2b\xa9") for offset in (0, 4096)),
    *(("swap", page - 10, b"SWAPSPACE2") for page in (4096, 8192, 16384, 65536)),
)
_TAKEN = {name for name, _, _ in _SIGNS}


class Contents(NamedTuple):
    """What is recognised; "" where nothing is."""

    file_system: str  # "NTFS", "FAT32", "ext4", "BitLocker", "LUKS", "LVM", "swap", …
    label: str
    problem: str  # why more is not known


def family_of(reader: BlockReader) -> str:
    """Return what a volume is by its signature, "" for nothing known; raises what the reader raises."""
    for name, offset, magic in _SIGNS:
        if offset + len(magic) <= reader.size and reader.read_at(offset, len(magic)) == magic:
            return name
    return recognise(reader) or ""


def contents_of(reader: BlockReader, sector_size: int) -> Contents:
    """Look at a volume; nothing that is wrong with it is an error here."""
    family = ""
    try:
        family = family_of(reader)
        opened = None if family in _TAKEN else open_file_system(reader, sector_size)
    except UnsupportedError:  # it is whole for all we know: XFS, LUKS
        return Contents(family, "", "")
    except ReportedError as error:
        return Contents(family, "", error.what)
    if opened is None:
        return Contents(family, "", "")
    with opened:
        return Contents(opened.kind, opened.label, "")
