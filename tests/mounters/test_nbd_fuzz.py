"""Clients that break the protocol in every way that seeded chance finds; the server goes on as before."""

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fixtures.tools import run
from mounters.nbd_server import Address, NbdServer
from mounters.tls_psk import PskCredentials
from tests.mounters import nbd_client as nbd
from tests.mounters.nbd_client import Client, connect, queries, text
from tests.mounters.nbd_memory import MemoryExport
from tests.mounters.nbd_serving import PATIENCE, serving, sparse_content

CONTENT = sparse_content(1 << 20, 3)
ROUNDS = 250
EDGES = (
    0,
    1,
    2,
    27,
    255,
    512,
    4096,
    65535,
    65536,
    1 << 20,
    1 << 25,
    (1 << 25) + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def exports() -> list[MemoryExport]:
    return [
        MemoryExport("d", CONTENT, description="a disk"),
        MemoryExport("w", bytearray(CONTENT), writable=True),
        MemoryExport("s", CONTENT, smallest_block=512),
    ]


@contextmanager
def judged(server: NbdServer) -> Iterator[None]:
    """Find the server as it was, whatever was done to it."""
    yield
    with Client(server.address).ready("d") as client:
        assert client.ask(nbd.READ, 0, len(CONTENT)).content(0, len(CONTENT)) == CONTENT
    assert int(run("nbdinfo", "--size", server.address.uri("d"))) == len(CONTENT)


def mangled(maker: random.Random, data: bytes) -> bytes:
    """Return data with something wrong: bits, length, order."""
    changed = bytearray(data)
    for _ in range(maker.randint(0, 3)):
        match maker.randrange(5):
            case 0 if changed:
                changed[maker.randrange(len(changed))] ^= 1 << maker.randrange(8)
            case 1:
                del changed[maker.randint(0, len(changed)) :]
            case 2:
                at = maker.randint(0, len(changed))
                changed[at:at] = maker.randbytes(maker.randint(1, 40))
            case 3 if len(changed) >= 4:
                at = maker.randrange(len(changed) - 3)
                changed[at : at + 4] = struct.pack(">I", maker.choice(EDGES))
            case _:
                changed += changed[: maker.randint(0, len(changed))]
    return bytes(changed)


def option(maker: random.Random) -> bytes:
    name = maker.choice(("", "d", "w", "s", "x"))
    data = maker.choice(
        (
            b"",
            text(name) + struct.pack(">HH", 1, maker.randrange(5)),
            queries(name, maker.choice(("base:", "base:allocation", "", "x"))),
            name.encode(),
            maker.randbytes(maker.randint(0, 200)),
        )
    )
    number = maker.choice((1, 2, 3, 5, 6, 7, 8, 8, 9, 10, 10, maker.randrange(1 << 32)))
    length = len(data) if maker.random() < 0.9 else maker.choice(EDGES)
    return b"IHAVEOPT" + struct.pack(">II", number, length) + data


def request(maker: random.Random) -> bytes:
    command = maker.choice((0, 0, 0, 1, 1, 3, 4, 5, 6, 7, 7, 2, 8, maker.randrange(1 << 16)))
    length = maker.choice((*EDGES, maker.randrange(1 << 20)))
    offset = maker.choice((0, len(CONTENT) - 1, 2**63, 2**64 - 1, maker.randrange(len(CONTENT))))
    flags = maker.choice((0, 0, 1, 2, 4, 8, 16, maker.randrange(1 << 16)))
    magic = 0x25609513 if maker.random() < 0.97 else maker.randrange(1 << 32)
    data = bytes(min(length, 1 << 16)) if command == 1 else b""
    return struct.pack(">IHHQQI", magic, flags, command, 9, offset, length) + data


def let_go(maker: random.Random, connection: socket.socket) -> None:
    """Leave in one of the ways there are: at once, with a reset, after what comes."""
    match maker.randrange(3):
        case 0:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        case 1:
            connection.settimeout(0.02)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
    connection.close()


def send(connection: socket.socket, data: bytes) -> None:
    connection.settimeout(0.2)  # the server may rightly read no more, while we read no replies
    with suppress(OSError):
        connection.sendall(data)


@pytest.fixture(params=["unix", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServer]:
    address = Address(path=str(tmp_path / "s")) if request.param == "unix" else Address("127.0.0.1", 0)
    with serving(exports(), address, default="d") as server:
        yield server


def test_handshakes_of_any_kind(server: NbdServer) -> None:
    maker = random.Random(11)
    with judged(server):
        for _ in range(ROUNDS):
            connection = connect(server.address)
            flags = struct.pack(">I", maker.choice((3, 3, 3, 3, 1, 0, maker.randrange(1 << 32))))
            options = b"".join(option(maker) for _ in range(maker.randint(0, 6)))
            send(connection, mangled(maker, flags + options) if maker.random() < 0.6 else flags + options)
            let_go(maker, connection)


def test_requests_of_any_kind(server: NbdServer) -> None:
    maker = random.Random(12)
    with judged(server):
        for _ in range(ROUNDS):
            structured = maker.random() < 0.7
            client = Client(server.address).ready(maker.choice("dws"), structured=structured)
            data = b"".join(request(maker) for _ in range(maker.randint(1, 8)))
            send(client.socket, mangled(maker, data) if maker.random() < 0.5 else data)
            let_go(maker, client.socket)


def test_noise(server: NbdServer) -> None:
    maker = random.Random(13)
    with judged(server):
        for _ in range(ROUNDS):
            connection = connect(server.address)
            send(connection, maker.randbytes(maker.choice((1, 4, 30, 5000))))
            let_go(maker, connection)


def test_clients_that_vanish_in_the_middle(server: NbdServer) -> None:
    with judged(server):
        for cut in (1, 20, 27, 28, 100, 28 + 65535):
            client = Client(server.address).ready("w")
            request = struct.pack(">IHHQQI", 0x25609513, 0, nbd.WRITE, 1, 0, 65536) + b"\xaa" * 65536
            send(client.socket, request[:cut])
            client.socket.close()
        client = Client(server.address).ready("w")
        assert client.ask(nbd.READ, 0, 65536).content(0, 65536) == CONTENT[:65536]  # half a write is none
        client.socket.close()


def test_clients_that_never_read(server: NbdServer) -> None:
    clients = []
    try:
        with judged(server):
            for _ in range(5):
                client = Client(server.address).ready("d", structured=False)
                clients.append(client)
                head = struct.pack(">IHHQQI", 0x25609513, 0, nbd.READ, 1, 0, len(CONTENT))
                send(client.socket, head * 500)
    finally:
        for client in clients:
            client.socket.close()


def test_noise_around_starttls(tmp_path: Path) -> None:
    run("psktool", "-u", "alice", "-p", tmp_path / "keys")
    credentials = PskCredentials(tmp_path / "keys")
    maker = random.Random(14)
    hello = bytes.fromhex("160301007a010000760303") + os.urandom(100)
    try:
        with serving(exports(), Address(path=str(tmp_path / "s")), default="d", tls=credentials) as server:
            for _ in range(ROUNDS):
                connection = connect(server.address)
                options = b"".join(option(maker) for _ in range(maker.randint(0, 2)))
                start = b"IHAVEOPT" + struct.pack(">II", 5, 0)
                send(connection, b"\0\0\0\3" + options + start)
                if maker.random() < 0.7:
                    with suppress(OSError):
                        connection.recv(1 << 16)
                send(connection, mangled(maker, maker.choice((hello, option(maker), start, b""))))
                let_go(maker, connection)
            uri = server.address.uri(tls=True).replace("://", "://alice@")
            found = run("nbdinfo", "--size", f"{uri}&tls-psk-file={tmp_path / 'keys'}")
            assert int(found) == len(CONTENT)
    finally:
        credentials.close()


def test_all_of_it_at_once(server: NbdServer) -> None:
    failures = []

    def work(seed: int) -> None:
        maker = random.Random(seed)
        try:
            for _ in range(15):
                if maker.random() < 0.3:
                    with Client(server.address).ready("d") as good:
                        offset = maker.randrange(len(CONTENT) - 70_000)
                        answer = good.ask(nbd.READ, offset, 70_000)
                        assert answer.content(offset, 70_000) == CONTENT[offset : offset + 70_000]
                    continue
                client = Client(server.address).ready("d")
                send(client.socket, b"".join(request(maker) for _ in range(5)))
                let_go(maker, client.socket)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    with judged(server):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []
