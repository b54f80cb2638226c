"""What other people's tools say of a volume: what of it is used, what its files hold, whether it is sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.content import sha256_file
from fixtures.partition_tables import BuiltPartition
from fixtures.tools import run
from fixtures.volumes import FAT_EMOJI, mounted_exfat, mounted_ntfs, mtools
from tests.imagefs.built import found_below

# What sleuthkit calls them, and how many bytes it counts as one unit in the volumes of the recipes.
_KINDS = {
    "NTFS": ("ntfs", 4096),
    "FAT16": ("fat16", 512),
    "FAT32": ("fat32", 512),
    "exFAT": ("exfat", 512),
    "ext4": ("ext4", 4096),
}
_CHECKS = {
    "NTFS": ("ntfsfix", "-n"),
    "FAT16": ("fsck.vfat", "-n"),
    "FAT32": ("fsck.vfat", "-n"),
    "exFAT": ("fsck.exfat", "-n"),
    "ext4": ("e2fsck", "-f", "-n"),
}


def used_only(volume: Path, kind: str, unit: int = 0) -> bytes:
    """Return a volume's bytes with zeros wherever sleuthkit calls it free; ``unit`` is what it counts."""
    data = bytearray(volume.read_bytes())
    if kind == "unknown":
        return bytes(data)
    name, usual = _KINDS[kind]
    unit = unit or usual
    freed = 0
    for line in run("blkls", "-f", name, "-l", volume).decode().splitlines():
        number, _, state = line.partition("|")
        if state == "f":
            data[int(number) * unit : (int(number) + 1) * unit] = bytes(unit)
            freed += 1
    assert freed
    return bytes(data)


def check_sound(volume: Path, kind: str) -> None:
    """Let the tool that owns a file system look for errors; it must find none."""
    tool, *options = _CHECKS[kind]
    run(tool, *options, volume)


def check_files(volume: Path, part: BuiltPartition) -> None:
    """Check that a volume holds the files that were written into it; its format's own tool reads them."""
    with _shown(volume, part.kind) as root:
        found = {name: sha256_file(root / name) for name in found_below(root).files}
    names = {name.replace(FAT_EMOJI, "emoji __.txt") if part.kind.startswith("FAT") else name: name
             for name in part.files}  # fmt: skip
    assert found.keys() == names.keys()
    assert found == {shown: part.files[name] for shown, name in names.items()}


@contextmanager
def _shown(volume: Path, kind: str) -> Iterator[Path]:
    """Mount a volume, or copy its files out of it where that needs no rights."""
    if kind in ("NTFS", "exFAT"):
        with (mounted_ntfs if kind == "NTFS" else mounted_exfat)(volume) as root:
            yield root
        return
    folder = volume.with_name(f"{volume.name}.files")
    folder.mkdir()
    if kind == "ext4":
        run("debugfs", "-R", f"rdump / {folder}", volume)
    else:
        mtools("mcopy", volume, "-s", "-n", "::/*", folder)
    yield folder
