"""What is stored of unusual sources, and what options leave out or take in."""

import dataclasses
import json
from pathlib import Path

import pytest

import imagefs
from fixtures.content import noise, sha256_file
from fixtures.disks import fat_disk, ntfs_disk, plain_disk
from fixtures.mrimgx_writer import SetWriter, not_all_zeros
from fixtures.partition_tables import MIB, BuiltDisk
from fixtures.volumes import fat_volume, mounted_ntfs, ntfs_volume
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from tests.conftest import run_imagefs
from tests.fixtures import plain_reader
from tests.imagefs.imaging.attached import attached, need_root, partition_node
from tests.imagefs.imaging.chains import save
from tests.imagefs.imaging.moments import cut_out, later
from tests.imagefs.imaging.others import check_files, check_sound, used_only

PASSWORD = "secret"
QUICK = BackupOptions(key_iterations=1000)


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    return ntfs_disk(tmp_path_factory.mktemp("disk"), size=12 * MIB, big=MIB, many=20, fragments=0)


def restored_volume(folder: Path, number: int, disk: BuiltDisk, target: Path) -> Path:
    """Restore a disk with the plain reader and cut its first partition out."""
    target.write_bytes(plain_reader.restore(folder, number))
    return cut_out(target, disk.partition(1), target.with_suffix(".volume"))


def test_exact(ntfs: BuiltDisk, tmp_path: Path) -> None:
    """Every byte, those of free clusters too."""
    part = ntfs.partition(1)
    with ntfs.path.open("r+b") as stream:
        stream.seek(part.offset + part.size - 20_000)
        assert not any(stream.read(4096))
        stream.seek(-4096, 1)
        stream.write(noise(7, 0, 4096))
    saved, report = save(tmp_path / "set", ntfs, BackupOptions(exact=True))
    assert report.bytes_read == part.size
    volume = restored_volume(saved.path.parent, 0, ntfs, tmp_path / "disk.raw")
    assert volume.read_bytes() == cut_out(ntfs.path, part, tmp_path / "source").read_bytes()
    with imagefs.open(saved.path) as container:
        assert container.point is not None
        assert container.point.disks[0].reader().read_at(0, ntfs.size) == ntfs.path.read_bytes()


def test_the_backup_boot_sector(ntfs: BuiltDisk, tmp_path: Path) -> None:
    """The last sector of an NTFS partition belongs to no cluster; Reflect leaves it out."""
    save(tmp_path / "set", ntfs, QUICK)
    last = restored_volume(tmp_path / "set", 0, ntfs, tmp_path / "disk.raw").read_bytes()[-512:]
    part = ntfs.partition(1)
    source = ntfs.path.read_bytes()[part.offset : part.offset + part.size]
    assert last[3:7] == b"NTFS"
    assert last == source[-512:] == source[:512]


def test_what_a_deleted_file_held_is_freed(ntfs: BuiltDisk, tmp_path: Path) -> None:
    """A delta names the blocks that became free, with length 0, and they read as zeros."""
    folder = tmp_path / "set"
    save(folder, ntfs, QUICK)
    part = ntfs.partition(1)
    volume = cut_out(ntfs.path, part, tmp_path / "volume")
    with mounted_ntfs(volume) as root:
        (root / "big.bin").unlink()
    after = dataclasses.replace(ntfs, path=tmp_path / "after.raw")
    data = bytearray(ntfs.path.read_bytes())
    data[part.offset : part.offset + part.size] = volume.read_bytes()
    after.path.write_bytes(data)
    saved, report = save(folder, after, QUICK)
    payload = plain_reader.open_file(saved.path).lists[1][-1][3]
    _, at = plain_reader.elements(payload, 0, 30)
    delta, _ = plain_reader.elements(payload, at, 34)
    freed = [element[4] for element in delta if not element[2]]
    assert len(freed) == report.blocks_freed >= MIB // 65536 - 2
    restored = restored_volume(folder, 1, after, tmp_path / "restored.raw").read_bytes()
    assert not any(any(restored[block * 65536 : (block + 1) * 65536]) for block in freed)
    with imagefs.open(saved.path) as container:
        assert container.point is not None
        reader = container.point.disks[0].partitions[0].reader()
        assert not any(any(reader.read_at(block * 65536, 65536)) for block in freed)


@pytest.mark.parametrize("kind", ["NTFS", "FAT16"])
def test_excluded_files(kind: str, tmp_path: Path) -> None:
    """Their contents are zeros, their names stay, everything else is there."""
    if kind == "NTFS":
        disk = ntfs_disk(tmp_path, size=12 * MIB, big=MIB, many=20, fragments=0)
    else:
        disk = fat_disk(tmp_path, kind, size=16 * MIB, big=MIB, many=20)
    saved, report = save(tmp_path / "set", disk, BackupOptions(exclude=("BIG.*", "/sizes/6553?.bin")))
    gone = {"big.bin", "sizes/65535.bin", "sizes/65536.bin", "sizes/65537.bin"}
    assert sorted(report.left_out) == sorted(f"disk0/p1/{name}" for name in gone)
    volume = restored_volume(tmp_path / "set", 0, disk, tmp_path / "restored.raw")
    check_sound(volume, kind)
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    part = disk.partition(1)
    kept = dict(part.files)
    for name in gone:
        size = MIB if name == "big.bin" else int(Path(name).stem.removeprefix("sizes/"))
        (tmp_path / "zeros").write_bytes(bytes(size))
        kept[name] = sha256_file(tmp_path / "zeros")
    check_files(volume, dataclasses.replace(part, files=kept))
    root, _ = plain_reader.read_list(data := saved.path.read_bytes(), int.from_bytes(data[-20:-12], "little"))
    assert [block[0] for block in root] == ["$JSON   ", "$IMAGEFS"]
    own = json.loads(root[1][3])
    assert own["excluded"] == ["BIG.*", "/sizes/6553?.bin"]
    assert sorted(own["left_out"]) == sorted(report.left_out)
    assert "sizes/6553?.bin" in run_imagefs("info", saved.path).text


@pytest.mark.parametrize("kind", ["NTFS", "FAT32"])
def test_a_bare_volume(kind: str, tmp_path: Path) -> None:
    """A volume without a partition table is partition 1; its serial number tells it from others."""
    if kind == "NTFS":
        volume = ntfs_volume(tmp_path, size=12 * MIB, big=MIB, many=20, fragments=0, start_sector=0)
    else:
        volume = fat_volume(tmp_path, kind, size=34 * MIB, big=MIB, many=20, start_sector=0)
    assert volume.path is not None
    assert volume.contents is not None
    part = dataclasses.replace(volume.contents, number=1, size=volume.size)
    first = BuiltDisk(volume.path, volume.size, 512, "unknown", "", (part,))
    second = later(first, tmp_path / "later.volume", 1, (1,))
    for number, disk in enumerate((first, second)):
        saved, report = save(tmp_path / "set", disk, QUICK)
        assert (report.role, report.file_number) == (("full", "inc")[number], number)
        restored = tmp_path / f"{number}.raw"
        restored.write_bytes(plain_reader.restore(tmp_path / "set", number))
        assert restored.read_bytes() == used_only(disk.path, kind)
        with imagefs.open(saved.path) as container:
            assert container.point is not None
            assert container.point.disks[0].reader().read_at(0, disk.size) == restored.read_bytes()
        check_sound(restored, kind)
        check_files(restored, disk.partition(1))


def test_a_partition_of_a_device(ntfs: BuiltDisk, tmp_path: Path) -> None:
    """It goes into the set as its disk with that partition alone; the disk file is the same source."""
    need_root()
    with attached(ntfs.path) as device:
        report = backup(partition_node(device, 1), tmp_path / "set", QUICK)
    assert report.role == "full"
    volume = restored_volume(tmp_path / "set", 0, ntfs, tmp_path / "disk.raw")
    assert volume.read_bytes() == used_only(cut_out(ntfs.path, ntfs.partition(1), tmp_path / "v"), "NTFS")
    assert save(tmp_path / "set", ntfs, QUICK)[1].blocks_written == 0


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_image_as_source(encrypted: bool, tmp_path: Path) -> None:
    """All disks of an image go into one set, and come back with their numbers and bytes."""
    disks = [
        plain_disk(tmp_path, "one", sizes=(MIB + 4096, 70_144), seed=1),
        fat_disk(tmp_path, "FAT16", size=16 * MIB, big=MIB, many=3),
    ]
    writer = SetWriter(
        tmp_path / "theirs", disk_numbers=[2, 5], used=not_all_zeros, compression="high",
        password=PASSWORD if encrypted else None,
    )  # fmt: skip
    written = [writer.full(disks), writer.incremental(disks)][-1]
    report = backup(
        written.path, tmp_path / "ours", QUICK, source_password=PASSWORD if encrypted else None,
    )  # fmt: skip
    with (
        imagefs.open(report.path) as ours,
        imagefs.open(written.path, password=PASSWORD if encrypted else None) as theirs,
    ):
        assert ours.point is not None
        assert theirs.point is not None
        assert [disk.number for disk in ours.point.disks] == [2, 5]
        for at, (disk, source) in enumerate(zip(ours.point.disks, disks, strict=True)):
            shown, was = bytearray(disk.reader().read_at(0, disk.size)), source.path.read_bytes()
            restored = plain_reader.restore(tmp_path / "ours", 0, disk_at=at)
            for part in source.partitions:
                mine = slice(part.offset, part.offset + part.size)
                volume = cut_out(source.path, part, tmp_path / "volume")
                assert restored[mine] == shown[mine] == used_only(volume, part.kind)
                shown[mine] = was[mine]
            assert shown == was
    again = backup(
        written.path, tmp_path / "ours", QUICK, source_password=PASSWORD if encrypted else None,
    )  # fmt: skip
    assert (again.role, again.image_id) == ("inc", report.image_id)


def test_a_password_that_is_not_ascii(tmp_path: Path) -> None:
    """With the real number of iterations; the key is of the password's UTF-8."""
    disk = plain_disk(tmp_path, sizes=(300_032,))
    report = backup(disk.path, tmp_path / "set", BackupOptions(name="größe"), password="Ünïcödé 🧀")
    assert plain_reader.open_file(report.path).document["_encryption"]["key_iterations"] == 600_000
    assert "-größe-00-00.mrimgx" in report.path.name
    part = disk.partition(1)
    restored = plain_reader.restore(tmp_path / "set", 0, password="Ünïcödé 🧀")
    mine = slice(part.offset, part.offset + part.size)
    assert restored[mine] == disk.path.read_bytes()[mine]
