"""Damage is found, said in one line, and never read as something else."""

import errno
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from fixtures import damage, disks
from fixtures.mrimgx_blocks import Parts, compress, json_payload
from fixtures.mrimgx_writer import SetWriter, every_block
from fixtures.partition_tables import BuiltDisk
from formats.container import CheckResult
from formats.errors import (
    DamagedBlockError,
    DamagedError,
    FormatError,
    NotAnImageError,
    ReadError,
    UnsupportedError,
)
from tests.formats.mrimgx.conftest import check_point, opened_point

BLOCK = 65536


@pytest.fixture
def image(plain: list[BuiltDisk], tmp_path: Path) -> Path:
    """Write a full of the plain disk."""
    return SetWriter(tmp_path).full([plain[0]]).path


def checked(path: Path, password: str | None = None) -> list[CheckResult]:
    with opened_point(path, password) as point:
        return [check.run() for check in point.checks()]


@pytest.mark.parametrize("compression", ["none", "medium"])
@pytest.mark.parametrize("password", [None, "p"])
def test_one_flipped_byte_spoils_its_block_alone(
    plain: list[BuiltDisk], tmp_path: Path, compression: str, password: str | None
) -> None:
    writer = SetWriter(tmp_path, compression=compression, password=password, aes="aes-256")
    written = writer.full([plain[0]])
    source = plain[0].path.read_bytes()
    stored = sorted(written.blocks[0, 0])
    chance = random.Random(3)
    for block in (stored[0], stored[-1], chance.choice(stored)):
        offset = damage.flip_in_block(written.path, 0, block)
        with opened_point(written, password) as point:
            partition = point.disks[0].partitions[0]
            reader = partition.reader()
            start = partition.offset
            for other in stored:
                end = min((other + 1) * BLOCK, reader.size)
                if other == block:
                    with pytest.raises(DamagedBlockError) as caught:
                        reader.read_at(other * BLOCK + 17, 1)
                    assert (caught.value.block, caught.value.partition) == (block, "disk1/p1")
                    assert (caught.value.path, caught.value.errno) == (written.path, errno.EIO)
                    # Again, and as part of a longer read: never zeros, never what is beside it.
                    with pytest.raises(DamagedBlockError):
                        reader.read_at(max(0, other * BLOCK - 5), 10)
                else:
                    got = reader.read_at(other * BLOCK, end - other * BLOCK)
                    assert got == source[start + other * BLOCK : start + end]
            bad = [bad for check in point.checks() for bad in check.run().bad]
            assert [(entry.file, entry.partition, entry.block) for entry in bad] == [
                (written.path, "disk1/p1", block)
            ]
        damage.flip_byte(written.path, offset)
        check_point(written, password)


def test_a_flipped_length_does_not_turn_data_into_zeros(image: Path) -> None:
    damage.change_element(image, 0, 0, length=0)
    with opened_point(image) as point:
        reader = point.disks[0].partitions[0].reader()
        with pytest.raises(DamagedBlockError, match="no length"):
            reader.read_at(0, 1)
        assert next(reader.extents()).is_data
    assert [bad.block for result in checked(image) for bad in result.bad] == [0]


@pytest.mark.parametrize("position", [None, -1, -(2**62), 2**62, 0])
def test_an_index_that_points_elsewhere(image: Path, position: int | None) -> None:
    damage.point_outside(image, 0, 3, position=position)
    with opened_point(image) as point, pytest.raises(DamagedBlockError) as caught:
        point.disks[0].partitions[0].reader().read_at(3 * BLOCK, 100)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert [bad.block for result in checked(image) for bad in result.bad] == [3]


def test_an_index_that_names_the_metadata_as_data(image: Path) -> None:
    damage.change_element(image, 0, 3, file_position=image.stat().st_size - 5000, length=4000)
    with opened_point(image) as point, pytest.raises(DamagedBlockError, match="outside"):
        point.disks[0].partitions[0].reader().read_at(3 * BLOCK, 100)


def test_swapped_blocks_are_found(image: Path) -> None:
    """Two blocks of the right hashes at each other's places: the index says otherwise."""
    first = damage.stored_at(image, 0, 1)
    damage.change_element(image, 0, 2, file_position=first[0], length=first[1])
    with opened_point(image) as point:
        reader = point.disks[0].partitions[0].reader()
        reader.read_at(BLOCK, BLOCK)  # now its bytes are in the cache
        with pytest.raises(DamagedBlockError, match="MD5"):
            reader.read_at(2 * BLOCK, BLOCK)


@pytest.mark.skipif(sys.platform == "win32", reason="what a process had at most is asked of Unix")
def test_a_decompression_bomb_costs_nothing(image: Path) -> None:
    import resource

    damage.zstd_bomb(image, 0, 2, content=1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened_point(image) as point, pytest.raises(DamagedBlockError, match="1073741824"):
        point.disks[0].partitions[0].reader().read_at(2 * BLOCK, 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_block_that_is_too_short(image: Path) -> None:
    data = b"short" * 100
    damage.replace_block(image, 0, 2, compress(data, "medium"), md5(data).digest())
    with opened_point(image) as point:
        reader = point.disks[0].partitions[0].reader()
        with pytest.raises(DamagedBlockError, match="500"):
            reader.read_at(2 * BLOCK, 501)


def cut_to_nothing(path: Path) -> None:
    damage.truncate(path, to=0)


def cut_to_ten_bytes(path: Path) -> None:
    damage.truncate(path, to=10)


def cut_in_half(path: Path) -> None:
    damage.truncate(path, to=path.stat().st_size // 2)


def cut_one_byte(path: Path) -> None:
    damage.truncate(path, by=1)


@pytest.mark.parametrize(
    "cut", [cut_to_nothing, cut_to_ten_bytes, cut_in_half, cut_one_byte, damage.break_magic]
)
def test_a_file_without_its_footer_is_no_image(image: Path, cut: Callable[[Path], object]) -> None:
    cut(image)
    with pytest.raises(NotAnImageError) as caught:
        formats.open_container(image)
    assert caught.value.exit_code == 3


def broken_json_hash(path: Path) -> None:
    damage.break_metadata_hash(path, b"$JSON   ")


def broken_json(path: Path) -> None:
    damage.break_metadata(path, b"$JSON   ")


def lost_data(path: Path) -> None:
    damage.cut_data(path, 4096)


def root_offset_0(path: Path) -> None:
    damage.break_root_offset(path, 0)


def bytes_behind_the_lists(path: Path) -> None:
    whole = path.read_bytes()
    (root,) = struct.unpack_from("<Q", whole, len(whole) - 20)
    path.write_bytes(whole[:root] + bytes(64) + whole[root:-20] + struct.pack("<Q", root + 64) + whole[-12:])


def bytes_behind_the_root_list(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes(64) + whole[-20:])


@pytest.mark.parametrize(
    "harm",
    [
        broken_json_hash,
        broken_json,
        damage.break_root_offset,
        lost_data,
        root_offset_0,
        bytes_behind_the_lists,
        bytes_behind_the_root_list,
    ],
)
def test_damaged_structures_are_refused(image: Path, harm: Callable[[Path], object]) -> None:
    harm(image)
    with pytest.raises(DamagedError) as caught:
        formats.open_container(image)
    assert caught.value.exit_code == 3
    assert str(image) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [b"$TRACK0 ", b"$INDEX  "])
@pytest.mark.parametrize("harm", [damage.break_metadata, damage.break_metadata_hash])
def test_damaged_metadata_is_found_when_it_is_used(
    image: Path, name: bytes, harm: Callable[[Path, bytes], int]
) -> None:
    harm(image, name)
    with opened_point(image) as point, pytest.raises(DamagedError):
        point.disks[0].reader()
    bad = [bad for result in checked(image) for bad in result.bad]
    assert bad
    assert all(entry.file == image for entry in bad)
    assert name.decode().strip() in bad[0].reason


def test_metadata_of_every_file_that_a_point_uses_are_checked(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    differential = writer.differential([plain[1]])
    damage.break_metadata(full.path, b"$TRACK0 ")
    assert [bad.file for result in checked(differential.path) for bad in result.bad] == [full.path]


def test_a_damaged_member_is_named_when_it_is_missed(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = SetWriter(tmp_path)
    full = writer.full([plain[0]])
    delta = writer.incremental([plain[1]])
    damage.break_metadata(full.path, b"$JSON   ")
    with opened_point(delta) as point:
        assert point.problem is not None
        assert full.path.name in str(point.problem)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("_header", "imageid"), 5),
        (("_header", "imageid"), "XYZ"),
        (("_header", "imageid"), "A1B2C3D4 E5F60718"),
        (("_header", "file_number"), "0"),
        (("_header", "file_number"), True),
        (("_header", "file_number"), -1),
        (("_header", "index_file_position"), 2**62),
        (("_header", "index_file_position"), 0),
        (("_header", "index_file_position"), 1.5),
        (("_header", "merged_files"), [0, "1"]),
        (("_header", "merged_files"), None),
        (("_header", "backup_time"), 10**17),
        (("_header", "delta_index"), "false"),
        (("disks",), {}),
        (("disks",), [[]]),
        (("disks", 0, "_geometry", "bytes_per_sector"), 0),
        (("disks", 0, "_geometry", "disk_size"), -5),
        (("disks", 0, "partitions"), None),
        (("disks", 0, "partitions", 0, "_header", "block_size"), 0),
        (("disks", 0, "partitions", 0, "_header", "block_size"), 2**40),
        (("disks", 0, "partitions", 0, "_header", "block_count"), "many"),
        (("disks", 0, "partitions", 0, "_geometry", "length"), None),
        (("disks", 0, "partitions", 0, "_geometry", "start"), 1e300),
        (("disks", 0, "partitions", 0, "_file_system", "lcn0_offset"), 0),
        (("disks", 0, "partitions", 0, "_file_system", "reserved_sectors_byte_length"), 2**40),
        (("_compression", "compression_level"), "extreme"),
        (("_compression",), 3),
        (("_encryption", "aes_type"), "rot13"),
        (("_encryption", "aes_type"), "aes-256"),
    ],
)
def test_values_of_wrong_types_are_refused(image: Path, where: tuple[str | int, ...], value: object) -> None:
    damage.set_json(image, value, *where)
    with pytest.raises((DamagedError, UnsupportedError)) as caught:
        formats.open_container(image)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b'{"a":' * 100_000, b"\xff\xfe", b"1" * 10_000])
def test_documents_that_are_none(image: Path, payload: bytes) -> None:
    damage.set_json_bytes(image, payload)
    with pytest.raises(DamagedError):
        formats.open_container(image)


def test_an_index_shorter_than_its_partition(image: Path) -> None:
    damage.set_json(image, 1000, "disks", 0, "partitions", 0, "_header", "block_count")
    with opened_point(image) as point, pytest.raises(DamagedError, match="blocks"):
        point.disks[0].partitions[0].reader()


def test_a_file_that_changed_after_it_was_opened(image: Path, plain: list[BuiltDisk]) -> None:
    with opened_point(image) as point:
        image.write_bytes(image.read_bytes() + b"x")
        with pytest.raises(ReadError, match="changed"):
            point.disks[0].partitions[0].reader()


def test_images_of_older_programs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "old.mrimg"
    path.write_bytes(bytes(9000) + b"__79241006_2651_11D4_B0E0_00C04F" + bytes(100))
    with pytest.raises(UnsupportedError, match="Reflect 8"):
        formats.open_container(path)


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, plain: list[BuiltDisk]
) -> Iterator[tuple[Path, bytes, bytes]]:
    """Write a full and a delta for fuzzing; hand out the delta's path and both contents."""
    folder = tmp_path_factory.mktemp("fuzz")
    first = disks.plain_disk(folder, "tiny", sizes=(300_000,))
    second = disks.change_disk(first, folder, "tiny2")
    writer = SetWriter(folder / "set", used=every_block)
    full, delta = writer.full([first]), writer.incremental([second])
    yield folder / "set", full.path.read_bytes(), delta.path.read_bytes()
    shutil.rmtree(folder)


def use_everything(path: Path) -> None:
    """Open and read whatever can be read; only FormatError may come out."""
    try:
        container = formats.open_container(path)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    with container:
        for point in container.points:
            try:
                _ = point.role, point.name, point.missing_files, point.blocks_to_check()
                for check in point.checks():
                    check.run()
                for disk in point.disks:
                    _ = disk.size
                    for partition in disk.partitions:
                        partition.stored_blocks()
                        if partition.size < 1 << 30:
                            partition.reader().read_at(0, partition.size)
                    list(disk.reader().extents())
            except FormatError as error:
                assert "\n" not in str(error)


@given(
    which=st.sampled_from(["full", "delta"]),
    # Most of what can be misread is at the end: the metadata lists, the document, the footer.
    places=st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 255)), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_give_format_errors_alone(
    small: tuple[Path, bytes, bytes], which: str, places: list[tuple[int, int]]
) -> None:
    folder, full, delta = small
    names = sorted(folder.glob("*.mrimgx"))
    contents = {"full": bytearray(full), "delta": bytearray(delta)}
    data = contents[which]
    for back, mask in places:
        data[-1 - back % len(data)] ^= mask
    names[0].write_bytes(contents["full"])
    names[1].write_bytes(contents["delta"])
    use_everything(names[1])
    use_everything(names[0])


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from(list(range(256)))), min_size=1, max_size=4
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_with_wrong_bytes_behind_right_hashes(
    small: tuple[Path, bytes, bytes], edits: list[tuple[int, int]]
) -> None:
    """The hash is right, the document is not: what a buggy writer would leave."""
    folder, full, delta = small
    names = sorted(folder.glob("*.mrimgx"))
    names[0].write_bytes(full)
    names[1].write_bytes(delta)
    parts = Parts.load(names[0])
    payload = bytearray(json_payload(parts.document))
    for at, byte in edits:
        payload[at % len(payload)] = byte
    parts.set_json_bytes(bytes(payload))
    names[0].write_bytes(parts.packed())
    use_everything(names[0])
    use_everything(names[1])
