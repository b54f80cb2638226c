"""A disk of an image that can be written to: what is written goes into a file beside it.

The image's own bytes are never written. OVERLAY.md describes the file.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from formats.blockreader import BlockReader
from formats.errors import DamagedError
from formats.files import lock_file, open_file, read_at, sync, sync_folder, truncate, write_many
from imagefs.errors import RefusedError, TargetWriteError
from imagefs.machine.sparse import allocated, make_sparse, punch_hole
from imagefs.serving.overlay_layout import (
    BASE,
    BLOCK_SIZE,
    DATA,
    HEADER_SIZE,
    ZERO,
    Owner,
    block_count,
    build_header,
    data_offset,
    parse_header,
)
from mounters.export import Run

_PAGE = 4096  # bytes of the map that are written together
_SPAN = 1 << 20  # blocks whose states are looked at together
_ZEROS = bytes(1 << 20)

_States = npt.NDArray[np.uint8]


class Overlay:
    """One disk with what was written to it. Safe from several threads; used in ``with`` or closed.

    Offsets and lengths are bytes of the disk. What ``flush`` has returned for survives anything; of what was
    written since, each block is as before or as written. Input and output errors are OSErrors; a flush that
    failed is final, since nobody knows what of it is on the medium.
    """

    def __init__(self, path: Path, owner: Owner, base: BlockReader) -> None:
        """Open the overlay of a disk, or begin it where ``path`` is not there or empty.

        Raises RefusedError for what is no overlay, another disk's, or in use; DamagedError and
        UnsupportedError for one that can't be understood; TargetWriteError where it can't be written.
        """
        if base.size != owner.size:
            raise ValueError(f"a base of {base.size} bytes can't be a disk of {owner.size}")
        self.path = path
        self.size = owner.size
        self._base = base
        self._data = data_offset(owner.size)
        self._map: _States = np.zeros(block_count(owner.size), np.uint8)
        self._dirty: set[int] = set()  # pages of the map
        self._written = False  # since the last flush
        self._failed = False
        self._lock = threading.Lock()  # held by who writes
        self._flushing = threading.Lock()
        try:
            self._fd = open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise TargetWriteError(error.strerror or str(error), path=path) from error
        try:
            self._begin(owner)
        except OSError as error:
            os.close(self._fd)
            raise TargetWriteError(error.strerror or str(error), path=path) from error
        except BaseException:
            os.close(self._fd)
            raise

    # --- Opening ---

    def _begin(self, owner: Owner) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("is no regular file", path=self.path)
        self._take()
        end = self._data + owner.size
        size = os.fstat(self._fd).st_size  # now that nobody else writes
        if not size:
            _write_all(self._fd, [memoryview(build_header(owner))], 0)
            sync(self._fd)
            with suppress(OSError):  # some file systems know no such thing
                sync_folder(self.path.absolute().parent)
            size = HEADER_SIZE
        else:
            found = parse_header(read_at(self._fd, HEADER_SIZE, 0), self.path)
            if found != owner:
                raise RefusedError(
                    f"the overlay belongs to {found}, not to {owner}",
                    path=self.path,
                    hint="each disk of each point needs an overlay of its own",
                )
        if size == HEADER_SIZE:  # new, or its beginning was interrupted: nothing was written to it
            make_sparse(self._fd)
            truncate(self._fd, end)
            sync(self._fd)
        elif size != end:
            raise DamagedError(f"the overlay has {size} bytes, {end} are needed", path=self.path)
        else:
            self._load()

    def _take(self) -> None:
        try:
            lock_file(self._fd)
        except BlockingIOError:
            raise RefusedError("the overlay is in use by another process", path=self.path) from None
        except OSError as error:
            raise RefusedError(
                f"it can't be made sure that nobody else uses the overlay: {error.strerror}",
                path=self.path,
                hint="put it on a file system that has locks",
            ) from error

    def _load(self) -> None:
        """Read the map, where it is not a hole."""
        for start, stop in allocated(self._fd, HEADER_SIZE, HEADER_SIZE + len(self._map)):
            for offset in range(start, stop, _SPAN):
                part = np.frombuffer(self._pread(offset, min(_SPAN, stop - offset)), np.uint8)
                self._map[offset - HEADER_SIZE : offset - HEADER_SIZE + len(part)] = part
                if part.max() > ZERO:
                    raise DamagedError("the overlay's map is damaged: there is no such state", path=self.path)

    # --- Reading ---

    def read(self, offset: int, length: int, base: Callable[[int, int], bytes]) -> bytes:
        """Return bytes as they are now; ``base`` reads those that were never written."""
        first, behind = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        states = self._map[first:behind].copy()  # of one moment, whoever writes meanwhile
        if not states.any():
            return base(offset, length)
        end, pieces = offset + length, []
        for state, start, stop in _runs(states):
            at, to = max(offset, (first + start) * BLOCK_SIZE), min(end, (first + stop) * BLOCK_SIZE)
            if state == BASE:
                pieces.append(base(at, to - at))
            elif state == DATA:
                pieces.append(self._pread(self._data + at, to - at))
            else:
                pieces.append(bytes(to - at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the data and holes of a range: what was written or zeroed here, and else the image's."""
        current: Run | None = None
        for run in self._all_runs(offset, offset + length):
            if current is None or current.is_data == run.is_data:
                current = Run(run.length + (current.length if current else 0), run.is_data)
            else:
                yield current
                current = run
        if current is not None:
            yield current

    def _all_runs(self, offset: int, end: int) -> Iterator[Run]:
        while offset < end:
            first = offset // BLOCK_SIZE
            behind = min(-(-end // BLOCK_SIZE), first + _SPAN)
            for state, start, stop in _runs(self._map[first:behind].copy()):
                at, to = max(offset, (first + start) * BLOCK_SIZE), min(end, (first + stop) * BLOCK_SIZE)
                if state == BASE:
                    yield from (Run(ext.length, ext.is_data) for ext in self._base.extents(at, to - at))
                else:
                    yield Run(to - at, state == DATA)
            offset = min(end, behind * BLOCK_SIZE)

    def _pread(self, offset: int, length: int) -> bytes:
        data = read_at(self._fd, length, offset)
        while len(data) < length:
            more = read_at(self._fd, length - len(data), offset + len(data))
            if not more:
                raise DamagedError(f"the overlay was cut off at {offset + len(data)}", path=self.path)
            data += more
        return data

    # --- Writing ---

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at any offset; a block that was never written is completed from the image."""
        view = memoryview(data).cast("B")
        if view:
            with self._writing():
                self._write(offset, view)

    def zero(self, offset: int, length: int, *, hole: bool) -> None:
        """Make a range zeros: as a hole, or with its space taken up."""
        end = offset + length
        if not hole:
            for at in range(offset, end, len(_ZEROS)):
                self.write(at, memoryview(_ZEROS)[: min(len(_ZEROS), end - at)])
            return
        first = -(-offset // BLOCK_SIZE)
        behind = len(self._map) if end == self.size else end // BLOCK_SIZE
        with self._writing():
            if first >= behind:
                self._write_zeros(offset, end)
                return
            self._write_zeros(offset, first * BLOCK_SIZE)
            for at in range(first, behind, _SPAN):
                self._make_zero(at, min(behind, at + _SPAN))
            self._write_zeros(behind * BLOCK_SIZE, end)

    def flush(self) -> None:
        """Put everything that was written so far on stable storage: the data, and then the map."""
        with self._flushing:
            with self._lock:
                self._check()
                if not self._written:
                    return
                pages = {page: self._map[page * _PAGE : (page + 1) * _PAGE].tobytes() for page in self._dirty}
                self._dirty.clear()
                self._written = False
            try:
                sync(self._fd)
                for page in sorted(pages):
                    _write_all(self._fd, [memoryview(pages[page])], HEADER_SIZE + page * _PAGE)
                if pages:
                    sync(self._fd)
            except OSError:
                self._failed = True
                raise

    def close(self) -> None:
        """Flush and release the file; raises TargetWriteError where that fails."""
        if self._fd < 0:
            return
        try:
            self.flush()
        except OSError as error:
            raise TargetWriteError(error.strerror or str(error), path=self.path) from error
        finally:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "an earlier flush failed", str(self.path))

    def _writing(self) -> "_Writing":
        return _Writing(self)

    def _write(self, offset: int, view: memoryview) -> None:
        """Write bytes; the blocks at their edges are completed where they are not here yet."""
        end = offset + len(view)
        start = offset - offset % BLOCK_SIZE
        stop = min(end + -end % BLOCK_SIZE, self.size)
        before = self._missing(start, offset)
        behind = self._missing(end, stop)
        _write_all(self._fd, [before, view, behind], self._data + offset - len(before))
        self._set(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE), DATA)

    def _missing(self, start: int, stop: int) -> memoryview:
        """Return the bytes of a part of a block that must be written for it to be whole."""
        state = self._map[start // BLOCK_SIZE] if start < stop else DATA
        if state == DATA:
            return memoryview(b"")
        return memoryview(self._base.read_at(start, stop - start) if state == BASE else bytes(stop - start))

    def _write_zeros(self, start: int, stop: int) -> None:
        """Make a part of one block zeros, where it is not zeros already."""
        state = self._map[start // BLOCK_SIZE] if start < stop else ZERO
        if state == BASE and not any(part.is_data for part in self._base.extents(start, stop - start)):
            return
        if state != ZERO:
            self._write(start, memoryview(bytes(stop - start)))

    def _make_zero(self, first: int, behind: int) -> None:
        """Make whole blocks zeros; those that are holes of the image stay so, and cost nothing."""
        states = self._map[first:behind]
        here = states == DATA
        wanted = here.copy()
        low, high = first * BLOCK_SIZE, min(behind * BLOCK_SIZE, self.size)
        for extent in self._base.extents(low, high - low):
            if extent.is_data:
                a, b = extent.offset // BLOCK_SIZE, -(-extent.end // BLOCK_SIZE)
                wanted[a - first : b - first] = True
        for state, start, stop in _runs(wanted.view(np.uint8)):
            if state:
                self._set(first + start, first + stop, ZERO)
        for state, start, stop in _runs(here.view(np.uint8)):
            if state:
                at = (first + start) * BLOCK_SIZE
                punch_hole(self._fd, self._data + at, (stop - start) * BLOCK_SIZE)

    def _set(self, first: int, behind: int, state: int) -> None:
        self._map[first:behind] = state
        self._dirty.update(range(first // _PAGE, -(-behind // _PAGE)))


class _Writing:
    """Keeps other writers out, and notes that there is something to flush."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def __enter__(self) -> None:
        self._overlay._lock.acquire()
        try:
            self._overlay._check()
        except BaseException:
            self._overlay._lock.release()
            raise
        self._overlay._written = True

    def __exit__(self, *_: object) -> None:
        self._overlay._lock.release()


def _runs(states: _States) -> Iterator[tuple[int, int, int]]:
    """Yield (state, first, behind the last) of neighbouring blocks of one state."""
    edges = [0, *(np.flatnonzero(states[1:] != states[:-1]) + 1).tolist(), len(states)]
    for start, stop in pairwise(edges):
        yield int(states[start]), start, stop


def _write_all(fd: int, pieces: list[memoryview], position: int) -> None:
    """Write pieces one behind the other, however many calls that takes."""
    pieces = [piece for piece in pieces if piece]
    while pieces:
        written = write_many(fd, pieces, position)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        position += written
        while pieces and written >= len(pieces[0]):
            written -= len(pieces.pop(0))
        if written:
            pieces[0] = pieces[0][written:]
