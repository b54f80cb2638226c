"""What is served, held against the disks that the images were made of by qemu's and libnbd's clients."""

import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from fixtures.content import noise
from fixtures.damage import flip_in_block
from fixtures.disks import plain_disk
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import MIB, BuiltDisk, BuiltPartition
from fixtures.tools import run
from tests.conftest import run_imagefs
from tests.imagefs.built import FULL, INCREMENTAL, BuiltSet

BLOCK = 65536


class Plain(Protocol):
    folder: Path
    full: WrittenFile
    incremental: WrittenFile


class Server(Protocol):
    process: subprocess.Popen[bytes]
    exports: dict[str, dict[str, Any]]
    default: str | None
    errors: Path
    socket: Path

    def uri(self, name: str) -> str: ...

    def end(self, number: signal.Signals = signal.SIGTERM) -> int: ...


Serving = Callable[..., AbstractContextManager[Server]]


def compare(uri: str, path: Path) -> None:
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, path)


def cut_out(disk: BuiltDisk, part: BuiltPartition, path: Path) -> Path:
    with disk.path.open("rb") as source, path.open("wb") as target:
        source.seek(part.offset)
        target.write(source.read(part.size))
    return path


def check_disk(server: Server, prefix: str, written: WrittenFile, scratch: Path) -> None:
    """Hold a point's disk and partitions against the disk that it was made of."""
    (disk,) = written.disks
    name = f"{prefix}disk1"
    assert server.exports[name]["size"] == disk.size
    compare(server.uri(name), disk.path)
    for part in disk.partitions:
        compare(server.uri(f"{name}/p{part.number}"), cut_out(disk, part, scratch / "part.raw"))


@pytest.mark.parametrize("name", ["logical", "fourk"])
def test_disks_and_partitions(
    name: str, built_set: Callable[[str], BuiltSet], serving: Serving, tmp_path: Path
) -> None:
    """Of a full and of an incremental; an MBR with logical partitions, and sectors of 4096 bytes."""
    for _, written in built_set(name).points:
        with serving(written.path) as server:
            assert server.default == "disk1"
            check_disk(server, "", written, tmp_path)
            (disk,) = written.disks
            for kind in ("qcow2", "vhdx"):
                out = tmp_path / f"out.{kind}"
                run(
                    "qemu-img",
                    "convert",
                    "-f",
                    "raw",
                    "-O",
                    kind,
                    f"nbd+unix:///?socket={server.socket}",
                    out,
                )
                run("qemu-img", "compare", "-f", kind, "-F", "raw", out, disk.path)


def test_a_folder(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    """Every point under the names of the tree; what can't be read is left out, and told."""
    lost = SetWriter(plain.folder, image_id="1051000000000000", name="lost")
    scratch = tmp_path / "lost"
    scratch.mkdir()
    first = lost.full([plain_disk(scratch, sizes=(MIB,))])
    second = lost.incremental([plain_disk(scratch, "other", sizes=(MIB,), seed=10)])
    first.path.unlink()
    try:
        with serving(plain.folder) as server:
            points = (FULL, plain.full), (INCREMENTAL, plain.incremental)
            prefixes = {f"5E12A1B2C3D4E5F6/{name}/": written for name, written in points}
            ends = ("disk1", "disk1/p1", "disk1/p2")
            assert set(server.exports) == {prefix + end for prefix in prefixes for end in ends}
            assert server.default is None
            for prefix, written in prefixes.items():
                check_disk(server, prefix, written, tmp_path)
            assert "1 point or file is not shown" in server.errors.read_text()
            listed = run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={server.socket}")
            assert [entry["export-name"] for entry in json.loads(listed)["exports"]] == list(server.exports)
    finally:
        second.path.unlink()


def test_holes(plain: Plain, serving: Serving) -> None:
    """A block of a partition that was all zeros is a hole, all others are data."""
    (disk,) = plain.full.disks
    data = disk.path.read_bytes()
    with serving(plain.full.path) as server:
        found = json.loads(run("nbdinfo", "--map", "--json", server.uri("disk1")))
    states = bytearray(b"?" * len(data))
    for run_ in found:
        offset, length = run_["offset"], run_["length"]
        states[offset : offset + length] = (b"h" if run_["type"] & 1 else b"d") * length
        if run_["type"] & 1:
            assert not any(data[offset : offset + length]), run_
    assert b"?" not in states
    assert sum(run_["length"] for run_ in found) == len(data)
    for part in disk.partitions:
        for offset in range(part.offset, part.offset + part.size, BLOCK):
            end = min(offset + BLOCK, part.offset + part.size)
            assert set(states[offset:end]) == set(b"d" if any(data[offset:end]) else b"h"), offset


def test_one_disk_of_several(serving: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    built = [plain_disk(tmp_path, f"plain{number}", sizes=(MIB,), seed=number) for number in range(2)]
    written = SetWriter(folder, image_id="5E12A1B2C3D4E5F7").full(built)
    with serving(written.path) as server:
        assert list(server.exports) == ["disk1", "disk1/p1", "disk2", "disk2/p1"]
        assert server.default is None
        compare(server.uri("disk2"), built[1].path)
    with serving(written.path, "--disk", "disk2", "--overlay", tmp_path / "overlay") as server:
        assert list(server.exports) == ["disk2", "disk2/p1"]
        assert server.default == "disk2"
        compare(server.uri("disk2"), built[1].path)
    for options, says in (
        (["--disk", "disk3"], "there is no disk3"),
        (["--overlay", tmp_path / "new"], "there are several disks: disk1, disk2"),
    ):
        done = run_imagefs("serve", written.path, "--nbd", f"unix:{tmp_path}/s", *options)
        assert (done.code, done.output) == (2, b"")
        assert says in done.errors
    assert not (tmp_path / "new").exists()


# --- Overlays ---


def test_written_to(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    """What qemu writes comes back, through partitions and after a restart too; the image is as before."""
    before = {path: path.read_bytes() for path in plain.folder.iterdir()}
    (disk,) = plain.full.disks
    model, rng = bytearray(disk.path.read_bytes()), random.Random(4)
    overlay, mine = tmp_path / "overlay", tmp_path / "model.raw"
    for _ in range(2):
        with serving(plain.full.path, "--overlay", overlay) as server:
            commands: list[str] = []
            for number in range(60):
                length = rng.choice([512, 4096, 5120, 65536, 200_704])
                offset = rng.randrange((len(model) - length) // 512) * 512
                if rng.random() < 0.3:
                    commands += ["-c", f"write -z{'u' * (number % 2)} {offset} {length}"]
                    model[offset : offset + length] = bytes(length)
                else:
                    commands += ["-c", f"write -P {number + 1} {offset} {length}"]
                    model[offset : offset + length] = bytes([number + 1]) * length
            run("qemu-io", "-f", "raw", *commands, "-c", "flush", server.uri("disk1"))
            part = disk.partitions[1]
            run("qemu-io", "-f", "raw", "-c", "write -P 200 1024 512", server.uri("disk1/p2"))
            model[part.offset + 1024 : part.offset + 1536] = bytes([200]) * 512
            mine.write_bytes(model)
            compare(server.uri("disk1"), mine)
            check = tmp_path / "part.raw"
            check.write_bytes(model[part.offset : part.offset + part.size])
            compare(server.uri("disk1/p2"), check)
    with serving(plain.full.path, "--overlay", overlay) as server:
        compare(server.uri("disk1"), mine)
    assert {path: path.read_bytes() for path in plain.folder.iterdir()} == before


def test_a_whole_disk_is_written(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    """qemu-img makes one state of the disk into the other, holes and all."""
    (disk,) = plain.incremental.disks
    with serving(plain.full.path, "--overlay", tmp_path / "overlay") as server:
        uri = server.uri("disk1")
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", disk.path, uri)
        compare(uri, disk.path)
        for run_ in json.loads(run("nbdinfo", "--map", "--json", uri)):
            assert run_["type"] in (0, 3)


def test_read_only(plain: Plain, serving: Serving) -> None:
    with serving(plain.full.path) as server:
        assert json.loads(run("nbdinfo", "--json", server.uri("disk1")))["exports"][0]["is_read_only"]


def test_the_overlay_of_another_point(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    with serving(plain.full.path, "--overlay", overlay) as server:
        done = run_imagefs("serve", plain.full.path, "--nbd", f"unix:{tmp_path}/s", "--overlay", overlay)
        assert (done.code, done.output) == (6, b"")
        assert "in use by another process" in done.errors
        assert server.end() == 0
    done = run_imagefs("serve", plain.incremental.path, "--nbd", f"unix:{tmp_path}/s", "--overlay", overlay)
    assert (done.code, done.output) == (6, b"")
    assert "the overlay belongs to disk1 of set 5E12A1B2C3D4E5F6, file number 0" in done.errors


# --- Addresses, ends, errors ---


def test_ctrl_c(plain: Plain, serving: Serving) -> None:
    with serving(plain.full.path) as server:
        assert server.end(signal.SIGINT) == 0


def test_what_people_see(plain: Plain, tmp_path: Path) -> None:
    import sys

    command = [sys.executable, "-m", "imagefs", "serve", plain.full.path, "--nbd", f"unix:{tmp_path}/s"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline().decode() for _ in range(3)]
        finally:
            process.terminate()
    assert [line.split("?")[0] for line in lines] == [
        "nbd+unix:///disk1", "nbd+unix:///disk1%2Fp1", "nbd+unix:///disk1%2Fp2",
    ]  # fmt: skip
    assert "gpt disk" in lines[0]
    assert process.returncode == 0


def test_beyond_this_machine(plain: Plain, serving: Serving) -> None:
    """Refused without encryption, unless it is insisted upon."""
    done = run_imagefs("serve", plain.full.path, "--nbd", "0.0.0.0:0")
    assert (done.code, done.output) == (6, b"")
    with serving(plain.full.path, "--insecure", nbd="0.0.0.0:0") as server:
        uri = server.uri("disk1").replace("0.0.0.0", "127.0.0.1")
        compare(uri, plain.full.disks[0].path)


def test_encrypted_on_its_way(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    run("psktool", "-u", "alice", "-p", keys)
    keys.chmod(0o600)
    with serving(plain.full.path, "--tls-psk", keys, nbd="0.0.0.0:0") as server:
        uri = server.uri("disk1").replace("0.0.0.0", "127.0.0.1")
        assert uri.startswith("nbds://")
        found = json.loads(
            run("nbdinfo", "--json", uri.replace("nbds://", "nbds://alice@") + f"?tls-psk-file={keys}")
        )
        assert found["TLS"]
        assert found["exports"][0]["export-size"] == plain.full.disks[0].size
        run("nbdinfo", uri.replace("nbds://", "nbd://"), accept=(1,))


def test_damage(plain: Plain, serving: Serving, tmp_path: Path) -> None:
    """A damaged block is an error of its place, and of no other."""
    path = tmp_path / plain.full.path.name
    shutil.copy(plain.full.path, path)
    flip_in_block(path, 0, 7)
    at = plain.full.disks[0].partitions[0].offset + 7 * BLOCK
    with serving(path) as server:
        for offset, length, code in (
            (at, 512, 1), (at - BLOCK, 2 * BLOCK, 1), (at - 512, 512, 0), (at + BLOCK, BLOCK, 0),
        ):  # fmt: skip
            run(
                "qemu-io",
                "-r",
                "-f",
                "raw",
                "-c",
                f"read {offset} {length}",
                server.uri("disk1"),
                accept=(code,),
            )
        assert "disk1/p1 block 7" in server.errors.read_text()


def test_passwords(serving: Serving, tmp_path: Path) -> None:
    from imagefs.imaging import backup
    from imagefs.imaging.options import BackupOptions

    (tmp_path / "disk.raw").write_bytes(noise(3, 0, 300_032))
    options = BackupOptions(key_iterations=1000, exact=True)
    path = backup(tmp_path / "disk.raw", tmp_path / "set", options, password="secret").path
    with serving(path, password="secret") as server:
        compare(server.uri("disk0"), tmp_path / "disk.raw")
    done = run_imagefs("serve", path, "--nbd", f"unix:{tmp_path}/s")
    assert (done.code, done.output) == (5, b"")
    done = run_imagefs("serve", path, "--nbd", f"unix:{tmp_path}/s", password="wrong")
    assert (done.code, done.output) == (5, b"")


def test_wrong_usage(plain: Plain, tmp_path: Path) -> None:
    for nbd, code in (("nowhere/at:all", 2), ("unix:", 2), (f"unix:{tmp_path}/no/folder/s", 7)):
        done = run_imagefs("serve", plain.full.path, "--nbd", nbd)
        assert (done.code, done.output) == (code, b""), nbd
        assert done.errors.count("\n") == 1
    done = run_imagefs("serve", plain.folder, "--nbd", f"unix:{tmp_path}/s", "--overlay", tmp_path / "o")
    assert (done.code, done.output) == (2, b"")
    assert "an image file is needed, not a folder" in done.errors
