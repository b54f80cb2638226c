"""The transmission phase of NBD: requests of one connection, several in flight at once.

There is no thread that only receives. Whichever of the connection's threads is free takes the next request
from the wire, lets the next thread do the same, and answers its own: a request changes threads never.
Threads start when all others are busy.
"""

import errno
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mounters.errors import error_number
from mounters.export import Handle, Run
from mounters.nbd_handshake import Agreement
from mounters.nbd_protocol import CHUNK as CHUNK_RECORD
from mounters.nbd_protocol import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    DATA_CHUNK,
    EINVAL,
    EIO,
    ENOMEM,
    ENOSPC,
    EPERM,
    ERROR_CHUNK,
    ERROR_OFFSET_CHUNK,
    HOLE_CHUNK,
    LARGEST_PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STATE_DATA,
    STATE_HOLE,
    STATUS_CHUNK,
    Chunk,
    Command,
    CommandFlag,
    error_on_the_wire,
)
from mounters.nbd_wire import Buffer, Gone, Input

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20  # of requests in flight on one connection
_PIECE = 4 << 20  # bytes of a read that are read and sent at once
_SMALL_HOLE = 32 << 10  # bytes; a hole up to that size is sent as the zeros that it is
_MOST_DESCRIPTORS = 8192  # of one status reply; a client asks again for what is missing
_LARGEST_RUN = (1 << 32) - 65536  # bytes that one descriptor can tell, on any block's edge

_READ, _WRITE, _DISC, _FLUSH = Command.READ, Command.WRITE, Command.DISC, Command.FLUSH
_ALLOWED_FLAGS: dict[int, int] = {  # plain numbers, for ~ of an IntFlag knows no other bits
    Command.READ: int(CommandFlag.FUA | CommandFlag.DF),
    Command.WRITE: int(CommandFlag.FUA),
    Command.DISC: int(CommandFlag.FUA),
    Command.FLUSH: int(CommandFlag.FUA),
    Command.TRIM: int(CommandFlag.FUA),
    Command.CACHE: int(CommandFlag.FUA),
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE),
    Command.BLOCK_STATUS: int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
_CHANGES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_NEEDS_SPACE = (Command.WRITE, Command.WRITE_ZEROES)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
_DF, _REQ_ONE = int(CommandFlag.DF), int(CommandFlag.REQ_ONE)


class Request(NamedTuple):
    """What a client asks for; ``data`` is what it writes, ``refusal`` an error that is known beforehand."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: memoryview | None
    refusal: int
    held: int  # bytes that it takes of the connection's


class Transmission:
    """Answers one connection's requests; ``run`` returns when the client has left and all threads ended."""

    def __init__(
        self, received: Input, agreement: Agreement, *, threads: int, label: str, cut: Callable[[], None]
    ) -> None:
        """Prepare; ``cut`` ends the connection at once when a reply can't be sent."""
        self._input = received
        self._wire = received.wire
        self._cut = cut
        self._export = agreement.export
        self._handle: Handle = agreement.handle
        self._structured = agreement.structured
        self._context = agreement.context
        self._most_threads = threads
        self._label = label
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._room = threading.Condition()
        self._held = 0  # bytes of requests in flight
        self._busy = 0  # requests in flight
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._broken = False

    def run(self) -> None:
        """Answer until the client leaves, or ``end`` is called and its connection shut."""
        try:
            self._work()
        finally:
            self._ended = True
            for thread in self._threads:  # none is added any more: only who receives adds one
                thread.join()

    def end(self) -> None:
        """Take no more requests; those in flight are answered."""
        self._ended = True

    def _work(self) -> None:
        while True:
            with self._receiving:
                request = None if self._ended else self._receive()
                if request is None:
                    self._ended = True
                    return
                if self._busy > len(self._threads):
                    self._start_thread()
            try:
                self._answer(request)
            except _WireError as error:
                self._ended = True
                log.info("%s: %s", self._label, error)
                self._cut()
            except BaseException:  # a fault of ours: a client that is cut off knows more than one that waits
                self._ended = True
                self._cut()
                raise
            finally:
                with self._room:
                    self._held -= request.held
                    self._busy -= 1
                    self._room.notify()

    def _start_thread(self) -> None:
        if len(self._threads) + 1 >= self._most_threads:
            return
        thread = threading.Thread(target=self._work, name=f"nbd-{self._label}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more of them; those that run do it all
            self._most_threads = len(self._threads) + 1
            return
        self._threads.append(thread)

    # receiving

    def _receive(self) -> Request | None:
        """Return the next request, counted as in flight; None where there will be no more."""
        try:
            fields = REQUEST.unpack(self._input.exactly(REQUEST.size))
            magic, flags, command, cookie, offset, length = fields
            if magic != REQUEST_MAGIC:
                log.warning("%s: a request without its magic number; disconnected", self._label)
                return None
            if command == _DISC:
                return None
            refusal = self._refusal(flags, command, offset, length)
            held = length if command in (_READ, _WRITE) and not refusal else 0
            self._wait_for_room(held)
            data = None
            if command == _WRITE and not refusal:
                try:
                    data = memoryview(bytearray(length))
                except MemoryError:
                    refusal, held = ENOMEM, 0
            if data is not None:
                self._input.into(data)
            elif command == _WRITE:
                self._input.skip(length)
        except Gone as gone:
            if not self._ended:
                log.info("%s: %s", self._label, gone)
            return None
        with self._room:
            self._held += held
            self._busy += 1
        return Request(flags, command, cookie, offset, length, data, refusal, held)

    def _wait_for_room(self, length: int) -> None:
        with self._room:
            while self._held and self._held + length > MOST_BYTES:
                self._room.wait()

    def _refusal(self, flags: int, command: int, offset: int, length: int) -> int:
        """Return the error that a request deserves by itself, 0 for none."""
        allowed = _ALLOWED_FLAGS.get(command)
        if allowed is None or flags & ~allowed:
            return EINVAL
        if command == _FLUSH:
            return 0
        if command in _CHANGES and not self._export.writable:
            return EPERM
        if command in (_READ, _WRITE) and length > LARGEST_PAYLOAD:
            return EINVAL
        if offset + length > self._export.size:
            return ENOSPC if command in _NEEDS_SPACE else EINVAL
        if (offset | length) & (self._export.smallest_block - 1):
            return EINVAL
        if command == Command.BLOCK_STATUS and (self._context is None or not length):
            return EINVAL
        return 0

    # answering

    def _answer(self, request: Request) -> None:
        if request.refusal:
            self._send_error(request, request.refusal)
        elif request.command == _READ:
            self._read(request)
        elif request.command == Command.BLOCK_STATUS:
            self._status(request)
        else:
            self._change(request)

    def _change(self, request: Request) -> None:
        """Do what has no more to tell than whether it was done."""
        flags, command, _, offset, length, data, _, _ = request
        try:
            if command == _WRITE:
                assert data is not None
                if length:
                    self._handle.write(offset, data)
            elif command in _CHANGES and length:
                hole = command == Command.TRIM or not flags & _NO_HOLE
                self._handle.zero(offset, length, hole=hole)
            if command == _FLUSH or (flags & _FUA and command in _CHANGES):
                self._handle.flush()
        except Exception as error:  # any failure of an export is the client's to know; the server goes on
            self._send_error(request, self._failed(request, error))
            return
        self._send([SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)])

    def _read(self, request: Request) -> None:
        if not self._structured:
            self._read_simply(request)
            return
        _, _, cookie, offset, length, _, _, _ = request
        if not length:
            self._send([CHUNK_RECORD.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.NONE, cookie, 0)])
            return
        end, at = offset + length, offset
        gathered: list[Buffer] = []
        try:
            for run in self._pieces(request):
                last = CHUNK_DONE if at + run.length == end else 0
                if run.is_data:
                    data = self._read_exactly(at, run.length)
                    size = run.length + 8
                    gathered += (
                        DATA_CHUNK.pack(CHUNK_MAGIC, last, Chunk.OFFSET_DATA, cookie, size, at),
                        data,
                    )
                else:
                    gathered.append(
                        HOLE_CHUNK.pack(CHUNK_MAGIC, last, Chunk.OFFSET_HOLE, cookie, 12, at, run.length)
                    )
                at += run.length
                if run.is_data or last:
                    self._send(gathered)
                    gathered.clear()
        except _WireError:
            raise
        except Exception as error:  # see _change
            self._send_error(request, self._failed(request, error), at)

    def _read_simply(self, request: Request) -> None:
        """Read before the reply begins: nothing takes back a simple reply's success."""
        try:
            data = self._read_exactly(request.offset, request.length) if request.length else b""
        except Exception as error:  # see _change
            self._send_error(request, self._failed(request, error))
            return
        self._send([SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie), data])

    def _read_exactly(self, offset: int, length: int) -> bytes:
        data = self._handle.read(offset, length)
        if len(data) != length:
            raise OSError(errno.EIO, f"{len(data)} of {length} bytes were read")
        return data

    def _pieces(self, request: Request) -> Iterator[Run]:
        """Yield a read's data, in pieces that are sent as one, and the holes that are worth a chunk."""
        runs = self._checked_runs(request.offset, request.length)
        if request.flags & _DF:
            only = next(runs)
            yield only if only.length == request.length else Run(request.length, True)
            return
        data = 0
        for run in runs:
            if run.is_data or run.length <= _SMALL_HOLE:
                data += run.length
                while data >= _PIECE:
                    yield Run(_PIECE, True)
                    data -= _PIECE
            else:
                if data:
                    yield Run(data, True)
                    data = 0
                yield Run(run.length, False)
        if data:
            yield Run(data, True)

    def _checked_runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the handle's runs, whose sum has to be right: what is missing would be told as nothing."""
        left = length
        runs = iter(self._handle.runs(offset, length))
        for run in runs:
            left -= run.length
            if run.length <= 0 or left < 0 or (not left and next(runs, None) is not None):
                break  # before the last run is told: a reply that is complete takes no error
            yield run
        else:
            if not left:
                return
        raise OSError(errno.EIO, f"the runs of {length} bytes have another length")

    def _status(self, request: Request) -> None:
        try:
            descriptors = self._descriptors(request)
        except Exception as error:  # see _change
            self._send_error(request, self._failed(request, error))
            return
        assert self._context is not None
        body = struct.pack(f">{len(descriptors)}I", *descriptors)
        head = (CHUNK_MAGIC, CHUNK_DONE, Chunk.BLOCK_STATUS, request.cookie, 4 + len(body), self._context)
        self._send([STATUS_CHUNK.pack(*head), body])

    def _descriptors(self, request: Request) -> list[int]:
        """Return lengths and states in turn, of neighbouring ranges from the request's offset on."""
        descriptors: list[int] = []
        for run in self._checked_runs(request.offset, request.length):
            descriptors += (min(run.length, _LARGEST_RUN), STATE_DATA if run.is_data else STATE_HOLE)
            if run.length > _LARGEST_RUN or request.flags & _REQ_ONE:
                break
            if len(descriptors) >= 2 * _MOST_DESCRIPTORS:
                break
        return descriptors

    def _failed(self, request: Request, error: Exception) -> int:
        doing = f"{self._label}: {Command(request.command).name}"
        where = f"of {request.length} bytes at {request.offset} of export {self._export.name!r}"
        return error_on_the_wire(error_number(error, doing, where)) or EIO

    # sending

    def _send_error(self, request: Request, number: int, offset: int | None = None) -> None:
        cookie = request.cookie
        if not self._structured or request.command not in (_READ, Command.BLOCK_STATUS):
            self._send([SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, cookie)])
        elif offset is None:
            self._send([ERROR_CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, 6, number, 0)])
        else:
            head = (CHUNK_MAGIC, CHUNK_DONE, Chunk.ERROR_OFFSET, cookie, 14, number, 0, offset)
            self._send([ERROR_OFFSET_CHUNK.pack(*head)])

    def _send(self, buffers: list[Buffer]) -> None:
        with self._sending:
            if self._broken:
                raise _WireError(errno.EPIPE, "the connection is broken")
            try:
                self._wire.send(buffers)
            except OSError as error:
                self._broken = True  # a reply may be cut off: nothing can follow it
                raise _WireError(errno.EPIPE, str(error)) from None


class _WireError(OSError):
    """A reply can't be sent, as opposed to a handle's errors."""
