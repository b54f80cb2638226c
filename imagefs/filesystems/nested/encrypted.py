"""Encrypted volumes of any kind."""

from collections.abc import Sequence
from typing import Any

from formats.blockreader import BlockReader
from formats.errors import FormatError
from imagefs.filesystems.base import VolumeKey
from imagefs.filesystems.nested.bitlocker import BitLocker, is_bitlocker
from imagefs.filesystems.nested.luks import Luks, is_luks


def open_encrypted(volume: BlockReader, name: str, keys: Sequence[VolumeKey] = ()) -> BitLocker | Luks | None:
    """Return an encrypted volume, locked where no key opens it, to be closed; None where it is not encrypted.

    Raises FormatError where its metadata can't be read.
    """
    if is_bitlocker(volume):
        return BitLocker(volume, name, keys)
    return Luks(volume, name, keys) if is_luks(volume) else None


def encryption_document(volume: BlockReader, name: str) -> dict[str, Any] | None:
    """Return how a volume is encrypted, as ``info`` tells it; None where it is not."""
    try:
        found = open_encrypted(volume, name)
    except FormatError as error:
        return {"kind": "unknown", "method": None, "protectors": [], "state": str(error)}
    if found is None:
        return None
    found.close()
    return {
        "kind": found.kind,
        "method": found.method,
        "protectors": [{"kind": kind, "identifier": identifier} for kind, identifier in found.protectors],
        "state": "locked" if found.reader is None else "open by its clear key",
    }
