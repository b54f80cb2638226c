"""Extended attributes of NTFS files, with the names and values that ntfs-3g gives them.

Names: https://github.com/tuxera/ntfs-3g/wiki/Using-Extended-Attributes. ``user.name`` is the stream "name";
``system.ntfs_…`` are not listed. Where ntfs-3g makes a security descriptor up, here is none.
"""

import errno
import os
import struct
from collections.abc import Callable, Sequence

from formats.errors import DamagedError
from imagefs.filesystems.names import bytes_of_name, decode_name
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    DOS_NAME,
    EXTEND,
    FILE_ENCRYPTED,
    REFERENCE_MASK,
    ROOT,
    AttributeType,
    Record,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.ntfs.security import Security, without_padding
from imagefs.filesystems.ntfs.view_index import ViewIndex
from imagefs.filesystems.upcase import unicode_upcase

VALUE_LIMIT = 1 << 16  # bytes of a value; Linux takes no larger ones
USER = "user."
_OWN_PREFIX = "ntfs-3g."  # of the streams in which ntfs-3g keeps attributes that are not the user's
_OWN_SPACES = ("system.", "security.", "trusted.")
_EA_HEADER = struct.Struct("<IBBH")  # next entry, flags, length of the name, of the value
_NORMAL, _FILE_DIRECTORY = 0x80, 0x10  # file attributes
_SECURITY_ID, _STANDARD_SIZE = 52, 72  # of $STANDARD_INFORMATION; since NTFS 3 it has 72 bytes
_EFS_NAME = "$EFS"
_EFS_ALIAS = "user.ntfs.efsinfo"
_LONGEST_DOS_NAME = 12  # characters


def attribute_names(streams: Sequence[str]) -> list[str]:
    """Return the names of the attributes that streams are, as they are listed."""
    return [
        USER + name
        for name in streams
        if "\0" not in name
        and not (name.startswith(_OWN_PREFIX) and len(bytes_of_name(name)) > len(_OWN_PREFIX) + 1)
    ]


def stream_of(name: str) -> str | None:
    """Return the stream that an extended attribute is, None where it is none."""
    if name.startswith(USER):
        return name[len(USER) :]
    return _OWN_PREFIX + name if name.startswith(_OWN_SPACES) else None


class SystemAttributes:
    """The attributes that are no streams: ``system.ntfs_…``, from a file's record. Safe from several threads.

    ``find_name`` finds a name in a directory; ``raw_efs`` is whether keys of encrypted files are given.
    """

    def __init__(
        self,
        mft: MasterFileTable,
        security: Security,
        cluster_size: int,
        find_name: Callable[[int, str], int | None],
        *,
        raw_efs: bool,
    ) -> None:
        self._mft = mft
        self._security = security
        self._cluster_size = cluster_size
        self._find_name = find_name
        self._raw_efs = raw_efs
        self._readers: dict[str, Callable[[Record], bytes | None]] = {
            "system.ntfs_acl": self._descriptor,
            "system.ntfs_attrib": lambda file: _flags(file).to_bytes(4, "little"),
            "system.ntfs_attrib_be": lambda file: _flags(file).to_bytes(4, "big"),
            "system.ntfs_times": lambda file: _times(file, "<4Q"),
            "system.ntfs_times_be": lambda file: _times(file, ">4Q"),
            "system.ntfs_crtime": lambda file: _times(file, "<4Q")[:8],
            "system.ntfs_crtime_be": lambda file: _times(file, ">4Q")[:8],
            "system.ntfs_object_id": self._object_id,
            "system.ntfs_ea": self._ea,
            "system.ntfs_reparse_data": lambda file: self._value(file, AttributeType.REPARSE_POINT),
            "system.ntfs_dos_name": _dos_name,
            "system.ntfs_efsinfo": self._efs_info,
        }
        if raw_efs:
            self._readers[_EFS_ALIAS] = self._efs_info

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def listed(self, file: Record) -> list[str]:
        """Return the names that are listed: the keys of an encrypted file, where they are given."""
        return [_EFS_ALIAS] if self._raw_efs and _flags(file) & FILE_ENCRYPTED else []

    def value(self, file: Record, name: str) -> bytes | None:
        """Return a value, None when there is none; ``file`` has all its attributes.

        Raises DamagedError where it can't be read, EPERM for the keys of an encrypted file, EMLINK for the
        8.3 name of a file with several names.
        """
        return self._readers[name](file)

    def _value(self, file: Record, kind: AttributeType, name: str = "") -> bytes | None:
        extents = find(file.attributes, kind, name)
        what = f"file {file.number}"
        return self._mft.small_value(extents, VALUE_LIMIT, what) if extents else None

    def _descriptor(self, file: Record) -> bytes | None:
        number = security_id(file)
        if number:
            return self._security.descriptor(number)
        value = self._value(file, AttributeType.SECURITY_DESCRIPTOR)
        return None if value is None else without_padding(value, f"security descriptor of file {file.number}")

    def _object_id(self, file: Record) -> bytes | None:
        """Return the id, with the three of its birth where $ObjId knows them."""
        value = self._value(file, AttributeType.OBJECT_ID)
        if value is None or len(value) != 16:
            return value
        inode = self._find_name(EXTEND, "$ObjId")
        if inode is None:
            return value
        found = ViewIndex(self._mft, inode, "$O", self._cluster_size).find(value)
        if found is None or len(found) < 56:
            return value
        (reference,) = struct.unpack_from("<Q", found)
        return value + found[8:56] if reference & REFERENCE_MASK == file.number else value

    def _ea(self, file: Record) -> bytes | None:
        value = self._value(file, AttributeType.EA)
        if value is not None:
            parse_ea(value, f"file {file.number}")
        return value

    def _efs_info(self, file: Record) -> bytes | None:
        if not self._raw_efs:
            raise OSError(errno.EPERM, "the keys of encrypted files are given with --raw-efs alone")
        if not _flags(file) & FILE_ENCRYPTED:
            return None
        return self._value(file, AttributeType.LOGGED_UTILITY_STREAM, _EFS_NAME)


def parse_ea(data: bytes, what: str) -> dict[bytes, bytes]:
    """Return the values of EAs ([MS-FSCC] 2.4.16) by their names; DamagedError where one reaches outside."""
    found: dict[bytes, bytes] = {}
    position = 0
    while position + _EA_HEADER.size <= len(data):
        step, _, name_length, value_length = _EA_HEADER.unpack_from(data, position)
        start = position + _EA_HEADER.size
        middle = start + name_length + 1
        if middle + value_length > len(data) or 0 < step < middle + value_length - position:
            raise DamagedError(f"{what}: an EA at {position} of {len(data)} bytes reaches outside its place")
        found[data[start : middle - 1]] = data[middle : middle + value_length]
        if not step:
            break
        position += step
    return found


def security_id(file: Record) -> int:
    """Return the id of a file's descriptor in $Secure, 0 where there is none, as before NTFS 3."""
    information = _standard_information(file)
    if len(information) < _STANDARD_SIZE:
        return 0
    return int(struct.unpack_from("<I", information, _SECURITY_ID)[0])


def _standard_information(file: Record) -> bytes:
    for attribute in file.attributes:
        if attribute.type == AttributeType.STANDARD_INFORMATION and len(attribute.value or b"") >= 36:
            return attribute.value or b""
    raise DamagedError(f"file {file.number}: no $STANDARD_INFORMATION")


def _flags(file: Record) -> int:
    (flags,) = struct.unpack_from("<I", _standard_information(file), 32)
    flags = flags & ~_FILE_DIRECTORY | (_FILE_DIRECTORY if file.flags & DIRECTORY else 0)
    return flags or _NORMAL


def _times(file: Record, form: str) -> bytes:
    """Return when a file was created, modified, accessed and changed, in this order."""
    created, modified, changed, accessed = struct.unpack_from("<4Q", _standard_information(file))
    return struct.pack(form, created, modified, accessed, changed)


def _dos_name(file: Record) -> bytes | None:
    """Return the 8.3 name in upper case; the root has none, only "."."""
    if file.number == ROOT:
        return None
    names = [
        attribute.value
        for attribute in file.attributes
        if attribute.type == AttributeType.FILE_NAME and attribute.value and len(attribute.value) >= 66
    ]
    short = [name for name in names if name[65] & DOS_NAME]
    if not short:
        return None
    if sum(name[65] != DOS_NAME for name in names) > 1:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
    name = decode_name(short[-1][66 : 66 + 2 * min(short[-1][64], _LONGEST_DOS_NAME)])
    return bytes_of_name(unicode_upcase().fold(name))
