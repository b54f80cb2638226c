"""Image a disk, change it, image it again, and so on: every point gives back the disk as it was then.

What is restored comes from the plain reader of the fixtures; what must be there is told by the tools that
own each file system, and by sleuthkit.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import imagefs
from fixtures import disks, partition_tables
from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume
from fixtures.volumes import ext_volume, fat_volume, ntfs_volume
from imagefs.imaging.options import BackupOptions
from tests.imagefs.imaging.chains import ChainOf, Saved, moments, save_all, save_all_by_command
from tests.imagefs.imaging.moments import cut_out
from tests.imagefs.imaging.others import check_files, check_sound, used_only

Save = Callable[[Path, Sequence[BuiltDisk]], ChainOf]
PASSWORD = "Käse 🧀 pässwörd"


def gpt_disk(folder: Path) -> BuiltDisk:
    """Make a disk as Windows has it: an ESP, an MSR of random bytes, NTFS; and an ext4 behind it."""
    reserved = folder / "msr.volume"
    reserved.write_bytes(noise(1, 0, MIB))
    system = fat_volume(folder, "FAT32", "esp", size=34 * MIB, big=MIB, many=20, label="SYSTEM")
    volumes = [
        dataclasses.replace(system, gpt_type="esp"),
        Volume(reserved, MIB, "unknown", gpt_type="msr"),
        ntfs_volume(folder, size=16 * MIB, big=MIB, many=50, fragments=0),
        ext_volume(folder, size=16 * MIB, big=MIB, many=50),
    ]
    return partition_tables.gpt_disk(folder / "gpt.raw", volumes, "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3FF")


def mbr_disk(folder: Path) -> BuiltDisk:
    """Make a disk of a primary NTFS (1) and logical ones: FAT16 (5), ext4 (6), one without content (7)."""
    primary = ntfs_volume(folder, size=16 * MIB, big=MIB, many=50, fragments=0)
    logicals = [
        fat_volume(folder, "FAT16", size=16 * MIB, big=MIB, many=20),
        ext_volume(folder, size=16 * MIB, big=MIB, many=50),
        Volume(None, 2 * MIB, "unknown"),
    ]
    return partition_tables.mbr_disk(folder / "mbr.raw", [primary], logicals)


@dataclass(frozen=True)
class Recipe:
    """A disk, the numbers of the partitions that change before each image but the first, and how to save."""

    build: Callable[[Path], BuiltDisk]
    changes: tuple[tuple[int, ...], ...]
    save: Save


RECIPES = {
    "gpt": Recipe(
        gpt_disk,
        ((3,), (1, 4), (1, 2, 3), (3, 4)),
        partial(save_all, options=BackupOptions(compression="medium")),
    ),
    "mbr with logical ones": Recipe(
        mbr_disk,
        ((1, 5), (6,), (7,), (1, 5, 6, 7)),
        partial(
            save_all_by_command, arguments=["--encrypt", "--split", "1M", "--name", "größe"],
            password=PASSWORD,
        ),
    ),
    "exfat": Recipe(
        partial(disks.exfat_disk, size=16 * MIB, big=MIB, many=20),
        ((1,), (), (1,), (1,)),
        partial(
            save_all, password=PASSWORD,
            options=BackupOptions(compression="high", aes="aes-128", key_iterations=1000),
        ),
    ),
    "4096-byte sectors": Recipe(
        disks.four_k_disk,
        ((1,), (1,), (), (1,)),
        partial(
            save_all, password=PASSWORD,
            options=BackupOptions(
                compression="none", aes="aes-192", key_iterations=1000, split=3 * MIB, verify=True
            ),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """A point, restored: the disk, and each partition as a file of its own."""

    saved: Saved
    disk: bytes
    volumes: dict[int, Path]


@dataclass(frozen=True)
class Everything:
    chain: ChainOf
    restored: list[Restored]


@pytest.fixture(scope="module", params=RECIPES)
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    recipe = RECIPES[request.param]
    scratch, folder = tmp_path_factory.mktemp("disks"), tmp_path_factory.mktemp("set")
    chain = recipe.save(folder, moments(recipe.build(scratch), scratch, recipe.changes))
    restored = []
    for at, saved in enumerate(chain.points):
        data, path = chain.restored(saved), scratch / f"restored-{at}.raw"
        path.write_bytes(data)
        parts = saved.source.partitions
        volumes = {part.number: cut_out(path, part, scratch / f"{at}-{part.number}.out") for part in parts}
        path.unlink()
        restored.append(Restored(saved, data, volumes))
    return Everything(chain, restored)


def test_every_used_byte(everything: Everything, tmp_path: Path) -> None:
    """What is used is as it was; what is free comes back as zeros."""
    for restored in everything.restored:
        for part in restored.saved.source.partitions:
            volume = cut_out(restored.saved.source.path, part, tmp_path / "source")
            place = restored.saved.path.name, part.number
            assert restored.volumes[part.number].read_bytes() == used_only(volume, part.kind), place


def test_every_file(everything: Everything) -> None:
    for restored in everything.restored:
        for part in restored.saved.source.partitions:
            if part.kind != "unknown":
                check_files(restored.volumes[part.number], part)


def test_file_systems_are_sound(everything: Everything) -> None:
    for restored in everything.restored:
        for part in restored.saved.source.partitions:
            if part.kind != "unknown":
                check_sound(restored.volumes[part.number], part.kind)


def test_our_reader_shows_the_same_disk(everything: Everything) -> None:
    """And what lies between the partitions: tables, track 0, extended boot records, the backup GPT."""
    for restored in everything.restored:
        source = restored.saved.source
        shown, was = bytearray(_shown(everything.chain, restored.saved)), bytearray(source.path.read_bytes())
        for part in source.partitions:
            mine = slice(part.offset, part.offset + part.size)
            assert shown[mine] == restored.disk[mine], (restored.saved.path.name, part.number)
            shown[mine] = was[mine] = bytes(part.size)
        assert shown == was, restored.saved.path.name


def _shown(chain: ChainOf, saved: Saved) -> bytes:
    with imagefs.open(saved.path, password=chain.password) as container:
        assert container.point is not None
        reader = container.point.disks[0].reader()
        assert reader.size == saved.source.size
        return reader.read_at(0, reader.size)
