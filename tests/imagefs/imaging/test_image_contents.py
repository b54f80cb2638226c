"""What is stored of unusual sources, and what options leave out or take in."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest

import imagefs
from fixtures.content import noise, sha256_file
from fixtures.disks import fat_disk, ntfs_disk, plain_disk
from fixtures.mrimgx_writer import SetWriter, not_all_zeros
from fixtures.partition_tables import MIB, BuiltDisk, Volume, create_file, gpt_disk, mbr_disk
from fixtures.tools import run
from fixtures.volumes import fat_volume, mounted_ntfs, mtools, ntfs_volume
from imagefs.errors import RefusedError
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


def test_excluded_files_come_back(tmp_path: Path) -> None:
    """An incremental without the patterns has all of each file."""
    disk = fat_disk(tmp_path, "FAT16", size=16 * MIB, big=MIB, many=5)
    save(tmp_path / "set", disk, BackupOptions(exclude=("big.bin",)))
    _, report = save(tmp_path / "set", disk, BackupOptions())
    assert (report.role, report.left_out) == ("inc", [])
    assert report.blocks_written >= MIB // 65536 - 1
    volume = restored_volume(tmp_path / "set", 1, disk, tmp_path / "restored.raw")
    assert volume.read_bytes() == used_only(cut_out(disk.path, disk.partition(1), tmp_path / "v"), "FAT16")
    _, report = save(tmp_path / "set", disk, BackupOptions(exclude=("big.bin",)))
    assert report.blocks_freed >= MIB // 65536 - 2


@pytest.mark.parametrize("cluster", [512, 65_536])
def test_other_cluster_sizes(cluster: int, tmp_path: Path) -> None:
    volume = create_file(tmp_path / "volume", 10 * MIB)
    run("mkntfs", "--quick", "--force", "--quiet", "--cluster-size", str(cluster), volume)
    with mounted_ntfs(volume) as root:
        for number in range(20):
            (root / f"{number}.bin").write_bytes(noise(number, 0, 40_000 + number * 777))
        for number in range(0, 20, 3):
            (root / f"{number}.bin").unlink()
    backup(volume, tmp_path / "set", QUICK)
    (tmp_path / "restored").write_bytes(plain_reader.restore(tmp_path / "set", 0))
    assert (tmp_path / "restored").read_bytes() == used_only(volume, "NTFS", cluster)
    check_sound(tmp_path / "restored", "NTFS")


def test_a_large_fat(tmp_path: Path) -> None:
    """Reserved sectors of more than one block of 4 MiB, and two parts of the image for them."""
    volume = create_file(tmp_path / "volume", 300 * MIB)
    run("mkfs.vfat", "-F", "32", "-s", "1", volume)
    (tmp_path / "file").write_bytes(noise(1, 0, 3 * MIB))
    mtools("mcopy", volume, tmp_path / "file", "::/file")
    report = backup(volume, tmp_path / "set", dataclasses.replace(QUICK, compression="none", split=5 * MIB))
    opened = plain_reader.open_file(report.path)
    reserved, _ = plain_reader.elements(opened.lists[1][-1][3], 0, 30)
    size = opened.document["disks"][0]["partitions"][0]["_file_system"]["reserved_sectors_byte_length"]
    assert [element[2] for element in reserved] == [4 * MIB, size - 4 * MIB]
    (tmp_path / "restored").write_bytes(
        restored := plain_reader.restore(tmp_path / "set", report.file_number)
    )
    with volume.open("rb") as stream:
        assert restored[:size] == stream.read(size)
    check_sound(tmp_path / "restored", "FAT32")
    assert mtools("mtype", tmp_path / "restored", "::/file") == noise(1, 0, 3 * MIB)


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_what_lies_before_the_first_partition(scheme: str, tmp_path: Path) -> None:
    """A boot loader keeps its code there: it is stored as far as it goes."""
    volume = Volume(create_file(tmp_path / "volume", MIB), MIB, "unknown")
    make = partial(gpt_disk, guid="0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3CC") if scheme == "gpt" else mbr_disk
    disk = make(tmp_path / "disk.raw", [volume])
    with disk.path.open("r+b") as stream:
        stream.seek(34 * 512)
        stream.write(noise(1, 0, MIB - 34 * 512 - 700))
    saved, _ = save(tmp_path / "set", disk, QUICK)
    assert plain_reader.restore(tmp_path / "set", 0)[:MIB] == disk.path.read_bytes()[:MIB]
    with imagefs.open(saved.path) as container:
        assert container.point is not None
        assert container.point.disks[0].reader().read_at(0, disk.size) == disk.path.read_bytes()


def test_a_disk_without_partitions(tmp_path: Path) -> None:
    disk = mbr_disk(tmp_path / "disk.raw", [])
    with pytest.raises(RefusedError, match="there is no partition to image"):
        backup(disk.path, tmp_path / "set", QUICK)
    assert not (tmp_path / "set").exists()


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
