"""Sets with authentication: what was changed, swapped, put in or taken out is found, and never read.

The sets are written, and forged with care, by an implementation that shares nothing with the reader's.
"""

import datetime as dt
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from fixtures import damage, disks
from fixtures import mrimgx_authentication as own_blocks
from fixtures.mrimgx_blocks import Block, Parts, assemble, metadata_list
from fixtures.mrimgx_writer import FIRST_BACKUP, SetWriter, WrittenFile, every_block
from fixtures.partition_tables import BuiltDisk
from formats.container import BadBlock, FileState
from formats.errors import DamagedBlockError, DamagedError, ForgedError, FormatError, PasswordError
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.own_blocks import parse_own
from tests.formats.mrimgx.conftest import check_point, opened_point

PASSWORD = "correct horse"
OWN = (b"$IMAGEFS", b"$IFSTAGS", b"$IFSAUTH")


def new_writer(folder: Path, **options: Any) -> SetWriter:
    options = {"password": PASSWORD, "aes": "aes-256", "authenticate": True, **options}
    return SetWriter(folder, **options)


def states(folder: Path) -> dict[str, FileState]:
    """Return the state of each file of the one set in a folder."""
    (container,), _ = formats.open_folder(folder)
    with container:
        container.unlock(PASSWORD)
        return {entry.file.name: entry.state for entry in container.authentication()}


def faults(folder: Path) -> list[BadBlock]:
    """Return what verification finds in a folder, files that can't be opened among it."""
    containers, unreadable = formats.open_folder(folder)
    bad = [BadBlock(path, None, None, error.what) for path, error in unreadable.items()]
    for container in containers:
        with container:
            container.unlock(PASSWORD)
            bad += [entry for check in container.checks() for entry in check.run().bad]
    return bad


def forged_files(folder: Path) -> set[str]:
    return {name for name, state in states(folder).items() if state is FileState.FORGED}


def refused(written: WrittenFile | Path) -> ForgedError:
    """Check that a point gives no bytes and no holes; return why."""
    with opened_point(written, PASSWORD) as point:
        with pytest.raises(ForgedError):
            point.require_key()
        partition = point.disks[0].partitions[0]
        with pytest.raises(ForgedError) as caught:
            partition.reader().read_at(0, 1)
        with pytest.raises(ForgedError):
            list(partition.reader().extents())
        with pytest.raises(ForgedError):
            point.disks[0].reader().read_at(0, point.disks[0].size)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return caught.value


def never_others(folder: Path, sources: dict[str, tuple[BuiltDisk, ...]]) -> None:
    """Read all that can be read; each byte is the source's."""
    for container in formats.open_folder(folder)[0]:
        with container:
            try:
                container.unlock(PASSWORD)
            except PasswordError:
                continue
            for point in container.points:
                (source,) = sources[point.path.name]
                whole = source.path.read_bytes()
                for built, partition in zip(source.partitions, point.disks[0].partitions, strict=True):
                    with suppress(FormatError):
                        reader = partition.reader()
                        for at in range(0, reader.size, 65536):
                            length = min(65536, reader.size - at)
                            with suppress(FormatError):
                                got = reader.read_at(at, length)
                                assert got == whole[built.offset + at : built.offset + at + length]


# --- Sound sets ---


@pytest.mark.parametrize(("aes", "compression"), [("aes-128", "none"), ("aes-256", "medium")])
def test_every_kind_of_file_is_authenticated(
    plain: list[BuiltDisk], tmp_path: Path, aes: str, compression: str
) -> None:
    """Blocks of 4096 bytes: some 770 elements, which is 6 pages."""
    writer = new_writer(tmp_path, aes=aes, compression=compression, block_size=4096)
    written = [
        writer.full([plain[0]]),
        writer.incremental([plain[1]]),
        writer.incremental([plain[2]], delta=False),
        writer.incremental([plain[3]]),
        writer.differential([plain[1]]),
    ]
    for number, file in enumerate(written):
        check_point(file, PASSWORD, seed=number, reads=40)
    assert set(states(tmp_path).values()) == {FileState.AUTHENTICATED}
    assert len(states(tmp_path)) == 5
    assert not faults(tmp_path)


@pytest.mark.parametrize("delta", [True, False])
def test_splits(plain: list[BuiltDisk], tmp_path: Path, delta: bool) -> None:
    writer = new_writer(tmp_path, used=every_block)
    first = writer.full([plain[0]], split_at=1_000_000)
    assert len(first.parts) > 2
    second = writer.incremental([plain[1]], delta=delta, split_at=70_000)
    assert second.parts
    third = writer.incremental([plain[2]], delta=False)
    for file in (first, second, third):
        check_point(file, PASSWORD, reads=40)
    assert set(states(tmp_path).values()) == {FileState.AUTHENTICATED}
    assert len(states(tmp_path)) == len(writer.members)
    assert not faults(tmp_path)


def test_reserved_sectors(tmp_path: Path) -> None:
    built = disks.fat_disk(tmp_path, "FAT16")
    changed = disks.change_disk(built, tmp_path, "changed")
    writer = new_writer(tmp_path / "set")
    full, delta = writer.full([built]), writer.incremental([changed])
    check_point(full, PASSWORD)
    check_point(delta, PASSWORD)
    assert full.reserved
    assert not faults(tmp_path / "set")
    position, length = delta.reserved[0, 0][0]
    damage.flip_byte(delta.path, position + length // 2)
    assert [(bad.file, bad.partition, bad.block) for bad in faults(tmp_path / "set")] == [
        (delta.path, "disk1/p1 reserved sectors", 0)
    ]


def test_several_disks_and_partitions(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path, disk_numbers=[4, 2])
    check_point(writer.full([plain[0], plain[1]]), PASSWORD)
    check_point(writer.incremental([plain[1], plain[2]]), PASSWORD)
    check_point(writer.incremental([plain[2], plain[3]], delta=False), PASSWORD)
    assert not faults(tmp_path)


def test_pages_of_elements(tmp_path: Path) -> None:
    """Holes and blocks in all mixtures, a delta of some blocks, across the borders of pages."""
    built = disks.plain_disk(tmp_path, "many", sizes=(700 * 4096,))
    changed = disks.change_disk(built, tmp_path, "changed")
    chance = random.Random(5)
    kept = {block for block in range(700) if chance.random() < 0.6} | set(range(120, 140))
    writer = new_writer(tmp_path / "set", block_size=4096, used=lambda block, _: block in kept)
    full = writer.full([built])
    delta = writer.incremental([changed], used=lambda block, _: block in kept)
    later = writer.incremental([changed], delta=False, used=lambda block, _: block in kept)
    assert len(full.blocks[0, 0]) > 256
    for file in (full, delta, later):
        with opened_point(file, PASSWORD) as point:
            source = (built if file is full else changed).path.read_bytes()[built.partitions[0].offset :]
            reader = point.disks[0].partitions[0].reader()
            for block in sorted(kept, key=lambda _: chance.random()):
                at, length = block * 4096, min(4096, reader.size - block * 4096)
                assert reader.read_at(at, length) == source[at : at + length]
    assert not faults(tmp_path / "set")


def test_the_primitives_agree_with_their_specification() -> None:
    key = bytes(range(32))
    keys = AuthenticationKeys(key)
    assert keys.block_tag(b"stored") == own_blocks.block_tag(key, b"stored")
    tag = keys.file_tag(b"\x01" * 8, 513, 7)
    tag.update(b"ab")
    tag.update(b"c")
    assert tag.digest() == own_blocks.file_tag(key, b"\x01" * 8, 513, 7, b"abc")
    # From another implementation (openssl dgst -mac HMAC), with the keys derived by it as well.
    assert keys.block_tag(b"").hex() == "6efbd1af445edaeeab9c33e8717df174"
    assert (
        keys.file_tag(bytes(8), 1, 2).digest().hex()
        == "817764c50cf0a1717dc61e61d0dc46193a8447069dcbda11ccaece34a03d61e2"
    )


def test_a_set_without_authentication_reads_as_before(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path, authenticate=False)
    check_point(writer.full([plain[0]]), PASSWORD)
    check_point(writer.incremental([plain[1]]), PASSWORD)
    assert set(states(tmp_path).values()) == {FileState.UNAUTHENTICATED}
    (container,), _ = formats.open_folder(tmp_path)
    with container:
        assert not container.authentication()  # locked: nothing is known


def test_a_set_that_was_begun_by_others(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path, authenticate=False)
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    writer.authenticate = True
    second = writer.incremental([plain[2]])
    for file in (full, first, second):
        check_point(file, PASSWORD)
    assert list(states(tmp_path).values()) == [
        FileState.UNAUTHENTICATED,
        FileState.UNAUTHENTICATED,
        FileState.AUTHENTICATED,
    ]
    assert not faults(tmp_path)


# --- Flipped bytes ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a full in two parts and a delta of a small disk; hand out their folder and sources."""
    folder = tmp_path_factory.mktemp("small")
    first = disks.plain_disk(folder, "tiny", sizes=(40_960,))
    second = disks.change_disk(first, folder, "tiny2")
    writer = new_writer(folder / "set", block_size=4096, used=every_block)
    full, delta = writer.full([first], split_at=30_000), writer.incremental([second])
    assert len(full.parts) == 1
    assert not faults(folder / "set")
    yield folder / "set", {full.path.name: (first,), delta.path.name: (second,)}
    shutil.rmtree(folder)


def flips(path: Path, chance: random.Random) -> Iterator[int]:
    """Yield offsets: of every record some, and others at random."""
    size = path.stat().st_size
    parts = Parts.load(path)
    position = len(parts.data)
    yield from (0, position - 1, position)
    for blocks in (*parts.lists, parts.root):
        for block in blocks:
            yield from (position + at for at in (0, 7, 8, 12, 27, 28, 29, 31))
            if block.stored:
                yield from (position + 32, position + 32 + len(block.stored) - 1)
            position += 32 + len(block.stored)
    yield from range(size - 20, size)
    yield from (chance.randrange(size) for _ in range(60))


def test_any_flipped_byte_is_found_and_none_is_read(small: tuple[Path, dict[str, Any]]) -> None:
    folder, sources = small
    chance = random.Random(1)
    count = 0
    for path in sorted(folder.iterdir()):
        for offset in sorted(set(flips(path, chance))):
            mask = 1 << chance.randrange(8)
            damage.flip_byte(path, offset, mask)
            try:
                found = faults(folder)
            except PasswordError:
                found = [BadBlock(path, None, None, "locked")]
            assert found, (path.name, offset, mask)
            assert path in {bad.file for bad in found}, (path.name, offset, mask, found)
            if count % 3 == 0:
                never_others(folder, sources)
            damage.flip_byte(path, offset, mask)
            count += 1
    assert count > 200
    assert not faults(folder)


def test_a_flipped_block_spoils_itself_alone(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Its file is still authentic; the bytes behind a frame, which nothing else checks, are covered too."""
    written = new_writer(tmp_path).full([plain[0]])
    position, length = written.blocks[0, 0][3]
    damage.flip_byte(written.path, position + length - 1)
    assert set(states(tmp_path).values()) == {FileState.AUTHENTICATED}
    assert [(bad.partition, bad.block) for bad in faults(tmp_path)] == [("disk1/p1", 3)]
    with opened_point(written, PASSWORD) as point:
        reader = point.disks[0].partitions[0].reader()
        assert reader.read_at(0, 65536)
        with pytest.raises(DamagedBlockError, match="tag"):
            reader.read_at(3 * 65536, 1)


def test_a_block_behind_a_right_md5_is_not_read(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Other stored bytes that decode to the same plain ones are not what was written either."""
    writer = new_writer(tmp_path, compression="medium")
    written = writer.full([plain[0]])
    position, length = written.blocks[0, 0][2]
    assert writer.cryptor is not None
    with written.path.open("r+b") as stream:
        stream.seek(position)
        stored = stream.read(length)
        iv = writer.cryptor.iv(1, plain[0].partitions[0].number, 2)
        plain_frame = decrypt(writer.cryptor.key, iv, stored)
        if plain_frame[-1]:
            pytest.skip("the frame needs no padding")
        other = encrypt(writer.cryptor.key, iv, plain_frame[:-1] + b"\x01")
        stream.seek(position)
        stream.write(other)
    assert [(bad.block, "tag" in bad.reason) for bad in faults(tmp_path)] == [(2, True)]


def decrypt(key: bytes, iv: bytes, data: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def encrypt(key: bytes, iv: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


# --- Forged files ---


def edit(path: Path, change: Callable[[Parts], None]) -> None:
    """Change a file's parts; all hashes are right again, the seal is not made anew."""
    parts = Parts.load(path)
    change(parts)
    path.write_bytes(parts.packed())


def strip(parts: Parts, names: tuple[bytes, ...] = OWN) -> None:
    parts.lists = [[block for block in blocks if block.name not in names] for blocks in parts.lists]
    parts.root = [block for block in parts.root if block.name not in names]


@pytest.mark.parametrize("names", [OWN[:1], OWN[1:2], OWN[2:], OWN[:2], OWN[1:], (OWN[0], OWN[2])], ids=str)
def test_a_file_of_which_some_blocks_were_taken_is_forged(
    plain: list[BuiltDisk], tmp_path: Path, names: tuple[bytes, ...]
) -> None:
    full = new_writer(tmp_path).full([plain[0]])
    edit(full.path, lambda parts: strip(parts, names))
    refused(full)
    assert [bad.file for bad in faults(tmp_path)] == [full.path]


def test_stripped_files(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """The others know of them; the newest, of which none does, shows as not authenticated."""
    writer = new_writer(tmp_path)
    written = [writer.full([plain[0]]), writer.incremental([plain[1]]), writer.incremental([plain[2]])]
    edit(written[1].path, strip)
    assert "authenticated file of its number" in str(refused(written[2]))
    assert forged_files(tmp_path) == {written[1].path.name}
    check_point(written[0], PASSWORD)
    edit(written[2].path, strip)
    assert forged_files(tmp_path) == set()
    assert list(states(tmp_path).values()) == [
        FileState.AUTHENTICATED,
        FileState.UNAUTHENTICATED,
        FileState.UNAUTHENTICATED,
    ]


def test_a_member_of_an_earlier_run_is_forged(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """The same set, number and password, authentic in itself, but not the one that the set knows."""
    earlier = new_writer(tmp_path / "earlier")
    earlier.full([plain[0]])
    old = earlier.incremental([plain[3]])
    writer = new_writer(tmp_path / "set")
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    second, third = writer.incremental([plain[2]]), writer.differential([plain[1]])
    shutil.copy(old.path, first.path)
    for file in (first, second):
        assert "another file of its number" in str(refused(file))
    check_point(full, PASSWORD)
    check_point(third, PASSWORD)  # does not need it
    found = faults(tmp_path / "set")
    assert found
    assert {bad.file for bad in found} == {first.path}
    with opened_point(second, PASSWORD) as point:
        assert [entry.state for entry in point.authentication()] == [
            FileState.AUTHENTICATED,
            FileState.FORGED,
            FileState.AUTHENTICATED,
        ]
        assert [entry for check in point.checks() for entry in check.run().bad]


def test_an_earlier_full_is_forged_for_all_that_need_it(plain: list[BuiltDisk], tmp_path: Path) -> None:
    old = new_writer(tmp_path / "earlier").full([plain[3]])
    writer = new_writer(tmp_path / "set")
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    second = writer.full([plain[2]])
    shutil.copy(old.path, full.path)
    refused(full)
    refused(first)
    check_point(second, PASSWORD)


@pytest.mark.parametrize("stripped", [True, False])
def test_files_that_a_point_does_not_need_do_not_change_it(
    plain: list[BuiltDisk], tmp_path: Path, stripped: bool
) -> None:
    """The size of a disk is the largest that the files up to a point tell: not of these."""
    writer = new_writer(tmp_path)
    full, second = writer.full([plain[0]]), writer.full([plain[1]])
    if stripped:  # as if another program had begun the set
        edit(full.path, strip)
        full.tag = b""
        writer._finish(second)
    damage.set_json(full.path, 1 << 40, "disks", 0, "_geometry", "disk_size")
    assert states(tmp_path)[second.path.name] is FileState.AUTHENTICATED
    with formats.open_container(second.path) as container:
        assert container.point is not None
        assert container.point.disks[0].size == 1 << 40
        container.unlock(PASSWORD)
        assert container.point.disks[0].size == plain[1].size
    check_point(second, PASSWORD)


def test_a_file_of_a_full_index_reads_its_own_blocks(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """A forged file that is needed for some blocks: those are refused, the others are read."""
    old = new_writer(tmp_path / "earlier").full([plain[3]])
    writer = new_writer(tmp_path / "set")
    full, second = writer.full([plain[0]]), writer.differential([plain[1]])
    shutil.copy(old.path, full.path)
    source = plain[1].path.read_bytes()[plain[1].partitions[0].offset :]
    outcomes = set()
    with opened_point(second, PASSWORD) as point:
        reader = point.disks[0].partitions[0].reader()
        for block, element in enumerate(second.index[0, 0].blocks):
            at, length = block * 65536, min(65536, reader.size - block * 65536)
            if element.length and element.file_number == 0:
                with pytest.raises(ForgedError):
                    reader.read_at(at, length)
            else:
                assert reader.read_at(at, length) == source[at : at + length]
            outcomes.add(element.file_number if element.length else None)
    assert outcomes >= {0, 1}


@pytest.mark.parametrize("authenticate", [True, False])
@pytest.mark.parametrize("delta", [True, False])
def test_a_file_that_was_put_in_between(
    plain: list[BuiltDisk], tmp_path: Path, authenticate: bool, delta: bool
) -> None:
    """A gap in the numbers is normal; what appears in it afterwards is not."""
    writer = new_writer(tmp_path / "set")
    full, third = writer.full([plain[0]]), writer.incremental([plain[1]], file_number=2)
    check_point(third, PASSWORD)
    other = new_writer(tmp_path / "other", authenticate=authenticate)
    other.full([plain[0]])
    stranger = other.incremental([plain[3]], delta=delta)
    shutil.copy(stranger.path, tmp_path / "set" / "stranger.mrimgx")
    assert "newer" in str(refused(third))
    assert forged_files(tmp_path / "set") == {"stranger.mrimgx"}
    check_point(full, PASSWORD)


def test_a_file_that_claims_the_number_of_one_that_was_removed(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    """It is newer, so nothing speaks of it; but it makes the set look complete."""
    writer = new_writer(tmp_path)
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    second = writer.incremental([plain[2]])
    writer.authenticate = False
    third = writer.incremental([plain[3]])
    first.path.unlink()
    damage.set_json(third.path, [1], "_header", "merged_files")
    assert "claims" in str(refused(second))
    check_point(full, PASSWORD)


def test_a_plain_file_in_the_place_of_an_encrypted_one(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "set")
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    other = SetWriter(tmp_path / "other", compression="medium").full([plain[3]])
    shutil.copy(other.path, full.path)
    assert forged_files(tmp_path / "set") == {full.path.name}
    refused(first)


def test_a_file_of_another_password_in_the_place_of_one(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "set")
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    other = new_writer(tmp_path / "other", password="another").full([plain[3]])
    shutil.copy(other.path, full.path)
    assert forged_files(tmp_path / "set") == {full.path.name}
    refused(first)


def test_nobody_seals_without_the_password(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = new_writer(tmp_path).full([plain[0]])
    own_blocks.seal(full.path, bytes(32), bytes.fromhex("A1B2C3D4E5F60718"), 0, full.data_length)
    assert "tag" in str(refused(full))


def test_a_reader_from_before_the_password_gives_no_holes(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = new_writer(tmp_path, used=lambda block, _: block > 3).full([plain[0]])
    edit(full.path, lambda parts: strip(parts, OWN[1:2]))
    with formats.open_container(full.path) as container:
        assert container.point is not None
        reader = container.point.disks[0].partitions[0].reader()
        with pytest.raises(PasswordError):
            reader.read_at(0, 10)
        container.unlock(PASSWORD)
        with pytest.raises(ForgedError):
            reader.read_at(0, 10)
        assert container.point.disks[0].partitions[0].stored_blocks()  # told, not believed


# --- Files that their writer got wrong: the seal is right ---


def reseal(writer: SetWriter, written: WrittenFile, change: Callable[[Parts], None]) -> None:
    """Change a file's parts and seal it again, as someone with the password would."""
    parts = Parts.load(written.path)
    change(parts)
    parts.root = [block for block in parts.root if block.name != OWN[2]]
    root = b"".join(block.packed(last=False) for block in parts.root)
    written.path.write_bytes(assemble(parts.data, map(metadata_list, parts.lists), root))
    writer.seal(written)


def set_own(parts: Parts, payload: bytes) -> None:
    parts.root = [Block(OWN[0], payload) if block.name == OWN[0] else block for block in parts.root]


def longer_table(parts: Parts) -> None:
    parts.lists[1] = [
        Block(block.name, block.stored + bytes(16)) if block.name == OWN[1] else block
        for block in parts.lists[1]
    ]


def shorter_table(parts: Parts) -> None:
    parts.lists[1] = [
        Block(block.name, block.stored[:-16]) if block.name == OWN[1] else block for block in parts.lists[1]
    ]


def odd_table(parts: Parts) -> None:
    parts.lists[1] = [
        Block(block.name, block.stored[:-1]) if block.name == OWN[1] else block for block in parts.lists[1]
    ]


def two_tables(parts: Parts) -> None:
    parts.lists[1] = [block for block in parts.lists[1] for _ in range(2 if block.name == OWN[1] else 1)]


def table_first(parts: Parts) -> None:
    parts.lists[1] = [parts.lists[1][1], parts.lists[1][0], parts.lists[1][2]]


def own(**changes: object) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        content: dict[str, Any] = {"authentication": own_blocks.authentication(0, [0], {})}
        content["authentication"] |= {key: value for key, value in changes.items() if key != "version"}
        content |= {key: value for key, value in changes.items() if key == "version"}
        set_own(parts, own_blocks.own_payload(content))

    return change


def broken_own(parts: Parts) -> None:
    set_own(parts, b'{"version": 1, "authentication"')


@pytest.mark.parametrize(
    "change",
    [
        longer_table,
        shorter_table,
        odd_table,
        two_tables,
        table_first,
        broken_own,
        own(data_length=0),
        own(data_length=100),
        own(data_length=2**60),
        own(data_length=-1),
        own(data_length="1"),
        own(files=[]),
        own(files=[1]),
        own(files=["0"]),
        own(files=[0, 70000]),
        own(files=None),
        own(members={}),
        own(members=[{"file_number": 1, "tag": "00"}]),
        own(members=[{"file_number": 1, "tag": "0" * 64}] * 2),
        own(algorithm="none"),
        own(version=2),
    ],
)  # fmt: skip
def test_sealed_nonsense_is_refused(
    plain: list[BuiltDisk], tmp_path: Path, change: Callable[[Parts], None]
) -> None:
    writer = new_writer(tmp_path)
    full = writer.full([plain[0]])
    reseal(writer, full, change)
    assert refused(full)
    assert faults(tmp_path)


def test_resealing_nothing_changes_nothing(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    full = writer.full([plain[0]])
    before = full.path.read_bytes()
    reseal(writer, full, lambda _: None)
    assert full.path.read_bytes() == before


def test_data_of_no_block_are_told(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    full = writer.full([plain[0]])
    with full.path.open("r+b") as stream:
        whole = stream.read()
    length = full.data_length
    full.data_length = min(length + 5, full.document["_header"]["index_file_position"])
    assert full.data_length > length
    content = {"authentication": own_blocks.authentication(full.data_length, [0], {})}
    reseal(writer, full, lambda parts: set_own(parts, own_blocks.own_payload(content)))
    assert len(full.path.read_bytes()) == len(whole)
    check = [bad.reason for bad in faults(tmp_path)]
    assert check == [f"{full.data_length - length} bytes of its data are of no known block"]


def test_what_an_index_of_others_says_of_an_authenticated_file(
    plain: list[BuiltDisk], tmp_path: Path
) -> None:
    """It must be what the file's own index says: another length, another place, another number is none."""
    writer = new_writer(tmp_path)
    full, first = writer.full([plain[0]]), writer.incremental([plain[1]])
    writer.authenticate = False
    second = writer.incremental([plain[1]], delta=False)
    check_point(second, PASSWORD)
    elements = second.index[0, 0].blocks
    of_full = [block for block, element in enumerate(elements) if element.file_number == 0 and element.length]
    changed = [block for block, element in enumerate(elements) if element.file_number == 1 and element.length]
    target, other = of_full[:2]
    position, length = full.blocks[0, 0][other]
    untouched = second.path.read_bytes()
    for change in (
        {"file_position": position, "length": length, "md5": elements[other].md5},
        {"length": elements[target].length - 16},
        {"file_position": elements[target].position + 16},
    ):
        damage.change_element(second.path, 0, target, **change)
        with opened_point(second, PASSWORD) as point, pytest.raises(DamagedBlockError, match="own file"):
            point.disks[0].partitions[0].reader().read_at(target * 65536, 1)
        assert [bad.block for bad in faults(tmp_path)] == [target]
        second.path.write_bytes(untouched)
    # A block that the delta does not have: the neighbour of one that it has.
    before = next(block for block in of_full if block + 1 in changed or block - 1 in changed)
    damage.change_element(second.path, 0, before, file_number=1)
    with opened_point(second, PASSWORD) as point, pytest.raises(DamagedBlockError, match="own file"):
        point.disks[0].partitions[0].reader().read_at(before * 65536, 1)
    assert first.role == "inc"


def test_a_split_without_its_index(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """The tags of its parts went with it: their blocks can't be checked and are not read."""
    writer = new_writer(tmp_path, used=every_block)
    first = writer.full([plain[0]], split_at=1_000_000)
    writer.authenticate = False
    second = writer.incremental([plain[1]], delta=False)
    damage.flip_byte(first.path, damage.metadata_offset(first.path, b"$IFSTAGS") + 40)
    assert first.path.name in forged_files(tmp_path)
    block = next(b for b, e in enumerate(second.index[0, 0].blocks) if e.file_number == 0)
    with opened_point(second, PASSWORD) as point, pytest.raises(DamagedBlockError, match="split"):
        point.disks[0].partitions[0].reader().read_at(block * 65536, 1)


def test_a_part_of_a_split_that_is_another_run_s(plain: list[BuiltDisk], tmp_path: Path) -> None:
    when = FIRST_BACKUP + dt.timedelta(hours=1)
    old = new_writer(tmp_path / "old", used=every_block).full([plain[2]], split_at=1_000_000, when=when)
    first = new_writer(tmp_path / "set", used=every_block).full([plain[0]], split_at=1_000_000)
    shutil.copy(old.parts[0].path, first.parts[0].path)
    assert forged_files(tmp_path / "set") == {first.parts[0].path.name}
    held = {element.file_number: block for block, element in enumerate(first.index[0, 0].blocks)}
    with opened_point(first, PASSWORD) as point:
        reader = point.disks[0].partitions[0].reader()
        assert reader.read_at(held[1] * 65536, 1)
        with pytest.raises(ForgedError):
            reader.read_at(held[0] * 65536, 1)


def test_a_part_that_differs_in_nothing_but_its_blocks(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Their tags are in the file with the index, so each of them that differs is found by itself."""
    disk = disks.plain_disk(tmp_path, "other", sizes=(3 * 1048576 + 4096, 2 * 1048576), seed=99)
    old = new_writer(tmp_path / "old", used=every_block, compression="none").full([disk], split_at=1_000_000)
    writer = new_writer(tmp_path / "set", used=every_block, compression="none")
    first = writer.full([plain[0]], split_at=1_000_000)
    for part, other in zip(first.parts, old.parts, strict=True):
        assert part.tag == other.tag
        shutil.copy(other.path, part.path)
    assert forged_files(tmp_path / "set") == set()
    bad = {(entry.partition, entry.block) for entry in faults(tmp_path / "set")}
    assert bad == {
        (f"disk1/p{plain[0].partitions[at].number}", block)
        for at in (0, 1)
        for block, element in enumerate(first.index[0, at].blocks)
        if element.file_number != first.file_number and element.md5 != old.index[0, at].blocks[block].md5
    }
    assert bad
    never_others(tmp_path / "set", {first.path.name: first.disks})


def test_a_merge_by_others_ends_the_authentication(plain: list[BuiltDisk], tmp_path: Path) -> None:
    """Without a newer file that knows of it, it is a file like any; with one, it is not what was known."""
    writer = new_writer(tmp_path)
    full, _, _ = (writer.full([plain[0]]), writer.incremental([plain[1]]), writer.incremental([plain[2]]))
    writer.authenticate = False
    merged = writer.merge(1, 2)
    assert list(states(tmp_path).values()) == [FileState.AUTHENTICATED, FileState.UNAUTHENTICATED]
    check_point(full, PASSWORD)
    check_point(merged, PASSWORD)


# --- What else $IMAGEFS says ---


def test_what_was_not_taken(plain: list[BuiltDisk], tmp_path: Path) -> None:
    content = {
        "excluded": ["/*.tmp", "ü"],
        "left_out": ["/pagefile.sys"],
        "unreadable": [{"disk": 0, "partition": 1, "offset": 4096, "length": 512, "later": None}],
        "unknown": {"to": "this version"},
    }
    for writer in (SetWriter(tmp_path / "open"), new_writer(tmp_path / "closed")):
        full = writer.full([plain[0]], own=content)
        check_point(full, PASSWORD if writer.cryptor else None)
        with opened_point(full) as point:  # no password is needed
            assert [tuple(entry) for entry in point.unreadable] == [("disk1/p2", 4096, 512)]
            assert (point.excluded, point.left_out) == (("/*.tmp", "ü"), ("/pagefile.sys",))


@pytest.mark.parametrize(
    "content",
    [
        {"unreadable": [{"disk": 0, "partition": 9, "offset": 0, "length": 1}]},
        {"unreadable": [{"disk": 0, "partition": 0, "offset": 2**62, "length": 1}]},
        {"unreadable": [{"disk": 0, "partition": 0, "offset": 0}]},
        {"unreadable": [7]},
        {"unreadable": {}},
        {"excluded": [1]},
        {"left_out": "x"},
        {"version": 2},
    ],
)
def test_a_record_that_can_t_be_understood(
    plain: list[BuiltDisk], tmp_path: Path, content: dict[str, Any]
) -> None:
    """The image is read without it; verification tells."""
    full = SetWriter(tmp_path).full([plain[0]], own=content)
    with opened_point(full) as point:
        assert point.disks[0].partitions[0].reader().read_at(0, 10)
        with pytest.raises(FormatError, match=r"\$IMAGEFS"):
            _ = point.unreadable
        assert [bad.file for check in point.checks() for bad in check.run().bad] == [full.path]


def test_a_damaged_record_of_an_open_image(plain: list[BuiltDisk], tmp_path: Path) -> None:
    full = SetWriter(tmp_path).full([plain[0]], own={"excluded": ["x"]})
    damage.break_metadata(full.path, b"$IMAGEFS")
    with opened_point(full) as point:
        assert point.disks[0].partitions[0].reader().read_at(0, 10)
        with pytest.raises(DamagedError):
            _ = point.excluded
        assert [bad.reason for check in point.checks() for bad in check.run().bad]


def test_the_tags_that_a_new_member_lists(plain: list[BuiltDisk], tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    written = [writer.full([plain[0]], split_at=1_000_000), writer.incremental([plain[1]])]
    with opened_point(written[1], PASSWORD) as point:
        assert point.members.tags == {member.file_number: member.tag for member in writer.members}
    damage.flip_byte(written[0].path, written[0].path.stat().st_size - 30)
    with opened_point(written[1], PASSWORD) as point, pytest.raises(ForgedError):
        _ = point.members.tags


OWN_KEYS = st.sampled_from(
    [
        *("version", "excluded", "left_out", "unreadable", "authentication"),
        *("algorithm", "data_length", "files", "members", "file_number", "tag"),
        *("disk", "partition", "offset", "length"),
    ]
)
OWN_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([1, 0, "hmac-sha256", "0" * 64, "\ud800", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(OWN_KEYS, inner, max_size=6),
    max_leaves=8,
)


@given(content=st.dictionaries(OWN_KEYS, OWN_VALUES, max_size=5), raw=st.none() | st.binary(max_size=20))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_records_of_any_values(content: dict[str, Any], raw: bytes | None) -> None:
    """What comes out is a record or one line of why there is none."""
    try:
        parse_own(raw or json.dumps({"version": 1, **content}).encode(), Path("x"))
    except FormatError as error:
        assert "\n" not in str(error)
