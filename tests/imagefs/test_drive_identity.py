"""Label and serial number of a drive of Windows, held against what other tools say of the volume."""

import re
from collections.abc import Callable

import pytest

import imagefs
from fixtures.tools import run
from imagefs.drive_identity import drive_identity
from imagefs.source import Source
from tests.imagefs.built import FULL, BuiltSet

CREATED = 1_720_608_136 * 10**9  # 2024-07-10 10:42:16 UTC


@pytest.mark.parametrize("recipe", ["ntfs", "fat32", "fat16", "exfat"])
def test_serial_numbers_as_blkid_has_them(built_set: Callable[[str], BuiltSet], recipe: str) -> None:
    built = built_set(recipe)
    (disk,) = built.full.disks
    part = disk.partitions[0]
    told = run("blkid", "-p", "-O", str(part.offset), "-o", "value", "-s", "UUID", disk.path)
    serial = int(re.sub(r"\W", "", told.decode())[-8:], 16)  # of NTFS the lower half, as Windows shows it
    with imagefs.open(built.full.path) as source:
        identity = drive_identity(source, f"disk1/p{part.number}")
    assert f"{identity.serial:08X}" == f"{serial:08X}"
    assert identity.created == CREATED


def test_labels(built_set: Callable[[str], BuiltSet]) -> None:
    built = built_set("multi")
    (disk,) = built.full.disks
    with imagefs.open(built.full.path) as source:
        for part in disk.partitions:
            assert drive_identity(source, f"disk1/p{part.number}").label == (part.label or f"p{part.number}")
        whole = drive_identity(source)
        assert whole.label == f"{built.image_id} 2024-07-10"
        assert whole.created == CREATED
        assert drive_identity(source, "disk1").label == whole.label
    with imagefs.open(built.incremental.path) as source:
        later = drive_identity(source)
    assert later.label == f"{built.image_id} 2024-07-11"
    assert later.serial != whole.serial


def test_folders(built_set: Callable[[str], BuiltSet]) -> None:
    built = built_set("fourk")
    folder = built.full.path.parent
    with imagefs.open(folder) as source:
        assert drive_identity(source).label == folder.name[:32]
        one = drive_identity(source, f"{built.image_id}/{FULL}")
        part = drive_identity(source, f"{built.image_id}/{FULL}/disk1/p1")
    with imagefs.open(built.full.path) as source:
        check_same(source, one, "")
        check_same(source, part, "disk1/p1")


def check_same(source: Source, identity: object, volume: str) -> None:
    """Check that a volume is known by the same identity, whether it is shown from a folder or its file."""
    alone = drive_identity(source, volume)
    assert alone[:1] == identity[:1] and alone[2:] == identity[2:]  # type: ignore[index]
