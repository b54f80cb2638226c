"""Decoding ahead of sequential readers.

Decoding a block costs a hash and a decompression, both of which release the interpreter's lock: a reader
that goes through a file has what comes next decoded on all cores while it digests what it has.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from formats.blockreader import BlockReader
from mounters.tree import Handle

_STEP = 512 * 1024  # bytes that one worker decodes at a time
_WINDOW = 8 * 1024 * 1024  # bytes kept decoded ahead of the reader
_SLACK = 2 * 1024 * 1024  # how far out of order a kernel's parallel requests may come


@cache
def workers() -> ThreadPoolExecutor:
    """Return the threads that decode, one for each core, shared by all handles of the process."""
    return ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="decode")


class ReadAheadHandle(Handle):
    """An opened file whose sequential readers find their data decoded."""

    def __init__(self, reader: BlockReader) -> None:
        self.size = reader.size
        self._reader = reader
        self._lock = threading.Lock()
        self._position = 0  # the furthest byte read in sequence
        self._ahead = 0  # what lies before it is asked for
        self._started = False
        self._pending: set[Future[None]] = set()

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer only at the end of the file."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        self._plan(offset, length)
        return self._reader.read_at(offset, length)

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """Return what ``read`` would if it is decoded, else None."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        data = self._reader.read_cached(offset, length)
        if data is not None:
            self._plan(offset, length)
        return data

    def close(self) -> None:
        """Give up what is still to be decoded."""
        with self._lock:
            for future in self._pending:
                future.cancel()
            self._pending.clear()

    def _plan(self, offset: int, length: int) -> None:
        """Have decoded what a sequential reader will want after this read."""
        with self._lock:
            if not self._position - _SLACK <= offset <= self._position + _SLACK:
                self._position = self._ahead = offset + length
                self._started = False
                return
            self._position = max(self._position, offset + length)
            if not self._started:
                # The second read in a row starts it: opening a file to look at its head costs nothing.
                self._started = offset > 0
                self._ahead = self._position
                if not self._started:
                    return
            goal = min(self._position + _WINDOW, self.size)
            while self._ahead < goal:
                step = min(_STEP, self.size - self._ahead)
                future = workers().submit(self._decode, self._ahead, step)
                self._pending.add(future)
                future.add_done_callback(self._pending.discard)
                self._ahead += step

    def _decode(self, offset: int, length: int) -> None:
        with suppress(Exception):  # whoever reads there meets it again and is told
            self._reader.prefetch(offset, length)
