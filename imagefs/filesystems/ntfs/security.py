"""Who owns the files of an NTFS volume: the security descriptors of $Secure, and SIDs as numbers.

Descriptors and SIDs: [MS-DTYP] 2.4.6 and 2.4.2. $Secure keeps each descriptor once, in its stream $SDS, with
a copy of it 256 KiB further on; its index $SII says where, by the id that is in $STANDARD_INFORMATION.
"""

import struct
import threading

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.ntfs.layout import SECURE, AttributeType
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.ntfs.view_index import ViewIndex

_HEADER = struct.Struct("<IIQI")  # of a descriptor in $SDS, and in $SII: hash, id, offset, length with header
_COPY = 1 << 18  # bytes from a descriptor to its copy
_LIMIT = 1 << 17  # bytes of a descriptor: two lists of at most 64 KiB each
_DOMAIN = 21  # S-1-5-21-…: accounts of a machine or domain; the last number is the account's
NO_NUMBER = 0xFFFFFFFF  # no user or group has this number


class Security:
    """The descriptors of a volume, by their ids; $Secure is read when it is first asked. Thread-safe."""

    def __init__(self, mft: MasterFileTable, cluster_size: int) -> None:
        self._mft = mft
        self._cluster_size = cluster_size
        self._lock = threading.Lock()
        self._opened: tuple[ViewIndex, BlockReader] | None = None

    def descriptor(self, security_id: int) -> bytes:
        """Return a self-relative descriptor; DamagedError where it can't be had."""
        what = f"security descriptor {security_id}"
        index, stored = self._open()
        entry = index.find(struct.pack("<I", security_id))
        if entry is None or len(entry) < _HEADER.size:
            raise DamagedError(f"{what} is not in $Secure")
        header = entry[: _HEADER.size]
        checksum, known_id, offset, length = _HEADER.unpack(header)
        if known_id != security_id or not _HEADER.size < length <= _HEADER.size + _LIMIT:
            raise DamagedError(f"{what}: {length} bytes of descriptor {known_id} in $Secure")
        problem: FormatError = DamagedError(f"{what}: what $Secure holds of it is another one")
        for at in (offset, offset + _COPY):
            if at + length > stored.size:
                continue
            try:
                found = stored.read_at(at, length)
            except FormatError as error:
                problem = error
                continue
            if found[: _HEADER.size] == header and _hash(found[_HEADER.size :]) == checksum:
                return without_padding(found[_HEADER.size :], what)
        raise problem

    def _open(self) -> tuple[ViewIndex, BlockReader]:
        with self._lock:
            if self._opened is None:
                index = ViewIndex(self._mft, SECURE, "$SII", self._cluster_size)
                data = find(self._mft.attributes(self._mft.record(SECURE)), AttributeType.DATA, "$SDS")
                if not data:
                    raise DamagedError("$Secure has no $SDS")
                self._opened = index, self._mft.value(data, "$Secure:$SDS")
            return self._opened


def owner_of(descriptor: bytes) -> tuple[int, int]:
    """Return the user and group number of a descriptor; DamagedError where it can't be read."""
    if len(descriptor) < 20:
        raise DamagedError(f"a security descriptor of {len(descriptor)} bytes")
    owner, group = struct.unpack_from("<II", descriptor, 4)
    return _number(descriptor, owner), _number(descriptor, group)


def _number(descriptor: bytes, offset: int) -> int:
    """Return the number of an account's SID: its own of a machine or domain, else 0.

    0 so stands for the system, its administrators and services, as root does.
    """
    if not offset:
        return 0
    sid = descriptor[offset : offset + _sid_length(descriptor, offset)]
    if sid[:2] != b"\1\5" or sid[2:8] != b"\0\0\0\0\0\5":
        return 0
    first, *_, account = struct.unpack_from("<5I", sid, 8)
    return int(account) if first == _DOMAIN and account != NO_NUMBER else 0


def without_padding(descriptor: bytes, what: str) -> bytes:
    """Return a descriptor without what follows its last part; DamagedError where one reaches outside it."""
    if len(descriptor) < 20 or descriptor[0] != 1:
        raise DamagedError(f"{what}: {len(descriptor)} bytes that are none")
    owner, group, *lists = struct.unpack_from("<4I", descriptor, 4)
    end = 20
    for offset in (owner, group):
        if offset:
            end = max(end, offset + _sid_length(descriptor, offset))
    for offset in lists:
        if offset:
            if offset + 8 > len(descriptor):
                raise DamagedError(f"{what}: a list at {offset} of {len(descriptor)} bytes")
            end = max(end, offset + struct.unpack_from("<H", descriptor, offset + 2)[0])
    if end > len(descriptor):
        raise DamagedError(f"{what}: it ends at {end} of {len(descriptor)} bytes")
    return descriptor[:end]


def _sid_length(descriptor: bytes, offset: int) -> int:
    """Return the bytes of a SID; DamagedError where it reaches outside the descriptor."""
    length = 8 + 4 * descriptor[offset + 1] if offset + 8 <= len(descriptor) else 8
    if offset + length > len(descriptor):
        raise DamagedError(f"a SID at {offset} of a security descriptor of {len(descriptor)} bytes")
    return length


def _hash(descriptor: bytes) -> int:
    """Return what $Secure keeps to find a descriptor by: its 32-bit numbers added up, rotated 3 bits each."""
    total = 0
    for (number,) in struct.iter_unpack("<I", descriptor[: len(descriptor) // 4 * 4]):
        total = (number + (total << 3 | total >> 29)) & 0xFFFFFFFF
    return total
