"""A private server at a port, as on Windows: nobody gets anything who does not know the secret."""

import functools
import json
import subprocess
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB
from fixtures.tools import find_tool
from formats.blockreader import BytesReader
from imagefs.serving import convert as converting
from imagefs.serving.convert import ConvertOptions, convert
from imagefs.serving.exports import ReaderExport
from imagefs.serving.server import private_server
from tests.mounters.nbd_client import ACK, ERR_POLICY, ERR_UNKNOWN, Client

GO, LIST = 7, 3  # options of the handshake


def export_of(data: bytes) -> ReaderExport:
    return ReaderExport("disk", "", len(data), lambda: BytesReader(data))


def go(name: str) -> bytes:
    return len(name.encode()).to_bytes(4, "big") + name.encode() + bytes(2)


def test_only_the_secret_leads_to_an_export() -> None:
    data = noise(5, 0, MIB)
    with private_server([export_of(data)], at_port=True) as server:
        assert server.address.host == "127.0.0.1"
        assert len(server.secret) >= 32
        for option, asked, answer in (
            (LIST, b"", ERR_POLICY),
            (GO, go("disk"), ERR_UNKNOWN),
            (GO, go(""), ERR_UNKNOWN),
            (GO, go(server.secret), ERR_UNKNOWN),
            (GO, go(server.secret[:-1] + "disk"), ERR_UNKNOWN),
        ):
            with Client(server.address) as client:
                assert client.option(option, asked)[-1][0] == answer
        with Client(server.address) as client:
            assert client.option(GO, go(server.secret + "disk"))[-1][0] == ACK
    with private_server([export_of(data)], at_port=True) as another:
        assert another.secret != server.secret


def test_qemu_knows_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a URI for qemu-img, by a node for the machine."""
    source, out = tmp_path / "disk.raw", tmp_path / "out.raw"
    source.write_bytes(bytes(MIB) + noise(6, 0, MIB) + bytes(MIB))
    monkeypatch.setattr(converting, "private_server", functools.partial(private_server, at_port=True))
    convert(source, out.with_suffix(".qcow2"), ConvertOptions())
    qemu_img = find_tool("qemu-img")
    subprocess.run([qemu_img, "convert", "-O", "raw", out.with_suffix(".qcow2"), out], check=True)
    assert out.read_bytes() == source.read_bytes()
    with private_server([export_of(source.read_bytes())], at_port=True) as server:
        node = server.node("disk")
        assert node["server"] == {"type": "inet", "host": "127.0.0.1", "port": str(server.address.port)}
        name = "json:" + json.dumps({"driver": "raw", "file": node})
        subprocess.run([qemu_img, "convert", "-O", "raw", name, out], check=True)
        assert out.read_bytes() == source.read_bytes()
