"""Files whose data may be elsewhere: reparse points and file attributes that say so."""

from collections.abc import Sequence

from formats.errors import UnsupportedError
from imagefs.filesystems.ntfs.layout import (
    FILE_OFFLINE,
    FILE_RECALL_ON_DATA_ACCESS,
    FILE_RECALL_ON_OPEN,
    Attribute,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable
from imagefs.filesystems.ntfs.reparse import tag_name

_ELSEWHERE = FILE_OFFLINE | FILE_RECALL_ON_DATA_ACCESS | FILE_RECALL_ON_OPEN
_CLOUD, _CLOUD_MASK = 0x9000001A, 0xFFFF0FFF  # sixteen tags
_ONEDRIVE = 0x80000021

_CONTAINER = "in the layers of a Windows container"
_HIERARCHICAL = "where hierarchical storage moved it"
_PLACES = {
    0x80000006: _HIERARCHICAL,
    0xC0000004: _HIERARCHICAL,
    0x80000007: "in the volume's single instance store (SIS Common Store)",
    0x80000013: "in the volume's deduplication store (System Volume Information/Dedup)",
    0x80000018: _CONTAINER,
    0x90001018: _CONTAINER,
    0x8000001E: "with Azure File Sync",
    0x9000001C: "with the program that projects it",
}


def check_is_here(
    mft: MasterFileTable, data: Sequence[Attribute], flags: int, tag: int | None, what: str
) -> None:
    """Raise UnsupportedError unless a file's data is on the volume.

    ``flags`` are its file attributes, ``tag`` is that of its reparse point, if it has one. Of files in the
    cloud the data is believed to be here where two things say so: the file attributes lack all of OFFLINE,
    RECALL_ON_OPEN and RECALL_ON_DATA_ACCESS, which a synchronising program's filter sets as long as parts
    are missing ([MS-FSCC] 2.6), and no part lacks clusters, as what is missing does. What a program wrote as
    a hole looks the same as what is missing, and is refused with it. Any other tag may mean anything.
    """
    if tag is None:
        if flags & FILE_RECALL_ON_DATA_ACCESS:
            raise UnsupportedError(f"{what} has its data elsewhere: its attributes say so ({flags:#x})")
        return
    if tag & _CLOUD_MASK == _CLOUD or tag == _ONEDRIVE:
        if not flags & _ELSEWHERE and _has_all_clusters(mft, data, what):
            return
        place = "in the cloud"
    else:
        place = _PLACES.get(tag, "")
    raise UnsupportedError(f"{what} has its data elsewhere{place and ', ' + place}: {tag_name(tag)}")


def _has_all_clusters(mft: MasterFileTable, data: Sequence[Attribute], what: str) -> bool:
    if not data or data[0].value is not None:
        return True
    size = data[0].size
    position = 0
    for run in mft.runs(data, what):
        if position >= size:
            break
        if run.start is None:
            return False
        position += run.length
    return size <= min(position, data[0].initialized)
