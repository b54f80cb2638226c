"""Extended attributes against ntfs-3g, the values that were written, and damage."""

import errno
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.ntfs_metadata import (
    DESCRIPTORS,
    DOMAIN,
    EFS_KEYS,
    OBJECT_IDS,
    OWNERS,
    SYSTEM_NAMES,
    WSL,
    descriptor,
    ea_list,
    metadata_volume,
    object_id,
    owned_volume,
)
from formats.errors import DamagedError
from imagefs.filesystems import VolumeOptions
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.extended import parse_ea
from imagefs.filesystems.ntfs.layout import EPOCH, SECURE
from imagefs.filesystems.ntfs.security import owner_of, without_padding
from imagefs.filesystems.ntfs.view_index import ViewIndex
from tests.imagefs.filesystems.ntfs.metadata import (
    attribute_of,
    mounted_by_ntfs3g,
    opened,
    our_attribute,
    patched,
    place_in_record,
    places_of,
    resolve,
    walk,
)

# What ntfs-3g says otherwise: it refuses the 8.3 name of the root, tells that of a file with several names
# only for the path that has it, and shows no attributes of what needs a plugin.
_EXCEPTIONS = {("", "system.ntfs_dos_name"), ("names/other/linked.txt", "system.ntfs_dos_name")}
_PLUGIN = "streams/wof"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metadata_volume(tmp_path_factory.mktemp("attributes"))


@pytest.fixture
def volume(path: Path) -> Iterator[NtfsFileSystem]:
    with opened(path) as volume:
        yield volume


@pytest.mark.parametrize("raw_efs", [False, True])
def test_as_ntfs3g_gives_them(path: Path, tmp_path: Path, raw_efs: bool) -> None:
    values = dict.fromkeys(SYSTEM_NAMES, 0)
    options = ",efs_raw" if raw_efs else ""
    with (
        opened(path, VolumeOptions(raw_efs=raw_efs)) as volume,
        mounted_by_ntfs3g(path, tmp_path / "mnt", options) as root,
    ):
        for name, inode in walk(volume):
            listed = list(volume.extended_attributes(inode))
            if name != _PLUGIN:
                names = set(os.listxattr(root / name, follow_symlinks=False))  # one for each extent
                assert sorted(listed) == sorted(names), name
            more = ["trusted.kept", "security.none", "user.none"]
            for attribute in [*listed, *(f"system.{known}" for known in SYSTEM_NAMES), *more]:
                if (name, attribute) in _EXCEPTIONS or (name == _PLUGIN and attribute.startswith("user.")):
                    continue
                theirs = attribute_of(root / name, attribute)
                ours = our_attribute(volume, inode, attribute)
                assert ours == theirs, (name, attribute)
                if isinstance(ours, bytes) and attribute.startswith("system."):
                    values[attribute.removeprefix("system.")] += 1
    assert values.pop("ntfs_efsinfo") == raw_efs
    assert all(values.values()), values


def test_descriptors_are_those_written(volume: NtfsFileSystem) -> None:
    for name, (owner, group, _) in OWNERS.items():
        value = volume.extended_attribute(resolve(volume, name), "system.ntfs_acl")
        assert value == descriptor(owner, group), name
    for number in range(DESCRIPTORS):
        inode = resolve(volume, f"owners/many/{number:03}")
        wanted = descriptor(f"{DOMAIN}-{2000 + number}", f"{DOMAIN}-513")
        assert volume.extended_attribute(inode, "system.ntfs_acl") == wanted


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_descriptors_of_other_clusters(tmp_path: Path, cluster_size: int) -> None:
    with opened(owned_volume(tmp_path, cluster_size)) as volume:
        folder = resolve(volume, "owners/many")
        for entry, known in volume.entries_with_attributes(folder):
            wanted = descriptor(f"{DOMAIN}-{2000 + int(entry.name)}", f"{DOMAIN}-513")
            assert volume.extended_attribute(entry.inode, "system.ntfs_acl") == wanted
            assert known is not None
            assert known.uid == 2000 + int(entry.name)


def test_indexes_have_blocks(volume: NtfsFileSystem) -> None:
    extend = volume.lookup(volume.root, "$Extend")
    for inode, name in ((SECURE, "$SII"), (volume.lookup(extend, "$ObjId"), "$O")):
        attributes = volume._mft.attributes(volume._mft.record(inode))
        assert any(a.type == 0xA0 and a.name == name and a.size > 4096 for a in attributes)


def test_object_ids_are_those_written(volume: NtfsFileSystem) -> None:
    for number in range(OBJECT_IDS):
        value = volume.extended_attribute(resolve(volume, f"ids/{number:03}"), "system.ntfs_object_id")
        assert value == object_id(number).ljust(64, b"\0")


def test_eas_are_those_written(volume: NtfsFileSystem) -> None:
    for name, (numbers, _) in WSL.items():
        value = volume.extended_attribute(resolve(volume, name), "system.ntfs_ea")
        assert value == ea_list({key: struct.pack("<I", number) for key, number in numbers.items()})


def test_times_are_the_attributes(volume: NtfsFileSystem) -> None:
    for _, inode in walk(volume):
        known = volume.attributes(inode)
        times = struct.unpack(">4Q", volume.extended_attribute(inode, "system.ntfs_times_be"))
        shown = (known.created, known.modified, known.accessed, known.changed)
        assert tuple((time - EPOCH) * 100 for time in times) == shown
        assert volume.extended_attribute(inode, "system.ntfs_crtime_be") == struct.pack(">Q", times[0])


def test_keys_of_encrypted_files_are_given_on_request(path: Path) -> None:
    with opened(path) as volume:
        inode = resolve(volume, "ids/encrypted")
        assert "user.ntfs.efsinfo" not in volume.extended_attributes(inode)
        with pytest.raises(PermissionError):
            volume.extended_attribute(inode, "system.ntfs_efsinfo")
    with opened(path, VolumeOptions(raw_efs=True)) as volume:
        assert volume.extended_attributes(inode) == ["user.ntfs.efsinfo"]
        assert volume.extended_attribute(inode, "user.ntfs.efsinfo") == EFS_KEYS


def test_large_streams_are_no_attributes(volume: NtfsFileSystem) -> None:
    inode = resolve(volume, "streams/host.txt")
    assert len(volume.extended_attribute(inode, "user.65536")) == 65536
    with pytest.raises(OSError, match="too long") as caught:
        volume.extended_attribute(inode, "user.70000")
    assert caught.value.errno == errno.E2BIG
    assert "user.70000" in volume.extended_attributes(inode)


# --- Damage ---

OWNED = "owners/user"


def _security_id(volume: NtfsFileSystem, inode: int) -> int:
    (information,) = [a for a in volume._mft.record(inode).attributes if a.type == 0x10]
    return int.from_bytes((information.value or b"")[52:56], "little")


def _found(whole: bytes, wanted: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(wanted), whole)]


def _entry_places(volume: NtfsFileSystem, path: Path) -> tuple[list[int], int, int]:
    """Return where the index entries of OWNED's descriptor are in the volume, and both copies of it."""
    number = struct.pack("<I", _security_id(volume, resolve(volume, OWNED)))
    whole = path.read_bytes()
    first, second = _found(whole, descriptor(*OWNERS[OWNED][:2]))
    header = whole[first - 20 : first]
    assert header[4:8] == number
    # in $SII and $SDH, and in what was once a part of them
    return [at + 4 for at in _found(whole, number + header)], first, second


def test_a_damaged_descriptor(path: Path, volume: NtfsFileSystem) -> None:
    inode = resolve(volume, OWNED)
    wanted = volume.extended_attribute(inode, "system.ntfs_acl")
    entries, first, second = _entry_places(volume, path)
    flipped = bytes(byte ^ 0x40 for byte in wanted[40:44])
    with patched(path, {first + 40: flipped}) as damaged:  # its copy is whole
        assert damaged.extended_attribute(inode, "system.ntfs_acl") == wanted
        assert damaged.attributes(inode).uid == 1001
    in_entry = {0: b"\xff" * 4, 4: b"\0" * 4, 8: b"\xff" * 8, 16: b"\xff" * 4, -4: b"\xfe\xff\xff\x7f"}
    for patches in (
        {first + 40: flipped, second + 40: flipped},
        {first - 20: b"\xff" * 20, second - 20: b"\xff" * 20},
        *({entry + at: patch for entry in entries} for at, patch in in_entry.items()),
    ):
        with patched(path, patches) as damaged:
            with pytest.raises(DamagedError):
                damaged.extended_attribute(inode, "system.ntfs_acl")
            known = damaged.attributes(inode)
            assert (known.uid, known.gid) == (0, 0)
            assert damaged.open(inode).read_at(0, 5) == b"owned"
            assert damaged.extended_attribute(inode, "system.ntfs_crtime_be")
            other = resolve(damaged, "owners/system")
            assert len(damaged.extended_attribute(other, "system.ntfs_attrib")) == 4


def test_no_secure_file_at_all(path: Path, volume: NtfsFileSystem) -> None:
    (block,) = places_of(volume, SECURE, 0xA0, "$SII", 0, 4096)
    inode = resolve(volume, OWNED)
    with patched(path, {block: b"BAAD", block + 4096: b"BAAD", block + 8192: b"BAAD"}) as damaged:
        with pytest.raises(DamagedError):
            damaged.extended_attribute(inode, "system.ntfs_acl")
        listed = damaged.entries_with_attributes(resolve(damaged, "owners"))
        assert len(listed) == len(OWNERS) + 2
        assert all(known is not None for _, known in listed)


@pytest.mark.parametrize("step", [1, 8, 12, 0x7FFFFFFF, 0xFFFFFFFC])
def test_eas_that_reach_outside(path: Path, volume: NtfsFileSystem, step: int) -> None:
    inode = resolve(volume, "wsl/script.sh")
    value = volume.extended_attribute(inode, "system.ntfs_ea")
    at = place_in_record(volume, path, inode, value[:12])
    with patched(path, {at: struct.pack("<I", step)}) as damaged:
        if step < 0x1000:
            with pytest.raises(DamagedError):
                damaged.extended_attribute(inode, "system.ntfs_ea")
            assert damaged.attributes(inode).uid == 0
        else:  # nothing more comes after the first
            assert damaged.attributes(inode).uid == 1000
        assert damaged.open(inode).read_at(0, 9) == b"#!/bin/sh"
        assert damaged.extended_attribute(inode, "system.ntfs_attrib")


# --- Fuzzing the parsers: a value, or DamagedError ---


def damaged_or(call: Callable[[], object]) -> None:
    with suppress(DamagedError):
        call()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    damaged_or(lambda: parse_ea(data, "test"))
    damaged_or(lambda: owner_of(data))
    damaged_or(lambda: without_padding(data, "test"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    for whole in (
        ea_list({b"$LXUID": b"1234", b"OTHER": b"x" * 30}),
        descriptor(*OWNERS[OWNED][:2], audited=True),
    ):
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(whole) - 1))
            changed[at] = data.draw(st.integers(0, 255))
        cut = bytes(changed[: data.draw(st.integers(0, len(whole)))])
        for value in (bytes(changed), cut):
            damaged_or(lambda value=value: parse_ea(value, "test"))  # type: ignore[misc]
            damaged_or(lambda value=value: owner_of(value))  # type: ignore[misc]
            damaged_or(lambda value=value: without_padding(value, "test"))  # type: ignore[misc]


def test_changed_indexes(path: Path, volume: NtfsFileSystem) -> None:
    """Bytes changed in the index of $Secure: what is asked for, nothing, or DamagedError."""
    (block,) = places_of(volume, SECURE, 0xA0, "$SII", 0, 4096)
    inode = resolve(volume, OWNED)
    key = struct.pack("<I", _security_id(volume, inode))
    right = ViewIndex(volume._mft, SECURE, "$SII", volume.block_size).find(key)
    assert right is not None

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 12287), st.integers(0, 255)), min_size=1, max_size=6))
    def change(changes: list[tuple[int, int]]) -> None:
        with patched(path, {block + at: bytes([byte]) for at, byte in changes}) as changed:
            damaged_or(lambda: ViewIndex(changed._mft, SECURE, "$SII", changed.block_size).find(key))
            value = our_attribute(changed, inode, "system.ntfs_acl")
            assert value in ("EIO", descriptor(*OWNERS[OWNED][:2]))

    change()
