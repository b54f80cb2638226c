"""A disk at several moments: what happens to its files in between, done by the tools that own each format."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.content import TreeWriter, noise, pieces, text
from fixtures.partition_tables import MIB, BuiltDisk, BuiltPartition, copy_sparse, create_file
from fixtures.tools import run
from fixtures.volumes import mounted_exfat, mounted_ntfs, mtools


def later(disk: BuiltDisk, path: Path, time: int, numbers: tuple[int, ...]) -> BuiltDisk:
    """Copy a disk to ``path`` and change what some of its partitions hold, differently each ``time``."""
    copy_sparse(disk.path, create_file(path, disk.size))
    changed = {number: _change(path, disk.partition(number), time) for number in numbers}
    partitions = tuple(changed.get(part.number, part) for part in disk.partitions)
    return dataclasses.replace(disk, path=path, partitions=partitions)


def cut_out(disk: Path, part: BuiltPartition, volume: Path) -> Path:
    """Copy a partition's bytes out of a disk into a sparse file."""
    create_file(volume, part.size)
    with disk.open("rb") as reader, volume.open("r+b") as writer:
        reader.seek(part.offset)
        for at in range(0, part.size, MIB):
            piece = reader.read(min(MIB, part.size - at))
            if any(piece):
                writer.seek(at)
                writer.write(piece)
    return volume


def _change(disk: Path, part: BuiltPartition, time: int) -> BuiltPartition:
    volume = cut_out(disk, part, disk.with_name(f"{disk.name}.{part.number}"))
    changed = _CHANGES[part.kind](volume, part, time)
    with volume.open("rb") as reader, disk.open("r+b") as writer:
        for at in range(0, part.size, MIB):
            writer.seek(part.offset + at)
            writer.write(reader.read(min(MIB, part.size - at)))
    volume.unlink()
    return changed


def _mounted(mount: Callable[..., object]) -> Callable[[Path, BuiltPartition, int], BuiltPartition]:
    def change(volume: Path, was: BuiltPartition, time: int) -> BuiltPartition:
        with mount(volume) as root, _tree(root, was) as (tree, changed):  # type: ignore[attr-defined]
            tree.overwrite("big.bin", 100_000 * time, noise(time, 0, 5000))
            for name in _new(tree):
                tree.remove(name)
            tree.add(f"new-{time}.bin", noise(50 + time, 0, 400_000))
            tree.add("sizes/600.bin", text(60 + time, 0, 90_000 * time))
            if "sizes/65537.bin" in tree.files:
                tree.rename("sizes/65537.bin", "renamed.bin")
        return changed

    return change


def _fat(volume: Path, was: BuiltPartition, time: int) -> BuiltPartition:
    with _tree(volume.with_name(f"{volume.name}.tree"), was) as (tree, changed):
        for name in _new(tree):
            mtools("mdel", volume, f"::/{name}")
            tree.files.pop(name)
        mtools("mcopy", volume, tree.add(f"new-{time}.bin", noise(70 + time, 0, 300_000)), "::/")
        mtools("mcopy", volume, tree.add("big.bin", pieces(noise, 80 + time, 200_000 * time)), "::/big.bin")
    return changed


def _ext(volume: Path, was: BuiltPartition, time: int) -> BuiltPartition:
    with _tree(volume.with_name(f"{volume.name}.tree"), was) as (tree, changed):
        gone = [*_new(tree), *(name for name in ("sizes/65536.bin",) if name in tree.files)]
        for name in gone:
            tree.files.pop(name)
        added = tree.add(f"new-{time}.bin", noise(90 + time, 0, 500_000))
        script = f"write {added} {added.name}\n" + "".join(f"rm {name}\n" for name in gone)
        run("debugfs", "-w", "-f", "-", volume, stdin=script.encode())
        run("e2fsck", "-fy", volume, accept=(0, 1))
    return changed


def _bytes(volume: Path, was: BuiltPartition, time: int) -> BuiltPartition:
    """Change runs of bytes; the first keeps a block's content but for its last byte."""
    with volume.open("r+b") as stream:
        for offset, length in ((65_535 + 65_536 * time, 1), (300_000 * time, 70_000), (was.size - 900, 900)):
            stream.seek(offset)
            stream.write(noise(time, offset, length))
    return was


def _new(tree: TreeWriter) -> list[str]:
    """Return what an earlier change added."""
    return [name for name in tree.files if name.startswith("new-")]


@contextmanager
def _tree(root: Path, was: BuiltPartition) -> Iterator[tuple[TreeWriter, BuiltPartition]]:
    """Give a tree to write into, and the partition's record that tells of what was written."""
    changed = dataclasses.replace(was, files=dict(was.files), times={}, holes={}, hard_links={})
    yield TreeWriter(root, changed.files, hard_links=dict(was.hard_links)), changed


_CHANGES: dict[str, Callable[[Path, BuiltPartition, int], BuiltPartition]] = {
    "NTFS": _mounted(mounted_ntfs),
    "exFAT": _mounted(mounted_exfat),
    "FAT16": _fat,
    "FAT32": _fat,
    "ext4": _ext,
    "unknown": _bytes,
}
