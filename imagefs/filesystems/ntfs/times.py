"""The times of NTFS files: those of the file, and those kept with each of its names."""

import struct
from contextlib import suppress

from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import RecordedTimes
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    DOS_NAME,
    IN_USE,
    REFERENCE_MASK,
    AttributeType,
    unix_nanoseconds,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find, standard_information
from mounters.tree import Entry, NodeType

_FILE_NAME = struct.Struct("<5Q24xBB")  # parent; created, modified, changed, accessed; name length, namespace

_SYSTEM_FILES = {
    0: "$MFT",
    1: "$MFTMirr",
    2: "$LogFile",
    3: "$Volume",
    4: "$AttrDef",
    6: "$Bitmap",
    7: "$Boot",
    8: "$BadClus",
    9: "$Secure",
    10: "$UpCase",
    11: "$Extend",
}


def system_entries(mft: MasterFileTable) -> list[Entry]:
    """Return the file system's own files, by their numbers, which are fixed; damaged ones as well."""
    found = []
    for number, name in _SYSTEM_FILES.items():
        is_directory = False
        with suppress(FormatError):  # told by whoever asks for its attributes
            flags = mft.record(number).flags
            if not flags & IN_USE:  # an early version has no $Extend
                continue
            is_directory = bool(flags & DIRECTORY)
        found.append(Entry(name, number, NodeType.DIRECTORY if is_directory else NodeType.FILE))
    return found


def recorded_times(mft: MasterFileTable, inode: int) -> list[RecordedTimes]:
    """Return the times of $STANDARD_INFORMATION, then those of every $FILE_NAME.

    What changes a file updates the former only; the latter are set when a name is given, as a rule.
    """
    what = f"file record {inode}"
    attributes = mft.attributes(mft.record(inode))
    created, modified, changed, accessed, _ = standard_information(attributes, what)
    found = [_recorded(modified, accessed, changed, created)._replace(source="$STANDARD_INFORMATION")]
    long_names: dict[int, str] = {}  # the first in each directory
    short: list[RecordedTimes] = []
    for attribute in find(attributes, AttributeType.FILE_NAME):
        value = attribute.value or b""
        if len(value) < _FILE_NAME.size or len(value) < _FILE_NAME.size + 2 * value[64]:
            raise DamagedError(f"{what}: a name of {len(value)} bytes")
        reference, created, modified, changed, accessed, length, space = _FILE_NAME.unpack_from(value)
        name = decode_name(value[_FILE_NAME.size : _FILE_NAME.size + 2 * length])
        times = _recorded(modified, accessed, changed, created)._replace(
            source="$FILE_NAME", name=name, parent=reference & REFERENCE_MASK
        )
        if space == DOS_NAME:
            short.append(times._replace(alias=name))
        else:
            long_names.setdefault(times.parent, name)
            found.append(times)
    return found + [times._replace(name=long_names.get(times.parent, times.name)) for times in short]


def _recorded(modified: int, accessed: int, changed: int, created: int) -> RecordedTimes:
    return RecordedTimes(_unix(modified), _unix(accessed), _unix(changed), _unix(created))


def _unix(filetime: int) -> int | None:
    return unix_nanoseconds(filetime) if filetime else None
