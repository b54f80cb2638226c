"""Drive letters of the Windows installation in an image, and of the image's own record."""

import os
import struct
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.partition_tables import MIB, Volume, gpt_disk
from fixtures.tools import fuse_mount
from fixtures.volumes import make_ntfs, ntfs_reparse
from formats import open_container
from formats.blockreader import BytesReader
from formats.errors import DamagedError
from imagefs.drive_letters import DriveLetters
from imagefs.filesystems.registry import read_values
from imagefs.tree import ImageTree
from mounters.tree import NodeType
from tests.conftest import run_imagefs
from tests.imagefs.built import BuiltSet

DISK = "7C1D9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"


def cell(data: bytes) -> bytes:
    length = (4 + len(data) + 7) // 8 * 8
    return (struct.pack("<i", -length) + data).ljust(length, b"\0")


def hive(values: dict[str, bytes], *, kind: bytes = b"lh", most: int = 4) -> bytes:
    """Return a hive with the values in its key MountedDevices, after the specification of the format.

    https://github.com/msuhanov/Windows-registry-file-format-specification
    """
    cells = b""

    def add(data: bytes) -> int:
        nonlocal cells
        offset = 32 + len(cells)
        cells += cell(data)
        return offset

    def key(name: str, subkeys: tuple[int, int], listed: tuple[int, int]) -> bytes:
        head = struct.pack("<2sHQIIIIIIIII", b"nk", 0x20, 0, 0, 0, subkeys[0], 0, subkeys[1], 0, *listed, 0)
        return head.ljust(72, b"\0") + struct.pack("<HH", len(name), 0) + name.encode()

    places = []
    for name, data in values.items():
        is_ascii = name.isascii()
        raw = name.encode("ascii" if is_ascii else "utf-16-le")
        size, place = (
            (len(data), add(data)) if len(data) > 4 else (len(data) | 1 << 31, int.from_bytes(data, "little"))
        )
        places.append(add(struct.pack("<2sHIIIHH", b"vk", len(raw), size, place, 3, is_ascii, 0) + raw))
    listed = len(places), add(struct.pack(f"<{len(places)}I", *places))
    mounted = add(key("MountedDevices", (0, 0), listed))
    other = add(key("Setup", (0, 0), (0, 0)))
    step = "I" if kind == b"li" else "I4x"
    leaf = add(struct.pack(f"<2sH{step}{step}", b"lh" if kind == b"ri" else kind, 2, other, mounted))
    if kind == b"ri":
        leaf = add(struct.pack("<2sHI", b"ri", 1, leaf))
    root = add(key("ROOT", (2, leaf), (0, 0)))
    bins = (struct.pack("<4sII", b"hbin", 0, 4096).ljust(32, b"\0") + cells).ljust(4096 * most, b"\0")
    header = b"regf" + struct.pack("<IIQIIIIII", 1, 1, 0, 1, 5, 0, 1, root, len(bins))
    return header.ljust(4096, b"\0") + bins


@pytest.mark.parametrize("kind", [b"lh", b"lf", b"li", b"ri"])
def test_values(kind: bytes) -> None:
    values = {"\\DosDevices\\C:", "ä", "four"}
    wanted = {name: name.encode() for name in values} | {"": b"12345", "none": b""}
    reader = BytesReader(hive(wanted, kind=kind))
    assert read_values(reader, ["mounteddevices"]) == wanted
    assert read_values(reader, ["Setup"]) == {}
    assert read_values(reader, ["Nowhere", "x"]) == {}


SOUND = hive({"\\DosDevices\\C:": bytes(range(12)), "x": b"1234"})


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 1) | st.integers(4096, 5000), st.binary(min_size=1, max_size=4)
        ),
        max_size=4,
    )
)
def test_any_hive(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SOUND)
    for at, new in changes:
        data[at : at + len(new)] = new
    try:
        found = read_values(BytesReader(bytes(data[: len(SOUND)])), ["MountedDevices"])
    except DamagedError:
        return
    assert all(len(value) < len(SOUND) for value in found.values())


def test_values_that_share_a_cell_take_no_memory() -> None:
    """Two thousand values, each of which is said to lie in the same half a megabyte."""
    data = bytearray(hive({f"name {number:05}": bytes(12) for number in range(2000)}, most=80))
    data += bytes(-len(data) % 4096)
    large = len(data) - 4096
    data += struct.pack("<i", -(1 << 19)) + bytes((1 << 19) - 4)
    at = data.find(b"vk")
    while at >= 0:
        struct.pack_into("<II", data, at + 4, 500_000, large)
        at = data.find(b"vk", at + 24)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="values of more than"):
            read_values(BytesReader(bytes(data)), ["MountedDevices"])
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def installed(folder: Path) -> Path:
    """Image a disk with two volumes; the first has Windows, which knows it as C and the other as X."""
    volumes = [make_ntfs(folder / f"{name}.img", 24 * MIB, name) for name in ("windows", "data")]
    ids = [uuid.uuid5(uuid.UUID(DISK), number) for number in "12"]  # as gpt_disk gives them
    devices = [b"DMIO:ID:" + known.bytes_le for known in ids]
    mount = folder / "mnt"
    for at, path in enumerate(volumes):
        with fuse_mount(mount, "ntfs-3g", "-o", "no_detach", path, mount) as root:
            if not at:
                (root / "windows/System32/Config").mkdir(parents=True)
                letters = {"\\DosDevices\\C:": devices[0], "\\DosDevices\\X:": devices[1]}
                (root / "windows/System32/Config/SYSTEM").write_bytes(hive(letters))
            (root / "here").mkdir()
            for name in "CX":
                (root / name).mkdir()
                value = ntfs_reparse(0xA0000003, f"\\??\\{name}:\\HERE", f"{name}:\\HERE", False)
                os.setxattr(root / name, "system.ntfs_reparse_data", value, follow_symlinks=False)
    whole = [Volume(path, 24 * MIB, "NTFS", path.stem) for path in volumes]
    made = gpt_disk(folder / "disk.raw", whole, DISK).path
    done = run_imagefs("backup", made, folder / "set")
    assert done.code == 0, done.errors
    (image,) = (folder / "set").glob("*.mrimgx")
    return image


def test_letters_of_the_installation(tmp_path: Path) -> None:
    with open_container(installed(tmp_path)) as container:
        tree = ImageTree.of_point(container.points[-1])
        for path, target in (("p1/C", "here"), ("p1/X", None), ("p2/C", None), ("p2/X", "here")):
            inode = tree.resolve(f"disk0/{path}")
            assert (tree.attributes(inode).type is NodeType.LINK) == (target is not None), path
            if target is not None:
                assert tree.read_link(inode) == target
        tree.close()
        disk = container.points[-1].disks[0]
        for partition, letter in zip(disk.partitions, "XC", strict=True):
            partition.drive_letter = letter  # recorded by another system, which the installation overrules
        letters = DriveLetters([disk])
        known = [set(letters.names_of(disk, partition) or ()) for partition in disk.partitions]
        assert known == [{"C:"}, {"X:"}]


def test_recorded_letters(built_set: Callable[[str], BuiltSet]) -> None:
    with open_container(built_set("multi").full.path) as container:
        point = container.points[-1]
        letters = DriveLetters(point.disks)
        disk = point.disks[0]
        names = [letters.names_of(disk, partition) for partition in disk.partitions]
        recorded = container.points[-1].disks[0].partitions
        for known, partition in zip(names, recorded, strict=True):
            assert known is not None
            guid = {partition.volume_guid.removeprefix("\\\\?\\").upper()} - {""}
            assert known == {f"{letter}:" for letter in partition.drive_letter} | guid
        assert [partition.drive_letter for partition in recorded] == ["E", "", "G", "H"]
