"""What imaging programs leave out of volumes on purpose: files that Windows writes anew at each start."""

from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.container import Partition
from formats.errors import FormatError
from imagefs.filesystems.detect import recognise
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import PAGING_FILES
from imagefs.filesystems.runs import RunsReader


class LeftOutFile(NamedTuple):
    """A file whose clusters are allocated, and not in the image."""

    path: str  # in its volume
    size: int  # bytes
    missing: int  # bytes that are not in the image, and read as zeros


def paging_files_left_out(partition: Partition) -> list[LeftOutFile] | None:
    """Return the paging files of a partition that the image lacks; None where that can't be read.

    What is missing is counted by the image's blocks. Only NTFS is looked at.
    """
    found = []
    try:
        reader = partition.reader()
        if recognise(reader) != "NTFS":
            return []
        with NtfsFileSystem(reader) as volume:
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


def bytes_left_out(reader: BlockReader, *, everything: bool = False) -> int:
    """Return how many bytes of a file have a place on its volume, and are not in the image.

    Counted by the image's blocks: a cluster that shares one with another file's counts as there, unless it is
    known that ``everything`` is left out. 0 where that can't be told: for what is stored compressed.
    """
    if not isinstance(reader, RunsReader):
        return 0
    return reader.allocated() if everything else reader.not_stored()
