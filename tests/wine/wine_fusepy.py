"""mfusepy's own code on Windows' Python, over a stand-in of WinFsp's FUSE layer."""

import re
from pathlib import Path

import pytest

from mounters.tree import NodeType
from mounters.winfsp_names import windows_name
from tests.mounters.memory_tree import MemoryTree
from tests.wine.environment import ROOT, build_library, windows_path
from tests.wine.windows import Windows

ENOENT, EIO, EACCES, EROFS = 2, 5, 13, 30  # errno.h of Windows


@pytest.fixture(scope="module")
def walked(wine: Windows, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what the stand-in has written down of a walk through the memory tree."""
    folder = tmp_path_factory.mktemp("fuse")
    library, log = folder / "winfsp-x64.dll", folder / "log"
    build_library(Path(__file__).with_name("fuse_stub.c"), library, "-nostdlib", "-fno-builtin", "-lkernel32")
    code = (
        "import os, sys\n"
        f"os.environ['FUSE_LIBRARY_PATH'] = {windows_path(library)!r}\n"
        f"os.environ['IMAGEFS_STUB_LOG'] = {windows_path(log)!r}\n"
        "sys.argv = ['', 'Q:']\n"
        "from tests.wine.fusepy_session import main\n"
        "sys.exit(main())\n"
    )
    with wine.started("-c", code, folder=ROOT) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (output + errors).decode(errors="replace")
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
