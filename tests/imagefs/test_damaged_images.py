"""One flipped bit in an image: what it holds can't be read, everything else can, and nothing is missing."""

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import imagefs
from fixtures.content import sha256_file
from fixtures.damage import flip_byte, flip_in_block
from fixtures.mrimgx_writer import WrittenFile
from fixtures.partition_tables import BuiltPartition
from fixtures.tools import run
from formats.errors import DamagedError, FormatError
from imagefs.tree import ImageTree
from imagefs.verify import verify
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import SYSTEM, BuiltSet, as_shown, check_directory, sha256_of, too_long

BLOCK = 65536


@dataclass(frozen=True)
class Damaged:
    """An image whose bits can be flipped, and flipped back."""

    path: Path
    written: WrittenFile

    def part(self, number: int) -> BuiltPartition:
        (disk,) = self.written.disks
        return as_shown(disk.partition(number))

    @contextmanager
    def block(self, number: int, block: int) -> Iterator[None]:
        """Have a block of a partition damaged."""
        at = [part.number for part in self.written.disks[0].partitions].index(number)
        offset = flip_in_block(self.path, at, block)
        yield
        flip_byte(self.path, offset)

    @contextmanager
    def reserved(self, number: int, index: int) -> Iterator[None]:
        """Have one of the blocks before the first cluster of a FAT damaged."""
        at = [part.number for part in self.written.disks[0].partitions].index(number)
        position, length = self.written.reserved[0, at][index]
        flip_byte(self.path, position + length // 2)
        yield
        flip_byte(self.path, position + length // 2)

    def stored(self, number: int) -> list[int]:
        at = [part.number for part in self.written.disks[0].partitions].index(number)
        return sorted(self.written.blocks[0, at])


@pytest.fixture
def multi(built_set: Callable[[str], BuiltSet], tmp_path: Path) -> Damaged:
    """Return a copy of the full of a disk with FAT32 (1), random bytes (2), NTFS (3) and ext4 (4)."""
    written = built_set("multi").full
    path = tmp_path / "image" / written.path.name
    path.parent.mkdir()
    shutil.copy(written.path, path)
    return Damaged(path, written)


@pytest.fixture(scope="module")
def ntfs_volume(built_set: Callable[[str], BuiltSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the NTFS partition as a file of its own, for other tools."""
    (disk,) = built_set("multi").full.disks
    part = as_shown(disk.partition(3))
    path = tmp_path_factory.mktemp("ntfs") / "volume"
    with disk.path.open("rb") as source:
        source.seek(part.offset)
        path.write_bytes(source.read(part.size))
    return path


def ntfs_owners(volume: Path, block: int) -> set[str]:
    """Return what ntfscluster finds in a block: paths of files with $DATA, "" for everything else."""
    clusters = BLOCK // 4096
    found = run("ntfscluster", "-c", f"{block * clusters}-{(block + 1) * clusters - 1}", volume)
    owners = set()
    for line in re.findall(rb"^Inode (\d+ .*)$", found, re.MULTILINE):
        number, _, path = line.partition(b" ")
        is_file = int(number) >= 64 and path.endswith(b"/$DATA")
        owners.add(os.fsdecode(path.removesuffix(b"/$DATA").strip(b"/")) if is_file else "")
    return owners


def unreadable(tree: ImageTree, path: str, part: BuiltPartition) -> set[str]:
    """Read every file of a volume by its path; return those that can't be, check the others."""
    failed = set()
    for name, digest in part.files.items():
        try:
            assert sha256_of(tree, tree.resolve(f"{path}/{name}")) == digest, name
        except FormatError as error:  # anything else, "no such file" above all, is a mistake
            assert error.errno == errno.EIO
            failed.add(name)
    for name in part.links:
        with suppress(FormatError):
            tree.read_link(tree.resolve(f"{path}/{name}"))
    return failed


def check_walk(tree: ImageTree, path: str, part: BuiltPartition, failed: set[str]) -> None:
    """Check that listings are whole or can't be read: a file that can be read is never left out of one."""
    found, broken = set(), set()
    waiting = [("", tree.resolve(path))]
    while waiting:
        folder, inode = waiting.pop()
        try:
            entries = tree.entries(inode)
        except FormatError:
            broken.add(folder)
            continue
        for entry in entries:
            found.add(folder + entry.name)
            if entry.type == "dir":
                waiting.append((f"{folder}{entry.name}/", entry.inode))
    missing = {name for name in part.files.keys() | part.links.keys() if name not in found}
    assert {name for name in missing if not any(name.startswith(folder) for folder in broken)} == set()
    names = {name for name in found if name not in SYSTEM}
    directories = {str(parent) for name in part.files | part.links for parent in Path(name).parents}
    assert names <= part.files.keys() | part.links.keys() | directories | {"empty-directory"}


def test_blocks_of_ntfs_files(multi: Damaged, ntfs_volume: Path) -> None:
    """The files that ntfscluster finds in a block can't be read, and no others."""
    part = multi.part(3)
    checked = 0
    for block in multi.stored(3):
        owners = ntfs_owners(ntfs_volume, block)
        owners &= {*part.files, ""}  # a path too deep for ntfscluster comes out garbled
        if not owners or "" in owners:
            continue
        checked += 1
        # A block can hold only the padding behind a file's end, or a stream: that is not read.
        with multi.block(3, block), imagefs.open(multi.path) as source:
            failed = unreadable(source.tree(), "disk1/p3", part)
        linked = {name for name, first in part.hard_links.items() if first in owners}
        assert owners <= failed
        assert failed <= owners | linked | {name for name in part.files if name.startswith("deep/")}
    assert checked > 20


@pytest.mark.parametrize("number", [1, 3, 4])
def test_any_block(multi: Damaged, number: int) -> None:
    """Whatever a block holds: files are right or can't be read, listings are whole or can't be read."""
    part = multi.part(number)
    blocks = multi.stored(number)
    chosen = sorted({*blocks[:6], *random.Random(number).sample(blocks, 8)})
    for block in chosen:
        with multi.block(number, block), imagefs.open(multi.path) as source:
            tree = source.tree()
            failed = unreadable(tree, f"disk1/p{number}", part)
            check_walk(tree, f"disk1/p{number}", part, failed)
            with pytest.raises(DamagedError):
                read_all(tree, f"disk1/p{number}.raw")
            result = verify(source)
            assert [(bad.file, bad.partition, bad.block) for bad in result.bad] == [
                (multi.path, f"disk1/p{number}", block)
            ]
        with imagefs.open(multi.path) as source:
            assert verify(source).ok


def read_all(tree: ImageTree, path: str) -> None:
    with tree.open(tree.resolve(path)) as file:
        for offset in range(0, file.size, 1 << 20):
            file.read(offset, 1 << 20)


def test_a_damaged_reserved_block(multi: Damaged) -> None:
    """The boot sector and the tables of a FAT are in one block: nothing of the volume can be read."""
    part = multi.part(1)
    with multi.reserved(1, 0), imagefs.open(multi.path) as source:
        tree = source.tree()
        assert unreadable(tree, "disk1/p1", part) == part.files.keys()
        with pytest.raises(DamagedError):
            tree.entries(tree.resolve("disk1/p1"))
        assert "p1" in {entry.name for entry in tree.entries(tree.resolve("disk1"))}


def block_of_big(multi: Damaged, ntfs_volume: Path) -> int:
    """Return a block that belongs to big.bin alone, in its middle."""
    blocks = [b for b in multi.stored(3) if ntfs_owners(ntfs_volume, b) == {"big.bin"}]
    return blocks[len(blocks) // 2]


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_mount(multi: Damaged, ntfs_volume: Path, tmp_path: Path, mechanism: str) -> None:
    part = multi.part(3)
    with (
        multi.block(3, block_of_big(multi, ntfs_volume)),
        mounted(multi.path, tmp_path / "mnt", "--mechanism", mechanism) as root,
    ):
        volume = root / "disk1/p3"
        failed = set()
        for name, digest in part.files.items():
            try:
                assert sha256_file(volume / name) == digest
            except OSError as error:
                assert error.errno == errno.EIO
                failed.add(name)
        assert failed == {"big.bin"}
        with (volume / "big.bin").open("rb") as file:
            assert len(file.read(4096)) == 4096  # what is not damaged can be had
            file.seek(-4096, 2)
            assert len(file.read()) == 4096
        with (root / "disk1/p3.raw").open("rb") as file, pytest.raises(OSError, match="Input/output"):
            while file.read(1 << 20):
                pass
        check_directory(root / "disk1/p4", multi.part(4))


def test_cat(multi: Damaged, ntfs_volume: Path) -> None:
    block = block_of_big(multi, ntfs_volume)
    with multi.block(3, block):
        done = run_imagefs("cat", multi.path, "disk1/p3/big.bin")
    assert done.code == 3
    assert done.errors.count("\n") == 1
    assert "disk1/p3/big.bin" in done.errors
    assert f"{multi.path}: disk1/p3 block {block}" in done.errors


def test_cp_goes_on(multi: Damaged, ntfs_volume: Path, tmp_path: Path) -> None:
    part = multi.part(3)
    block = block_of_big(multi, ntfs_volume)
    target = tmp_path / "out"
    target.mkdir()
    with multi.block(3, block):
        done = run_imagefs("cp", multi.path, "disk1/p3", "disk1/p1", target)
    assert done.code == 7
    lines = [line for line in done.errors.splitlines() if "too long" not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"imagefs: disk1/p3/big.bin: {multi.path}: disk1/p3 block {block}")
    assert not (target / "p3/big.bin").exists()
    assert not list(target.rglob("*.imagefs"))
    others = {name: digest for name, digest in part.files.items() if name != "big.bin"}
    for name in others.keys() - too_long(part):
        assert sha256_file(target / "p3" / name) == others[name]
    check_directory(target / "p1", multi.part(1), is_copy=True)


def test_verify(multi: Damaged, ntfs_volume: Path) -> None:
    block = block_of_big(multi, ntfs_volume)
    with multi.block(3, block):
        text = run_imagefs("verify", multi.path)
        document = json.loads(run_imagefs("verify", "--json", multi.path).output)
        folder = run_imagefs("verify", multi.path.parent)
    assert text.code == folder.code == 1
    for done in (text, folder):
        assert f"bad {multi.path}: disk1/p3 block {block}: " in done.text
        assert "1 bad" in done.text
    assert document["ok"] is False
    (bad,) = document["bad"]
    assert (bad["file"], bad["partition"], bad["block"]) == (str(multi.path), "disk1/p3", block)
    assert bad["reason"]
    assert document["blocks_checked"] == sum(len(blocks) for blocks in multi.written.blocks.values()) + sum(
        len(blocks) for blocks in multi.written.reserved.values()
    )


def test_a_damaged_boot_sector(multi: Damaged, tmp_path: Path) -> None:
    with multi.block(3, 0):
        listed = json.loads(run_imagefs("ls", "--json", multi.path, "disk1").output)["entries"]
        assert {"name": "p3", "type": "dir"}.items() <= next(e for e in listed if e["name"] == "p3").items()
        for command in (("ls", "disk1/p3"), ("cat", "disk1/p3/big.bin"), ("cat", "disk1/p3/not there")):
            done = run_imagefs(command[0], multi.path, command[1])
            assert (done.code, done.output) == (3, b"")
            assert f"{multi.path}: disk1/p3 block 0" in done.errors
            assert done.errors.count("\n") == 1
        copied = run_imagefs("cp", multi.path, "disk1", tmp_path)
        assert copied.code == 7
        assert "imagefs: disk1/p3: " in copied.errors
        assert "imagefs: disk1/p3.raw: " in copied.errors
        assert not (tmp_path / "disk1/p3").exists()  # an empty directory would look like an empty volume
        check_directory(tmp_path / "disk1/p4", multi.part(4), is_copy=True)
        refused = tmp_path / "refused"
        refused.mkdir()
        volume = run_imagefs("mount", multi.path, refused, "--volume", "disk1/p3")
        if os.path.ismount(refused):
            run_imagefs("umount", "--force", refused)
        assert (volume.code, volume.output) == (3, b"")
        with mounted(multi.path, tmp_path / "mnt") as root:
            assert (root / "disk1/p3").is_dir()
            with pytest.raises(OSError, match="Input/output"):
                os.listdir(root / "disk1/p3")  # noqa: PTH208
            with pytest.raises(OSError, match="Input/output"):
                (root / "disk1/p3/big.bin").stat()
            check_directory(root / "disk1/p4", multi.part(4))


def mft_block(ntfs_volume: Path, name: str) -> int:
    """Return the block that holds a file's MFT record."""
    found = re.search(rb"Dumping Inode (\d+)", run("ntfsinfo", "-F", name, ntfs_volume))
    assert found is not None
    inode = int(found[1])
    boot = ntfs_volume.read_bytes()[:512]
    start = int.from_bytes(boot[48:56], "little") * 4096
    return (start + inode * 1024) // BLOCK


def test_damage_among_the_file_records(multi: Damaged, ntfs_volume: Path, tmp_path: Path) -> None:
    """Files whose records are damaged are told one by one; the others of their directories are copied."""
    part = multi.part(3)
    block = mft_block(ntfs_volume, "/big.bin")
    with multi.block(3, block):
        with imagefs.open(multi.path) as source:
            failed = unreadable(source.tree(), "disk1/p3", part)
        listed = run_imagefs("ls", multi.path, "disk1/p3")
        done = run_imagefs("cp", multi.path, "disk1/p3", tmp_path)
    assert failed
    names = {path.split("/")[0] for path in part.files}
    lines = listed.errors.splitlines()
    assert listed.code == 7  # what can't be read is told, the rest is listed
    assert all(line.startswith("imagefs: disk1/p3/") and "MD5" in line for line in lines)
    shown = {line.split("  ")[-1] for line in listed.text.splitlines()}
    assert names <= shown | {line.split(":")[1].rpartition("/")[2] for line in lines}
    assert "big.bin" not in shown
    assert done.code == 7
    copied = {str(path.relative_to(tmp_path / "p3")) for path in (tmp_path / "p3").rglob("*")}
    assert part.files.keys() - failed - too_long(part) <= copied
    assert failed.isdisjoint(copied)
    for name in part.files.keys() & copied:
        assert sha256_file(tmp_path / "p3" / name) == part.files[name]
