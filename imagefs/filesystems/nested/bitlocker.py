"""Volumes that BitLocker encrypted, read by libbde.

Source of the offsets: libbde, "BitLocker Drive Encryption (BDE) format".
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.errors import DamagedError, PasswordError, UnsupportedError
from imagefs.filesystems.base import VolumeKey
from imagefs.filesystems.nested.isolated import Isolated, IsolatedReader, StoredBytes, key_text

_SIGNATURE = b"-FVE-FS-"
_IDENTIFIER = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")  # 4967d63b-2e29-4ad8-8399-f6a339e3d001
_ON_WRITE = bytes.fromhex("3b4da89280dd0e4d9e4eb1e3284eaed8")  # 92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8
_TO_GO = 424  # where the identifier stands on a removable FAT volume; else at 160
_FIXED = 160
_METHODS = {
    0x8000: "AES-CBC 128 with diffuser",
    0x8001: "AES-CBC 256 with diffuser",
    0x8002: "AES-CBC 128",
    0x8003: "AES-CBC 256",
    0x8004: "AES-XTS 128",
    0x8005: "AES-XTS 256",
}
_PROTECTORS = {
    0x0000: "clear key",
    0x0100: "TPM",
    0x0200: "startup key",
    0x0500: "TPM and PIN",
    0x0800: "recovery password",
    0x2000: "password",
}
_WITH_IDENTIFIER = ("recovery password", "startup key")  # what a person looks for by it
_RECOVERY = re.compile(r"(?<!\d)\d{6}(?:-\d{6}){7}(?!\d)")
_LONGEST = 256  # characters of a password


class Protector(NamedTuple):
    """Something that opens a volume."""

    kind: str  # "password", "recovery password", "startup key", "TPM", "clear key", …
    identifier: str  # a GUID

    def __str__(self) -> str:
        return f"{self.kind} {self.identifier.upper()}" if self.kind in _WITH_IDENTIFIER else self.kind


class BitLocker:
    """An encrypted volume. Raises DamagedError where its metadata are damaged.

    ``reader`` gives what it holds once a key has opened it, None while it is locked.
    """

    kind = "BitLocker"

    def __init__(self, volume: BlockReader, name: str, keys: Sequence[VolumeKey] = ()) -> None:
        sector = volume.read_at(0, 512)
        if sector[_FIXED : _FIXED + 16] == _ON_WRITE:
            raise UnsupportedError(
                f"{name}: BitLocker was still encrypting it, on writing: this can't be read"
            )
        self._name = name
        self._had_keys = bool(keys)
        tried = [attempt for key in keys for attempt in _attempts(key.value)]
        try:
            self._isolated = Isolated("bitlocker", [StoredBytes(volume, name)], name, keys=tried)
        except DamagedError as error:
            if "ntfs_volume_header" not in error.what:
                raise
            what = "a key opens it, but no NTFS is inside: libbde reads nothing else"
            raise DamagedError(f"{name}: {what}") from error
        try:
            told = self._isolated.told
            self.method = _METHODS.get(int(told["method"]), f"{int(told['method']):#x}")
            self.protectors = [
                Protector(_PROTECTORS.get(int(kind), f"{int(kind):#x}"), str(identifier)[:36])
                for kind, identifier in told["protectors"]
            ]
            size = told["size"]
            self.reader = None
            if size is not None:
                self.reader = IsolatedReader(self._isolated, 0, max(0, min(int(size), volume.size)))
        except (KeyError, TypeError, ValueError):
            self.close()
            raise DamagedError(f"{name}: BitLocker's metadata can't be read") from None

    @property
    def problem(self) -> PasswordError:
        """What is told of a locked volume."""
        ways = ", ".join(map(str, self.protectors)) or "nothing that is known"
        fits = "none of the keys given opens it" if self._had_keys else "it is locked"
        return PasswordError(
            f"{self._name}: encrypted by BitLocker, and {fits}; what does: {ways}",
            hint="give a file with its password or recovery password, or its .bek file, by --bitlocker-key",
        )

    def close(self) -> None:
        """End the process that reads it."""
        self._isolated.close()


def is_bitlocker(volume: BlockReader) -> bool:
    """Whether a volume is encrypted by BitLocker; also one for removable media, which looks like FAT."""
    if volume.size < 4096:
        return False
    sector = volume.read_at(0, 512)
    return sector[3:11] == _SIGNATURE or sector[_TO_GO : _TO_GO + 16] == _IDENTIFIER


def _attempts(value: bytes) -> Iterator[bytes]:
    """Yield what a key may be: a letter for its kind, and the key."""
    if _is_startup_key(value):
        yield b"S" + value
        return
    text = key_text(value)
    if text is None:
        return
    for recovery in dict.fromkeys(_RECOVERY.findall(text)):  # alone, or in the text that Windows saves
        yield b"R" + recovery.encode()
    if 0 < len(text) <= _LONGEST:
        yield b"P" + text.encode()


def _is_startup_key(value: bytes) -> bool:
    if len(value) < 48:
        return False
    size, version, header, copy = struct.unpack_from("<IIII", value)
    return bool(version == 1 and header == 48 and size == copy <= len(value))
