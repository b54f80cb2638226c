"""Where an NBD server listens, and where it refuses to."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fixtures.tools import run
from mounters import nbd_address
from mounters.nbd_server import Address, AddressError, NbdServer, is_loopback, parse_address
from tests.mounters.nbd_memory import MemoryExport
from tests.mounters.nbd_serving import PATIENCE, serving

ROOT = Path(__file__).parents[2]
DISK = MemoryExport("disk", b"x" * 4096)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/nbd.sock", Address(path="/run/nbd.sock")),
        ("localhost", Address("localhost", 10809)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::1]:10810", Address("::1", 10810)),
        ("[::1]", Address("::1", 10809)),
        ("::1", Address("::1", 10809)),
        ("disk.example.org:65535", Address("disk.example.org", 65535)),
    ],
)
def test_addresses_are_understood(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":10809", "unix:", "host:", "host:x", "host:-1", "host:65536", "host:1:2", "[::1", "[::1]x",
        "[host]:1", "/run/nbd.sock", "a b", "host:٣",
    ],
)  # fmt: skip
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert caught.value.exit_code == 2
    assert repr(text) in str(caught.value)


def test_a_relative_socket_file_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("unix:nbd.sock") == Address(path=str(tmp_path / "nbd.sock"))


def test_uris_are_what_clients_take(tmp_path: Path) -> None:
    folder = tmp_path / "ä & b"
    folder.mkdir()
    export = MemoryExport("disk4/p1 50% ü?", b"x" * 1024)
    for address in (Address(path=str(folder / "s")), Address("127.0.0.1", 0)):
        with serving([export], address) as server:
            assert int(run("nbdinfo", "--size", server.address.uri(export.name))) == 1024


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("unix:/x", True), ("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True),
        ("[::ffff:127.0.0.1]", True), ("0.0.0.0", False), ("[::]", False), ("192.0.2.1", False),
        ("[::ffff:192.0.2.1]", False), ("[fe80::1]", False),
    ],
)  # fmt: skip
def test_what_is_loopback(text: str, local: bool) -> None:
    assert is_loopback(parse_address(text)) is local


def resolving_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_all_addresses_of_a_name_have_to_be_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    assert is_loopback(Address("name", 0))
    with serving([DISK], Address("name", 0)) as server:
        assert server.address.port > 0
        for host in ("127.0.0.1", "127.0.0.2"):
            with socket.socket() as client:
                client.connect((host, server.address.port))
                assert client.recv(8) == b"NBDMAGIC"
    resolving_to(monkeypatch, "127.0.0.1", "192.0.2.1")
    assert not is_loopback(Address("name", 0))
    with pytest.raises(AddressError) as caught:
        NbdServer([DISK], Address("name", 0)).bind()
    assert caught.value.exit_code == 6


def test_unknown_hosts_are_errors() -> None:
    with pytest.raises(AddressError, match="no-such-host"):
        NbdServer([DISK], parse_address("no-such-host.invalid")).bind()


def test_others_are_served_only_on_demand() -> None:
    with pytest.raises(AddressError, match="insecure") as caught:
        NbdServer([DISK], parse_address("0.0.0.0:0")).bind()
    assert caught.value.exit_code == 6
    with NbdServer([DISK], parse_address("0.0.0.0:0"), insecure=True) as server:
        assert server.address.port > 0


def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    for address in (Address("127.0.0.1", 0), Address(path=str(tmp_path / "s"))):
        with serving([DISK], address, default="disk") as server:
            with pytest.raises(AddressError, match="in use") as caught:
                NbdServer([DISK], server.address).bind()
            assert caught.value.exit_code == 6
            assert int(run("nbdinfo", "--size", server.address.uri())) == 4096


def test_a_socket_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with NbdServer([DISK], Address(path=str(tmp_path / "s"))):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_servers_socket_file_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
        dead.listen()
    with serving([DISK], Address(path=str(tmp_path / "s")), default="disk") as server:
        assert int(run("nbdinfo", "--size", server.address.uri())) == 4096


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for name in (path, link):
        with pytest.raises(AddressError, match="no socket") as caught:
            NbdServer([DISK], Address(path=str(name))).bind()
        assert caught.value.exit_code == 6
    assert path.read_text() == "text"


def test_anothers_socket_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with NbdServer([DISK], Address(path=str(path))):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize("path", ["missing/s", "x" * 120])
def test_a_socket_file_that_cannot_be_made(tmp_path: Path, path: str) -> None:
    with pytest.raises(AddressError):
        NbdServer([DISK], Address(path=str(tmp_path / path))).bind()
    assert list(tmp_path.iterdir()) == []


def test_exports_are_checked() -> None:
    address = Address("127.0.0.1", 0)
    for exports, default in (
        ([DISK, MemoryExport("disk", b"")], None),
        ([DISK], "other"),
        ([MemoryExport("odd", b"x" * 1000, smallest_block=512)], None),
        ([MemoryExport("odd", b"x" * 1500, smallest_block=500)], None),
        ([MemoryExport("n" * 4097, b"")], None),
    ):
        with pytest.raises(ValueError, match="export"):
            NbdServer(exports, address, default=default)


def test_stop_may_come_at_any_time(tmp_path: Path) -> None:
    server = NbdServer([DISK], Address(path=str(tmp_path / "s")))
    server.stop()
    server.serve()
    server.stop()
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_never_overlooked(tmp_path: Path) -> None:
    for n in range(200):
        server = NbdServer([DISK], Address(path=str(tmp_path / "s")))
        server.bind()
        thread = threading.Thread(target=server.serve)
        thread.start()
        if n % 2:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_folder_that_is_locked_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_address, "_LOCK_SECONDS", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(AddressError, match="locked"):
            NbdServer([DISK], Address(path=str(tmp_path / "s"))).bind()
    finally:
        os.close(descriptor)


def test_an_empty_export_is_served(tmp_path: Path) -> None:
    with serving([MemoryExport("", b"")], Address(path=str(tmp_path / "s"))) as server:
        assert int(run("nbdinfo", "--size", server.address.uri())) == 0


PROGRAM = """
import signal, sys, threading
from mounters.nbd_server import NbdServer, parse_address
from tests.mounters.nbd_memory import MemoryExport
with NbdServer([MemoryExport("disk", b"x" * 4096)], parse_address(sys.argv[1]), default="disk") as server:
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    print("ready", flush=True)
    server.serve()
print(threading.active_count(), flush=True)
"""


def test_a_signal_handler_may_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, f"unix:{path}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                assert client.recv(8) == b"NBDMAGIC"
                process.send_signal(signal.SIGTERM)
                assert process.stdout.readline() == "1\n"
            assert process.wait() == 0
        finally:
            watchdog.cancel()
            process.kill()
    assert not path.exists()
