"""Owners and modes: what was given to the files, and that everything stays readable."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.ntfs_metadata import (
    ADMINISTRATORS,
    DESCRIPTORS,
    DOMAIN,
    EVERYONE,
    OWNERS,
    SYSTEM,
    WSL,
    descriptor,
    metadata_volume,
)
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import parse_record
from imagefs.filesystems.ntfs.owners import Owners
from imagefs.filesystems.ntfs.quick import quick_node
from imagefs.filesystems.ntfs.security import Security, owner_of
from mounters.tree import NodeType
from tests.imagefs.filesystems.ntfs.metadata import opened, resolve, walk


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metadata_volume(tmp_path_factory.mktemp("owners"))


@pytest.fixture
def volume(path: Path) -> Iterator[NtfsFileSystem]:
    with opened(path) as volume:
        yield volume


@pytest.mark.parametrize("name", list(OWNERS))
def test_owners_of_descriptors(volume: NtfsFileSystem, name: str) -> None:
    known = volume.attributes(resolve(volume, name))
    assert (known.uid, known.gid) == OWNERS[name][2]


def test_owners_of_many_descriptors(volume: NtfsFileSystem) -> None:
    listed = volume.entries_with_attributes(resolve(volume, "owners/many"))
    assert len(listed) == DESCRIPTORS
    for entry, known in listed:
        assert known is not None
        assert (known.uid, known.gid) == (2000 + int(entry.name), 513)


@pytest.mark.parametrize("name", list(WSL))
def test_what_wsl_keeps_counts_first(volume: NtfsFileSystem, name: str) -> None:
    user, group, execute = WSL[name][1]
    known = volume.attributes(resolve(volume, name))
    assert (known.uid, known.gid, known.mode) == (user, group, 0o444 | execute)


def test_wsl_behind_64_kilobytes_of_eas(volume: NtfsFileSystem) -> None:
    assert volume.attributes(resolve(volume, "wsl/long")).uid == 5


def test_everything_can_be_read_and_nothing_written(volume: NtfsFileSystem) -> None:
    for name, inode in walk(volume):
        known = volume.attributes(inode)
        assert known.mode & 0o444 == 0o444, name
        if known.type is NodeType.DIRECTORY:
            assert known.mode == 0o555, name
        elif known.type is NodeType.FILE:
            assert not known.mode & ~0o555, name


def test_quick_attributes_are_the_parsed_ones(volume: NtfsFileSystem) -> None:
    compared = 0
    for number in range(volume._mft.data.size // volume._mft.record_size):
        raw = volume._mft.raw_record(number)
        quick = quick_node(raw, number, volume._owners) if raw[:4] == b"FILE" else None
        if quick is not None:
            compared += 1
            assert quick == volume._record_nodes._of_record(parse_record(raw, number))
    assert compared > DESCRIPTORS


def test_accounts() -> None:
    for owner, group, numbers in (
        (f"{DOMAIN}-500", f"{DOMAIN}-0", (500, 0)),
        (SYSTEM, ADMINISTRATORS, (0, 0)),
        ("S-1-5-21-1-2-3", EVERYONE, (0, 0)),  # a domain, not an account
        ("S-1-5-22-1-2-3-1000", "S-1-16-12288", (0, 0)),
        ("S-1-3-21-1-2-3-1000", "S-1-5-21-1-2-3-4-5", (0, 0)),
    ):
        assert owner_of(descriptor(owner, group)) == numbers
    assert owner_of(struct.pack("<BBH4I", 1, 0, 0x8000, 0, 0, 0, 0)) == (0, 0)


def test_the_owners_kept_are_bounded(volume: NtfsFileSystem) -> None:
    owners = Owners(volume._mft, Security(volume._mft, volume.block_size))
    assert owners[descriptor(f"{DOMAIN}-1001", SYSTEM)] == (1001, 0)
    for number in range(20_000):
        assert owners[b"%d" % number] == (0, 0)
    assert len(owners) <= 1 << 14
