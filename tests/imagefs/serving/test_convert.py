"""Disks as files of other kinds, read back by qemu and held against the disks that images were made of."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from fixtures.content import noise
from fixtures.damage import flip_in_block
from fixtures.disks import plain_disk
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import MIB
from fixtures.tools import run
from imagefs.errors import UsageError
from imagefs.serving.convert import ConvertOptions, convert
from tests.conftest import run_afresh, run_imagefs
from tests.fixtures import plain_reader
from tests.imagefs.built import BuiltSet

QEMU = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}


class Plain(Protocol):
    folder: Path
    full: WrittenFile
    incremental: WrittenFile


def converted(*arguments: str | Path) -> dict[str, Any]:
    done = run_imagefs("convert", *arguments, "--json")
    assert done.code == 0, done.errors
    document = json.loads(done.output)
    assert isinstance(document, dict)
    return document


def check_same(path: Path, kind: str, source: Path) -> None:
    """Hold a file against a raw disk: the bytes, and the size, which comparing forgives."""
    run("qemu-img", "compare", "-f", QEMU[kind], "-F", "raw", path, source)
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", QEMU[kind], path))
    assert told["virtual-size"] == source.stat().st_size


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("kind", QEMU)
def test_every_format(plain: Plain, tmp_path: Path, kind: str) -> None:
    """The suffix says which; the disk's size fits no geometry; holes stay holes; nothing else is left."""
    (disk,) = plain.full.disks
    out = tmp_path / f"out, put: there.{kind}"
    document = converted(plain.full.path, out)
    check_same(out, kind, disk.path)
    assert document == {
        "path": str(out), "format": kind, "size": disk.size, "stored_bytes": stored(out),
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [out]
    if kind == "raw":
        assert stored(out) <= stored(disk.path) + 256 * 1024


def test_an_incremental(plain: Plain, tmp_path: Path) -> None:
    converted(plain.incremental.path, tmp_path / "out", "--format", "qcow2")
    check_same(tmp_path / "out", "qcow2", plain.incremental.disks[0].path)


def test_a_partition(plain: Plain, tmp_path: Path) -> None:
    (disk,) = plain.full.disks
    part = disk.partitions[1]
    wanted = tmp_path / "wanted"
    wanted.write_bytes(disk.path.read_bytes()[part.offset : part.offset + part.size])
    for option in ("disk1/p2", "p2"):
        converted(plain.full.path, tmp_path / "out.vhdx", "--partition", option, "--yes")
        check_same(tmp_path / "out.vhdx", "vhdx", wanted)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_compressed(plain: Plain, tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"the same again, " * 200_000)
    plainly, small = tmp_path / f"plain.{kind}", tmp_path / f"small.{kind}"
    converted(disk, plainly)
    converted(disk, small, "--compress")
    for path in (plainly, small):
        run("qemu-img", "compare", "-f", kind, "-F", "raw", path, disk)
    assert stored(small) < stored(plainly) / 4


def test_sectors_of_4096_bytes(built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    """The bytes are right; that the file does not tell of its sectors is told."""
    written = built_set("fourk").full
    done = run_imagefs("convert", written.path, tmp_path / "out.qcow2")
    assert done.code == 0
    assert "its sectors have 4096 bytes, which qcow2 does not record" in done.errors
    check_same(tmp_path / "out.qcow2", "qcow2", written.disks[0].path)


def test_a_disk_file(tmp_path: Path) -> None:
    """What is no image is converted as it is, and not taken for one that may be cut."""
    disk = plain_disk(tmp_path, sizes=(MIB,))
    converted(disk.path, tmp_path / "out.vmdk")
    check_same(tmp_path / "out.vmdk", "vmdk", disk.path)


def test_one_disk_of_several(tmp_path: Path) -> None:
    built = [plain_disk(tmp_path, f"plain{number}", sizes=(MIB,), seed=number) for number in range(2)]
    written = SetWriter(tmp_path / "set", image_id="5E12A1B2C3D4E5F7").full(built)
    done = run_imagefs("convert", written.path, tmp_path / "out.raw")
    assert done.code == 2
    assert "there are several disks: disk1, disk2 (--disk names one)" in done.errors
    converted(written.path, tmp_path / "out.raw", "--disk", "disk2")
    check_same(tmp_path / "out.raw", "raw", built[1].path)


def test_into_an_image(plain: Plain, tmp_path: Path) -> None:
    """Of a disk file, and of an image: a new full, under the name that it gets."""
    (disk,) = plain.full.disks
    for number, source in enumerate((disk.path, plain.full.path)):
        folder = tmp_path / f"set{number}"
        document = converted(source, folder / "home.mrimgx")
        (path,) = folder.iterdir()
        assert document["path"] == str(path)
        assert path.name.endswith("-home-00-00.mrimgx")
        assert plain_reader.restore(folder, 0)[MIB:-MIB] == disk.path.read_bytes()[MIB:-MIB]


# --- What is there stays ---


def test_never_replaced_unasked(plain: Plain, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    out.write_bytes(b"precious")
    done = run_imagefs("convert", plain.full.path, out)
    assert (done.code, done.output) == (6, b"")
    assert "is there already (--yes replaces it)" in done.errors
    assert out.read_bytes() == b"precious"
    converted(plain.full.path, out, "--yes")
    check_same(out, "raw", plain.full.disks[0].path)
    assert list(tmp_path.iterdir()) == [out]


def test_never_replaced_at_all(plain: Plain, tmp_path: Path) -> None:
    """The source, a backup image whatever its name, and what is no file."""
    shutil.copytree(plain.folder, tmp_path / "set")
    image, disk = tmp_path / "set" / plain.full.path.name, tmp_path / "disk.raw"
    other = tmp_path / "other.raw"
    shutil.copy(image, other)
    shutil.copy(plain.full.disks[0].path, disk)
    (tmp_path / "link.raw").symlink_to(disk)
    before = {path: path.read_bytes() for path in (image, disk, other)}
    for source, out, says in (
        (disk, disk, "is the source itself"),
        (image, other, "is a backup image, which is not replaced"),
        (image, tmp_path / "link.raw", "is no regular file"),
        (image, tmp_path / "set", "is no regular file"),
    ):
        done = run_imagefs("convert", source, out, "--yes", "--format", "raw")
        assert (done.code, done.output) == (6, b""), done.errors
        assert says in done.errors
    assert {path: path.read_bytes() for path in before} == before


# --- What goes wrong leaves nothing ---


def test_damage(plain: Plain, tmp_path: Path) -> None:
    """The block is named, and there is no file."""
    path = tmp_path / plain.full.path.name
    shutil.copy(plain.full.path, path)
    flip_in_block(path, 0, 13)
    for kind in ("raw", "vhdx"):
        done = run_imagefs("convert", path, tmp_path / f"out.{kind}")
        assert (done.code, done.output) == (3, b"")
        assert "disk1/p1 block 13: " in done.errors
    assert list(tmp_path.iterdir()) == [path]


def test_missing_files(plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / plain.incremental.path.name
    shutil.copy(plain.incremental.path, path)
    done = run_imagefs("convert", path, tmp_path / "out.raw")
    assert (done.code, done.output) == (4, b"")
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted(tmp_path: Path) -> None:
    """Nothing is left: no file, no socket, no process."""
    disk, folder, scratch = tmp_path / "disk.raw", tmp_path / "out", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    with disk.open("wb") as stream:
        for number in range(128):
            stream.write(noise(1, number * MIB, MIB))
    command = [sys.executable, "-m", "imagefs", "convert", str(disk), str(folder / "out.qcow2"), "--compress"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(scratch)}
    ) as process:
        try:
            while process.poll() is None and not any(path.stat().st_size > MIB for path in folder.iterdir()):
                time.sleep(0.01)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 130
    assert len(children) == 1
    assert not Path(f"/proc/{children[0]}").exists()
    assert not list(folder.iterdir())
    assert not list(scratch.iterdir())


def test_the_target_is_full(plain: Plain, tmp_path: Path) -> None:
    """What qemu-img can't write is an error of the target, in its words."""
    out = tmp_path / "out.vhdx"
    script = 'trap "" XFSZ; ulimit -f 2000; exec "$@"'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "imagefs", "convert"]
    done = subprocess.run(
        [*command, str(plain.full.path), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert "qemu-img: " in done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wrong_usage(plain: Plain, tmp_path: Path) -> None:
    cases = [
        ("out.tar", ConvertOptions(), "'.tar' stands for no format"),
        ("out", ConvertOptions(), "'' stands for no format"),
        ("out.raw", ConvertOptions("zip"), "there is no format 'zip'"),
        ("out.vhd", ConvertOptions(compress=True), "vhd can't be compressed"),
        ("out.raw", ConvertOptions(disk="disk7"), "there is no disk7, but disk1"),
        ("out.raw", ConvertOptions(partition="disk1/p7"), "there is no partition p7; there are p1, p2"),
        ("out.raw", ConvertOptions(disk="disk1", partition="disk2/p1"), "disk2/p1 is not on disk1"),
        ("nowhere/out.raw", ConvertOptions(), "there is no such folder"),
    ]
    for name, options, says in cases:
        with pytest.raises(UsageError, match=says):
            convert(plain.full.path, tmp_path / name, options)
    done = run_imagefs("convert", plain.full.path, tmp_path / "out.tar")
    assert (done.code, done.output, done.errors.count("\n")) == (2, b"", 1)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_qemu_img_can_not_read_back_is_an_error(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("qemu-img")
    assert real is not None
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = info ] || exec {real} "$@"\n')
    program.chmod(0o755)
    out = tmp_path / "out.qcow2"
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    done = run_afresh("convert", plain.full.path, out)
    assert done.code == 7
    assert "qemu-img can't read the disk that it made" in done.errors
    assert not out.exists()
