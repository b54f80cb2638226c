"""mfusepy's own code on Windows' Python, over a stand-in of WinFsp's FUSE layer."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from mounters.tree import NodeType
from mounters.winfsp_names import windows_name
from tests.imagefs.built import BuiltSet
from tests.mounters.memory_tree import MemoryTree
from tests.running import Ran, run_imagefs
from tests.wine.environment import ROOT, build_library, windows_path
from tests.wine.windows import Windows

ENOENT, EIO, EACCES, EROFS = 2, 5, 13, 30  # errno.h of Windows


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in."""
    built = tmp_path_factory.mktemp("fuse") / "winfsp-x64.dll"
    source = Path(__file__).with_name("fuse_stub.c")
    build_library(source, built, "-nostdlib", "-fno-builtin", "-lkernel32")
    return built


def python(wine: Windows, library: Path, log: Path, *words: str | Path, stdin: bytes = b"") -> Ran:
    """Run a module of Python with arguments, with the stand-in as the library that mfusepy loads."""
    code = (
        "import os, runpy, sys\n"
        f"os.environ['FUSE_LIBRARY_PATH'] = {windows_path(library)!r}\n"
        f"os.environ['IMAGEFS_STUB_LOG'] = {windows_path(log)!r}\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
    )
    with wine.started("-c", code, *words, folder=ROOT) as process:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.wait(120)
        output, errors = (_waiting(pipe) for pipe in (process.stdout, process.stderr))
    return Ran(process.returncode, output, errors.decode(errors="replace"))


def _waiting(pipe: IO[bytes] | None) -> bytes:
    """Return what is in a pipe, not waiting for its end: wine gives it to processes in the background too."""
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    return pipe.read() or b""


@pytest.fixture(scope="module")
def walked(wine: Windows, library: Path) -> list[str]:
    """Return what the stand-in has written down of a walk through the memory tree."""
    log = library.with_name("log")
    done = python(wine, library, log, "tests.wine.fusepy_session", "Q:")
    assert done.code == 0, done.errors
    return log.read_bytes().decode().splitlines()


def numbers_of(line: str) -> dict[str, int]:
    found = re.findall(r"(\w+) ([0-9a-f]{16})", line)
    return {name: int.from_bytes(bytes.fromhex(text), "big", signed=True) for name, text in found}


def fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return value - (1 << 64 if value >> 63 else 0)


def test_options_and_volume(walked: list[str]) -> None:
    foreground, switch, options, mountpoint, volume = walked[:5]
    assert (foreground, switch, mountpoint) == ("-f", "-o", "Q:")
    assert {"uid=-1", "gid=-1", "umask=277", "volname=Dätä_ 1", "VolumeSerialNumber=12345678"} <= set(
        options.split(",")
    )
    told = numbers_of(volume)
    assert told["want"] == 1 << 22 | 1 << 29  # FSP_FUSE_CAP_READ_ONLY, FSP_FUSE_CAP_CASE_INSENSITIVE
    assert told["statfs"] == 0
    assert told["size"] >= MemoryTree().size()
    assert walked[-1] == "end"


def test_every_file(walked: list[str]) -> None:
    """Sizes, times and contents through the structures of Windows' libfuse."""
    tree = MemoryTree()
    lines = {line.partition(" stat ")[0]: numbers_of(line) for line in walked[5:-1]}
    seen = 0
    for folder, path in (("", ""), ("dir/sub", "/dir/sub"), ("odd", "/odd")):
        for entry in tree.entries(tree.resolve(folder)):
            told = lines.get(f"{path}/{windows_name(entry.name)}")
            if told is None or entry.type is not NodeType.FILE or tree.nodes[entry.inode].lost:
                continue
            attributes = tree.attributes(entry.inode)
            assert told["stat"] == 0
            assert told["mode"] == 0o100000
            assert told["size"] == attributes.size
            assert told["modified"] == attributes.modified // 10**9
            assert told["born"] == attributes.created // 10**9
            assert told["writing"] == -EROFS
            if told["open"] == 0 and told.get("end", 0) == 0 and attributes.size < 1 << 20:
                assert told["hash"] == fnv(tree.bytes_of(f"{folder}/{entry.name}")), entry.name
                seen += 1
    assert seen >= 8
    assert lines["/damaged.bin"]["end"] == -EIO
    assert lines["/lost.bin"]["size"] == 0
    assert lines["/lost.bin"]["open"] == -EIO
    assert lines["/socket"]["open"] == -EACCES
    assert lines["/link"]["hash"] == lines["/dir/sub/leaf.txt"]["hash"]
    assert lines["/dangling"]["hash"] == fnv("nowhere/\udcff".encode("utf-8", "surrogateescape"))


@pytest.fixture
def installed(wine: Windows) -> Iterator[None]:
    """Have the registry say that WinFsp is installed."""
    change(wine, "CreateKeyEx", "winreg.SetValueEx(key, 'InstallDir', 0, winreg.REG_SZ, 'C:\\\\WinFsp\\\\')")
    try:
        yield
    finally:
        change(wine, "OpenKeyEx", "winreg.DeleteValue(key, 'InstallDir')")


def change(wine: Windows, how: str, what: str) -> None:
    """Change WinFsp's key of the registry, where 32-bit programs have it."""
    code = (
        "import winreg\n"
        f"key = winreg.{how}(winreg.HKEY_LOCAL_MACHINE, 'SOFTWARE\\\\WinFsp', 0,"
        " winreg.KEY_ALL_ACCESS | winreg.KEY_WOW64_32KEY)\n"
        f"{what}\n"
    )
    with wine.started("-c", code) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.usefixtures("installed")
def test_from_mount_to_umount(
    wine: Windows, library: Path, built_set: Callable[[str], BuiltSet], tmp_path: Path
) -> None:
    """The command line with a directory: mounted in the background, every byte of a file, and gone again."""
    image, place, log = built_set("fourk").full.path, tmp_path / "mnt", tmp_path / "log"
    shown = windows_path(place)
    arguments = ("imagefs", "mount", image, shown, "--mechanism", "mfusepy", "--volume", "disk1\\p1")
    done = python(wine, library, log, *arguments)
    assert done.code == 0, done.errors
    try:
        first, notice = done.text.splitlines()
        assert first == (
            f"{windows_path(image)} is mounted at {shown}; unmount it with: imagefs umount {shown}"
        )
        assert notice.startswith("WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos")
        assert place.is_dir()
        again = python(wine, library, log.with_name("again"), *arguments)
        assert again.code == 6
        assert "exists already" in again.errors
    finally:
        ended = wine.run("umount", f"{shown}\\")
    assert (ended.code, ended.errors) == (0, "")
    assert not place.exists()
    *lines, end = log.read_bytes().decode().splitlines()
    assert end == "end"
    told = {line.partition(" stat ")[0]: numbers_of(line) for line in lines[5:]}
    content = run_imagefs("cat", image, "disk1/p1/big.bin").output
    assert told["/big.bin"]["size"] == len(content)
    assert told["/big.bin"]["hash"] == fnv(content)
    assert wine.run("umount", shown).code == 6


@pytest.mark.usefixtures("installed")
def test_a_password_goes_to_the_serving_process(
    wine: Windows, library: Path, tmp_path: Path, built_set: Callable[[str], BuiltSet]
) -> None:
    disk = built_set("fat16").full.disks[0].path
    sets, place, log = tmp_path / "sets", tmp_path / "mnt", tmp_path / "log"
    sets.mkdir()
    assert run_imagefs("backup", disk, sets, "--encrypt", password="pässword").code == 0
    (image,) = sets.iterdir()
    arguments = ("imagefs", "mount", image, windows_path(place), "--mechanism", "mfusepy")
    done = python(wine, library, log, *arguments, "--password-file", "-", stdin=b"wrong\r\n")
    assert done.code == 5, done.errors
    assert done.errors.count("\n") == 1
    done = python(wine, library, log, *arguments, "--password-file", "-", stdin="pässword\r\n".encode())
    assert done.code == 0, done.errors
    assert wine.run("umount", windows_path(place)).code == 0
    assert log.read_bytes().endswith(b"end\n")
