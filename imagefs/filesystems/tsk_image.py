"""A volume as The Sleuth Kit reads it: its bytes from a BlockReader, no error lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import pytsk3

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError

_CACHE_LENGTH = 65536  # bytes TSK reads at once into its cache (TSK_IMG_INFO_CACHE_LEN)
_STEP = 1 << 20  # bytes asked of TSK at once: it holds the lock meanwhile
_HFS_DATA = int(pytsk3.TSK_FS_ATTR_TYPE_HFS_DATA)
_DATA_TYPES = {
    int(pytsk3.TSK_FS_ATTR_TYPE_DEFAULT),
    _HFS_DATA,
    int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA),
}


class TskImage(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    """A BlockReader as a TSK image.

    TSK may swallow a failed read and go on with a shorter result, so the first failure is kept and
    raised again by ``calls``, which also holds the lock: TSK's structures are used by one thread at
    a time. TSK first reads 64 KiB into its cache; when that fails it asks for just the bytes it
    needs, and only a failure of these counts.
    """

    def __init__(self, reader: BlockReader, sector_size: int) -> None:
        self._reader = reader
        self._failure: BaseException | None = None
        self._is_retry = False
        self._lock = RLock()
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL, sector_size=sector_size)

    @contextmanager
    def calls(self, what: str) -> Iterator[None]:
        """Hold the lock around calls of TSK; its errors become DamagedError, the reader's stay."""
        with self._lock:
            self._failure = None
            self._is_retry = False
            try:
                yield
            except (OSError, RuntimeError) as error:
                if self._failure is None:
                    reason = str(error).splitlines()[0] if str(error) else "unreadable"
                    raise DamagedError(f"{what}: {reason}") from error
            finally:
                failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes; called by TSK."""
        size = self._reader.size
        length = min(length, size - offset)
        if offset < 0 or length <= 0:
            return b""
        is_retry, self._is_retry = self._is_retry, False
        try:
            return self._reader.read_at(offset, length)
        except FormatError as error:
            fills_cache = offset % 512 == 0 and (length == _CACHE_LENGTH or offset + length == size)
            if fills_cache and length <= _CACHE_LENGTH and not is_retry:
                self._is_retry = True
                return b""  # TSK asks again, without its cache
            if self._failure is None:
                self._failure = error
            raise
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise

    def get_size(self) -> int:
        """Return the bytes of the volume; called by TSK."""
        return self._reader.size

    def close(self) -> None:
        """Do nothing: the reader belongs to who opened it."""


class TskFile(BlockReader):
    """A file's data as TSK reads it, under its lock: what is kept inside metadata, or compressed."""

    def __init__(self, image: TskImage, fs: Any, inode: int, size: int, name: str) -> None:
        super().__init__(size)
        self._image = image
        self._fs = fs  # the node below lives no longer than it
        self._name = name
        with image.calls(name):
            self._node = fs.open_meta(inode)
            data = data_attribute(self._node)
            stored = None if data is None else int(data.info.size)
            if data is not None:
                self._type, self._id = int(data.info.type), int(data.info.id)
        if stored != size:
            raise DamagedError(f"{name}: {size} bytes, {stored} according to its data")

    def _read(self, offset: int, length: int) -> bytes:
        pieces = [
            self._read_step(at, min(_STEP, offset + length - at))
            for at in range(offset, offset + length, _STEP)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_step(self, offset: int, length: int) -> bytes:
        with self._image.calls(f"{self._name} at {offset}+{length}"):
            data: bytes = self._node.read_random(offset, length, self._type, self._id)
        if len(data) != length:
            raise DamagedError(f"{self._name}: {len(data)} of {length} bytes could be read at {offset}")
        return data


def data_attribute(node: Any) -> Any | None:
    """Return the data attribute of a TSK file that is its content, None where it has none."""
    found = None
    for attribute in node:
        kind, name = int(attribute.info.type), attribute.info.name
        if kind == _HFS_DATA and name in (b"DATA", b"DECOMP"):
            return attribute  # an HFS+ file's compressed data; the unnamed one beside it is empty
        if kind in _DATA_TYPES and not name and found is None:
            found = attribute
    return found
