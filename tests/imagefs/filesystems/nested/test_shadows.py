"""Shadow copies in an image, held against libvshadow and TSK on the volume itself."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import pyvshadow

import imagefs
from fixtures.volumes import make_ntfs
from formats.blockreader import (
    BlockReader,
    BytesReader,
    ConcatReader,
    Extent,
    FileReader,
    SliceReader,
    ZeroReader,
)
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.nested.isolated import Isolated, IsolatedReader
from imagefs.filesystems.nested.known import KnownBytes, known_shadows
from imagefs.filesystems.nested.shadows import Shadows, has_shadows
from imagefs.imaging.used_space import used_space
from imagefs.imaging.used_space.base import Facts, WholeVolume
from imagefs.tree import ImageTree
from mounters.tree import NodeType
from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import sha256_of
from tests.imagefs.mounted import serving_processes

NAMES = ["1-2013-12-03T06.35.09Z", "2-2013-12-03T06.37.48Z"]  # vshadowinfo tells these times
_BLOCK = 16384


def files_below(tree: ImageTree, path: str) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    waiting = [("", tree.resolve(path))]
    while waiting:
        folder, inode = waiting.pop()
        for entry, known in tree.entries_with_attributes(inode):
            assert known is not None
            if known.type is NodeType.DIRECTORY:
                waiting.append((f"{folder}{entry.name}/", entry.inode))
            else:
                found[f"{folder}{entry.name}"] = known.size, sha256_of(tree, entry.inode)
    return found


def test_every_file_of_every_shadow_copy(
    shadowed_image: Path, expected_shadows: list[dict[str, tuple[int, str]]]
) -> None:
    assert [len(files) for files in expected_shadows] == [3, 5]
    with imagefs.open(shadowed_image) as source, closing(source.tree()) as tree:
        shown = [entry.name for entry in tree.entries(tree.resolve("disk0/p1/$Shadow"))]
        assert shown == [name + end for name in NAMES for end in (".raw", "")]
        for name, expected in zip(NAMES, expected_shadows, strict=True):
            assert files_below(tree, f"disk0/p1/$Shadow/{name}") == expected
        assert len(workers([os.getpid()])) == 2  # one tells what the image has, one reads
    assert not workers([os.getpid()])


def test_the_workers_of_a_tree_end_with_its_source(shadowed_image: Path) -> None:
    with imagefs.open(shadowed_image) as source:
        tree = source.tree()
        tree.entries(tree.resolve("disk0/p1/$Shadow"))
        assert workers([os.getpid()])
    assert not workers([os.getpid()])


def test_commands_and_a_mount(
    shadowed_image: Path, expected_shadows: list[dict[str, tuple[int, str]]], tmp_path: Path
) -> None:
    place = f"disk0/p1/$Shadow/{NAMES[1]}"
    said = run_imagefs("cat", shadowed_image, f"{place}/syslog.gz")
    assert hashlib.sha256(said.output).hexdigest() == expected_shadows[1]["syslog.gz"][1]
    with mounted(shadowed_image, tmp_path / "mnt") as mountpoint:
        assert (mountpoint / "disk0/p1/$Shadow") in (mountpoint / "disk0/p1").iterdir()
        for name, expected in zip(NAMES, expected_shadows, strict=True):
            root = mountpoint / "disk0/p1/$Shadow" / name
            for path, (size, digest) in expected.items():
                assert (root / path).stat().st_size == size
                with (root / path).open("rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == digest
        started = workers(serving_processes(tmp_path / "mnt"))
        assert started
    assert not any(folder.exists() for folder in started)


def test_what_stands_beside_the_files_is_left_out_and_told(
    shadowed_image: Path, expected_shadows: list[dict[str, tuple[int, str]]], tmp_path: Path
) -> None:
    said = run_imagefs("cp", "--deleted", shadowed_image, "disk0/p1", tmp_path / "out")
    assert said.errors.splitlines() == [
        f"imagefs: disk0/p1/{name} is left out; name it to copy it" for name in ("$Shadow", "$Deleted")
    ]
    said = run_imagefs("hash", "--deleted", shadowed_image, "disk0/p1")
    assert said.errors.splitlines() == [
        f"imagefs: disk0/p1/{name} is left out; name it to hash it" for name in ("$Shadow", "$Deleted")
    ]
    assert len(said.output.splitlines()) == sum(path.is_file() for path in (tmp_path / "out").rglob("*"))
    said = run_imagefs("timeline", "--deleted", shadowed_image)  # which has what was deleted
    assert said.errors == "imagefs: disk0/p1/$Shadow is left out; name it to see its times\n"
    assert b"$Shadow" not in said.output
    said = run_imagefs("hash", shadowed_image, f"disk0/p1/$Shadow/{NAMES[1]}/syslog.gz")
    assert not said.errors
    assert said.output.split()[0].decode() == expected_shadows[1]["syslog.gz"][1]


def workers(numbers: list[int]) -> set[Path]:
    """Return the folders in /proc of the workers that some processes have started."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in numbers and b"/nested/worker.py" in (folder / "cmdline").read_bytes():
                    found.add(folder)
    return found


class OwnClustersOnly(BlockReader):
    """A volume as an image has it that only knows what the volume itself uses."""

    def __init__(self, lower: BlockReader) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._used = used_space(lower, shadows=False)

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        for start, end in self._used.runs(offset, length).tolist():
            data[start - offset : end - offset] = self._lower.read_at(start, end - start)
        return bytes(data)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        first = offset // 65536 * 65536
        for at in range(first, offset + length, 65536):
            is_data = bool(len(self._used.runs(at, min(65536, self.size - at))))
            start, end = max(at, offset), min(at + 65536, offset + length)
            yield Extent(start, end - start, is_data)


def test_what_was_free_is_never_given_as_zeros(raw_reader: FileReader, shadowed_raw: Path) -> None:
    """Every block is as in the volume itself, or not to be had; some would be wrong without the rule."""
    volume = pyvshadow.volume()
    volume.open(str(shadowed_raw))
    image = OwnClustersOnly(raw_reader)
    wrong = refused = 0
    with (
        closing(Isolated("shadows", [image], "p1")) as bare,
        closing(known_shadows(image, 512, "disk0/p1")) as shadows,
    ):
        for number, store in enumerate(volume.stores):
            inside = IsolatedReader(bare, number, store.size)
            for at in range(0, 8 << 20, _BLOCK):
                expected = store.read_buffer_at_offset(_BLOCK, at)
                is_wrong = inside.read_at(at, _BLOCK) != expected
                wrong += is_wrong
                try:
                    data = shadows.shadows[number].reader.read_at(at, _BLOCK)
                except UnsupportedError as error:
                    assert "are not in the image" in str(error)
                    refused += 1
                else:
                    assert not is_wrong
                    assert data == expected
    assert wrong
    assert refused > wrong


def test_an_image_of_all_blocks_gives_all(shadowed_raw: Path, shadowed_exact: Path) -> None:
    volume = pyvshadow.volume()
    volume.open(str(shadowed_raw))
    with imagefs.open(shadowed_exact) as source, closing(source.tree()) as tree:
        for name, store in zip(NAMES, volume.stores, strict=True):
            file = tree.open_reader(tree.resolve(f"disk0/p1/$Shadow/{name}.raw"))
            for at in range(0, store.size, 9 << 20):
                assert file.read_at(at, 1 << 20) == store.read_buffer_at_offset(1 << 20, at)


def test_known_bytes(tmp_path: Path) -> None:
    """Free clusters: in a hole, beside used ones in a stored block; and where nothing is left out."""
    path = make_ntfs(tmp_path / "volume", 16 << 20, "known")
    raw = path.read_bytes()
    everything = KnownBytes(BytesReader(raw), 512, "v")
    size, block = len(raw), 65536
    used = {at for start, end in everything._own.runs(0, size).tolist() for at in range(start, end, 4096)}
    edge = next(at for at in range(4096, size, 4096) if at - 4096 in used and at not in used and at % block)
    hole = next(at for at in range(0, size, block) if used.isdisjoint(range(at, at + block, 4096)))
    pieces = [BytesReader(raw[:hole]), ZeroReader(block), BytesReader(raw[hole + block :])]
    known = KnownBytes(ConcatReader(pieces), 512, "v")
    assert known.read_at(edge - 4096, 4096) == raw[edge - 4096 : edge]
    for at, length in ((edge, 1), (edge - 1, 2), (edge - 4096, 8192), (hole + 5, 1)):
        with pytest.raises(UnsupportedError, match="not in the image"):
            known.read_at(at, length)
    with pytest.raises(UnsupportedError, match="not in the image"):
        everything.read_at(edge, 1)  # stored, but that may be what the imaging program put there
    # Shadow copies that use everything: known when all of that is stored, so not where there is a hole.
    known = KnownBytes(ConcatReader(pieces), 512, "v", is_ours=True)
    known._all = WholeVolume(size, Facts("NTFS"))
    with pytest.raises(UnsupportedError, match="not in the image"):
        known.read_at(edge, 1)
    shadowed = KnownBytes(BytesReader(raw), 512, "v", is_ours=True)
    shadowed._all = WholeVolume(size, Facts("NTFS"))
    assert shadowed.read_at(edge, 4096) == raw[edge : edge + 4096]
    # Another program may have stored a free block for a reason of its own, and zeros in others.
    others = KnownBytes(BytesReader(raw), 512, "v")
    others._all = WholeVolume(size, Facts("NTFS"))
    with pytest.raises(UnsupportedError, match="not in the image"):
        others.read_at(edge, 4096)
    everything = KnownBytes(BytesReader(raw), 512, "v", is_held=True)
    assert everything.read_at(edge - 4096, 200_000) == raw[edge - 4096 : edge - 4096 + 200_000]


def test_an_image_of_another_program_that_lacks_where_shadow_copies_are_stored(
    raw_reader: FileReader, shadowed_exact: Path
) -> None:
    """As Reflect leaves it out, also of an image of every sector; the rest reads as zeros or is none."""
    missing = 792 << 20  # in what the second one is stored in
    assert len(used_space(raw_reader, shadows=False).runs(missing, 65536))
    pieces = [SliceReader(raw_reader, 0, missing), ZeroReader(65536)]
    rest = SliceReader(raw_reader, missing + 65536, raw_reader.size - missing - 65536)
    image = ConcatReader([*pieces, rest])
    for is_held in (True, False):
        with pytest.raises(UnsupportedError, match="left out what shadow copies are stored in"):
            known_shadows(image, 512, "disk0/p1", is_held=is_held)
    with imagefs.open(shadowed_exact) as source:
        assert source.point is not None
        assert source.point.is_made_by_imagefs


def test_a_volume_without_shadow_copies_starts_nothing(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "volume", 8 << 20, "plain")
    assert not has_shadows(BytesReader(path.read_bytes()))


class Patched(BlockReader):
    """A reader with other bytes at some places."""

    def __init__(self, lower: BlockReader, patches: dict[int, bytes]) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._patches = patches

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._lower.read_at(offset, length))
        for at, patch in self._patches.items():
            for number, value in enumerate(patch, at - offset):
                if 0 <= number < length:
                    data[number] = value
        return bytes(data)


@pytest.fixture
def raw_reader(shadowed_raw: Path) -> Iterator[FileReader]:
    with FileReader(shadowed_raw) as reader:
        yield reader


def test_a_broken_catalog_is_told(raw_reader: FileReader) -> None:
    at = int.from_bytes(raw_reader.read_at(0x1E30, 8), "little")
    for patches in ({at: b"no catalog"}, {0x1E30: b"\xff" * 7}, {at + 40: at.to_bytes(8, "little")}):
        broken = Patched(raw_reader, patches)
        assert has_shadows(broken)
        with pytest.raises(DamagedError), closing(Shadows(broken, "p1")):
            pass


def test_with_a_broken_catalog_all_of_the_volume_is_stored(raw_reader: FileReader) -> None:
    at = int.from_bytes(raw_reader.read_at(0x1E30, 8), "little")
    used = used_space(Patched(raw_reader, {at: b"no catalog"}))
    assert used.runs(0, raw_reader.size).tolist() == [[0, raw_reader.size]]
    (warning,) = used.warnings
    assert warning.startswith("shadow copies: ")
    assert warning.endswith(": all of the volume is stored")


def test_a_shadow_copy_that_is_stored_elsewhere(
    raw_reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others use is stored; nothing can be read of it."""
    all_of_them = used_space(raw_reader).runs(0, raw_reader.size).tolist()
    told = Isolated.__init__

    def one_elsewhere(self: Isolated, *args: Any, **options: Any) -> None:
        told(self, *args, **options)
        self.told["stores"][1]["is_here"] = False

    monkeypatch.setattr(Isolated, "__init__", one_elsewhere)
    with (
        closing(Shadows(raw_reader, "p1")) as shadows,
        pytest.raises(UnsupportedError, match="another volume"),
    ):
        shadows.shadows[1].reader.read_at(0, 1)
    used = used_space(raw_reader)
    (warning,) = used.warnings
    assert warning == (
        f"shadow copy {NAMES[1]} is stored on another volume: what only it uses here is not stored"
    )
    own = used_space(raw_reader, shadows=False).runs(0, raw_reader.size).tolist()
    assert own != used.runs(0, raw_reader.size).tolist() == all_of_them  # the first one uses as much


def mutations(raw: FileReader) -> Any:
    import random

    chance = random.Random(7)
    catalog = int.from_bytes(raw.read_at(0x1E30, 8), "little")
    places = [0x1E00, catalog, catalog + 128]
    for entry in range(catalog + 128, catalog + 16384, 128):
        if int.from_bytes(raw.read_at(entry, 8), "little") == 3:
            for field in (8, 32, 40, 48):
                places.append(int.from_bytes(raw.read_at(entry + field, 8), "little"))
    for _ in range(60):
        yield {
            chance.choice(places) + chance.randrange(512): chance.choice(
                (bytes([chance.randrange(256)]), b"\xff" * 8, bytes(8), chance.randbytes(8))
            )
            for _ in range(chance.randrange(1, 5))
        }


def test_random_damage_is_a_typed_error(raw_reader: FileReader) -> None:
    outcomes = set()
    for patches in mutations(raw_reader):
        broken = Patched(raw_reader, patches)
        if not has_shadows(broken):
            continue
        try:
            with closing(Shadows(broken, "p1")) as shadows:
                for shadow in shadows.shadows:
                    shadow.reader.read_at(0, min(65536, shadow.reader.size))
                    outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
