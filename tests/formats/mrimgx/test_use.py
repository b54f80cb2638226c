"""What happens to an opened set: indexes not proven yet, files that change or close, many threads."""

import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import formats
from fixtures import damage, disks
from fixtures.mrimgx_writer import SetWriter, every_block
from fixtures.partition_tables import BuiltDisk
from formats.errors import DamagedError, FormatError, ReadError
from formats.mrimgx import image_file, index
from tests.formats.mrimgx.conftest import check_point, opened_point

BLOCK = 65536
ELEMENT_SIZE = 30


@pytest.fixture
def large_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every full index as one too large to be hashed when it is first used."""
    monkeypatch.setattr(image_file, "HASHED_INDEX_SIZE", 0)


def wipe_element(path: Path, block: int) -> None:
    """Let zeros stand in the first partition's $INDEX, as where a disk lost a sector; its hash tells."""
    start = damage.metadata_offset(path, b"$INDEX  ") + 32 + 8
    with path.open("r+b") as stream:
        stream.seek(start + ELEMENT_SIZE * block)
        stream.write(bytes(ELEMENT_SIZE))


@pytest.mark.usefixtures("large_indexes")
def test_holes_of_a_damaged_large_index_are_not_believed(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path).full([plain[0]])
    wipe_element(full.path, 1)
    with opened_point(full) as point:
        reader = point.disks[0].partitions[0].reader()
        assert len(reader.read_at(0, BLOCK)) == BLOCK  # a stored block has its own hash
        for _ in range(2):
            with pytest.raises(DamagedError, match="hash"):
                reader.read_at(BLOCK, 5)
            with pytest.raises(DamagedError, match="hash"):
                list(reader.extents())
        assert [bad for check in point.checks() for bad in check.run().bad]


@pytest.mark.usefixtures("large_indexes")
def test_large_indexes_are_proven_by_their_first_hole(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full, delta = writer.full([plain[0]]), writer.incremental([plain[1]])
    check_point(full)
    check_point(delta)
    with opened_point(full) as point:
        reader = point.disks[0].partitions[0].reader()
        hole = next(extent for extent in reader.extents() if not extent.is_data)
        assert reader.read_at(hole.offset, hole.length) == bytes(hole.length)


@pytest.mark.usefixtures("large_indexes")
def test_a_delta_s_index_is_always_proven(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    damage.break_metadata(delta.path, b"$INDEX  ")
    with opened_point(delta) as point, pytest.raises(DamagedError, match="hash"):
        point.disks[0].partitions[0].reader()


def test_indexes_of_many_pieces(
    plain: list[BuiltDisk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 65,536 elements, here of 5, so that blocks, deltas and holes lie across their edges."""
    monkeypatch.setattr(index, "_CHUNK", 5)
    writer = SetWriter(tmp_path)
    for written in (
        writer.full([plain[0]]),
        writer.incremental([plain[1]]),
        writer.incremental([plain[2]], hole_blocks={(0, 0): [4, 5, 9, 10, 11, 12, 13, 14, 15]}),
        writer.incremental([plain[2]], used=every_block),
        writer.differential([plain[3]]),
    ):
        if written.file_number != 2:
            check_point(written)
    (container,), _ = formats.open_folder(tmp_path)
    with container:
        results = [check.run() for check in container.checks()]
        assert not [bad for result in results for bad in result.bad]
        stored = sum(len(where) for written in writer.members for where in written.blocks.values())
        assert sum(result.blocks for result in results) == stored


def test_a_delta_whose_blocks_descend_from_piece_to_piece(
    plain: list[BuiltDisk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_CHUNK", 2)
    writer = SetWriter(tmp_path)
    writer.full([plain[0]])
    delta = writer.incremental([plain[0]])
    for blocks in ((1, 2, 2, 4), (1, 2, 0, 4), (1, 1), (4, 2)):
        rows = b"".join(struct.pack("<q16sIHI", 0, bytes(16), 0, 0, block) for block in blocks)
        damage.set_index_payload(delta.path, 0, struct.pack("<II", 0, len(blocks)) + rows)
        with opened_point(delta) as point, pytest.raises(DamagedError, match="ascend"):
            point.disks[0].partitions[0].reader()


def cut(path: Path) -> None:
    damage.truncate(path, to=BLOCK)


def empty(path: Path) -> None:
    damage.truncate(path, to=0)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.write(bytes(size))


@pytest.mark.parametrize("change", [cut, empty, overwrite])
def test_files_that_change_while_they_are_read(
    plain: list[BuiltDisk], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """A read after that is an error, or right: no zeros for what the index seems to say, and no signal."""
    full = SetWriter(tmp_path).full([plain[0]])
    with opened_point(full) as point, plain[0].path.open("rb") as source:
        partition = point.disks[0].partitions[0]
        reader = partition.reader()
        reader.read_at(0, 5)
        change(full.path)
        failed = 0
        for block in range(reader.size // BLOCK):
            source.seek(partition.offset + block * BLOCK)
            try:
                assert reader.read_at(block * BLOCK, BLOCK) == source.read(BLOCK)
            except (ReadError, DamagedError):
                failed += 1
        assert failed
        with pytest.raises((ReadError, DamagedError)):
            list(reader.extents())
        assert [bad for check in point.checks() for bad in check.run().bad]


def test_a_replaced_file_is_still_the_opened_one(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path / "set")
    full = writer.full([plain[0]])
    other = SetWriter(tmp_path / "other").full([plain[1]])
    source = plain[0].path.read_bytes()
    with opened_point(full) as point:
        disk = point.disks[0].reader()
        disk.read_at(0, disk.size)
        other.path.replace(full.path)
        assert disk.read_at(0, disk.size) == source
        point.members.close()
        with pytest.raises(ReadError, match="changed"):
            disk.read_at(0, disk.size)


def test_closing_under_readers(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """What is read is right or a FormatError, whatever closes in between."""
    writer = SetWriter(tmp_path, compression="none")
    writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    source = plain[1].path.read_bytes()
    stop = threading.Event()

    def read(number: int) -> int:
        done = 0
        while not stop.is_set() or not done:
            offset = (done * 7919 + number) * 4096 % (disk.size - 300_000)
            try:
                data = disk.read_at(offset, 300_000)
            except FormatError:
                continue
            assert data == source[offset : offset + 300_000]
            done += 1
        return done

    with opened_point(delta) as point, ThreadPoolExecutor(4) as pool:
        disk = point.disks[0].reader()
        futures = [pool.submit(read, number) for number in range(4)]
        for _ in range(200):
            point.members.close()
        stop.set()
        assert all(future.result(60) for future in futures)


def test_short_reads_keep_their_block_and_long_ones_pass(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path, used=every_block).full([plain[0]])
    with opened_point(full) as point:
        reader, cache = point.disks[0].partitions[0].reader(), point.members.store.cache
        reader.read_at(5 * BLOCK, 8 * BLOCK)
        assert cache.used == 0
        reader.read_at(5 * BLOCK, 10)
        assert cache.used == BLOCK


def test_many_threads_open_one_point(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path, password="p")
    writer.full([plain[0]])
    last = writer.incremental([plain[1]])
    source = plain[1].path.read_bytes()
    for _ in range(5):
        with opened_point(last, "p") as point, ThreadPoolExecutor(8) as pool:
            barrier = threading.Barrier(8)

            def read(number: int) -> bytes:
                barrier.wait(60)  # noqa: B023
                return point.disks[0].reader().read_at(number * BLOCK, 3 * BLOCK)

            for number, data in enumerate(pool.map(read, range(8))):
                assert data == source[number * BLOCK :][: 3 * BLOCK]


def test_a_set_of_many_files_needs_few_descriptors(tmp_path: Path) -> None:
    """Opening closes what it opened; a warning of a file left open is an error here."""
    disk = disks.plain_disk(tmp_path, "one", sizes=(1 << 20,))
    writer = SetWriter(tmp_path / "set")
    writer.full([disk])
    for _ in range(20):
        last = writer.incremental([disk])
    with formats.open_container(last.path) as container:
        assert container.point is not None
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert container.point.problem is None
        assert len(list(Path("/proc/self/fd").iterdir())) == before
