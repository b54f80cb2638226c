"""LUKS volumes of version 1, read by libluksde; it knows no version 2.

Source of the offsets: the LUKS On-Disk Format Specification, version 1.2.3.
"""

import struct
from collections.abc import Sequence

from formats.blockreader import BlockReader
from formats.errors import DamagedError, PasswordError
from imagefs.filesystems.base import VolumeKey
from imagefs.filesystems.nested.isolated import Isolated, IsolatedReader, StoredBytes, key_text

_MAGIC = b"LUKS\xba\xbe\0\1"
_SLOTS, _SLOT, _ENABLED = 208, 48, 0x00AC71F3


class Luks:
    """An encrypted volume. Raises DamagedError where its header is damaged.

    ``reader`` gives what it holds once a password has opened it, None while it is locked.
    """

    kind = "LUKS"

    def __init__(self, volume: BlockReader, name: str, keys: Sequence[VolumeKey] = ()) -> None:
        head = volume.read_at(0, 1024)
        cipher, mode = (head[at : at + 32].rstrip(b"\0").decode("ascii", "replace") for at in (8, 40))
        (key_bytes,) = struct.unpack_from(">I", head, 108)
        self.method = f"{cipher}-{mode} {key_bytes * 8}"
        self.protectors = [
            ("password", f"slot {number}")
            for number in range(8)
            if struct.unpack_from(">I", head, _SLOTS + number * _SLOT)[0] == _ENABLED
        ]
        self._name = name
        self._had_keys = bool(keys)
        tried = [text.encode() for key in keys if (text := key_text(key.value))]
        self._isolated = Isolated("luks", [StoredBytes(volume, name)], name, keys=tried)
        try:
            size = self._isolated.told["size"]
            self.reader = None
            if size is not None:
                self.reader = IsolatedReader(self._isolated, 0, max(0, min(int(size), volume.size)))
        except (KeyError, TypeError, ValueError):
            self.close()
            raise DamagedError(f"{name}: its LUKS header can't be read") from None

    @property
    def problem(self) -> PasswordError:
        """What is told of a locked volume."""
        fits = "none of the keys given opens it" if self._had_keys else "it is locked"
        return PasswordError(
            f"{self._name}: encrypted by LUKS, and {fits}; {len(self.protectors)} passwords do",
            hint="give a file with one of its passwords by --volume-key",
        )

    def close(self) -> None:
        """End the process that reads it."""
        self._isolated.close()


def is_luks(volume: BlockReader) -> bool:
    """Whether a volume is a LUKS volume of version 1."""
    return volume.size >= 4096 and volume.read_at(0, len(_MAGIC)) == _MAGIC
