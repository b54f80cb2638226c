"""The shadow copies that Windows keeps inside an NTFS volume (VSS), read by libvshadow.

Source of the offsets: libvshadow, "Volume Shadow Snapshot (VSS) format". A shadow copy is stored as the
blocks of 16 KiB that have changed since; all others are the volume's as it is now, also where it is free now.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.nested.isolated import Isolated, IsolatedReader

_IDENTIFIER = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")  # 3808876b-c176-4e48-b7ae-04046e6cc752
_HEADER = 0x1E00  # offset in the volume
_CATALOG_BLOCK = 0x4000  # bytes
_ENTRY = 128  # bytes, also of a catalog block's header
_CATALOG_BLOCKS = 1024  # looked at; Windows keeps 512 shadow copies at the most
_STORE = 2  # the type of an entry
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


class Shadow(NamedTuple):
    """A shadow copy: ``name`` is its number, from 1 in the order of the catalog, and the time in UTC."""

    name: str
    reader: BlockReader
    is_here: bool = True  # else it is stored on another volume, and reading it raises UnsupportedError


def has_shadows(volume: BlockReader) -> bool:
    """Whether an NTFS volume has shadow copies; also where that can't be read: who opens them is told why."""
    try:
        return any(
            int.from_bytes(block[at : at + 8], "little") == _STORE
            for block in _catalog(volume)
            for at in range(_ENTRY, len(block), _ENTRY)
        )
    except FormatError:
        return True


def _catalog(volume: BlockReader) -> Iterator[bytes]:
    if volume.size < _HEADER + 512:
        return
    header = volume.read_at(_HEADER, 512)
    if header[:16] != _IDENTIFIER:
        return
    at, seen = int.from_bytes(header[48:56], "little"), 0
    while at:
        if at + _CATALOG_BLOCK > volume.size or seen == _CATALOG_BLOCKS:
            raise DamagedError(f"the catalog of shadow copies goes on at {at}, where it can't be")
        block = volume.read_at(at, _CATALOG_BLOCK)
        if block[:16] != _IDENTIFIER:
            raise DamagedError(f"no catalog of shadow copies at {at}")
        yield block
        at, seen = int.from_bytes(block[40:48], "little"), seen + 1


class Shadows:
    """The shadow copies of a volume; closed by ``close``, which ends the process that reads them.

    A volume with bytes that are not known must be read by what raises for these (``known.KnownBytes``).
    Raises DamagedError where the catalog is damaged.
    """

    def __init__(self, volume: BlockReader, name: str) -> None:
        self._isolated = Isolated("shadows", [volume], name)
        try:
            self.shadows = [self._shadow(number, told) for number, told in enumerate(self._stores())]
        except BaseException:
            self.close()
            raise

    def _stores(self) -> list[tuple[int, int, bool]]:
        try:
            return [
                (int(store["size"]), int(store["created"]), bool(store["is_here"]))
                for store in self._isolated.told["stores"]
            ]
        except (KeyError, TypeError, ValueError):
            raise DamagedError(f"{self._isolated.name}: the catalog of shadow copies can't be read") from None

    def _shadow(self, number: int, told: tuple[int, int, bool]) -> Shadow:
        size, created, is_here = told
        try:
            time = (_EPOCH + timedelta(microseconds=created // 10)).strftime("%Y-%m-%dT%H.%M.%SZ")
        except OverflowError:
            time = "unknown"
        name = f"{number + 1}-{time}"
        if not is_here:
            elsewhere = _Elsewhere(f"{self._isolated.name}: {name} is stored on another volume")
            return Shadow(name, elsewhere, is_here=False)
        return Shadow(name, IsolatedReader(self._isolated, number, max(0, min(size, 1 << 62))))

    def close(self) -> None:
        """End the process."""
        self._isolated.close()


class _Elsewhere(BlockReader):
    """A shadow copy whose bytes are not in the volume."""

    def __init__(self, reason: str) -> None:
        super().__init__(1)
        self._reason = reason

    def _read(self, offset: int, length: int) -> bytes:
        raise UnsupportedError(self._reason)
