"""Hashes of files: other tools check them on what ``cp`` copied, and on the raw disk."""

import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import imagefs
from fixtures.content import noise, sha256_file
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import MIB, BuiltDisk, Volume, gpt_disk
from fixtures.tools import find_tool, run, tool_environment
from fixtures.volumes import make_ntfs, mounted_ntfs, set_xattr
from formats.blockreader import BlockReader, BytesReader, Extent
from formats.errors import DamagedError
from imagefs.filesystems.runs import RunsReader
from imagefs.hashing import Hashed, coreutils_line, hash_files, hash_reader
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from tests.conftest import run_imagefs
from tests.imagefs.built import BuiltSet, too_long

ODD_NAMES = ("back\\slash", "line\nend", "return\rhere", "a, comma", "größe", "\\both\n")
GUID = "5B6C1D60-3E0B-4C8E-8F3C-0E0A4D1E9B11"


def hashed(*arguments: str | Path, code: int = 0) -> bytes:
    done = run_imagefs("hash", *arguments)
    assert done.code == code, done.errors
    return done.output


def check(tool: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [find_tool(tool), *arguments], cwd=cwd, capture_output=True, check=False, env=tool_environment()
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of a volume with odd names, streams, a hole and a link."""
    folder = tmp_path_factory.mktemp("hash")
    volume = make_ntfs(folder / "odd.volume", 32 * MIB, "odd")
    with mounted_ntfs(volume) as root:
        for name in ODD_NAMES:
            (root / name).write_bytes(name.encode())
        (root / "folder/inner").mkdir(parents=True)
        (root / "folder/inner/data.bin").write_bytes(noise(1, 0, 300_000))
        (root / "large.bin").write_bytes(noise(2, 0, 17 * MIB))
        with (root / "folder/hole.bin").open("wb") as file:
            file.truncate(40 * MIB)
            os.pwrite(file.fileno(), b"in the middle", 20 * MIB + 5)
        set_xattr(root / "folder", "user.of a folder", b"its stream")
        set_xattr(root / "folder/inner/data.bin", "user.stream", noise(3, 0, 60_000))
        (root / "link").symlink_to("large.bin")
        (root / "empty").touch()
    disk = gpt_disk(folder / "disk.raw", [Volume(volume, 32 * MIB, "NTFS", "odd")], GUID)
    return SetWriter(folder, image_id="00000000000000EE", name="odd").full([disk]).path


def test_checked_by_coreutils_after_cp(image: Path, tmp_path: Path) -> None:
    for number, algorithm in enumerate(("sha256", "md5", "sha1")):
        (tmp_path / algorithm).write_bytes(hashed(image, "disk1/p1", "--algorithm", algorithm))
        if not number:
            assert run_imagefs("cp", image, "disk1/p1", tmp_path).code == 0
        done = check(f"{algorithm}sum", "-c", "--strict", f"../{algorithm}", cwd=tmp_path / "p1")
        assert done.returncode == 1  # names start with the folder's
        done = check(f"{algorithm}sum", "-c", "--strict", algorithm, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b": OK\n") == len(ODD_NAMES) + 4
    # The tool's own lines, and nothing for the link.
    files = sorted(path for path in (tmp_path / "p1").rglob("*") if path.is_file() and not path.is_symlink())
    said = run("sha256sum", *(path.relative_to(tmp_path) for path in files), cwd=tmp_path)
    assert sorted(said.splitlines()) == sorted((tmp_path / "sha256").read_bytes().splitlines())


def test_order_is_the_tree_s(image: Path) -> None:
    output = hashed(image)
    assert all(hashed(image) == output for _ in range(2))
    with imagefs.open(image) as source:
        tree = source.tree()
        listed = [entry.name for entry in tree.entries(tree.resolve("disk1/p1"))]
    names = [line.split(b"  ", 1)[1].decode().split("/")[2] for line in output.splitlines()]
    assert [name for name in dict.fromkeys(names) if name in listed] == [
        name for name in listed if name in names
    ]


def test_audited_by_hashdeep(image: Path, tmp_path: Path) -> None:
    (tmp_path / "known").write_bytes(hashed(image, "disk1/p1/folder", "--format", "hashdeep"))
    assert (tmp_path / "known").read_bytes().startswith(b"%%%% HASHDEEP-1.0\n%%%% size,md5,sha256,filename\n")
    assert run_imagefs("cp", image, "disk1/p1/folder", tmp_path).code == 0
    audit = ("-a", "-r", "-l", "-vv", "-k", "known", "folder")
    done = check("hashdeep", *audit, cwd=tmp_path)
    assert (done.returncode, b"Audit passed" in done.stdout) == (0, True), done.stdout
    assert b"Files matched: 2" in done.stdout
    assert b"Files moved: 0" in done.stdout
    theirs = check("hashdeep", "-c", "md5,sha1,sha256", "-r", "-l", "folder", cwd=tmp_path).stdout
    ours = hashed(
        image, "disk1/p1/folder", "--format", "hashdeep",
        *("--algorithm", "sha256", "--algorithm", "sha1", "--algorithm", "md5"),
    )  # fmt: skip
    assert {line for line in theirs.splitlines() if line[:2] != b"##"} == set(ours.splitlines())
    with (tmp_path / "folder/inner/data.bin").open("r+b") as file:
        file.write(b"!")
    assert check("hashdeep", *audit, cwd=tmp_path).returncode != 0


def test_streams_and_json(image: Path) -> None:
    document = json.loads(hashed(image, "disk1/p1/folder", "--streams", "--json", "--algorithm", "md5"))
    files = {file["path"]: file for file in document["files"]}
    data, stream = noise(1, 0, 300_000), noise(3, 0, 60_000)
    inner = "disk1/p1/folder/inner/data.bin"
    assert list(files) == [
        "disk1/p1/folder:of a folder", "disk1/p1/folder/hole.bin", inner, f"{inner}:stream",
    ]  # fmt: skip
    for path, content in ((inner, data), (f"{inner}:stream", stream)):
        assert files[path] == {
            "path": path, "size": len(content), "md5": hashlib.md5(content).hexdigest(), "left_out_bytes": 0,
        }  # fmt: skip
    named = json.loads(hashed(image, f"{inner}:stream", "--json"))["files"]
    assert [(file["path"], file["sha256"]) for file in named] == [
        (f"{inner}:stream", hashlib.sha256(stream).hexdigest())
    ]


def test_bytes_of_disks_where_they_are_named(image: Path) -> None:
    assert b".raw" not in hashed(image)
    digest, name = hashed(image, "disk1.raw").split()
    assert name == b"disk1.raw"
    assert digest.decode() == sha256_file(image.parent / "disk.raw")


def test_usage(image: Path) -> None:
    hashed(image, "--algorithm", "md5", "--algorithm", "sha1", code=2)
    hashed(image, "disk1/p1/none", code=2)
    hashed(image, "--algorithm", "crc32", code=2)


@pytest.mark.parametrize("recipe", ["ntfs", "fat32", "ext4"])
def test_every_file(built_set: Callable[[str], BuiltSet], recipe: str) -> None:
    written = built_set(recipe).full
    (part,) = written.disks[0].partitions
    document = json.loads(hashed(written.path, "disk1/p1", "--json"))
    found = {file["path"].removeprefix("disk1/p1/"): file["sha256"] for file in document["files"]}
    assert {path: digest for path, digest in found.items() if path not in part.links} == part.files
    assert too_long(part) <= found.keys()


def test_damage(image: Path, tmp_path: Path) -> None:
    """A file that can't be read is told, and the rest is hashed."""
    data = bytearray(image.read_bytes())
    with imagefs.open(image) as source:
        assert source.point is not None
        tree = source.tree()
        reader = tree.open_reader(tree.resolve("disk1/p1/folder/inner/data.bin"))
        assert isinstance(reader, RunsReader)
        place = reader.place(200_000)
        assert place is not None
        blocks = next(source.point.disks[0].partitions[0].reader().blocks(place, 1))
        at = int(blocks.position[0])
    data[at + 100] ^= 0xFF
    (tmp_path / image.name).write_bytes(data)
    done = run_imagefs("hash", tmp_path / image.name, "disk1/p1")
    assert done.code == 7
    assert done.errors.startswith("imagefs: disk1/p1/folder/inner/data.bin: ")
    whole = hashed(image, "disk1/p1").splitlines()
    assert set(done.output.splitlines()) == {line for line in whole if not line.endswith(b"data.bin")}


class _Slow(BlockReader):
    """A reader that never ends by itself."""

    started = threading.Event()

    def _read(self, offset: int, length: int) -> bytes:
        self.started.set()
        return bytes(length)


def test_who_stops_does_not_wait_for_a_large_file(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with imagefs.open(image) as source:
        tree = source.tree()
        names = {tree.resolve(f"disk1/p1/{name}") for name in ("large.bin", "folder/inner/data.bin")}
        open_reader = tree.open_reader
        monkeypatch.setattr(
            tree, "open_reader", lambda inode: _Slow(1 << 50) if inode in names else open_reader(inode)
        )
        found = hash_files(tree, ["disk1/p1"], ["md5"], lambda *_: None)
        next(found)
        assert _Slow.started.wait(30)
        found.close()


class _Holes(BlockReader):
    def _read(self, offset: int, length: int) -> bytes:
        assert offset + length <= 5000 or offset >= 3 * MIB
        return noise(9, offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(0, 5000, True)
        yield Extent(5000, 3 * MIB - 5000, False)
        yield Extent(3 * MIB, self.size - 3 * MIB, True)


@pytest.mark.parametrize("size", [3 * MIB + 1, 20 * MIB + 77])
def test_holes_are_zeros_and_not_read(size: int) -> None:
    content = noise(9, 0, 5000) + bytes(3 * MIB - 5000) + noise(9, 3 * MIB, size - 3 * MIB)
    for algorithms in (["sha1"], ["md5", "sha1", "sha256"]):
        assert hash_reader(_Holes(size), algorithms) == {
            name: hashlib.new(name, content).hexdigest() for name in algorithms
        }
    assert hash_reader(BytesReader(b""), ["md5"]) == {"md5": hashlib.md5(b"").hexdigest()}


def test_a_large_file_that_fails() -> None:
    class Broken(BlockReader):
        def _read(self, offset: int, length: int) -> bytes:
            if offset + length > 19 * MIB:
                raise DamagedError("gone")
            return bytes(length)

    with pytest.raises(DamagedError, match="gone"):
        hash_reader(Broken(64 * MIB), ["md5", "sha256"])


def test_lines_for_undecodable_names() -> None:
    line = coreutils_line(Hashed("p/\udcff", "\udcff", 0, {"md5": "00"}), "md5")
    assert line == b"00  \xff\n"


# what an image leaves out


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    """Return a disk whose volume has paging files full of data."""
    folder = tmp_path_factory.mktemp("paged")
    volume = make_ntfs(folder / "paged.volume", 32 * MIB, "paged")
    with mounted_ntfs(volume) as root:
        (root / "before.bin").write_bytes(noise(10, 0, 100_000))
        (root / "pagefile.sys").write_bytes(noise(11, 0, 8 * MIB))
        (root / "SWAPFILE.SYS").write_bytes(noise(12, 0, 3 * MIB))
        (root / "small.tmp").write_bytes(noise(13, 0, 6000))
        (root / "other.bin").write_bytes(noise(14, 0, 2 * MIB))
        (root / "sub").mkdir()
        (root / "sub/pagefile.sys").write_bytes(noise(15, 0, 400_000))
    return gpt_disk(folder / "paged.raw", [Volume(volume, 32 * MIB, "NTFS", "paged")], GUID)


def missing_by_blocks(disk: BuiltDisk, image: Path, name: str) -> int:
    """Count a file's bytes in blocks that are not stored, by fls's and istat's account of its clusters."""
    offset = disk.partitions[0].offset
    listed = run("fls", "-o", str(offset // 512), "-p", "-r", disk.path).decode()
    found = re.search(rf"^r/r (\d+)-128-\d+:\t{re.escape(name)}$", listed, re.MULTILINE)
    assert found
    said = run("istat", "-o", str(offset // 512), disk.path, found[1]).decode()
    clusters = [int(number) for number in said.rpartition("$DATA")[2].split("\n", 1)[1].split()]
    with imagefs.open(image) as source:
        assert source.point is not None
        partition = source.point.disks[0].partitions[0]
        assert partition.block_size == 65536
        stored = {int(at) // 65536 for blocks in partition.reader().blocks() for at in blocks.offset}
    return sum(4096 for cluster in clusters if cluster // 16 not in stored)


def test_paging_files_are_explained(paged: BuiltDisk, tmp_path: Path) -> None:
    image = backup(paged.path, tmp_path / "set", BackupOptions()).path
    wanted = {
        name.lower(): missing_by_blocks(paged, image, name) for name in ("pagefile.sys", "SWAPFILE.SYS")
    }
    assert wanted["pagefile.sys"] > 7 * MIB
    (disk,) = json.loads(run_imagefs("info", "--json", image).output)["disks"]
    left_out = disk["partitions"][0]["left_out"]
    assert {file["path"].lower(): file["missing"] for file in left_out} == wanted
    assert {file["path"].lower(): file["size"] for file in left_out} == {
        "pagefile.sys": 8 * MIB, "swapfile.sys": 3 * MIB,
    }  # fmt: skip
    text = run_imagefs("info", image).text
    assert "p1/pagefile.sys: " in text
    assert "of its 8.0 MiB are not in the image: the imaging program leaves them out" in text
    done = run_imagefs("hash", "--json", image, f"{disk['name']}/p1")
    assert done.code == 0
    assert "pagefile.sys: " in done.errors
    assert done.errors.count("not in the image; hashed as zeros") == 2
    files = {file["path"]: file for file in json.loads(done.output)["files"]}
    assert {
        path.rpartition("/")[2].lower(): file["left_out_bytes"]
        for path, file in files.items()
        if file["left_out_bytes"]
    } == wanted
    done = run_imagefs("cp", image, f"{disk['name']}/p1/pagefile.sys", tmp_path)
    assert (done.code, (tmp_path / "pagefile.sys").stat().st_size) == (0, 8 * MIB)
    missing = wanted["pagefile.sys"]
    assert (
        f"pagefile.sys: {missing} of its {8 * MIB} bytes are not in the image; zeros in the copy"
        in done.errors
    )
    assert files[f"{disk['name']}/p1/pagefile.sys"]["sha256"] == hashlib.sha256(bytes(8 * MIB)).hexdigest()
    for name, seed, size in (("other.bin", 14, 2 * MIB), ("sub/pagefile.sys", 15, 400_000)):
        assert (
            files[f"{disk['name']}/p1/{name}"]["sha256"] == hashlib.sha256(noise(seed, 0, size)).hexdigest()
        )


def test_excluded_files_are_marked(paged: BuiltDisk, tmp_path: Path) -> None:
    """Also where others share their block, which holds zeros in their place."""
    options = BackupOptions(exclude=("*.tmp",))
    image = backup(paged.path, tmp_path / "set", options).path
    for source, prefix in ((image, ""), (tmp_path / "set", f"{image.name[:16]}/")):
        done = run_imagefs("hash", "--json", source)
        files = {file["path"]: file for file in json.loads(done.output)["files"]}
        (small,) = (path for path in files if path.endswith("small.tmp"))
        assert small.startswith(prefix)
        assert files[small]["left_out_bytes"] == 6000
        assert f"{small}: 5.9 KiB of its 5.9 KiB are not in the image" in done.errors


def test_an_exact_image_has_all(paged: BuiltDisk, tmp_path: Path) -> None:
    image = backup(paged.path, tmp_path / "set", BackupOptions(exact=True)).path
    (disk,) = json.loads(run_imagefs("info", "--json", image).output)["disks"]
    assert disk["partitions"][0]["left_out"] == []
    done = run_imagefs("hash", image, f"{disk['name']}/p1/pagefile.sys")
    assert (done.code, done.errors) == (0, "")
    assert done.output.split()[0].decode() == hashlib.sha256(noise(11, 0, 8 * MIB)).hexdigest()


def test_encrypted_points_stay_locked(paged: BuiltDisk, tmp_path: Path) -> None:
    image = backup(paged.path, tmp_path / "set", BackupOptions(), password="secret").path
    for password, known in ((None, False), ("secret", True)):
        done = run_imagefs("info", "--json", image, password=password)
        (disk,) = json.loads(done.output)["disks"]
        assert (done.code, disk["partitions"][0]["left_out"] is not None) == (0, known)
