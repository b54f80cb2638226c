"""A volume as The Sleuth Kit reads it: its bytes from a BlockReader, no error lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import pytsk3

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError

_CACHE_LENGTH = 65536  # bytes TSK reads at once into its cache (TSK_IMG_INFO_CACHE_LEN)


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
