"""What imaging programs leave out of volumes on purpose: files that Windows writes anew at each start."""

from typing import NamedTuple

from formats.container import Partition
from formats.errors import FormatError
from imagefs.filesystems.detect import recognise
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.hashing import bytes_left_out

PAGING_FILES = ("pagefile.sys", "hiberfil.sys", "swapfile.sys")  # in the root directory of NTFS


class LeftOutFile(NamedTuple):
    """A file whose clusters are allocated, and not in the image."""

    path: str  # in its volume
    size: int  # bytes
    missing: int  # bytes that are not in the image, and read as zeros


def paging_files_left_out(partition: Partition, sector_size: int) -> list[LeftOutFile] | None:
    """Return the paging files of a partition that the image lacks; None where that can't be read.

    What is missing is counted by the image's blocks. Only NTFS is looked at.
    """
    found = []
    try:
        reader = partition.reader()
        if recognise(reader) != "NTFS":
            return []
        with NtfsFileSystem(reader, sector_size) as volume:
            for name in PAGING_FILES:
                try:
                    data = volume.open(volume.lookup(volume.root, name))
                except OSError:  # it is not there, or no file
                    continue
                missing = bytes_left_out(data)
                if missing:
                    found.append(LeftOutFile(name, data.size, missing))
    except FormatError:
        return None
    return found
