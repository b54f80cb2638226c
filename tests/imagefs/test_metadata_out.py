"""Streams, links and times out of an image, by cp and by other programs from a mount, as from ntfs-3g's."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import imagefs
from fixtures.content import sha256_file
from fixtures.mrimgx_writer import SetWriter
from fixtures.ntfs_metadata import ODD_STREAMS, STREAM_SIZES, metadata_volume, stream_content
from fixtures.partition_tables import MIB, Volume, copy_sparse, create_file, gpt_disk
from fixtures.tools import find_tool, run
from fixtures.volumes import (
    KNOWN_TIME,
    loop_device,
    make_ntfs,
    mounted_ntfs,
    ntfs_reparse,
    set_xattr,
)
from imagefs.copying import CopyResult, copy_out
from tests.conftest import missing, mounted, run_imagefs
from tests.imagefs.filesystems.ntfs.metadata import mounted_by_ntfs3g

FOLDERS = ("names", "owners", "ids", "wsl", "streams/folder", "streams/many.txt", "streams/compressed")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = metadata_volume(tmp_path_factory.mktemp("metadata"))
    with mounted_ntfs(path) as root:
        for number, name in enumerate(("names/three names.txt", "names/lower.txt", "streams/folder")):
            os.utime(root / name, ns=(KNOWN_TIME + 700 + number, KNOWN_TIME + number * 100))
        os.setxattr(root / "names/lower.txt", "system.ntfs_attrib_be", (0x2022).to_bytes(4, "big"))
        born = (0x01D0_1234_5678_9ABC).to_bytes(8, "big")
        os.setxattr(root / "names/lower.txt", "system.ntfs_crtime_be", born)
    return path


@pytest.fixture(scope="module")
def image(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    copy = create_file(folder / "copy.volume", volume.stat().st_size)
    copy_sparse(volume, copy)
    parts = [Volume(copy, volume.stat().st_size, "NTFS", "Metadata")]
    disk = gpt_disk(folder / "disk.raw", parts, "0F6B4C1D-0A0B-4C0D-8E0F-000000000077")
    return SetWriter(folder / "set").full([disk]).path


@contextmanager
def ext4(folder: Path, *features: str) -> Iterator[Path]:
    """Make and mount an ext4 volume; takes root."""
    if os.geteuid():
        missing("mounting ext4 takes root")
    path = create_file(folder / "ext4.volume", 64 * MIB)
    run("mke2fs", "-q", "-t", "ext4", *features, path)
    target = folder / "ext4"
    target.mkdir()
    with loop_device(path) as device:
        done = subprocess.run([find_tool("mount"), device, target], capture_output=True, check=False)
        if done.returncode:
            missing(f"ext4 can't be mounted here: {done.stderr.decode()}")
        try:
            yield target
        finally:
            run("umount", target)


def copy(
    image: Path, names: list[str], target: Path, *, overwrite: bool = False, streams: bool = False
) -> CopyResult:
    paths = [f"disk1/p1/{name}" for name in names]
    with imagefs.open(image) as source:
        return copy_out(source.tree(), paths, target, overwrite=overwrite, streams=streams)


def linked(root: Path) -> set[frozenset[str]]:
    """Return the names below a directory, those of a file together."""
    found: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        if not path.is_dir():
            found.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(names) for names in found.values()}


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_file(path) for path in root.rglob("*") if path.is_file()}


# --- Hard links ---


@pytest.fixture(scope="module")
def names(
    volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[set[frozenset[str]], dict[str, str]]:
    """Return what ntfs-3g shows of the directory with the links."""
    with mounted_by_ntfs3g(volume, tmp_path_factory.mktemp("names") / "mnt") as root:
        return linked(root / "names"), contents(root / "names")


Names = tuple[set[frozenset[str]], dict[str, str]]


def test_hard_links_stay_links(image: Path, names: Names, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over what is there
        result = copy(image, ["names"], tmp_path, overwrite=True)
        assert not result.failures
        assert result.files == len(names[1])
        assert (linked(tmp_path / "names"), contents(tmp_path / "names")) == names
    assert (tmp_path / "names/three names.txt").stat().st_nlink == 3
    again = copy(image, ["names"], tmp_path)
    assert len(again.failures) == len(names[1])
    assert all("is there already" in failure for failure in again.failures)
    assert not list(tmp_path.rglob("*.imagefs"))


def test_where_there_are_no_hard_links(
    image: Path, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not copy(image, ["names"], tmp_path).failures
    assert contents(tmp_path / "names") == names[1]
    assert linked(tmp_path / "names") == {frozenset([name]) for name in names[1]}
    assert not list(tmp_path.rglob("*.imagefs"))


def test_another_file_in_the_place_of_a_copy(
    image: Path, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link
    replaced: list[str] = []

    def replace_first(source: Path, target: Path) -> None:
        if not source.name.endswith(".imagefs") and not replaced:
            source.unlink()
            source.write_bytes(b"somebody's")
            replaced.append(str(source.relative_to(tmp_path / "names")))
        link(source, target)

    monkeypatch.setattr(os, "link", replace_first)
    assert not copy(image, ["names"], tmp_path).failures
    assert len(replaced) == 1
    found = contents(tmp_path / "names")
    assert found.keys() == names[1].keys()
    assert {name for name in found if found[name] != names[1][name]} == set(replaced)
    assert not list(tmp_path.rglob("*.imagefs"))


# --- Streams ---


def test_streams_onto_ext4(image: Path, tmp_path: Path) -> None:
    with ext4(tmp_path) as target:
        done = run_imagefs(
            "cp", "--streams", image, "disk1/p1/streams/host.txt", "disk1/p1/streams/folder", target
        )
        host = target / "host.txt"
        assert done.code == 7
        lines = sorted(done.errors.splitlines())
        refused = ("folder:70000", "host.txt:65536", "host.txt:70000", "host.txt:scattered")
        for line, name in zip(lines, refused, strict=True):
            assert line.startswith(f"imagefs: disk1/p1/streams/{name}: ")
            assert "extended attribute" in line
        assert host.read_bytes() == b"host.txt"
        kept = {name for name in os.listxattr(host) if name.startswith("user.") and "ntfs-3g." not in name}
        assert kept == {f"user.{name}" for name in (*ODD_STREAMS, "0", "1", "700")}
        for size in (0, 1, 700):
            assert os.getxattr(host, f"user.{size}") == stream_content(size)
        for name in ODD_STREAMS:
            assert os.getxattr(host, f"user.{name}") == name.encode()
        assert os.getxattr(target / "folder", "user.on a folder") == b"a folder's stream"
        assert (target / "folder").stat().st_mtime_ns == KNOWN_TIME + 200


def test_without_the_option_no_streams(image: Path, tmp_path: Path) -> None:
    with ext4(tmp_path) as target:
        done = run_imagefs("cp", image, "disk1/p1/streams/host.txt", target)
        assert (done.code, os.listxattr(target / "host.txt")) == (0, [])


def test_streams_and_attributes_onto_ntfs(image: Path, volume: Path, tmp_path: Path) -> None:
    with mounted_by_ntfs3g(volume, tmp_path / "source") as source, mounted_ntfs(
        make_ntfs(tmp_path / "target.volume", 48 * MIB, "Target")
    ) as target:  # fmt: skip
        done = run_imagefs("cp", "--streams", image, *(f"disk1/p1/{name}" for name in FOLDERS), target)
        assert (done.code, len(done.errors.splitlines())) == (7, 1), done.errors
        assert "disk1/p1/streams/folder:70000" in done.errors
        for name in FOLDERS:
            for path in (source / name, *(source / name).rglob("*")):
                copied = target / Path(name).name / path.relative_to(source / name)
                for attribute in os.listxattr(path, follow_symlinks=False):
                    if attribute != "user.70000":
                        assert os.getxattr(copied, attribute) == os.getxattr(path, attribute), (
                            copied,
                            attribute,
                        )
                for attribute in ("system.ntfs_crtime_be", "system.ntfs_attrib_be"):
                    ours = bytearray(os.getxattr(copied, attribute))
                    theirs = bytearray(os.getxattr(path, attribute))
                    if attribute.endswith("attrib_be"):  # compressed or encrypted, as its directory is
                        ours[2], theirs[2] = ours[2] & ~0x48, theirs[2] & ~0x48
                    assert ours == theirs, (copied, attribute)
                assert copied.stat().st_mtime_ns == path.stat().st_mtime_ns, copied
                assert copied.stat().st_atime_ns == path.stat().st_atime_ns or path.is_dir(), copied
        assert linked(target / "names") == linked(source / "names")


def test_links_onto_ntfs_with_their_attributes(tmp_path: Path) -> None:
    """What ntfs-3g makes of a link is one by a file attribute, which links of Windows have not."""
    path = make_ntfs(tmp_path / "source.volume", 12 * MIB, "Links")
    with mounted_ntfs(path) as root:
        (root / "links").mkdir()
        (root / "links/windows").touch()
        point = ntfs_reparse(0xA000000C, "..\\Target", "..\\Target", True)
        set_xattr(root / "links/windows", "system.ntfs_reparse_data", point)
        (root / "links/posix").symlink_to("windows")
        os.utime(root / "links/posix", ns=(KNOWN_TIME, KNOWN_TIME + 500), follow_symlinks=False)
    disk = gpt_disk(
        tmp_path / "disk.raw",
        [Volume(path, 12 * MIB, "NTFS", "Links")],
        "0F6B4C1D-0A0B-4C0D-8E0F-000000000078",
    )
    image = SetWriter(tmp_path / "set").full([disk]).path
    with mounted_ntfs(make_ntfs(tmp_path / "target.volume", 12 * MIB, "Target")) as target:
        assert not copy(image, ["links"], target, streams=True).failures
        found = {path.name: str(path.readlink()) for path in (target / "links").iterdir()}
        assert found == {"windows": "../Target", "posix": "windows"}
        assert (target / "links/posix").lstat().st_mtime_ns == KNOWN_TIME + 500


def test_a_target_without_attributes(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    result = copy(image, ["streams/host.txt"], tmp_path, streams=True)
    assert result.files == 1
    assert (tmp_path / "host.txt").read_bytes() == b"host.txt"
    failed = {failure.split(": ")[0] for failure in result.failures}
    assert "disk1/p1/streams/host.txt:700" in failed
    assert (
        len(failed) == len(result.failures) == len(ODD_STREAMS) + len(STREAM_SIZES) + 2
    )  # and the scattered one, and ntfs-3g's


def test_one_stream_by_its_name(image: Path, tmp_path: Path) -> None:
    done = run_imagefs("cat", image, "disk1/p1/streams/host.txt:70000")
    assert (done.code, done.output) == (0, stream_content(70000))
    done = run_imagefs("cp", image, "disk1/p1/streams/folder:70000", tmp_path / "out")
    assert (done.code, (tmp_path / "out").read_bytes()) == (0, stream_content(70000))


def test_streams_are_listed(image: Path) -> None:
    done = run_imagefs("ls", "--streams", image, "disk1/p1/streams/folder")
    lines = [line.split(maxsplit=3) for line in done.text.splitlines()]
    assert [(line[0], line[1], line[3]) for line in lines] == [
        ("-", "70000", ":70000"),
        ("-", "17", ":on a folder"),
    ]
    found = json.loads(run_imagefs("ls", "--streams", "--json", image, "disk1/p1").output)
    assert found["streams"] == [{"name": "on the root", "size": 17}]
    assert {entry["name"]: entry["streams"] for entry in found["entries"]}["owners"] == []
    (host,) = json.loads(run_imagefs("ls", "--streams", "--json", image, "disk1/p1/streams/host.txt").output)[
        "entries"
    ]
    assert {"name": "70000", "size": 70000} in host["streams"]
    plain = json.loads(run_imagefs("ls", "--json", image, "disk1/p1").output)
    assert "streams" not in plain
    assert all("streams" not in entry for entry in plain["entries"])


# --- Other programs, from a mount ---


def attributes_below(root: Path) -> list[str]:
    """Return what getfattr prints of all files, in order of their names."""
    command = [find_tool("getfattr"), "-R", "-d", "-m", "-", "-h", "-e", "hex", "."]
    done = subprocess.run(command, cwd=root, capture_output=True, check=False, env={"LC_ALL": "C.UTF-8"})
    return sorted(block for block in done.stdout.decode().split("\n\n") if "streams/wof" not in block)


def state(root: Path) -> dict[str, tuple[str | None, int, dict[str, bytes]]]:
    """Return what a copy has of each file: the hash of its bytes, its time and attributes."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = None if not stat.S_ISREG(status.st_mode) else sha256_file(path)
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        found[str(path.relative_to(root))] = content, status.st_mtime_ns, attributes
    return found


@pytest.fixture(scope="module")
def theirs(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted_by_ntfs3g(volume, tmp_path_factory.mktemp("theirs") / "mnt") as root:
        yield root


@pytest.fixture(scope="module")
def ours(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(image, tmp_path_factory.mktemp("ours") / "mnt") as root:
        yield root / "disk1/p1"


def test_getfattr_tells_the_same(theirs: Path, ours: Path) -> None:
    wanted = attributes_below(theirs)
    assert sum(block.count("user.") for block in wanted) > 120
    assert attributes_below(ours) == wanted


@pytest.mark.parametrize("program", ["cp", "rsync"])
def test_copies_are_as_from_ntfs3g(theirs: Path, ours: Path, tmp_path: Path, program: str) -> None:
    command = {"cp": ["cp", "-a"], "rsync": ["rsync", "-aXH"]}[program]
    if shutil.which(command[0]) is None:
        missing(f"{program} is not there")
    found = []
    with ext4(tmp_path, "-O", "ea_inode") as target:
        for name, root in (("theirs", theirs), ("ours", ours)):
            (target / name).mkdir()
            sources = [root / folder for folder in FOLDERS if folder not in ("owners", "ids")]
            done = subprocess.run([*command, *sources, target / name], capture_output=True, check=False)
            found.append((state(target / name), linked(target / name), done.returncode))
    assert found[1] == found[0]
    assert found[0][2] in (0, 23)  # rsync tells of the stream that is too large
    assert any(len(names) == 31 for names in found[0][1])
    kept = [data for data in found[0][0].values() if data[2]]
    assert len(kept) >= 2  # not all streams of streams/many.txt: ext4 has one block for them
