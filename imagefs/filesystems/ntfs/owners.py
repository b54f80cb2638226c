"""Who owns NTFS files and what may be done with them, as Unix numbers and permission bits.

WSL keeps a file's owner and mode in EAs ($LXUID, $LXGID, $LXMOD: https://learn.microsoft.com/windows/wsl/
file-permissions), which count first; else the owner is the number of the account in the security descriptor.
Everybody may read everything, as who mounts an image wants to; a directory may be searched, and a file run
where WSL says so. Nobody may write.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress

from formats.errors import FormatError
from imagefs.filesystems.ntfs.extended import VALUE_LIMIT, parse_ea
from imagefs.filesystems.ntfs.layout import Attribute, AttributeType
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.ntfs.security import NO_NUMBER, Security, owner_of

_KEPT = 1 << 14
_OWN_LIMIT = 4096  # bytes of a descriptor that is looked at for a file without an id
_EXECUTE = 0o111


class Owners(dict[int | bytes, tuple[int, int]]):
    """The (user, group) numbers of security ids, and of descriptors: ``owners[id]``, looked up once.

    Who is not known, also for damage, is 0: the descriptor itself tells what is wrong.
    """

    def __init__(self, mft: MasterFileTable, security: Security) -> None:
        super().__init__()
        self._mft = mft
        self._security = security

    def __missing__(self, key: int | bytes) -> tuple[int, int]:
        owner = 0, 0
        with suppress(FormatError):
            if key:
                owner = owner_of(self._security.descriptor(key) if isinstance(key, int) else key)
        if len(self) >= _KEPT:
            self.clear()
        self[key] = owner
        return owner

    def of_file(self, attributes: Sequence[Attribute], security_id: int) -> tuple[int, int, int]:
        """Return a file's user and group number, and which of its execution bits are set."""
        user, group = self[security_id or self._own(attributes)]
        values = self._wsl(attributes)
        user = values.get(b"$LXUID", user)
        group = values.get(b"$LXGID", group)
        return user, group, values.get(b"$LXMOD", 0) & _EXECUTE

    def _own(self, attributes: Sequence[Attribute]) -> bytes:
        """Return the file's own descriptor, as before NTFS 3; b"" where there is none to be read."""
        extents = find(attributes, AttributeType.SECURITY_DESCRIPTOR)
        with suppress(FormatError):
            return self._mft.small_value(extents, _OWN_LIMIT, "owner") if extents else b""
        return b""

    def _wsl(self, attributes: Sequence[Attribute]) -> dict[bytes, int]:
        """Return the numbers that WSL keeps; none where the EAs can't be read."""
        extents = find(attributes, AttributeType.EA)
        if not extents:
            return {}
        try:
            values = parse_ea(self._mft.small_value(extents, VALUE_LIMIT, "EAs"), "EAs")
        except FormatError:
            return {}
        numbers = {name: struct.unpack("<I", value)[0] for name, value in values.items() if len(value) == 4}
        return {name: number for name, number in numbers.items() if number != NO_NUMBER}
