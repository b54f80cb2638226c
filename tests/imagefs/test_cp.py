"""``imagefs cp``: what it keeps, what it leaves alone, and how it fails."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import imagefs
from fixtures.content import sha256_file
from fixtures.disks import plain_disk
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import BuiltPartition
from formats.blockreader import BytesReader
from imagefs.copying import CopyResult, copy_out
from imagefs.filesystems import Stream
from imagefs.tree import ImageTree
from mounters.tree import Attributes, Entry, NodeType, not_found
from tests.conftest import missing, mounted, run_imagefs
from tests.imagefs.built import BuiltSet, check_directory, too_long, with_files


@pytest.fixture
def image(built_set: Callable[[str], BuiltSet]) -> Path:
    return built_set("fourk").full.path


@pytest.fixture
def part(built_set: Callable[[str], BuiltSet]) -> BuiltPartition:
    (part,) = with_files(built_set("fourk").full)
    return part


def copy(image: Path, paths: Sequence[str], target: Path, *, overwrite: bool = False) -> CopyResult:
    with imagefs.open(image) as source:
        return copy_out(source.tree(), paths, target, overwrite=overwrite)


def left_behind(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.imagefs"))


def test_one_file_to_a_new_name(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    copy(image, ["disk1/p1/big.bin"], tmp_path / "new name")
    assert sha256_file(tmp_path / "new name") == part.files["big.bin"]
    (long,) = too_long(part)  # which a file system here could not hold under its own
    copy(image, [f"disk1/p1/{long}"], tmp_path / "short")
    assert sha256_file(tmp_path / "short") == part.files[long]


def test_several_into_a_folder(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    copy(image, ["disk1/p1/big.bin", "/disk1//p1/names/plain.txt", "disk1/p1/sizes/"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"big.bin", "plain.txt", "sizes"}
    assert sha256_file(tmp_path / "sizes/4097.bin") == part.files["sizes/4097.bin"]


def test_times_of_everything(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    copy(image, ["disk1/p1"], tmp_path)
    with mounted(image, tmp_path / "mnt") as root:  # held against ntfs-3g in test_sample_commands
        for path in (root / "disk1/p1").rglob("*"):
            relative = str(path.relative_to(root / "disk1/p1"))
            if relative not in too_long(part):
                wanted = path.lstat()
                got = (tmp_path / "p1" / relative).lstat()
                assert got.st_mtime_ns == wanted.st_mtime_ns, relative
                if not stat.S_ISDIR(got.st_mode) and not stat.S_ISLNK(got.st_mode):
                    assert got.st_mode & 0o200  # else the owner could not even delete it on Windows' shares


def test_nothing_is_overwritten_unless_asked(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names/plain.txt").write_text("mine")
    (tmp_path / "names/other.txt").write_text("also mine")
    (tmp_path / "elsewhere").write_text("not to be touched")
    (tmp_path / "names/.hidden").symlink_to(tmp_path / "elsewhere")
    done = run_imagefs("cp", image, "disk1/p1/names", tmp_path)
    assert done.code == 7
    told = [line for line in done.errors.splitlines() if "--overwrite" in line]
    assert len(told) == 2
    assert any("disk1/p1/names/plain.txt" in line for line in told)
    assert (tmp_path / "names/plain.txt").read_text() == "mine"
    assert sha256_file(tmp_path / "names/no-extension") == part.files["names/no-extension"]
    run_imagefs("cp", "--overwrite", image, "disk1/p1/names", tmp_path)
    assert sha256_file(tmp_path / "names/plain.txt") == part.files["names/plain.txt"]
    assert not (tmp_path / "names/.hidden").is_symlink()  # replaced, not written through
    assert (tmp_path / "elsewhere").read_text() == "not to be touched"
    assert (tmp_path / "names/other.txt").read_text() == "also mine"
    assert not left_behind(tmp_path)


def test_links_are_not_followed_in_the_target(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    """A link in the place of a directory would lead what is copied out of the target."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "out/p1").mkdir(parents=True)
    (tmp_path / "out/p1/sizes").symlink_to(tmp_path / "outside")
    for overwrite in (False, True):
        result = copy(image, ["disk1/p1"], tmp_path / "out", overwrite=overwrite)
        assert any(line.startswith("disk1/p1/sizes: ") for line in result.failures)
        assert not list((tmp_path / "outside").iterdir())
    assert sha256_file(tmp_path / "out/p1/big.bin") == part.files["big.bin"]


def test_a_link_over_a_file_and_a_directory_over_a_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "posix").write_text("mine")
    (tmp_path / "sizes").write_text("mine")
    result = copy(image, ["disk1/p1/links/posix", "disk1/p1/sizes"], tmp_path)
    assert len(result.failures) == 2
    copy(image, ["disk1/p1/links/posix"], tmp_path, overwrite=True)
    assert (tmp_path / "posix").readlink() == Path("target.txt")
    assert (tmp_path / "sizes").read_text() == "mine"
    (tmp_path / "big.bin").mkdir()
    assert copy(image, ["disk1/p1/big.bin"], tmp_path, overwrite=True).failures
    assert not left_behind(tmp_path)


def test_directories_are_merged(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    copy(image, ["disk1/p1/names"], tmp_path)
    (tmp_path / "names/emoji 😀 🧵.txt").unlink()
    result = copy(image, ["disk1/p1/names"], tmp_path)
    assert result.files == 1
    assert sha256_file(tmp_path / "names/emoji 😀 🧵.txt") == part.files["names/emoji 😀 🧵.txt"]


def test_two_of_one_name(image: Path, tmp_path: Path) -> None:
    paths = ["disk1/p1/links/hard.txt", "disk1/p1/links/hard.txt"]
    for overwrite in (False, True):
        result = copy(image, paths, tmp_path, overwrite=overwrite)
        assert result.failures == ["disk1/p1/links/hard.txt: another file of this copy has its name"]
        assert result.files == 1


def test_the_whole_image(built_set: Callable[[str], BuiltSet], tmp_path: Path) -> None:
    written = built_set("fourk").full
    copy(written.path, [""], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"disk1", "disk1.raw"}
    check_directory(tmp_path / "disk1/p1", with_files(written)[0], is_copy=True)


def test_a_target_that_can_not_be_written(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as root:
        done = run_imagefs("cp", image, "disk1/p1/big.bin", "disk1/p1/sizes", root)
    assert (done.code, done.output) == (7, b"")
    assert "disk1/p1/big.bin: Read-only file system" in done.errors
    assert "disk1/p1/sizes: Read-only file system" in done.errors


def test_a_limit_on_file_sizes(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    import resource  # which Windows has not

    limit = 100_000
    done = subprocess.run(
        [sys.executable, "-m", "imagefs", "cp", str(image), "disk1/p1", str(tmp_path)],
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 7
    lines = done.stderr.decode().splitlines()
    assert "imagefs: disk1/p1/big.bin: File too large" in lines
    assert not (tmp_path / "p1/big.bin").exists()
    assert sha256_file(tmp_path / "p1/sizes/65537.bin") == part.files["sizes/65537.bin"]
    assert not left_behind(tmp_path)


@contextmanager
def tmpfs(path: Path, size: int) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        missing("mounting a tmpfs takes root")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk(image: Path, part: BuiltPartition, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 600_000) as target:
        done = run_imagefs("cp", image, "disk1/p1/big.bin", "disk1/p1/sizes", target)
        assert (done.code, done.output) == (7, b"")
        assert "imagefs: disk1/p1/big.bin: No space left on device\n" in done.errors
        assert not (target / "big.bin").exists()
        assert not left_behind(target)
        again = run_imagefs("cp", image, "disk1/p1/sizes", target)  # there is room again
        assert again.code == (7 if "sizes" not in done.errors else again.code)
        assert sha256_file(target / "sizes/600.bin") == part.files["sizes/600.bin"]


# --- What a damaged or hostile file system can hold ---


class HostileTree(ImageTree):
    """A tree of one directory with the names given, and one more directory in it for each that ends in /."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.root = 1
        self.names = names

    def attributes(self, inode: int) -> Attributes:
        is_directory = inode == 1 or (inode > 1 and self.names[inode - 2].endswith("//"))
        kind = NodeType.DIRECTORY if is_directory else NodeType.FILE
        return Attributes(inode, kind, 0 if is_directory else 5, 0o7777, modified=-(2**62))

    def entries(self, inode: int) -> Sequence[Entry]:
        if inode != 1:
            return [Entry("inside", 2, NodeType.FILE)]
        return [
            Entry(name.removesuffix("//"), number, self.attributes(number).type)
            for number, name in enumerate(self.names, 2)
        ]

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        return [(entry, self.attributes(entry.inode)) for entry in self.entries(inode)]

    def lookup(self, inode: int, name: str) -> int:
        raise not_found(name)

    def open_reader(self, inode: int) -> BytesReader:
        return BytesReader(b"12345")


def test_hostile_names(tmp_path: Path) -> None:
    target = tmp_path / "a/b"
    target.mkdir(parents=True)
    bad = ["", ".", "..", "../../escaped", "/tmp/escaped-from-an-image", "x/y", "nul\0", "..//", ".//"]
    result = copy_out(HostileTree([*bad, "good", "good dir//"]), [""], target)
    assert len(result.failures) == len(bad)
    assert {path.name for path in target.iterdir()} == {"good", "good dir"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"b"}
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert not Path("/tmp/escaped-from-an-image").exists()
    mode = (target / "good").stat().st_mode
    assert mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is none")
def test_the_umask_of_the_moment(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        copy_out(HostileTree(["file"]), ["/"], tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o750


class LoopingTree(HostileTree):
    """A directory that is in itself, by two names; it has a stream that no file here can have."""

    def entries(self, inode: int) -> Sequence[Entry]:
        return [Entry(name, 1, NodeType.DIRECTORY) for name in ("one", "two")]

    def streams(self, inode: int) -> Sequence[Stream]:
        return [Stream("nul\0", 5, 5)]

    def open_stream(self, inode: int, name: str) -> BytesReader:
        return BytesReader(b"12345")


def test_a_directory_in_itself(tmp_path: Path) -> None:
    result = copy_out(LoopingTree([]), [""], tmp_path, streams=True)
    assert len([line for line in result.failures if "has another place as well" in line]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_same_name_twice_in_a_directory(tmp_path: Path) -> None:
    result = copy_out(HostileTree(["twin", "twin"]), [""], tmp_path, overwrite=True)
    assert (len(result.failures), result.files) == (1, 1)


def test_progress_reaches_the_total(image: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with imagefs.open(image) as source:
        copy_out(
            source.tree(), ["disk1/p1/sparse", "disk1.raw"], tmp_path,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_block_runs_and_holes(tmp_path: Path) -> None:
    """A disk with runs of blocks that are not stored: the copy has holes there, and the bytes are right."""
    disk = plain_disk(tmp_path, sizes=(20 << 20,))
    with disk.path.open("r+b") as file:
        for start in range(4, 20, 4):
            file.seek(start << 20)
            file.write(bytes(2 << 20))
    written = SetWriter(tmp_path / "set").full([disk])
    copy(written.path, ["disk1.raw"], tmp_path / "copy.raw")
    assert sha256_file(tmp_path / "copy.raw") == sha256_file(disk.path)
    assert (tmp_path / "copy.raw").stat().st_blocks * 512 <= (len(written.blocks[0, 0]) + 64) * 65536
