"""Files that name ids which a copy has no more, on volumes that other tools filled."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from fixtures.volumes import make_ntfs, mounted_ntfs, mtools
from formats.blockreader import BlockReader, FileReader
from formats.errors import ReadError
from formats.partition_table import PartitionTable, read_table
from imagefs.restore.ids import with_new_ids
from imagefs.restore.layout import Volume
from imagefs.restore.references import references

DISK = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3AA"
PARTS = tuple(f"0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3{number:02X}" for number in range(1, 5))
OTHER = "5B6E3A10-94C1-4C57-8D3E-0A7F2C1D9E01"  # of a file system, or another disk


def gpt(folder: Path) -> PartitionTable:
    lines = [f"start={2048 + 2048 * at}, size=2048, uuid={guid}" for at, guid in enumerate(PARTS)]
    return table_of(folder / "gpt.raw", f"label: gpt\nlabel-id: {DISK}\n" + "\n".join(lines) + "\n")


def mbr(folder: Path) -> PartitionTable:
    script = "label: dos\nlabel-id: 0x1d2c3b4a\n1: start=2048, size=2048\n2: start=4096, size=8192, type=f\n"
    return table_of(folder / "mbr.raw", script + "5: start=6144, size=2048\n")


def table_of(path: Path, script: str) -> PartitionTable:
    create_file(path, 16 * MIB)
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=script.encode())
    with FileReader(path) as reader:
        table = read_table(reader, 512)
    assert table is not None
    return table


Files = Mapping[str, str | bytes]


def tree(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def volume_of(path: Path, number: int = 1) -> Volume:
    return Volume(number, MIB, path.stat().st_size, "", "", None, FileReader(path))


def ext(folder: Path, files: Files, links: Mapping[str, str] | None = None) -> Volume:
    root = tree(folder / "ext", files)
    for name, target in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    path = create_file(folder / "ext.volume", 16 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, path)
    return volume_of(path)


def fat(folder: Path, files: Files) -> Volume:
    root = tree(folder / "fat", files)
    path = create_file(folder / "fat.volume", 40 * MIB)
    run("mkfs.vfat", "-F", "32", "-s", "1", path)
    mtools("mcopy", path, "-s", *sorted(root.iterdir()), "::/")
    return volume_of(path)


def ntfs(folder: Path, files: Files) -> Volume:
    path = make_ntfs(folder / "ntfs.volume", 16 * MIB, "Windows")
    with mounted_ntfs(path) as root:
        tree(root, files)
    return volume_of(path)


def told(volume: Volume, table: PartitionTable) -> list[tuple[str, str]]:
    """Return which file names which old id; each line gives the new one too."""
    _, mapping = with_new_ids(table)
    found = []
    with volume.reader:
        for line in references([volume], mapping, table):
            shape = r"partition 1: (\S+) names .* by the old id (\S+), which is now ([^ ;]+).*"
            matched = re.fullmatch(shape, line)
            assert matched is not None, line
            file, old, new = matched.groups()
            key = next(key for key in mapping if old.startswith(key))
            assert new == old.replace(key, mapping[key])
            found.append((file, old))
    return found


LINUX: dict[str, str | bytes] = {
    "etc/fstab": f"UUID={OTHER.lower()} / ext4\nPARTUUID={PARTS[0].lower()} /boot vfat\n",
    "etc/crypttab": f"home /dev/disk/by-partuuid/{PARTS[1].lower()} none\n",
    "etc/default/grub": f'GRUB_CMDLINE_LINUX="root=PARTUUID={PARTS[1]}"\n',
    "etc/passwd": f"{PARTS[0]}\n",
    "boot/grub/grub.cfg": b"#" * (4 * MIB - 20) + PARTS[2].lower().encode(),  # across two reads
    "boot/grub2/grubenv": f"kernelopts=root=UUID={OTHER}\n",
    "boot/loader/entries/a.conf": f"options root=PARTUUID={PARTS[1].lower()}\n",
    "boot/loader/entries/b.conf": f"options root=PARTUUID={PARTS[1].lower()}0\n",
    "boot/extlinux/extlinux.conf": f"APPEND root=PARTUUID={PARTS[1].lower()} ro\n",
    "boot/refind_linux.conf": f'"x" "root=PARTUUID={PARTS[1].lower()}"\n',
    "boot/efi/EFI/debian/grub.cfg": f"search.part_uuid {PARTS[1].lower()}\n",
}


def test_linux_on_gpt(tmp_path: Path) -> None:
    assert sorted(told(ext(tmp_path, LINUX), gpt(tmp_path))) == [
        ("/boot/efi/EFI/debian/grub.cfg", PARTS[1]),
        ("/boot/extlinux/extlinux.conf", PARTS[1]),
        ("/boot/grub/grub.cfg", PARTS[2]),
        ("/boot/loader/entries/a.conf", PARTS[1]),
        ("/boot/refind_linux.conf", PARTS[1]),
        ("/etc/crypttab", PARTS[1]),
        ("/etc/default/grub", PARTS[1]),
        ("/etc/fstab", PARTS[0]),
    ]


def test_the_words(tmp_path: Path) -> None:
    volume, table = ext(tmp_path, {"etc/fstab": f"PARTUUID={PARTS[0]}\n"}), gpt(tmp_path)
    _, mapping = with_new_ids(table)
    with volume.reader:
        assert references([volume], mapping, table) == [
            f"partition 1: /etc/fstab names partition 1 by the old id {PARTS[0]},"
            f" which is now {mapping[PARTS[0]]}"
        ]
        assert references([volume], {}, table) == []
        assert references([volume], mapping, None) == []


def test_linux_on_mbr(tmp_path: Path) -> None:
    files: Files = {
        "etc/fstab": "PARTUUID=1d2c3b4a-01 / ext4\n/dev/disk/by-partuuid/1D2C3B4A-05 /home ext4\n",
        "etc/crypttab": "x PARTUUID=1d2c3b4a-03\ny UUID=1d2c3b4a-01ab-4c57-8d3e-0a7f2c1d9e01\n",
        "boot/grub/grub.cfg": "search --hint mduuid/0x1d2c3b4a\nx 01d2c3b4a-01\n",
        "boot/syslinux/syslinux.cfg": "root=PARTUUID=1d2c3b4a-010\n",
    }
    assert sorted(told(ext(tmp_path, files), mbr(tmp_path))) == [
        ("/boot/grub/grub.cfg", "1D2C3B4A"),
        ("/etc/fstab", "1D2C3B4A-01"),
        ("/etc/fstab", "1D2C3B4A-05"),
    ]


def test_a_disk_without_a_signature(tmp_path: Path) -> None:
    script = "label: dos\nlabel-id: 0x00000000\n1: start=2048, size=2048\n"
    table = table_of(tmp_path / "mbr.raw", script)
    assert table.disk_id == "00000000"
    files: Files = {"etc/fstab": "PARTUUID=00000000-01 /\n", "Boot/BCD": bytes(1000)}
    assert told(ext(tmp_path, files), table) == []


def test_links_are_followed_on_their_volume(tmp_path: Path) -> None:
    files: Files = {"nix/store/x/fstab": f"PARTUUID={PARTS[0]}\n", "real/boot/grub.cfg": f"{PARTS[1]}\n"}
    links = {
        "etc/static": "/nix/store/x",
        "etc/fstab": "static/fstab",
        "boot/grub": "../real/./boot",
        "boot/grub2": "grub",  # the same once more
        "etc/crypttab": "/outside/of/it",
        "etc/default": "default",
        "boot/loader": "/etc/fstab/x",
    }
    assert sorted(told(ext(tmp_path, files, links), gpt(tmp_path))) == [
        ("/boot/grub/grub.cfg", PARTS[1]),
        ("/etc/fstab", PARTS[0]),
    ]


def test_an_efi_system_partition(tmp_path: Path) -> None:
    """Names as Windows and others write them, small or not."""
    bcd = noise(1, 0, 5000) + uuid.UUID(PARTS[2]).bytes_le + bytes(24) + uuid.UUID(DISK).bytes_le + bytes(99)
    files: Files = {
        "EFI/microsoft/boot/bcd": bcd,
        "EFI/debian/grub.cfg": f"search.part_uuid {PARTS[1].lower()} root\n",
        "EFI/Linux/arch.efi": b"MZ" + noise(2, 0, 6 * MIB) + f"root=PARTUUID={PARTS[1]}".encode(),
        "EFI/refind/refind.conf": f"volume {PARTS[1]}\n",
        "loader/ENTRIES/arch.conf": f"options root=PARTUUID={PARTS[1]}\n",
        "CMDLINE.TXT": f"console=tty1 root=PARTUUID={PARTS[1].lower()}\n",
        "EFI/debian/notes.txt": PARTS[0],
    }
    found = {(file.lower(), old) for file, old in told(fat(tmp_path, files), gpt(tmp_path))}
    assert found == {
        ("/efi/microsoft/boot/bcd", PARTS[2]),
        ("/efi/microsoft/boot/bcd", DISK),
        ("/efi/debian/grub.cfg", PARTS[1]),
        ("/efi/linux/arch.efi", PARTS[1]),
        ("/efi/refind/refind.conf", PARTS[1]),
        ("/loader/entries/arch.conf", PARTS[1]),
        ("/cmdline.txt", PARTS[1]),
    }


def windows(ids: Mapping[str, bytes]) -> Files:
    return {
        "Windows/System32/config/SYSTEM": b"regf" + noise(1, 0, 5 * MIB) + ids["hive"] + noise(2, 0, 9000),
        "Boot/BCD": b"regf" + noise(3, 0, 20_000) + ids["bcd"] + noise(4, 0, 9000),
    }


def test_windows_on_gpt(tmp_path: Path) -> None:
    """MountedDevices has "DMIO:ID:" before a GUID; a GUID alone may mean anything."""
    ids = {
        "hive": b"DMIO:ID:" + uuid.UUID(PARTS[3]).bytes_le + bytes(9) + uuid.UUID(PARTS[0]).bytes_le,
        "bcd": uuid.UUID(PARTS[2]).bytes_le,
    }
    volume, table = ntfs(tmp_path, windows(ids)), gpt(tmp_path)
    assert sorted(told(volume, table)) == [
        ("/Boot/BCD", PARTS[2]),
        ("/Windows/System32/config/SYSTEM", PARTS[3]),
    ]


def test_windows_on_mbr(tmp_path: Path) -> None:
    """MountedDevices has the signature and the offset of the partition in bytes."""
    signature = (0x1D2C3B4A).to_bytes(4, "little")
    ids = {"hive": signature + (3 * MIB).to_bytes(8, "little"), "bcd": signature}
    assert sorted(told(ntfs(tmp_path, windows(ids)), mbr(tmp_path))) == [
        ("/Boot/BCD", "1D2C3B4A"),
        ("/Windows/System32/config/SYSTEM", "1D2C3B4A"),
    ]
    ids = {"hive": signature + (4 * MIB).to_bytes(8, "little"), "bcd": b""}
    (tmp_path / "other").mkdir()
    assert told(ntfs(tmp_path / "other", windows(ids)), mbr(tmp_path)) == []


# --- What can't be searched ---


class Broken(BlockReader):
    """A disk that answers nothing behind an offset."""

    def __init__(self, lower: BlockReader, end: int) -> None:
        super().__init__(lower.size)
        self._lower, self._end = lower, end

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._end:
            raise ReadError("Input/output error")
        return self._lower.read_at(offset, length)


@pytest.mark.parametrize("end", [0, 2048, 8192])
def test_a_volume_that_can_not_be_read(tmp_path: Path, end: int) -> None:
    """It is said, and the others are searched."""
    good = ext(tmp_path, {"etc/fstab": f"PARTUUID={PARTS[0]}\n"})
    table = gpt(tmp_path)
    _, mapping = with_new_ids(table)
    with good.reader:
        bad = Volume(2, 0, good.size, "", "", None, Broken(good.reader, end))
        lines = references([bad, good], mapping, table)
    assert 2 <= len(lines) <= 4
    assert all("can't be searched for old ids" in line for line in lines[:-1])
    assert lines[0].startswith("partition 2: ")
    assert lines[-1].startswith("partition 1: /etc/fstab names")


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [
        (0x10040, b"_BHRfS_M", "Btrfs"),
        (0, b"XFSB", "XFS"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
    ],
)
def test_volumes_that_are_not_read_here(tmp_path: Path, offset: int, magic: bytes, name: str) -> None:
    path = create_file(tmp_path / "volume", MIB)
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(magic)
    table = gpt(tmp_path)
    volume = volume_of(path, 3)
    with volume.reader:
        lines = references([volume], with_new_ids(table)[1], table)
    assert lines == [f"partition 3: {name} can't be searched for old ids"]


def test_nothing_to_say_of_swap_and_blank_volumes(tmp_path: Path) -> None:
    path = create_file(tmp_path / "volume", MIB)
    for prepare in ((), ("mkswap", path)):
        if prepare:
            run(str(prepare[0]), prepare[1])
        assert told(volume_of(path), gpt(tmp_path)) == []
