"""Real images through the mount for Windows: every file as it was written, over a stand-in of the driver."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest

import imagefs
from fixtures.mrimgx_writer import WrittenFile
from fixtures.partition_tables import BuiltPartition
from mounters.winfsp_names import windows_name
from tests.imagefs.built import (
    RECIPES,
    SYSTEM,
    BuiltSet,
    expected_directories,
    expected_target,
    with_files,
)
from tests.mounters.winfsp import nt
from tests.mounters.winfsp.adapting import mounted
from tests.mounters.winfsp.fake_driver import Found, Volume
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.loading import fresh_library
from tests.mounters.winfsp.test_reading import in_threads

EPOCH = 116_444_736_000_000_000


@pytest.fixture
def library() -> Iterator[FakeLibrary]:
    with fresh_library() as library:
        yield library


def shown_as(part: BuiltPartition) -> dict[str, str]:
    """Return every path as Windows has it: of names that differ in case only one keeps its own."""
    everything = {*part.files, *part.links, *expected_directories(part), *SYSTEM}
    taken: dict[tuple[str, str], int] = {}
    found: dict[str, str] = {"": ""}
    for path in sorted(everything, key=lambda path: (path.count("/"), path)):
        above, _, name = path.rpartition("/")
        name = windows_name(name)
        number = taken[above, nt.upper(name)] = taken.get((above, nt.upper(name)), 0) + 1
        if number > 1:
            stem, dot, extension = name.rpartition(".")
            name = f"{stem}~{number}.{extension}" if dot and stem else f"{name}~{number}"
        found[path] = f"{found[above]}\\{name}".lstrip("\\")
    return found


def hash_of(volume: Volume, path: str) -> str:
    return hashlib.sha256(volume.content(path, 300_007)).hexdigest()


def check_volume(volume: Volume, root: str, part: BuiltPartition) -> None:
    """Check names, contents, sizes and times of all files, and that nothing else is there."""
    shown = shown_as(part)
    found: dict[str, Found] = {}
    for path, entry in volume.walk(root):
        found[path[len(root) :].lstrip("\\")] = entry
    files = {name: entry for name, entry in found.items() if not entry.info.is_directory}
    expected = {shown[name]: digest for name, digest in part.files.items()}
    links = {shown[name]: expected_target(target) for name, target in part.links.items()}
    linked = {name for name in found if any(name == link or name.startswith(f"{link}\\") for link in links)}
    assert {name for name in files if name not in linked} == set(expected)
    directories = {name for name, entry in found.items() if entry.info.is_directory} - linked
    assert directories - SYSTEM == {shown[name] for name in expected_directories(part)}
    assert linked >= set(links)
    for name, digest in expected.items():
        assert hash_of(volume, f"{root}\\{name}") == digest, name
        assert volume.find(f"{root}\\{name}") == found[name]
    for original, time in part.times.items():
        assert found[shown[original]].info.written == EPOCH + time // 100, original
    for original, target in part.links.items():
        check_link(volume, f"{root}\\{shown[original]}", original, expected_target(target), part)


def check_link(volume: Volume, path: str, name: str, target: str, part: BuiltPartition) -> None:
    """Check that a link is the file that it leads to, or a directory, or holds its target."""
    parts = name.split("/")[:-1]
    for piece in target.split("/"):
        if piece == "..":
            parts = parts[:-1]
        elif piece not in ("", "."):
            parts.append(piece)
    place = "/".join(parts)
    if volume.stat(path).is_directory:
        assert place in expected_directories(part) | {""}
    elif place in part.files and not target.startswith("/"):
        assert hash_of(volume, path) == part.files[place], name
    elif place in part.links:
        assert volume.stat(path)  # a link to a link
    else:
        assert volume.content(path) == target.encode("utf-8", "surrogateescape"), name


def points(built: BuiltSet) -> Iterator[WrittenFile]:
    for _, written in built.points:
        yield written


@pytest.mark.parametrize("name", RECIPES)
def test_every_file(library: FakeLibrary, built_set: Callable[[str], BuiltSet], name: str) -> None:
    for written in points(built_set(name)):
        with imagefs.open(written.path) as source, mounted(library, source.tree()) as volume:
            for part in with_files(written):
                check_volume(volume, f"\\disk1\\p{part.number}", part)


def test_raw_disks_and_partitions(library: FakeLibrary, built_set: Callable[[str], BuiltSet]) -> None:
    written = built_set("fat16").incremental
    (disk,) = written.disks
    digest = hashlib.sha256(disk.path.read_bytes()).hexdigest()
    with imagefs.open(written.path) as source, mounted(library, source.tree()) as volume:
        assert hash_of(volume, "\\disk1.raw") == digest


def test_eight_readers(library: FakeLibrary, built_set: Callable[[str], BuiltSet]) -> None:
    """At once, each of other files, some of which are the same."""
    written = built_set("ntfs").incremental
    (part,) = with_files(written)
    shown, names = shown_as(part), sorted(part.files)
    with imagefs.open(written.path) as source, mounted(library, source.tree()) as volume:

        def work(number: int) -> None:
            for name in random.Random(number).sample(names, 20):
                path = f"\\disk1\\p{part.number}\\{shown[name]}"
                assert hash_of(volume, path) == part.files[name], name

        in_threads(8, work)


def test_an_image_ends_while_it_is_read(library: FakeLibrary, built_set: Callable[[str], BuiltSet]) -> None:
    """Nothing is read from it once the mount has ended: it is closed then."""
    written = built_set("fat32").full
    statuses: set[int] = set()
    with imagefs.open(written.path) as source, mounted(library, source.tree()) as volume:
        handle = volume.open("\\disk1.raw")
        ready = threading.Event()

        def read() -> None:
            try:
                for offset in range(0, handle.info.size, 65536):
                    volume.read(handle, offset, 65536)
                    ready.set()
            except nt.NtError as error:
                statuses.add(error.status)

        reader = threading.Thread(target=read)
        reader.start()
        assert ready.wait(20)
    reader.join(20)
    assert statuses <= {nt.Status.VOLUME_DISMOUNTED, nt.Status.CANCELLED, nt.Status.END_OF_FILE}
