"""TLS with keys, as libnbd, qemu and GnuTLS's own client see it."""

import ctypes
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.tools import find_tool, run, tool_environment
from mounters import tls_psk
from mounters.nbd_server import Address, NbdServer, parse_address
from mounters.tls_psk import PskCredentials, TlsError
from tests.mounters import nbd_client as nbd
from tests.mounters.nbd_client import Client
from tests.mounters.nbd_memory import MemoryExport
from tests.mounters.nbd_serving import PATIENCE, failing, serving, sparse_content

SIZE = 6 << 20
CONTENT = sparse_content(SIZE, 9)
ALL_KINDS = "+ECDHE-PSK:+DHE-PSK:+PSK"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for user in ("alice", "bob"):
        run("psktool", "-u", user, "-p", folder / "keys.psk")
    run("psktool", "-u", "alice", "-p", folder / "wrong.psk")
    return folder / "keys.psk"


@pytest.fixture(scope="module")
def credentials(keys: Path) -> Iterator[PskCredentials]:
    credentials = PskCredentials(keys)
    yield credentials
    credentials.close()


@pytest.fixture(params=["unix", "tcp"])
def server(
    request: pytest.FixtureRequest, credentials: PskCredentials, tmp_path: Path
) -> Iterator[NbdServer]:
    address = Address(path=str(tmp_path / "s")) if request.param == "unix" else parse_address("127.0.0.1:0")
    exports = [MemoryExport("disk", CONTENT), MemoryExport("w", bytearray(SIZE), writable=True)]
    with serving(exports, address, default="disk", tls=credentials) as server:
        yield server


def uri(server: NbdServer, keys: Path, user: str = "alice", name: str = "") -> str:
    plain = server.address.uri(name, tls=True)
    return plain.replace("://", f"://{user}@", 1) + ("&" if "?" in plain else "?") + f"tls-psk-file={keys}"


def test_clients_with_the_key_are_served(server: NbdServer, keys: Path, tmp_path: Path) -> None:
    assert b"with TLS" in run("nbdinfo", uri(server, keys, "bob"))
    run("nbdcopy", uri(server, keys), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    run("nbdcopy", "--allocated", "--request-size=33554432", uri(server, keys), tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == CONTENT


def test_disks_are_written_encrypted(server: NbdServer, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    run("nbdcopy", tmp_path / "raw", uri(server, keys, name="w"))
    run("nbdcopy", uri(server, keys, name="w"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT


def test_qemu_with_the_key_is_served(server: NbdServer, keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qemu"
    folder.mkdir()
    (folder / "keys.psk").write_bytes(keys.read_bytes())
    secret = f"tls-creds-psk,id=tls,dir={folder},endpoint=client,username=alice"
    if server.address.path:
        place = f"server.type=unix,server.path={server.address.path}"
    else:
        place = f"server.type=inet,server.host=127.0.0.1,server.port={server.address.port}"
    image = f"driver=raw,file.driver=nbd,file.tls-creds=tls,{','.join('file.' + p for p in place.split(','))}"
    run("qemu-img", "convert", "--object", secret, "--image-opts", image, "-O", "raw", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_clients_without_the_right_key_are_not(server: NbdServer, keys: Path) -> None:
    assert "alert" in failing("nbdinfo", uri(server, keys.parent / "wrong.psk")).lower()
    mallory = keys.parent / "mallory.psk"
    mallory.write_text("mallory:00112233445566778899aabbccddeeff\n")
    assert "TLS" in failing("nbdinfo", uri(server, mallory, "mallory"))
    failing("nbdinfo", server.address.uri())
    failing("nbdcopy", server.address.uri(), "null:")
    assert int(run("nbdinfo", "--size", uri(server, keys))) == SIZE


def test_nothing_is_told_in_plain_text(server: NbdServer) -> None:
    with Client(server.address) as client:
        for option in (3, 6, 7, 8, 9, 10, 99):
            assert client.only(option, b"") == nbd.ERR_TLS_REQD
        assert client.only(5, b"x") == nbd.ERR_INVALID
        assert client.only(2) == nbd.ACK
        assert client.at_end()
    with Client(server.address) as client:
        client.send_option(1, b"disk")
        assert client.at_end()


def test_plain_text_behind_starttls_is_refused(server: NbdServer) -> None:
    with Client(server.address, flags=None) as client:
        injected = b"IHAVEOPT\0\0\0\x08\0\0\0\0"  # STRUCTURED_REPLY
        client.socket.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\5\0\0\0\0" + injected)
        assert client.at_end()
    with Client(server.address) as client:
        assert client.only(5) == nbd.ACK
        client.socket.sendall(injected * 100)
        said = b""
        with suppress(EOFError, ConnectionError):
            while True:
                said += client.receive(1)
        assert b"\x03\xe8\x89\x04\x55\x65\xa9" not in said  # no reply; an alert of TLS may be
    with Client(server.address) as client:
        assert client.only(5) == nbd.ACK
        client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            client.receive(20)


class Encrypted:
    """GnuTLS's own client on one end, a test on the other."""

    def __init__(self, credentials: PskCredentials, keys: Path, priorities: str) -> None:
        key = keys.read_text().split()[0].partition(":")[2]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
            command = [find_tool("gnutls-cli"), "--priority", priorities, "--pskusername", "alice"]
            self.client = subprocess.Popen(
                [*command, "--pskkey", key, "-p", port, "127.0.0.1"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=tool_environment(),
            )
            listener.settimeout(PATIENCE)
            self.socket, _ = listener.accept()
        self.socket.setblocking(True)
        self.credentials = credentials

    def __enter__(self) -> "Encrypted":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.client.kill()
        self.client.communicate()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (f"NORMAL:-KX-ALL:{ALL_KINDS}", "TLS1.3, ECDHE-PSK, AES-128-GCM"),
        (f"NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:{ALL_KINDS}", "TLS1.2, ECDHE-PSK, "),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+DHE-PSK", "TLS1.2, DHE-PSK, AES-128-GCM"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+PSK", "TLS1.2, PSK, AES-128-GCM"),
    ],
)
def test_forward_secrecy_is_preferred(
    credentials: PskCredentials, keys: Path, offered: str, chosen: str
) -> None:
    with Encrypted(credentials, keys, offered) as peer:
        wire = credentials.accept(peer.socket, PATIENCE)
        try:
            assert wire.user == "alice"
            assert wire.description.startswith(chosen)
        finally:
            wire.close()


@pytest.mark.parametrize("offered", ["NORMAL", "NORMAL:-VERS-ALL:+VERS-TLS1.1:+PSK"])
def test_certificates_and_old_versions_are_refused(
    credentials: PskCredentials, keys: Path, offered: str
) -> None:
    with Encrypted(credentials, keys, offered) as peer, pytest.raises(ConnectionError, match="TLS handshake"):
        credentials.accept(peer.socket, PATIENCE)


def test_a_silent_client_is_given_up(credentials: PskCredentials) -> None:
    here, there = socket.socketpair()
    with here, there, pytest.raises(ConnectionError, match="timed out"):
        credentials.accept(here, 0.2)


def test_a_client_that_takes_no_replies_stops_nobody(server: NbdServer, keys: Path) -> None:
    with subprocess.Popen(
        [find_tool("nbdcopy"), uri(server, keys), "-"], stdout=subprocess.PIPE, env=tool_environment()
    ) as stuck:
        try:
            assert stuck.stdout is not None
            assert len(stuck.stdout.read(10)) == 10
            assert int(run("nbdinfo", "--size", uri(server, keys))) == SIZE
        finally:
            stuck.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "no keys"),
        ("\n\n", "no keys"),
        ("alice", "key 1"),
        ("alice:0011\nbob:xyz\n", "key 2"),
        ("alice:001\n", "key 1"),
        (":0011\n", "key 1"),
        ("a:00\n" * 300_000, "no keys"),
    ],
)
def test_files_without_keys_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.touch(0o600)
        path.write_text(text)
    with pytest.raises(TlsError, match=said) as caught:
        PskCredentials(path)
    assert str(path) in str(caught.value)


def test_keys_that_others_may_read_are_told(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(keys.read_bytes())
    path.chmod(0o644)
    PskCredentials(path).close()
    assert "other users may read" in caplog.text


def test_a_missing_library_is_told(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tls_psk, "_libraries", [])
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(TlsError, match="libgnutls30"):
        PskCredentials(keys)
