"""Built disks as backup sets, and what is shown of them held against what was written into them."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fixtures import disks
from fixtures.content import sha256_file
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import BuiltDisk, BuiltPartition
from imagefs.tree import ImageTree
from mounters.tree import Attributes, NodeType

RECIPES: dict[str, Callable[[Path], BuiltDisk]] = {
    "ntfs": disks.ntfs_disk,
    "fat32": disks.fat_disk,
    "fat16": partial(disks.fat_disk, kind="FAT16"),
    "exfat": disks.exfat_disk,
    "ext4": disks.ext_disk,
    "logical": disks.mbr_logical_disk,
    "multi": disks.gpt_multi_disk,
    "fourk": disks.four_k_disk,
}
FULL, INCREMENTAL = "00-2024-07-10T10.42.16Z-full", "01-2024-07-11T10.42.16Z-inc"
SYSTEM = {"lost+found"}  # what mke2fs makes by itself


@dataclass(frozen=True)
class BuiltSet:
    """A full and an incremental of one disk, in a folder together with the other sets."""

    image_id: str
    full: WrittenFile
    incremental: WrittenFile

    @property
    def points(self) -> tuple[tuple[str, WrittenFile], ...]:
        return (FULL, self.full), (INCREMENTAL, self.incremental)


def build_set(folder: Path, scratch: Path, name: str) -> BuiltSet:
    """Build a disk, change it, and write both states as a set into ``folder``."""
    built = RECIPES[name](scratch)
    changed = disks.change_disk(built, scratch, f"{name}-changed")
    image_id = hashlib.sha256(name.encode()).hexdigest()[:16].upper()
    writer = SetWriter(folder, image_id=image_id, name=name)
    return BuiltSet(image_id, writer.full([built]), writer.incremental([changed]))


def with_files(written: WrittenFile) -> list[BuiltPartition]:
    """Return the partitions of a backup's disk that hold a file system."""
    (disk,) = written.disks
    return [as_shown(partition) for partition in disk.partitions if partition.kind != "unknown"]


def as_shown(part: BuiltPartition) -> BuiltPartition:
    """Return what a partition is shown with: links to another volume are files that hold their targets."""
    elsewhere = {name: target for name, target in part.links.items() if target[1:2] == ":"}
    hashes = {name: hashlib.sha256(target.encode()).hexdigest() for name, target in elsewhere.items()}
    inside = {name: target for name, target in part.links.items() if name not in elsewhere}
    return replace(part, files=part.files | hashes, links=inside)


def expected_target(target: str) -> str:
    """Return how a link is shown."""
    return target.replace("\\", "/")


def expected_directories(part: BuiltPartition) -> set[str]:
    """Return every directory that the recorded names lie in, and the recipes' empty one."""
    names = {str(parent) for name in [*part.files, *part.links] for parent in Path(name).parents}
    return (names | {"empty-directory"}) - {"."}


@dataclass(frozen=True)
class Found:
    """What lies below a directory, by relative path."""

    files: dict[str, os.stat_result]
    links: dict[str, str]
    directories: set[str]


def found_below(root: Path) -> Found:
    """List what lies below a directory of the running system; no link is followed."""
    found = Found({}, {}, set())
    for folder, directories, names in os.walk(root, onerror=_raise):
        for name in [*directories, *names]:
            path = Path(folder) / name
            relative, status = str(path.relative_to(root)), path.lstat()
            if stat.S_ISLNK(status.st_mode):
                found.links[relative] = str(path.readlink())
            elif stat.S_ISDIR(status.st_mode):
                found.directories.add(relative)
            else:
                assert stat.S_ISREG(status.st_mode), relative
                found.files[relative] = status
    return found


def _raise(error: OSError) -> None:
    raise error


def too_long(part: BuiltPartition) -> set[str]:
    """Return the files with names that Linux' own file systems can't hold, and a mount can."""
    return {name for name in part.files if any(len(os.fsencode(piece)) > 255 for piece in name.split("/"))}


def check_directory(root: Path, part: BuiltPartition, *, is_copy: bool = False) -> None:
    """Check a mounted or copied volume: names, contents, links, times, holes, and nothing else there."""
    found = found_below(root)
    left_out = too_long(part) if is_copy else set()
    assert found.files.keys() == part.files.keys() - left_out
    assert found.links == {name: expected_target(target) for name, target in part.links.items()}
    assert found.directories - SYSTEM == expected_directories(part)
    for name in found.files:
        assert sha256_file(root / name) == part.files[name], name
    for name, time in part.times.items():
        assert found.files[name].st_mtime_ns == time, name
    for name, holes in part.holes.items():
        status = found.files[name]
        assert status.st_blocks * 512 <= status.st_size - sum(length for _, length in holes) + 262_144, name
    if not is_copy:
        check_hard_links(
            {name: (status.st_ino, status.st_nlink) for name, status in found.files.items()}, part
        )
        check_following(root, part)


def check_hard_links(numbers: dict[str, tuple[int, int]], part: BuiltPartition) -> None:
    """Check that names of one file, and no others, share an inode number, and that links are counted."""
    groups: dict[str, set[str]] = {}
    for name in part.files:
        groups.setdefault(part.hard_links.get(name, name), set()).add(name)
    assert len({inode for inode, _ in numbers.values()}) == len(groups)
    for group in groups.values():
        assert len({numbers[name][0] for name in group}) == 1, group
        assert {numbers[name][1] for name in group} == {len(group)}, group


def check_following(root: Path, part: BuiltPartition) -> None:
    """Check that relative links lead to the file that they name."""
    for name, target in part.links.items():
        place = os.path.normpath(Path(name).parent / expected_target(target))
        if place in part.files:
            assert sha256_file(root / name) == part.files[place], name


def check_tree(tree: ImageTree, path: str, part: BuiltPartition) -> None:
    """Check a volume through the library, as ``check_directory`` does."""
    files: dict[str, Attributes] = {}
    links, directories = {}, set()
    waiting = [("", tree.resolve(path))]
    while waiting:
        folder, inode = waiting.pop()
        for entry, known in tree.entries_with_attributes(inode):
            assert known is not None
            assert known == tree.attributes(entry.inode)
            assert tree.lookup(inode, entry.name) == entry.inode
            name = f"{folder}{entry.name}"
            if known.type is NodeType.DIRECTORY:
                directories.add(name)
                waiting.append((f"{name}/", entry.inode))
            elif known.type is NodeType.LINK:
                links[name] = tree.read_link(entry.inode)
            else:
                assert known.type is NodeType.FILE
                files[name] = known
    assert files.keys() == part.files.keys()
    assert links == {name: expected_target(target) for name, target in part.links.items()}
    assert directories - SYSTEM == expected_directories(part)
    for name, digest in part.files.items():
        assert sha256_of(tree, files[name].inode) == digest, name
    assert {name: files[name].modified for name in part.times} == part.times
    check_hard_links({name: (known.inode, known.links) for name, known in files.items()}, part)


def sha256_of(tree: ImageTree, inode: int) -> str:
    """Hash a file of a tree, read in pieces that fit no block."""
    digest = hashlib.sha256()
    with tree.open(inode) as file:
        for offset in range(0, file.size, 300_007):
            digest.update(file.read(offset, 300_007))
    return digest.hexdigest()
