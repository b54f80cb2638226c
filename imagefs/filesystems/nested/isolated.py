"""A C library on hostile bytes, in a process of its own: what that does to itself is an error of one volume.

The worker (``worker.py``) has no access to what is read: it asks for it, and the thread that waits for
its answer serves these wishes from the volume's reader. So there is no thread of ours, and what the reader
raises is raised where the volume is read, as it is.
"""

import json
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.base import LeastRecentlyUsed
from imagefs.filesystems.nested import worker
from imagefs.filesystems.nested.process import Worker
from imagefs.filesystems.nested.worker import DATA, ERROR, FAILED, HEADER, JSON, NEED, READ

MEMORY = 2 << 30  # bytes of address space, above what the started process has
PATIENCE = 30.0  # seconds without a word of the worker
LONGEST = 300.0  # seconds of the worker's own time for one answer; keys are tried without a word
_NEED_LIMIT = 1 << 24  # bytes that are asked for at once
_JSON_LIMIT = 1 << 24
_STEP = 1 << 20  # bytes of a volume that are read at once
_BLOCK = 1 << 16  # bytes: what is read for less, and kept
_KEPT = 128


class Isolated:
    """A library's view of some readers. Safe from threads: one request at a time.

    Once the worker has died or hung, everything raises the same DamagedError: it is not started again.
    """

    def __init__(
        self, kind: str, readers: Sequence[BlockReader], name: str, *, keys: Sequence[bytes] = ()
    ) -> None:
        self.name = name
        self._readers = list(readers)
        self._lock = threading.Lock()
        self._problem: DamagedError | None = None
        self._failure: Exception | None = None
        self._received = bytearray()
        self._worker = Worker(MEMORY)
        self.process = self._worker.process
        self._end = weakref.finalize(self, self._worker.end)
        asked = {
            "kind": kind,
            "sizes": [reader.size for reader in readers],
            "keys": [key.hex() for key in keys],
            "memory": MEMORY,
        }
        try:
            self.told = self._told(json.dumps(asked).encode(), LONGEST if keys else PATIENCE)
        except BaseException:
            self.close()
            raise

    def _told(self, asked: bytes, patience: float) -> dict[str, Any]:
        answer = self._request(worker.OPEN, asked, JSON, _JSON_LIMIT, patience)
        try:
            told = json.loads(answer, parse_float=int, parse_constant=int)  # which take neither
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise self._broken("the library that reads it answered nonsense")
        return told

    def read(self, item: int, offset: int, length: int) -> bytes:
        """Return exactly these bytes of an item; raises DamagedError, and what the readers raise."""
        data = self._request(worker.ASK, READ.pack(item, offset, length), DATA, length, PATIENCE)
        if len(data) != length:
            raise DamagedError(f"{self.name}: {len(data)} of {length} bytes could be read at {offset}")
        return data

    def close(self) -> None:
        """End the worker."""
        if self._problem is None:
            self._problem = DamagedError(f"{self.name}: closed")
        self.process.kill()  # whoever waits for an answer waits no longer
        with self._lock:
            self._end()
            self._readers = []

    def _request(self, kind: int, message: bytes, expected: int, limit: int, patience: float) -> bytes:
        with self._lock:
            if self._problem is not None:
                raise self._problem.with_traceback(None)
            try:
                answer, data = self._answer(kind, message, limit, patience)
            except BaseException:  # also Control-C: what the worker says yet would answer the next request
                self._broken("reading it was interrupted")
                raise
            failure, self._failure = self._failure, None
            if failure is not None:
                try:
                    raise failure
                finally:
                    failure = None  # else it and this frame would keep each other, and all that is read below
            if answer == ERROR:
                raise DamagedError(f"{self.name}: {_plain(data)}")
            if answer != expected:
                raise self._broken("the library that reads it answered nonsense")
            return data

    def _answer(self, kind: int, message: bytes, limit: int, patience: float) -> tuple[int, bytes]:
        """Ask for something, serve what the worker needs for it, and return its answer."""
        self._failure = None
        self._send(kind, message)
        left = LONGEST
        while True:
            started = time.monotonic()
            answer, data = self._receive(min(patience, left), max(limit, 4096))
            left -= time.monotonic() - started
            if answer != NEED:
                return answer, data
            self._serve(data)

    def _serve(self, data: bytes) -> None:
        """Give the worker bytes of a reader, or keep why they can't be had."""
        try:
            number, offset, length = READ.unpack_from(data)
            reader = self._readers[number]
        except (ValueError, IndexError, struct.error):
            raise self._broken("the library that reads it asked for nonsense") from None
        if len(data) != READ.size + 1 or length > _NEED_LIMIT or offset + length > reader.size:
            raise self._broken("the library that reads it asked for nonsense")
        try:
            answer = reader.read_at(offset, length)
        except Exception as error:  # whatever it is, it is raised where the answer arrives
            if not data[-1] and self._failure is None:
                self._failure = error
            self._send(FAILED, b"")
        else:
            self._send(DATA, answer)

    def _send(self, kind: int, data: bytes) -> None:
        # A worker that has stopped does not empty its pipe; it is ended then.
        if not self._worker.write(HEADER.pack(len(data), kind) + data, PATIENCE):
            if self._worker.is_late:
                raise self._broken(f"the library that reads it has not gone on for {PATIENCE:.0f} s")
            raise self._broken("the library that reads it ended unexpectedly")

    def _receive(self, patience: float, limit: int) -> tuple[int, bytes]:
        """Return the worker's next message, of at most ``limit`` bytes."""
        deadline = time.monotonic() + patience
        length, kind = HEADER.unpack(self._exactly(HEADER.size, deadline))
        if length > limit:
            raise self._broken("the library that reads it answered nonsense")
        return kind, self._exactly(length, deadline)

    def _exactly(self, length: int, deadline: float) -> bytes:
        received = self._received
        while len(received) < length:
            piece = self._worker.read(max(length - len(received), 1 << 16), deadline - time.monotonic())
            if not piece and self._worker.is_late:
                raise self._broken("the library that reads it has not gone on in time")
            if not piece:
                raise self._broken("the library that reads it ended unexpectedly")
            received += piece
        data = bytes(received[:length])
        del received[:length]
        return data

    def _broken(self, what: str) -> DamagedError:
        """Give the worker up."""
        if self._problem is None:
            self._problem = DamagedError(f"{self.name}: {what}")
        self._end()
        return self._problem


class IsolatedReader(BlockReader):
    """The bytes of one item of an isolated library; raises DamagedError, and what the readers below raise.

    Less than 64 KiB are read with what is around them, which is kept, where all of that can be had.
    """

    def __init__(self, isolated: Isolated, item: int, size: int) -> None:
        super().__init__(size)
        self._isolated = isolated
        self._item = item
        self._kept: LeastRecentlyUsed[int, bytes] = LeastRecentlyUsed(_KEPT)

    def _read(self, offset: int, length: int) -> bytes:
        if length >= _BLOCK:
            steps = range(offset, offset + length, _STEP)
            return _joined([self._directly(at, min(_STEP, offset + length - at)) for at in steps])
        pieces = []
        while length:
            index, inside = divmod(offset, _BLOCK)
            step = min(length, _BLOCK - inside)
            block = self._block(index)
            pieces.append(self._directly(offset, step) if block is None else block[inside : inside + step])
            offset, length = offset + step, length - step
        return _joined(pieces)

    def _block(self, index: int) -> bytes | None:
        """Return a block, None where not all of it can be had."""
        block = self._kept.get(index)
        if block is None:
            at = index * _BLOCK
            try:
                block = self._directly(at, min(_BLOCK, self.size - at))
            except FormatError:
                block = b""
            self._kept.put(index, block)
        return block or None

    def _directly(self, offset: int, length: int) -> bytes:
        return self._isolated.read(self._item, offset, length)


class StoredBytes(BlockReader):
    """A volume's bytes; UnsupportedError where its image has none: zeros would be read as something else."""

    def __init__(self, lower: BlockReader, name: str) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._name = name

    def _read(self, offset: int, length: int) -> bytes:
        for extent in self._lower.extents(offset, length):
            if not extent.is_data:
                raise UnsupportedError(f"{self._name}: the bytes at {extent.offset} are not in the image")
        return self._lower.read_at(offset, length)


def key_text(value: bytes) -> str | None:
    """Return the text of a key file, without the end of its line; None for what is no text."""
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if value.startswith(mark)), "utf-8")
    if encoding == "utf-8" and value[1:2] == b"\0":
        encoding = "utf-16-le"
    try:
        return value.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError:
        return None


def _joined(pieces: Sequence[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _plain(text: bytes) -> str:
    """Return what a library says in one line that a terminal can show."""
    said = text.decode("utf-8", "replace").split("libcerror", maxsplit=1)[0]
    return "".join(letter for letter in said if letter.isprintable())[:300] or "unreadable"
