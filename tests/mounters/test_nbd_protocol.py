"""The protocol to the letter, by a client that says exactly what a test wants."""

import errno
import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mounters.export import Handle
from mounters.nbd_server import Address, NbdServer
from tests.mounters import nbd_client as nbd
from tests.mounters.nbd_client import Client, queries, text
from tests.mounters.nbd_memory import MemoryExport
from tests.mounters.nbd_serving import PATIENCE, serving, sparse_content

SIZE = (3 << 20) + 1536
CONTENT = sparse_content(SIZE, 2)
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28
READ_ONLY, WRITABLE = 1 | 2 | 4 | 256 | 1024, 1 | 4 | 8 | 32 | 64 | 1024
DF_FLAG = 128


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    exports = [
        MemoryExport("disk", CONTENT, description="é" * 3000),
        MemoryExport("w", bytearray(CONTENT), writable=True),
        MemoryExport("sectors", bytearray(CONTENT), writable=True, smallest_block=512),
        MemoryExport("pages", CONTENT[: 1 << 20], smallest_block=4096),
    ]
    address = Address(path=str(tmp_path_factory.mktemp("nbd") / "s"))
    with serving(exports, address, default="disk", max_connections=8) as server:
        yield server


# handshake


def test_the_greeting_offers_the_fixed_newstyle(server: NbdServer) -> None:
    with Client(server.address) as client:
        assert client.server_flags == 3


@pytest.mark.parametrize("flags", [4, 0x80000001])
def test_unknown_client_flags_end_the_connection(server: NbdServer, flags: int) -> None:
    with Client(server.address, flags=flags) as client:
        assert client.at_end()


@pytest.mark.parametrize(("flags", "zeros"), [(0, 124), (1, 124), (3, 0), (2, 0)])
def test_an_old_client_gives_a_name(server: NbdServer, flags: int, zeros: int) -> None:
    with Client(server.address, flags=flags) as client:
        client.send_option(1, b"disk")
        assert client.receive(10 + zeros) == struct.pack(">QH", SIZE, READ_ONLY) + bytes(zeros)
        assert client.ask(nbd.READ, 65530, 100).chunks[0].data == CONTENT[65530:65630]


@pytest.mark.parametrize("name", [b"nothing", b"\xff", b"x" * 5000])
def test_an_old_client_with_a_wrong_name_is_disconnected(server: NbdServer, name: bytes) -> None:
    with Client(server.address) as client:
        client.send_option(1, name)
        assert client.at_end()


def test_a_client_that_can_take_no_replies_gets_none(server: NbdServer) -> None:
    with Client(server.address, flags=0) as client:
        client.send_option(3)
        assert client.at_end()


def test_the_list(server: NbdServer) -> None:
    with Client(server.address) as client:
        *entries, last = client.option(3)
        assert last == (nbd.ACK, b"")
        names = [body[4 : 4 + struct.unpack(">I", body[:4])[0]] for _, body in entries]
        assert names == [b"disk", b"w", b"sectors", b"pages"]
        assert entries[0][1][8:].decode() == "é" * 2048  # as many bytes as a string may have
        assert client.only(3, b"x") == nbd.ERR_INVALID


def test_information_is_what_was_asked_for(server: NbdServer) -> None:
    with Client(server.address) as client:
        *infos, last = client.go("", [1, 2, 3, 99], option=6)
        assert last == (nbd.ACK, b"")
        told = {struct.unpack(">H", body[:2])[0]: body[2:] for _, body in infos}
        assert told[0] == struct.pack(">QH", SIZE, READ_ONLY)
        assert told[1] == b"disk"
        assert told[2].decode() == "é" * 2048
        assert told[3] == struct.pack(">III", 1, 65536, 32 << 20)
        assert set(told) == {0, 1, 2, 3}
        assert client.go("nothing")[0][0] == nbd.ERR_UNKNOWN
        assert client.go("w")[-1][0] == nbd.ACK
        assert client.flags == WRITABLE


def test_there_may_be_no_default(tmp_path: Path) -> None:
    with (
        serving([MemoryExport("disk", CONTENT)], Address(path=str(tmp_path / "s"))) as server,
        Client(server.address) as client,
    ):
        assert client.go("")[0][0] == nbd.ERR_UNKNOWN
        assert client.go("disk")[-1][0] == nbd.ACK


def test_large_blocks_have_to_be_asked_for(server: NbdServer) -> None:
    with Client(server.address) as client:
        assert client.go("pages")[0][0] == nbd.ERR_BLOCK_SIZE_REQD
        assert client.go("pages", [3])[-1][0] == nbd.ACK
        assert client.ask(nbd.READ, 4096, 4096).error == 0
        assert client.ask(nbd.READ, 512, 4096).error == EINVAL


def test_unknown_options_are_answered(server: NbdServer) -> None:
    with Client(server.address) as client:
        for option in (0, 4, 11, 12, 99, 2**32 - 1):
            assert client.only(option, b"some data") == nbd.ERR_UNSUP
        assert client.only(5) == nbd.ERR_POLICY  # no TLS here
        assert client.only(2) == nbd.ACK
        assert client.at_end()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        text("disk"),
        text("disk") + b"\0",
        text("disk") + struct.pack(">HH", 2, 3),
        text("disk") + struct.pack(">HH", 0, 3),
        struct.pack(">I", 2**32 - 1) + b"disk\0\0",
        struct.pack(">I", 1) + b"\xff\0\0",
        text("n" * 4097) + b"\0\0",
    ],
)
@pytest.mark.parametrize("option", [6, 7])
def test_malformed_questions_are_invalid(server: NbdServer, option: int, data: bytes) -> None:
    with Client(server.address) as client:
        assert client.only(option, data) == nbd.ERR_INVALID
        assert client.go("disk")[-1][0] == nbd.ACK


def test_long_options_are_refused(server: NbdServer) -> None:
    with Client(server.address) as client:
        assert client.only(7, bytes(70_000)) == nbd.ERR_TOO_BIG
        client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 7, 2**32 - 1))
        assert client.reply(7)[0] == nbd.ERR_TOO_BIG
        assert client.at_end()


def test_options_without_end_are_cut_off(server: NbdServer) -> None:
    with Client(server.address) as client, pytest.raises((EOFError, ConnectionError)):
        for _ in range(2000):
            client.option(99)


def test_metadata_contexts(server: NbdServer) -> None:
    allocation, done = (nbd.CONTEXT, b"base:allocation"), (nbd.ACK, b"")

    def found(client: Client, option: int, *asked: str) -> list[tuple[int, bytes]]:
        return [(kind, body[4:]) for kind, body in client.option(option, queries("", *asked))]

    with Client(server.address) as client:
        assert client.only(10, queries("", "base:allocation")) == nbd.ERR_INVALID
        assert client.only(8, b"x") == nbd.ERR_INVALID
        assert client.only(8) == nbd.ACK
        assert found(client, 9) == [allocation, done]
        assert found(client, 9, "base:") == [allocation, done]
        assert found(client, 9, "base:allocation", "base:") == [allocation, done]
        assert found(client, 9, "x-other:", "base:other") == [done]
        assert found(client, 10) == [done]
        assert found(client, 10, "base:", "qemu:allocation-depth", "base:other") == [done]
        assert found(client, 10, "qemu:", "base:allocation") == [allocation, done]
        assert client.only(9, queries("nothing")) == nbd.ERR_UNKNOWN
        assert client.only(9, queries("") + b"x") == nbd.ERR_INVALID
        assert client.only(9, text("") + struct.pack(">I", 2**32 - 1)) == nbd.ERR_INVALID


@pytest.mark.parametrize("void", ["failed", "other", "emptied"])
def test_a_context_holds_for_the_last_choice_alone(server: NbdServer, void: str) -> None:
    with Client(server.address) as client:
        client.structured = client.only(8) == nbd.ACK
        assert len(client.option(10, queries("disk", "base:allocation"))) == 2
        if void == "failed":
            assert client.only(10, queries("nothing", "base:allocation")) == nbd.ERR_UNKNOWN
        elif void == "emptied":
            assert client.only(10, queries("disk")) == nbd.ACK
        assert client.go("w" if void == "other" else "disk")[-1][0] == nbd.ACK
        assert client.ask(nbd.STATUS, 0, 512).error == EINVAL


def test_the_default_is_the_same_export_by_either_name(server: NbdServer) -> None:
    with Client(server.address) as client:
        client.structured = client.only(8) == nbd.ACK
        assert len(client.option(10, queries("", "base:allocation"))) == 2
        assert client.go("disk")[-1][0] == nbd.ACK
        assert client.flags == READ_ONLY | DF_FLAG
        assert client.status(0, SIZE)


def test_an_export_that_cannot_be_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Closed(MemoryExport):
        def open(self) -> Handle:
            raise OSError(errno.EACCES, "locked")

    with (
        serving([Closed("disk", CONTENT)], Address(path=str(tmp_path / "s"))) as server,
        Client(server.address) as client,
    ):
        assert client.go("disk", option=6)[-1][0] == nbd.ACK
        assert client.go("disk")[0][0] == nbd.ERR_PLATFORM
        client.send_option(1, b"disk")
        assert client.at_end()
    assert "'disk' can't be opened" in caplog.text


# transmission


@pytest.mark.parametrize("structured", [False, True])
def test_random_reads(server: NbdServer, structured: bool) -> None:
    maker = random.Random(3)
    with Client(server.address).ready(structured=structured) as client:
        for n in range(300):
            offset = maker.randrange(SIZE)
            if n % 2:
                offset = min(SIZE - 1, max(0, offset // 65536 * 65536 + maker.randint(-9, 9)))
            length = maker.randint(1, min(SIZE - offset, maker.choice((16, 5000, 300_000, SIZE))))
            flags = nbd.DF if structured and n % 3 == 0 else 0
            answer = client.ask(nbd.READ, offset, length, flags=flags)
            assert answer.structured is structured
            if structured:
                assert answer.content(offset, length) == CONTENT[offset : offset + length]
                assert not flags or len(answer.chunks) == 1
            else:
                assert answer.chunks[0].data == CONTENT[offset : offset + length]


def test_holes_are_not_sent(server: NbdServer) -> None:
    with Client(server.address).ready() as client:
        answer = client.ask(nbd.READ, 0, SIZE)
        zeros = sum(struct.unpack(">I", chunk.data)[0] for chunk in answer.chunks if chunk.type == 2)
        assert zeros == sum(
            len(CONTENT[at : at + 65536]) for at in range(0, SIZE, 65536) if not any(CONTENT[at : at + 65536])
        )
        assert answer.content(0, SIZE) == CONTENT


def test_many_requests_in_flight(server: NbdServer) -> None:
    maker = random.Random(4)
    asked = {}
    with Client(server.address).ready(structured=False) as client:
        for cookie in range(200):
            asked[cookie] = (maker.randrange(SIZE - 5000), maker.randint(1, 5000))
            client.request(nbd.READ, *asked[cookie], cookie=cookie)
        while asked:
            magic, error, cookie = struct.unpack(">IIQ", client.receive(16))
            offset, length = asked.pop(cookie)
            assert (magic, error) == (0x67446698, 0)
            assert client.receive(length) == CONTENT[offset : offset + length]


def test_status(server: NbdServer) -> None:
    with Client(server.address).ready() as client:
        at = 0
        for length, state in client.status(0, SIZE):
            assert state in (0, 3)
            assert any(CONTENT[at : at + length]) is (state == 0)
            at += length
        assert at == SIZE
        offset = 65536 * 3 + 512
        ((one, _),) = client.status(offset, SIZE - offset, nbd.REQ_ONE)
        assert one == client.status(offset, SIZE - offset)[0][0]
        assert [length for length, _ in client.status(offset, 512, nbd.REQ_ONE)] == [512]


def test_status_is_bounded(tmp_path: Path) -> None:
    content = (b"x" * 16 + bytes(16)) * 10_000
    export = MemoryExport("d", content, block=16)
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready() as client,
    ):
        found = client.status(0, len(content))
        assert found == [(16, 0), (16, 3)] * 4096
        answer = client.ask(nbd.READ, 0, len(content))
        assert answer.content(0, len(content)) == content
        assert len(answer.chunks) == 1


@pytest.mark.parametrize(
    ("name", "command", "offset", "length", "flags", "error"),
    [
        ("disk", nbd.READ, SIZE, 1, 0, EINVAL),
        ("disk", nbd.READ, 0, SIZE + 1, 0, EINVAL),
        ("disk", nbd.READ, 2**64 - 1, 2, 0, EINVAL),
        ("disk", nbd.READ, 0, 512, 256, EINVAL),
        ("disk", nbd.READ, 0, 512, nbd.REQ_ONE, EINVAL),
        ("disk", nbd.READ, 0, (32 << 20) + 1, 0, EINVAL),
        ("disk", nbd.READ, 0, 2**32 - 1, 0, EINVAL),
        ("disk", nbd.CACHE, SIZE - 1, 2, 0, EINVAL),
        ("disk", nbd.STATUS, SIZE - 1, 2, 0, EINVAL),
        ("disk", nbd.STATUS, 0, 0, 0, EINVAL),
        ("disk", nbd.TRIM, 0, 512, 0, EPERM),
        ("disk", nbd.ZEROES, 0, 512, 0, EPERM),
        ("disk", 8, 0, 512, 0, EINVAL),
        ("disk", 65535, 0, 512, 0, EINVAL),
        ("w", nbd.TRIM, SIZE - 1, 2, 0, EINVAL),
        ("w", nbd.ZEROES, SIZE - 1, 2, 0, ENOSPC),
        ("w", nbd.ZEROES, 0, 512, nbd.FAST_ZERO, EINVAL),
        ("w", nbd.TRIM, 0, 512, nbd.NO_HOLE, EINVAL),
        ("sectors", nbd.READ, 1, 512, 0, EINVAL),
        ("sectors", nbd.ZEROES, 0, 100, 0, EINVAL),
        ("disk", nbd.CACHE, 0, SIZE, 0, 0),
        ("disk", nbd.FLUSH, 0, 0, 0, 0),
        ("disk", nbd.READ, 10, 0, 0, 0),
        ("w", nbd.ZEROES, 0, 0, 0, 0),
        ("w", nbd.TRIM, 0, 0, nbd.FUA, 0),
    ],
)
def test_errors(
    server: NbdServer, name: str, command: int, offset: int, length: int, flags: int, error: int
) -> None:
    with Client(server.address).ready(name) as client:
        assert client.ask(command, offset, length, flags=flags).error == error
        assert client.ask(nbd.READ, 1024, 1024).content(1024, 1024) == CONTENT[1024:2048]


@pytest.mark.parametrize(
    ("name", "offset", "length", "flags", "error"),
    [
        ("disk", 0, 512, 0, EPERM),
        ("w", SIZE - 1, 2, 0, ENOSPC),
        ("w", 2**64 - 1, 2, 0, ENOSPC),
        ("w", 0, 512, nbd.NO_HOLE, EINVAL),
        ("sectors", 3, 512, 0, EINVAL),
        ("w", 0, (32 << 20) + 1, 0, EINVAL),
    ],
)
def test_refused_writes_leave_the_connection_in_step(
    server: NbdServer, name: str, offset: int, length: int, flags: int, error: int
) -> None:
    with Client(server.address).ready(name) as client:
        assert client.ask(nbd.WRITE, offset, length, flags=flags, data=b"w" * length).error == error
        assert client.ask(nbd.READ, 0, 1024).content(0, 1024) == CONTENT[:1024]


def test_writes_and_reads_of_the_largest_size(tmp_path: Path) -> None:
    size = 33 << 20
    data = random.Random(6).randbytes(32 << 20)
    export = MemoryExport("w", bytearray(size), writable=True)
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="w") as server,
        Client(server.address).ready() as client,
    ):
        assert client.ask(nbd.WRITE, 1 << 20, len(data), data=data).error == 0
        assert client.ask(nbd.READ, 1 << 20, len(data)).content(1 << 20, len(data)) == data
        only = client.ask(nbd.READ, 1 << 20, len(data), flags=nbd.DF)
        assert [chunk.data for chunk in only.chunks] == [data]
    assert export.content == bytes(1 << 20) + data


def test_fua_flushes(tmp_path: Path) -> None:
    export = MemoryExport("w", bytearray(CONTENT), writable=True)
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="w") as server,
        Client(server.address).ready() as client,
    ):
        for count, command in enumerate((nbd.WRITE, nbd.ZEROES, nbd.TRIM), 1):
            data = bytes(512) if command == nbd.WRITE else b""
            assert client.ask(command, 0, 512, data=data).error == 0
            assert export.flushes == count - 1
            assert client.ask(command, 0, 512, data=data, flags=nbd.FUA).error == 0
            assert export.flushes == count


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.EIO, "x"), EIO),
        (OSError(errno.ENOSPC, "x"), ENOSPC),
        (OSError(errno.EDQUOT, "x"), ENOSPC),
        (OSError(errno.EROFS, "x"), EPERM),
        (OSError(errno.ENOMEM, "x"), 12),
        (OSError(errno.ENOENT, "x"), EIO),
        (OSError("no number"), EIO),
        (ValueError("a fault"), EIO),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_errors_of_an_export_are_told(
    tmp_path: Path, raised: Exception, told: int, structured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(offset: int, length: int) -> None:
        if offset:
            raise raised

    export = MemoryExport("d", CONTENT)
    export.before_read = fail
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready(structured=structured) as client,
    ):
        data = next(at for at in range(512, SIZE, 65536) if any(CONTENT[at : at + 512]))
        assert client.ask(nbd.READ, data, 512).error == told
        assert client.ask(nbd.READ, 0, 512).error == 0


def test_an_export_that_reads_short_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = MemoryExport("d", CONTENT[:65536].ljust(131072, b"x"))
    export.content = export.content[:100_000]
    with serving([export], Address(path=str(tmp_path / "s")), default="d") as server:
        for structured in (False, True):
            with Client(server.address).ready(structured=structured) as client:
                assert client.ask(nbd.READ, 65536, 65536).error == EIO
                assert client.ask(nbd.READ, 65536, 1024).error == 0
    assert "34464 of 65536 bytes" in caplog.text


@pytest.mark.parametrize(
    "content", [b"x" * 131072, b"x" * 512 + bytes(130560), b"x" * 65536 + bytes(512) + b"x" * 65024]
)
@pytest.mark.parametrize("wrong", [-512, 512])
def test_runs_of_a_wrong_sum_are_an_error(
    tmp_path: Path, wrong: int, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    export = MemoryExport("d", content, block=512)
    right = export.states
    export.states = lambda offset, length: right(offset, length + wrong)  # type: ignore[method-assign]
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready() as client,
    ):
        for _ in range(2):
            assert client.ask(nbd.READ, 0, 65536).error == EIO
            assert client.ask(nbd.STATUS, 0, 65536).error == EIO
    assert "another length" in caplog.text


# connections


def test_a_client_that_takes_no_replies_stops_nobody(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(8 << 20)
    with (
        serving([MemoryExport("d", content)], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready() as stuck,
    ):
        with suppress(TimeoutError):  # once the server takes no more of them
            stuck.socket.settimeout(1)
            for _ in range(100):
                stuck.request(nbd.READ, 0, len(content))
        for _ in range(3):
            with Client(server.address).ready() as client:
                assert client.ask(nbd.READ, 5, 1 << 20).content(5, 1 << 20) == content[5 : 5 + (1 << 20)]


def test_slow_reads_of_one_connection_are_done_together(tmp_path: Path) -> None:
    together = threading.Barrier(3)
    export = MemoryExport("d", b"x" * 65536)

    def wait(offset: int, length: int) -> None:
        together.wait(PATIENCE)

    export.before_read = wait
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready() as client,
    ):
        for n in range(3):
            client.request(nbd.READ, n * 512, 512)
        for _ in range(3):
            assert client.answer().error == 0


def test_a_handshake_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    with (
        serving(
            [MemoryExport("d", CONTENT)],
            Address(path=str(tmp_path / "s")),
            default="d",
            handshake_timeout=0.5,
        ) as server,
        Client(server.address).ready() as served,
        Client(server.address) as silent,
        nbd.connect(server.address) as trickling,
    ):
        assert silent.at_end()
        with pytest.raises(ConnectionError):
            for _ in range(int(PATIENCE / 0.05)):  # a byte now and then does not help
                trickling.sendall(b"\0\0\0\3"[:1] if _ else b"\0\0\0\3")
                time.sleep(0.05)
        assert served.ask(nbd.READ, 0, 512).error == 0  # which takes as long as it likes


def test_too_many_clients_are_turned_away(server: NbdServer) -> None:
    clients = [Client(server.address) for _ in range(8)]
    try:
        with nbd.connect(server.address) as ninth:
            assert ninth.recv(1) == b""
    finally:
        for client in clients:
            client.socket.close()
    for _ in range(100):  # those places are free again
        with nbd.connect(server.address) as again:
            if again.recv(1):
                break
        time.sleep(0.05)
    else:
        pytest.fail("no place became free")


def test_stopping_answers_what_was_asked(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(offset: int, length: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    export = MemoryExport("d", CONTENT)
    export.before_read = wait
    with (
        serving([export], Address(path=str(tmp_path / "s")), default="d") as server,
        Client(server.address).ready(structured=False) as client,
        Client(server.address) as idle,
    ):
        client.request(nbd.READ, 0, 4096)
        assert begun.wait(PATIENCE)
        server.stop()
        assert idle.at_end()
        go_on.set()
        assert client.answer(read=4096).chunks[0].data == CONTENT[:4096]
        assert client.at_end()
