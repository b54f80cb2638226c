"""An NBD client of a few lines, that says exactly what a test wants; written from the specification.

It shares nothing with the server: every number here is the specification's.
"""

import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

from mounters.nbd_server import Address

ACK, SERVER, INFO, CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN = (2**31 + n for n in range(1, 7))
ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG = 2**31 + 8, 2**31 + 9
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16


class Chunk(NamedTuple):
    type: int
    offset: int
    data: bytes  # what stands behind the offset, or all of it


class Answer(NamedTuple):
    error: int
    chunks: list[Chunk]  # of a structured reply
    structured: bool

    def content(self, offset: int, length: int) -> bytes:
        """Return what a read's chunks say, each byte told once."""
        assert self.error == 0
        content, told = bytearray(length), 0
        for chunk in self.chunks:
            at = chunk.offset - offset
            if chunk.type == 1:
                content[at : at + len(chunk.data)] = chunk.data
                told += len(chunk.data)
            elif chunk.type == 2:
                told += struct.unpack(">I", chunk.data)[0]
        assert told == length
        return bytes(content)


def connect(address: Address, timeout: float = 20.0) -> socket.socket:
    if address.path:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(address.path)
        return connection
    return socket.create_connection((address.host, address.port), timeout)


class Client:
    def __init__(self, address: Address, *, flags: int | None = 3) -> None:
        self.socket = connect(address)
        self.structured = False
        self.size = 0
        self.flags = 0
        magic, option_magic, self.server_flags = struct.unpack(">8s8sH", self.receive(18))
        assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT")
        if flags is not None:
            self.socket.sendall(struct.pack(">I", flags))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self, length: int) -> bytes:
        parts = []
        while length:
            part = self.socket.recv(min(length, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def at_end(self) -> bool:
        """Tell whether the server has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    # handshake

    def send_option(self, option: int, data: bytes = b"") -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)

    def reply(self, option: int) -> tuple[int, bytes]:
        magic, of, kind, length = struct.unpack(">QIII", self.receive(20))
        assert (magic, of) == (0x3E889045565A9, option)
        return kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option, and return all replies up to the one that is final."""
        self.send_option(option, data)
        replies = [self.reply(option)]
        while replies[-1][0] in (SERVER, INFO, CONTEXT):
            replies.append(self.reply(option))
        return replies

    def only(self, option: int, data: bytes = b"") -> int:
        """Send an option that has one reply, and return its type."""
        ((kind, _),) = self.option(option, data)
        return kind

    def go(self, name: str = "", infos: Sequence[int] = (), option: int = 7) -> list[tuple[int, bytes]]:
        data = text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)
        replies = self.option(option, data)
        for kind, body in replies:
            if kind == INFO and body[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", body[2:])
        return replies

    def ready(self, name: str = "", *, structured: bool = True, status: bool = True) -> Self:
        if structured:
            assert self.only(8) == ACK
            self.structured = True
            if status:
                assert [kind for kind, _ in self.option(10, queries(name, "base:allocation"))] == [
                    CONTEXT,
                    ACK,
                ]
        assert self.go(name)[-1][0] == ACK
        return self

    # transmission

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        cookie: int = 7,
        data: bytes = b"",
    ) -> None:
        head = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
        self.socket.sendall(head + data)

    def answer(self, *, read: int | None = None, cookie: int = 7) -> Answer:
        """Receive a whole reply; ``read`` is the length of the data of a simple one that succeeds."""
        chunks: list[Chunk] = []
        error = 0
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                assert not chunks
                error, of = struct.unpack(">IQ", self.receive(12))
                assert of == cookie
                data = self.receive(read) if read and not error else b""
                return Answer(error, [Chunk(0, 0, data)], False)
            assert magic == 0x668E33EF
            assert self.structured
            flags, kind, of, length = struct.unpack(">HHQI", self.receive(16))
            assert of == cookie
            body = self.receive(length)
            if kind & 1 << 15:
                error = struct.unpack(">I", body[:4])[0]
            elif kind in (1, 2):
                chunks.append(Chunk(kind, struct.unpack(">Q", body[:8])[0], body[8:]))
            else:
                chunks.append(Chunk(kind, 0, body))
            if flags & 1:
                return Answer(error, chunks, True)

    def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Answer:
        self.request(command, offset, length, flags=flags, data=data)
        return self.answer(read=length if command == READ else None)

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        answer = self.ask(STATUS, offset, length, flags=flags)
        assert answer.error == 0
        (chunk,) = answer.chunks
        assert chunk.type == 5
        return list(struct.iter_unpack(">II", chunk.data[4:]))


def text(value: str) -> bytes:
    return struct.pack(">I", len(value.encode())) + value.encode()


def queries(name: str, *asked: str) -> bytes:
    return text(name) + struct.pack(">I", len(asked)) + b"".join(map(text, asked))
