"""Images that we add to sets of another writer: what was there stays readable, and the new ones are right.

The sets are the reference writer's, with what real sets have: gaps, merged files, splits, missing keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import imagefs
from fixtures.disks import change_disk, fat_disk, plain_disk
from fixtures.mrimgx_document import Quirks
from fixtures.mrimgx_writer import SetWriter, every_block
from fixtures.partition_tables import MIB, BuiltDisk
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from tests.fixtures import plain_reader
from tests.imagefs.imaging.moments import cut_out
from tests.imagefs.imaging.others import check_files, used_only

PASSWORD = "secret"
Theirs = Callable[[Path, Sequence[BuiltDisk]], SetWriter]


@dataclass(frozen=True)
class Case:
    """How another writer makes a set of three moments, and the numbers of our two images: file, increment."""

    make: Theirs
    numbers: tuple[tuple[int, int], tuple[int, int]] = ((3, 3), (4, 4))
    password: str | None = None


def three(folder: Path, disks: Sequence[BuiltDisk], **options: object) -> SetWriter:
    writer = SetWriter(folder, **options)  # type: ignore[arg-type]
    writer.full([disks[0]])
    for disk in disks[1:]:
        writer.incremental([disk])
    return writer


def dense(folder: Path, disks: Sequence[BuiltDisk]) -> SetWriter:
    writer = SetWriter(folder, used=every_block)
    writer.full([disks[0]])
    writer.incremental([disks[1]], delta=False)
    writer.differential([disks[2]])
    return writer


def gaps(folder: Path, disks: Sequence[BuiltDisk]) -> SetWriter:
    writer = SetWriter(folder)
    writer.full([disks[0]])
    writer.incremental([disks[1]], file_number=13, increment=13)
    writer.incremental([disks[2]], file_number=22, increment=20)
    return writer


def merged(folder: Path, disks: Sequence[BuiltDisk], **options: object) -> SetWriter:
    writer = three(folder, [*disks, disks[2], disks[1], disks[2]])
    writer.merge(1, 4, **options)  # type: ignore[arg-type]
    return writer


def all_merged(folder: Path, disks: Sequence[BuiltDisk]) -> SetWriter:
    writer = three(folder, disks)
    writer.merge(0, 2, number="last")
    return writer


def split_base(folder: Path, disks: Sequence[BuiltDisk]) -> SetWriter:
    writer = SetWriter(folder)
    writer.full([disks[0]], split_at=MIB)
    writer.incremental([disks[1]])
    writer.incremental([disks[2]], split_at=30_000)
    return writer


def with_sidecar(folder: Path, disks: Sequence[BuiltDisk]) -> SetWriter:
    writer = three(folder, disks)
    writer.sidecar(writer.members[-1])
    return writer


CASES = {
    "plain": Case(three),
    "uncompressed": Case(lambda folder, disks: three(folder, disks, compression="none", disk_numbers=[4])),
    "encrypted": Case(
        lambda folder, disks: three(
            folder, disks, password=PASSWORD, aes="aes-128", compression="high", disk_numbers=[3]
        ),
        password=PASSWORD,
    ),
    "full indexes": Case(dense),
    "gaps": Case(gaps, ((23, 21), (24, 22))),
    "merged": Case(merged, ((6, 6), (7, 7))),
    "merged into the last": Case(
        lambda folder, disks: merged(folder, disks, number="last", keep_numbers=False), ((6, 6), (7, 7))
    ),
    "one file": Case(all_merged),
    "split": Case(split_base, ((6, 3), (7, 4))),
    "no merged_files": Case(
        lambda folder, disks: three(folder, disks, quirks=Quirks(omit_header_keys=("merged_files",)))
    ),
    "a sidecar": Case(with_sidecar),
    "unknown blocks": Case(
        lambda folder, disks: three(
            folder, disks, quirks=Quirks(unknown_blocks=True, no_bitmap=True, index_alignment=1)
        )
    ),
    "a short disk_size": Case(lambda folder, disks: three(folder, disks, quirks=Quirks(chs_disk_size=True))),
}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltDisk]:
    """Return a small disk at five moments."""
    folder = tmp_path_factory.mktemp("disks")
    disks = [plain_disk(folder, sizes=(2 * MIB + 4096, 600_064))]
    for seed in range(4):
        disks.append(change_disk(disks[-1], folder, f"time-{seed}", number=1 + seed % 2, seed=seed))
    return disks


def check_point(folder: Path, number: int, disk: BuiltDisk, password: str | None, path: Path) -> None:
    """Check a point by the plain reader and by ours."""
    restored, source = plain_reader.restore(folder, number, password=password), disk.path.read_bytes()
    with imagefs.open(path, password=password) as container:
        assert container.point is not None
        assert container.point.problem is None
        shown = container.point.disks[0].reader()
        for part in disk.partitions:
            mine = slice(part.offset, part.offset + part.size)
            assert restored[mine] == source[mine], (path.name, part.number)
            assert shown.read_at(part.offset, part.size) == source[mine], (path.name, part.number)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_point(moments: list[BuiltDisk], case: Case, tmp_path: Path) -> None:
    """The points that were there, our incremental, and our differential upon their full."""
    writer = case.make(tmp_path, moments[:3])
    points = [
        (member.file_number, member.disks[0], member.path)
        for member in writer.members
        if member.role != "split"
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for at, kind in enumerate(("inc", "diff")):
        disk = moments[3 + at]
        report = backup(disk.path, tmp_path, BackupOptions(type=kind), password=case.password)
        assert (report.image_id, report.role) == (writer.image_id, kind)
        assert (report.file_number, report.increment) == case.numbers[at]
        assert plain_reader.open_file(report.path).header["increment_number"] == report.increment
        points.append((report.file_number, disk, report.path))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    for number, disk, path in points:
        check_point(tmp_path, number, disk, case.password, path)
    history = plain_reader.open_file(points[-1][2]).document["disks"][0]["partitions"][0]["_header"]
    numbers = [entry["file_number"] for entry in history["file_history"]]
    assert numbers == [*(member.file_number for member in writer.members), *(n for n, _ in case.numbers)]


@pytest.mark.parametrize("covers", [False, True])
def test_a_fat_of_another_writer(covers: bool, tmp_path: Path) -> None:
    """Its reserved sectors are stored anew in each file; Reflect's block count may reach behind its end."""
    disk = fat_disk(tmp_path, "FAT16", size=16 * MIB, big=MIB, many=5)
    changed = change_disk(disk, tmp_path, "changed")
    folder = tmp_path / "set"
    full = SetWriter(folder, quirks=Quirks(fat_covers_partition=covers)).full([disk])
    report = backup(changed.path, folder, BackupOptions())
    assert (report.image_id, report.role) == (full.document["_header"]["imageid"], "inc")
    part = changed.partition(1)
    (tmp_path / "restored").write_bytes(plain_reader.restore(folder, 1)[: changed.size])
    volume = cut_out(tmp_path / "restored", part, tmp_path / "volume")
    source = used_only(cut_out(changed.path, part, tmp_path / "source"), "FAT16")
    kept = volume.read_bytes()
    assert all(kept[at : at + 512] == source[at : at + 512] for at in range(0, part.size, 512)
               if any(source[at : at + 512]))  # fmt: skip
    check_files(volume, part)
