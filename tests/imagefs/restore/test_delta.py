"""Delta restores write what differs and nothing else, and give what a full restore gives."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fixtures.content import noise
from fixtures.partition_tables import BuiltDisk, BuiltPartition, create_file
from imagefs.restore.job import restore
from imagefs.restore.options import RestoreOptions
from tests.conftest import run_imagefs
from tests.imagefs.imaging.attached import attached
from tests.imagefs.imaging.moments import later
from tests.imagefs.restore.chains import CHAINS, Chain, Saved
from tests.imagefs.restore.held import (
    Bytes,
    bytes_of,
    check_same,
    check_tables,
    differing,
    free_runs,
)
from tests.imagefs.restore.places import noisy

DELTA = RestoreOptions(delta=True)
BLOCK = 65536


def blocks(disk: BuiltDisk) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each block of an image, on the disk.

    What precedes a FAT's first cluster makes blocks of 4 MiB of its own; all others have 64 KiB.
    """
    for part in disk.partitions:
        first = part.offset
        if part.kind.startswith("FAT"):
            first += _reserved(disk, part)
            yield part.offset, first
        for at in range(first, part.offset + part.size, BLOCK):
            yield at, min(at + BLOCK, part.offset + part.size)


def _reserved(disk: BuiltDisk, part: BuiltPartition) -> int:
    """Return the bytes before the first cluster, from a FAT's boot sector."""
    with disk.path.open("rb") as stream:
        stream.seek(part.offset)
        boot = stream.read(512)
    reserved, copies, entries = struct.unpack_from("<HBH", boot, 14)
    (short,), (long,) = struct.unpack_from("<H", boot, 22), struct.unpack_from("<I", boot, 36)
    return int((reserved + copies * (short or long)) * 512 + entries * 32)


def to_write(disk: BuiltDisk, before: Bytes, after: Bytes) -> int:
    """Count the blocks that have anything in use on the disk, and differ."""
    used = np.ones(disk.size, np.bool_)
    for part in disk.partitions:
        for start, end in free_runs(disk, part):
            used[start:end] = False
    return sum(
        bool(used[start:end].any()) and not np.array_equal(before[start:end], after[start:end])
        for start, end in blocks(disk)
    )


def run_delta(image: Path, target: Path) -> dict[str, object]:
    done = run_imagefs("restore", image, target, "--delta", "--yes", "--json")
    assert done.code == 0, done.errors
    report: dict[str, object] = json.loads(done.output)
    assert report["mode"] == "delta"
    return report


def test_after_changes_of_files(gpt: Saved, tmp_path: Path) -> None:
    """What ntfs-3g, debugfs and mtools changed is undone, by writing as many blocks as differ."""
    target = tmp_path / "disk.raw"
    restore(gpt.image, target)
    before = bytes_of(target)
    restored = dataclasses.replace(gpt.disk, path=target)
    changed = later(restored, tmp_path / "changed.raw", 1, (1, 2, 3))
    target.unlink()
    changed.path.rename(target)
    after = bytes_of(target)
    count = to_write(gpt.disk, before, after)
    report = run_delta(gpt.image, target)
    assert count > 10
    assert report["blocks_written"] == count
    check_same(target, gpt.disk)
    check_tables(target, "gpt")


@pytest.mark.parametrize("on_device", [False, True])
def test_after_flipped_bytes(on_device: bool, gpt: Saved, tmp_path: Path) -> None:
    """Single bytes, at the edges of blocks and of partitions too; on a device and in a file."""
    target = tmp_path / "disk.raw"
    restore(gpt.image, target)
    before = bytes_of(target)
    after = before.copy()
    random = np.random.default_rng(5)
    places = random.integers(1 << 20, gpt.disk.size - (1 << 20), 200).tolist()
    for part in gpt.disk.partitions:
        places += [part.offset, part.offset + BLOCK - 1, part.offset + BLOCK, part.offset + part.size - 1]
    after[places] ^= 0xFF
    after.tofile(target)
    if on_device:
        with attached(target, partitions=False) as node:
            report = run_delta(gpt.image, node)
            again = run_delta(gpt.image, node)
    else:
        report = run_delta(gpt.image, target)
        again = run_delta(gpt.image, target)
    assert report["blocks_written"] == to_write(gpt.disk, before, after)
    assert report["records_written"] == 1  # the head, which is wiped meanwhile
    check_same(target, gpt.disk)
    assert again["blocks_written"] == again["records_written"] == again["bytes_written"] == 0
    assert again["blocks_unchanged"] == int(report["blocks_written"]) + int(report["blocks_unchanged"])  # type: ignore[call-overload]


def test_nothing_changed(mbr: Saved, tmp_path: Path) -> None:
    """Not a byte is written, not even the file's time of change, where nothing is to be cleared."""
    target = tmp_path / "disk.raw"
    restore(mbr.image, target)
    before = target.stat()
    report = restore(mbr.image, target, DELTA)
    assert (report.blocks_written, report.bytes_written, report.records_written) == (0, 0, 0)
    assert report.blocks_unchanged > 0
    assert report.bytes_cleared == 0
    assert target.stat().st_mtime_ns == before.st_mtime_ns


def test_records_alone(mbr: Saved, tmp_path: Path) -> None:
    """Of a disk whose volumes are right only the table and the boot records are written."""
    target = tmp_path / "disk.raw"
    restore(mbr.image, target)
    logical = mbr.disk.partition(5)
    with target.open("r+b") as stream:
        stream.seek(440)
        stream.write(b"\x01\x02\x03\x04")
        stream.seek(logical.offset - (1 << 20) + 446)
        stream.write(bytes(16))
    report = restore(mbr.image, target, DELTA)
    assert (report.blocks_written, report.records_written) == (0, 2)
    check_same(target, mbr.disk)
    check_tables(target, "mbr")


@pytest.mark.parametrize("name", CHAINS)
def test_from_point_to_point(chain: Callable[[str], Chain], name: str, tmp_path: Path) -> None:
    """Forth and back through a chain: each delta gives what a full restore of the point gives."""
    points = chain(name).ours
    target, full = tmp_path / "delta.raw", tmp_path / "full.raw"
    restore(points[0].image, target, password=points[0].password)
    for _, point in pairwise([points[0], *points[1:], *points[-3::-2]]):
        before = bytes_of(target)
        report = restore(point.image, target, DELTA, password=point.password)
        full.unlink(missing_ok=True)
        whole = restore(point.image, full, password=point.password)
        now = bytes_of(full)
        assert differing(bytes_of(target), now) == []
        assert report.blocks_written == to_write(point.disk, before, now)
        assert report.blocks_written + report.blocks_unchanged == (
            whole.blocks_written + whole.blocks_unchanged
        )


def test_over_another_disk(gpt: Saved, mbr: Saved, tmp_path: Path) -> None:
    """A delta over anything gives the disk; what is free is cleared where it can be."""
    with attached(noisy(tmp_path / "disk.raw", gpt.disk.size, table="gpt"), partitions=False) as node:
        restore(gpt.image, node, RestoreOptions(delta=True, verify=True))
        check_same(node, gpt.disk)
    target = tmp_path / "disk.raw"
    restore(mbr.image, target, RestoreOptions(delta=True, size=mbr.disk.size))
    check_same(target, mbr.disk)
    check_tables(target, "mbr")


def test_zeros_in_use_of_a_sparse_source(tmp_path: Path) -> None:
    """A hole of a disk file that is in use becomes zeros, also where free space is kept."""
    source = create_file(tmp_path / "source", 4 << 20)  # no file system: all of it counts as used
    with source.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(noise(3, 0, 100_000))
    for extra in ((), ("--delta",), ("--keep-holes",)):
        target = noisy(tmp_path / "target", 4 << 20)
        with attached(target, partitions=False) as node:
            done = run_imagefs("clone", source, node, "--yes", *extra)
            assert done.code == 0, done.errors
        assert target.read_bytes() == source.read_bytes(), extra
    done = run_imagefs("clone", source, tmp_path / "new")
    assert done.code == 0, done.errors
    assert (tmp_path / "new").read_bytes() == source.read_bytes()
    assert (tmp_path / "new").stat().st_blocks <= source.stat().st_blocks + 256  # and stays sparse
