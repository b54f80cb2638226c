"""Decoding ahead of sequential readers.

Decoding a block costs a hash and a decompression, both of which release the interpreter's lock: a reader
that goes through a file has what comes next decoded on all cores while it digests what it has.
"""

import os
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from functools import cache

from formats.blockreader import BlockReader
from formats.errors import ReportedError
from mounters.tree import Handle

_CHUNK = 1 << 20  # bytes that one worker decodes at a time: the kernel's largest request
_WINDOW = 8  # chunks kept decoded ahead of the reader
_START = 256 * 1024  # bytes read in sequence before anything is decoded ahead
_SLACK = 4 << 20  # how far out of order a kernel's parallel requests may come


@cache
def workers() -> ThreadPoolExecutor:
    """Return the threads that decode, one for each core, shared by all handles of the process."""
    return ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="decode")


class ReadAheadHandle(Handle):
    """An opened file whose sequential readers find their data decoded, up to 12 MiB of it."""

    def __init__(self, reader: BlockReader) -> None:
        self.size = reader.size
        self._reader = reader
        self._lock = threading.Lock()
        self._end = 0  # behind the furthest byte read in sequence
        self._run = 0  # bytes read in sequence
        self._chunks: dict[int, Future[bytes]] = {}  # by number; decoded, or being decoded

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer only at the end of the file."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        chunks = self._plan(offset, length)
        if not chunks:
            return self._reader.read_at(offset, length)
        try:
            return _cut([chunk.result() for chunk in chunks], offset, length)
        except (ReportedError, CancelledError):
            # What is damaged may lie beside what was asked for.
            return self._reader.read_at(offset, length)

    def next_data(self, offset: int) -> int | None:
        """Return where the first data at or behind ``offset`` starts; None: only holes follow."""
        return self._first(offset, is_data=True)

    def next_hole(self, offset: int) -> int:
        """Return where the first hole at or behind ``offset`` starts; the end counts as one."""
        found = self._first(offset, is_data=False)
        return self.size if found is None else found

    def _first(self, offset: int, *, is_data: bool) -> int | None:
        if offset >= self.size:
            return None
        extents = self._reader.extents(offset, self.size - offset)
        return next((extent.offset for extent in extents if extent.is_data is is_data), None)

    def close(self) -> None:
        """Give up what is still to be decoded, and wait for what is being: the image may be closed next."""
        with self._lock:
            chunks = list(self._chunks.values())
            self._chunks.clear()
        wait([chunk for chunk in chunks if not chunk.cancel()])

    def _here(self, offset: int, length: int) -> list[Future[bytes]]:
        """Return the chunks of a range, none when one of them is not asked for yet."""
        numbers = range(offset // _CHUNK, (offset + length - 1) // _CHUNK + 1)
        chunks = [self._chunks.get(number) for number in numbers]
        return [] if None in chunks else [chunk for chunk in chunks if chunk is not None]

    def _plan(self, offset: int, length: int) -> list[Future[bytes]]:
        """Have decoded what a sequential reader wants next; return the chunks of its range, if any."""
        with self._lock:
            if abs(offset - self._end) > _SLACK:
                self._run = 0
                self._end = offset
            self._run += length
            self._end = max(self._end, offset + length)
            if self._run > _START and self.size > _CHUNK:
                first = offset // _CHUNK
                last = min(self._end // _CHUNK + _WINDOW, (self.size - 1) // _CHUNK)
                for number in range(first, last + 1):
                    if number not in self._chunks:
                        self._chunks[number] = workers().submit(self._decode, number)
            chunks = self._here(offset, length)
            for number in [number for number in self._chunks if (number + 1) * _CHUNK <= self._end - _SLACK]:
                if self._chunks[number].cancel() or self._chunks[number].done():
                    del self._chunks[number]
            return chunks

    def _decode(self, number: int) -> bytes:
        offset = number * _CHUNK
        return self._reader.read_at(offset, min(_CHUNK, self.size - offset))


def _cut(chunks: list[bytes], offset: int, length: int) -> bytes:
    """Return a range of neighbouring chunks, the first of which holds its start."""
    start = offset % _CHUNK
    if len(chunks) == 1:
        chunk = chunks[0]
        return chunk if length == len(chunk) else chunk[start : start + length]
    return b"".join(chunks)[start : start + length]
