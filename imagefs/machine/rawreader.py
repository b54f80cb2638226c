"""Reading a raw device or file for an image: past the cache where asked, and to the exact unit that fails."""

import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from formats.blockreader import BlockReader, Extent
from formats.files import read_at, read_into
from imagefs.errors import SourceReadError
from imagefs.machine.raw import AlignedMemory, failing_unit
from imagefs.machine.sparse import allocated

_PAGE = mmap.PAGESIZE
_DIRECT_STEP = 4 << 20  # bytes of the buffer that each reading thread keeps
# What a medium answers for a place that it can't read; other errors hit every place alike.
_LOCAL = {
    getattr(errno, name, errno.EIO)
    for name in ("EIO", "EREMOTEIO", "EILSEQ", "ENODATA", "EBADMSG", "ETIMEDOUT")
}

if sys.platform == "linux":
    import fcntl

    def _pass_cache_by(fd: int, *, on: bool) -> bool:
        """Have reads pass the cache by, or not; False where that can't be. Raises OSError."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        return True

    def _read_ahead(fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

else:

    def _pass_cache_by(fd: int, *, on: bool) -> bool:
        """Return False: only Linux can switch a descriptor."""
        del fd, on
        return False

    def _read_ahead(fd: int) -> None:
        del fd


class RawReader(BlockReader):
    """A device or file as bytes; safe from several threads, closed by ``close``.

    ``fd`` is open for reading and is the reader's from then on. ``unit`` is the physical sector in bytes.
    With ``direct``, reading passes the cache by where the file system can; the attribute ``direct`` tells
    whether it does. Raises SourceReadError that names the first unit that can't be read.
    """

    def __init__(self, fd: int, path: Path, *, unit: int = 512, direct: bool = False) -> None:
        self.path = path
        self.direct = False
        self._fd = fd
        self._memory = AlignedMemory()
        try:
            self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            super().__init__(os.lseek(fd, 0, os.SEEK_END))
            # A buffered read fails by the page, and a file's blocks are its file system's.
            self._unit = max(unit, _PAGE) if self._is_file or not direct else unit
            if direct and self.size:
                self.direct = self._set_direct()
            self._unit = self._unit if self.direct else max(unit, _PAGE)
            _read_ahead(fd)
        except OSError as error:
            os.close(fd)
            raise SourceReadError(error.strerror or str(error), path=path, offset=0, length=0) from error

    def _set_direct(self) -> bool:
        """Pass the cache by; False where it can't be, which some file systems only say when they are read."""
        try:
            if not _pass_cache_by(self._fd, on=True):
                return False
            read_into(self._fd, self._memory.take(self._unit), 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                _pass_cache_by(self._fd, on=False)
                return False
            if error.errno not in _LOCAL:
                raise
        return True  # a first unit that can't be read is found again when it is wanted

    def close(self) -> None:
        """Close the file; reading fails from then on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._read_range(offset, length)
        except OSError as error:
            place, lost = offset, length
            if error.errno in _LOCAL:
                place, lost = failing_unit(offset, length, self._unit, self._fails)
            raise SourceReadError(
                f"{error.strerror or error} at {place}+{lost}", path=self.path, offset=place, length=lost
            ) from error

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            done = 0 if self.direct else read_into(self._fd, buffer, offset)
        except OSError:
            done = 0  # what fails, and where, is found out by reading again
        if done < len(buffer):
            buffer[done:] = self._read(offset + done, len(buffer) - done)

    def _read_range(self, offset: int, length: int) -> bytes:
        """Read a range whole; raises what the operating system does."""
        pieces = []
        end = offset + length
        while offset < end:
            direct = self.direct
            piece = self._read_direct(offset, end) if direct else read_at(self._fd, end - offset, offset)
            if not piece:
                raise SourceReadError(
                    f"ends at {offset}, {self.size} bytes were expected",
                    path=self.path,
                    offset=offset,
                    length=end - offset,
                )
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_direct(self, offset: int, end: int) -> bytes:
        """Read some bytes from ``offset`` on, by whole units into memory that is aligned to them."""
        first = offset - offset % self._unit
        span = min(end + -end % self._unit - first, _DIRECT_STEP)
        buffer = self._memory.take(span)
        got = read_into(self._fd, buffer, first)  # ends short where the device does
        return bytes(buffer[offset - first : min(got, end - first)])

    def _fails(self, start: int, end: int) -> bool:
        try:
            self._read_range(start, end - start)
        except OSError:
            return True
        return False

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield a sparse file's holes; a device has none that could be asked for."""
        end = offset + length
        if not self._is_file:
            yield Extent(offset, length, True)
            return
        try:
            for start, stop in allocated(self._fd, offset, end):  # reads don't use the cursor that this moves
                if offset < start:
                    yield Extent(offset, start - offset, False)
                yield Extent(start, stop - start, True)
                offset = stop
        except OSError as error:
            what = error.strerror or str(error)
            raise SourceReadError(what, path=self.path, offset=offset, length=end - offset) from error
        if offset < end:
            yield Extent(offset, end - offset, False)
