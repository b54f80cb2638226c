"""What shadow copies inside an NTFS volume use, beside what the volume itself does.

A block that has not changed since a shadow copy was made is not stored with that: it is the volume's own,
also where that calls it free now.
"""

import numpy as np

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.filesystems.nested.shadows import Shadow, Shadows
from imagefs.filesystems.ntfs.layout import AttributeType, parse_boot
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.imaging.used_space.base import Bits, ClusterMap

_BITMAP = 6  # file record


class ShadowedMap(ClusterMap):
    """What a volume or one of its shadow copies uses. Raises FormatError where these can't be opened.

    ``warnings`` tell of shadow copies that are stored elsewhere: what only they use is not known.
    """

    def __init__(self, own: ClusterMap, volume: BlockReader, cluster_size: int) -> None:
        self._own = own
        self._shadows = Shadows(volume, "shadow copies")
        try:
            shadows = self._shadows.shadows
            self._bitmaps = [_bitmap(shadow, cluster_size) for shadow in shadows if shadow.is_here]
        except BaseException:
            self._shadows.close()
            raise
        self.warnings = [
            f"shadow copy {shadow.name} is stored on another volume: what only it uses here is not stored"
            for shadow in shadows
            if not shadow.is_here
        ]

    def used(self, first: int, count: int) -> Bits:
        """Return which clusters are in use; all of them where a shadow copy can't tell."""
        bits = self._own.used(first, count)
        try:
            for bitmap in self._bitmaps:
                length = max(0, min(-(-count // 8), bitmap.size - first // 8))
                raw = np.frombuffer(bitmap.read_at(first // 8, length) if length else b"", np.uint8)
                more = np.unpackbits(raw, bitorder="little")[:count].view(np.bool_)
                bits[: len(more)] |= more
        except FormatError:
            bits[:] = True
        return bits


def _bitmap(shadow: Shadow, cluster_size: int) -> BlockReader:
    boot = parse_boot(shadow.reader.read_at(0, 512))
    mft = MasterFileTable(shadow.reader, boot)
    data = find(mft.attributes(mft.record(_BITMAP)), AttributeType.DATA)
    if not data or boot.cluster_size != cluster_size:
        raise DamagedError(f"{shadow.name}: no map of its clusters")
    return mft.value(data, "$Bitmap")
