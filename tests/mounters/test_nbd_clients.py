"""What other people's NBD clients see of an export."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.tools import find_tool, run, tool_environment
from mounters.nbd_server import Address, NbdServer, parse_address
from tests.mounters.nbd_memory import MemoryExport
from tests.mounters.nbd_serving import PATIENCE, failing, serving, sparse_content

SIZE = (12 << 20) + 3 * 512
CONTENT = sparse_content(SIZE, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    folder = tmp_path_factory.mktemp("nbd")
    exports = [
        MemoryExport("disk4", CONTENT, description="the whole disk"),
        MemoryExport("disk4/p1 ü", CONTENT[: 1 << 20]),
        MemoryExport("sectors", CONTENT, smallest_block=512),
    ]
    with serving(exports, Address(path=str(folder / "nbd.sock")), default="disk4") as server:
        yield server


@pytest.fixture(scope="module")
def tcp() -> Iterator[NbdServer]:
    with serving([MemoryExport("disk4", CONTENT)], parse_address("localhost:0"), default="disk4") as server:
        yield server


def extents() -> list[tuple[int, int, bool]]:
    """Return offset, length and whether it is data, of the content's 4 KiB blocks."""
    found: list[tuple[int, int, bool]] = []
    for at in range(0, SIZE, 4096):
        block = CONTENT[at : at + 4096]
        data = any(block)
        if found and found[-1][2] == data:
            found[-1] = (found[-1][0], found[-1][1] + len(block), data)
        else:
            found.append((at, len(block), data))
    return found


def test_nbdinfo_lists_the_exports(server: NbdServer) -> None:
    found = json.loads(run("nbdinfo", "--json", "--list", server.address.uri()))
    assert found["protocol"] == "newstyle-fixed"
    assert found["structured"] is True
    assert [export["export-name"] for export in found["exports"]] == ["disk4", "disk4/p1 ü", "sectors"]
    first = found["exports"][0]
    assert first["description"] == "the whole disk"
    assert first["export-size"] == SIZE
    assert first["contexts"] == ["base:allocation"]
    assert first["is_read_only"] and first["can_multi_conn"] and first["can_df"] and first["can_cache"]
    assert found["exports"][2]["block_size_minimum"] == 512
    assert found["exports"][2]["block_size_maximum"] == 32 << 20


def test_nbdinfo_finds_an_export_by_its_name(server: NbdServer) -> None:
    assert int(run("nbdinfo", "--size", server.address.uri("disk4/p1 ü"))) == 1 << 20
    assert "No such file" in failing("nbdinfo", server.address.uri("nothing"))


def test_nbdinfo_maps_the_holes(server: NbdServer) -> None:
    found = json.loads(run("nbdinfo", "--map", "--json", server.address.uri()))
    assert [(e["offset"], e["length"], e["type"] == 0) for e in found] == extents()


def test_qemu_img_maps_the_holes(server: NbdServer) -> None:
    found = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", server.address.uri()))
    assert [(e["start"], e["length"], e["data"]) for e in found] == extents()


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_nbdcopy_copies_all_bytes(where: str, server: NbdServer, tcp: NbdServer, tmp_path: Path) -> None:
    uri = (server if where == "unix" else tcp).address.uri()
    run("nbdcopy", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    run("nbdcopy", "--allocated", "--request-size=33554432", uri, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == CONTENT


def test_a_copy_is_sparse_and_holes_are_not_read(tmp_path: Path) -> None:
    content = CONTENT[: 1 << 20] + bytes(96 << 20)
    export = MemoryExport("big", content, block=1 << 20)
    with serving([export], Address(path=str(tmp_path / "s")), default="big") as server:
        run("nbdcopy", server.address.uri(), tmp_path / "copy")
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", server.address.uri(), tmp_path / "converted")
    for name in ("copy", "converted"):
        path = tmp_path / name
        assert path.stat().st_size == len(content)
        assert path.stat().st_blocks * 512 <= 2 << 20
        with path.open("rb") as file:
            assert file.read(1 << 20) == CONTENT[: 1 << 20]
    assert export.bytes_read <= 4 << 20


def test_qemu_img_converts_and_compares(server: NbdServer, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    uri = server.address.uri("sectors")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "qcow2")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "qcow2", tmp_path / "raw")
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / "raw")


def test_nbd_client_lists_the_exports(server: NbdServer, tcp: NbdServer) -> None:
    said = run("nbd-client", "-l", "-unix", server.address.path).decode()
    assert "disk4: the whole disk\n" in said
    assert "sectors\n" in said


def test_many_clients_at_once(server: NbdServer, tmp_path: Path) -> None:
    uri = server.address.uri()
    command = find_tool("nbdcopy")
    clients = [
        subprocess.Popen([command, uri, str(tmp_path / f"copy{n}")], env=tool_environment()) for n in range(8)
    ]
    try:
        assert [client.wait(PATIENCE) for client in clients] == [0] * 8
    finally:
        for client in clients:
            client.kill()
            client.wait()
    for n in range(8):
        assert (tmp_path / f"copy{n}").read_bytes() == CONTENT


def test_qemu_io_reads_parts(tmp_path: Path) -> None:
    maker = random.Random(5)
    content = b"".join(bytes([n]) * 4096 for n in range(256))
    with serving([MemoryExport("d", content)], Address(path=str(tmp_path / "s")), default="d") as server:
        steps = []
        for _ in range(100):
            block, start = maker.randrange(256), maker.randrange(4096)
            steps += ["-c", f"read -P {block} {block * 4096 + start} {maker.randint(1, 4096 - start)}"]
        said = run("qemu-io", "-r", "-f", "raw", *steps, server.address.uri()).decode()
        assert said.count("ops; ") == 100
        assert "verification failed" not in said
        said = failing("qemu-io", "-r", "-f", "raw", "-c", "read -P 4 12288 4096", server.address.uri())
        assert "verification failed" in said


def test_qemu_writes_zeros_and_trims(tmp_path: Path) -> None:
    content = bytearray(CONTENT)
    export = MemoryExport("w", content, writable=True)
    with serving([export], Address(path=str(tmp_path / "s")), default="w") as server:
        uri = server.address.uri()
        info = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
        assert info["can_zero"] and info["can_trim"] and info["can_fua"] and not info["can_multi_conn"]
        steps = ["write -P 0xab 1M 100k", "write -f -P 0xcd 3M 512", "write -z 5M 1M", "write -z -u 7M 64k"]
        steps += ["discard 9M 256k", "flush"]
        commands = [part for step in steps for part in ("-c", step)]
        run("qemu-io", "-f", "raw", *commands, uri)
    expected = bytearray(CONTENT)
    expected[1 << 20 : (1 << 20) + 102400] = b"\xab" * 102400
    expected[3 << 20 : (3 << 20) + 512] = b"\xcd" * 512
    expected[5 << 20 : 6 << 20] = bytes(1 << 20)
    expected[7 << 20 : (7 << 20) + 65536] = bytes(65536)
    expected[9 << 20 : (9 << 20) + 262144] = bytes(262144)
    assert content == expected
    assert export.flushes >= 2


@pytest.mark.parametrize("tool", ["nbdcopy", "qemu-img"])
def test_a_disk_is_written_whole(tool: str, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    content = bytearray(b"\xee" * SIZE)
    with serving([MemoryExport("w", content, writable=True)], Address(path=str(tmp_path / "s"))) as server:
        uri = server.address.uri("w")
        if tool == "nbdcopy":
            run("nbdcopy", "--flush", tmp_path / "raw", uri)
        else:
            run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "raw", uri)
    assert content == CONTENT


def test_a_read_only_export_is_not_written(server: NbdServer, tmp_path: Path) -> None:
    said = failing("qemu-io", "-f", "raw", "-c", "write 0 512", server.address.uri())
    assert "read-only" in said.lower() or "permission" in said.lower()


def test_a_failing_read_is_an_error_and_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = 5 << 20

    def fail(offset: int, length: int) -> None:
        if offset <= bad < offset + length:
            raise OSError(5, "block 80 is damaged")

    export = MemoryExport("d", CONTENT[:bad] + b"x" * 65536 + CONTENT[bad + 65536 :])
    export.before_read = fail
    with serving([export], Address(path=str(tmp_path / "s")), default="d") as server:
        uri = server.address.uri()
        assert "Input/output error" in failing("nbdcopy", uri, "null:")
        step = failing("qemu-io", "-r", "-f", "raw", "-c", f"read {bad} 512", uri)
        assert "Input/output error" in step
        run("qemu-io", "-r", "-f", "raw", "-c", f"read {bad + 65536} 512", uri)
    assert "READ of 512 bytes at 5242880 of export 'd'" in caplog.text
    assert "block 80 is damaged" in caplog.text
