"""The data of NTFS files: from the attributes of a record to a reader of what the file holds."""

from collections.abc import Sequence

from formats.blockreader import BlockReader
from formats.errors import UnsupportedError
from imagefs.filesystems.base import VolumeOptions
from imagefs.filesystems.ntfs.layout import COMPRESSED, ENCRYPTED, Attribute
from imagefs.filesystems.ntfs.mft import MasterFileTable


def open_attribute(
    mft: MasterFileTable, extents: Sequence[Attribute], what: str, options: VolumeOptions
) -> BlockReader:
    """Return the bytes of a $DATA attribute, named or not, from its extents in order; holes as extents.

    Raises UnsupportedError where EFS encrypted it, unless ``options.raw_efs``.
    """
    if extents[0].flags & ENCRYPTED and not options.raw_efs:
        raise UnsupportedError(f"{what} is encrypted by EFS", hint="--raw-efs gives the stored bytes")
    if extents[0].flags & COMPRESSED and extents[0].value is None:
        raise UnsupportedError(f"{what} is compressed")
    return mft.value(extents, what)
