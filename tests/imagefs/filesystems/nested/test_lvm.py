"""Logical volumes that LVM's own tools lay out, filled by where these say that they lie."""

import json
import os
import random
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import imagefs
from fixtures.content import noise
from fixtures.tools import run
from formats.blockreader import BytesReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.nested.lvm import logical_volumes
from imagefs.filesystems.nested.lvm_metadata import parse_text, read_physical_volume
from tests.conftest import missing, run_imagefs

EXTENT = 1 << 20
FILES = {"readme.txt": b"inside a logical volume\n", "big.bin": noise(9, 0, 300_000)}


@contextmanager
def devices(paths: list[Path]) -> Iterator[list[str]]:
    """Attach loop devices; LVM's tools take nothing but devices."""
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("LVM's tools need root and loop devices")
    found: list[str] = []
    try:
        for path in paths:
            found.append(run("losetup", "--find", "--show", path).decode().strip())
        yield found
    finally:
        for device in found:
            run("losetup", "--detach", device)


def lvm(devices: list[str], tool: str, *arguments: str) -> bytes:
    """Run one of LVM's tools that sees these devices alone, and no device mapper."""
    allowed = ",".join(f'"a|^{device}$|"' for device in devices)
    config = (
        f'devices {{ use_devicesfile=0 filter=[{allowed},"r|.*|"] scan_lvs=0 }}'
        " backup { backup=0 archive=0 } activation { udev_sync=0 udev_rules=0 }"
    )
    return run(tool, "--config", config, "--driverloaded", "n", *arguments)


def segments(devices: list[str]) -> dict[str, list[str]]:
    """Return the ranges of extents of each logical volume in order, as LVM tells them."""
    said = lvm(
        devices, "lvs", "--reportformat", "json", "--segments", "-o", "lv_name,seg_le_ranges,seg_pe_ranges"
    )
    found: dict[str, list[str]] = {}
    for row in json.loads(said)["report"][0]["lv" if b'"lv"' in said else "seg"]:
        found.setdefault(row["lv_name"], []).append(row["seg_pe_ranges"])
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, bytes]]:
    """Return two physical volumes of one group, and what is in its logical volumes."""
    folder = tmp_path_factory.mktemp("lvm")
    paths = [folder / "pv0", folder / "pv1"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(40 << 20)
    with devices(paths) as found:
        for device in found:
            lvm(found, "pvcreate", "-ff", "-y", device)
        lvm(found, "vgcreate", "-s", "1M", "vg-one", *found)
        none = ("-an", "-Zn", "-Wn", "-y")
        lvm(found, "lvcreate", *none, "-n", "data", "-l", "6", "vg-one", found[0])
        lvm(found, "lvcreate", *none, "-n", "other", "-l", "3", "vg-one", found[0])
        lvm(found, "lvextend", "-l", "14", "vg-one/data", found[0])  # a second segment behind the other's
        lvm(found, "lvextend", "-l", "20", "vg-one/data", found[1])  # and one on the other device
        lvm(found, "lvcreate", *none, "-n", "striped", "-l", "4", "-i", "2", "-I", "64k", "vg-one")
        places = segments(found)
        starts = dict(zip(found, [EXTENT, EXTENT], strict=True))
    contents = {
        "data": file_system(folder),
        "other": noise(5, 0, 3 * EXTENT),
        "striped": noise(6, 0, 4 * EXTENT),
    }
    for name, content in contents.items():
        write(dict(zip(found, paths, strict=True)), starts, places[name], content)
    return paths, contents


def file_system(folder: Path) -> bytes:
    source = folder / "tree"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    path = folder / "ext4"
    run("mke2fs", "-q", "-t", "ext4", "-d", source, path, "20M")
    return path.read_bytes()


def write(paths: dict[str, Path], starts: dict[str, int], places: list[str], content: bytes) -> None:
    """Write a logical volume's bytes to where "/dev/loop0:0-5 /dev/loop1:0-5" tells."""
    position = 0
    for place in places:
        stripes = []
        for part in place.split():
            device, _, extents = part.rpartition(":")
            first, last = map(int, extents.split("-"))
            stripes.append((device, first, last - first + 1))
        length = sum(count for _, _, count in stripes) * EXTENT
        piece, width = content[position : position + length], 65536 if len(stripes) > 1 else length
        for number, (device, first, _) in enumerate(stripes):
            rows = [piece[at : at + width] for at in range(number * width, length, width * len(stripes))]
            with paths[device].open("r+b") as file:
                file.seek(starts[device] + first * EXTENT)
                file.write(b"".join(rows))
        position += length
    assert position == len(content)


def opened(paths: list[Path]) -> list[tuple[str, BytesReader]]:
    return [(path.name, BytesReader(path.read_bytes())) for path in paths]


def test_the_bytes_of_logical_volumes(built: tuple[list[Path], dict[str, bytes]]) -> None:
    paths, contents = built
    volumes = logical_volumes("pv0", opened(paths))
    assert volumes is not None
    assert set(volumes) == {"vg--one-data", "vg--one-other", "vg--one-striped"}
    chance = random.Random(1)
    for name, content in contents.items():
        reader = volumes[f"vg--one-{name}"].open()
        assert reader.read_at(0, reader.size) == content
        for _ in range(100):
            at = chance.randrange(reader.size)
            length = chance.randrange(min(300_000, reader.size - at))
            assert reader.read_at(at, length) == content[at : at + length]
    assert logical_volumes("pv1", opened(paths)) is None


def test_a_physical_volume_that_is_not_there(built: tuple[list[Path], dict[str, bytes]]) -> None:
    paths, contents = built
    volumes = logical_volumes("pv0", opened(paths[:1]))
    assert volumes is not None
    assert volumes["vg--one-other"].open().read_at(0, 100) == contents["other"][:100]
    with pytest.raises(UnsupportedError, match="pv1 is not in the image"):
        volumes["vg--one-data"].open()


def test_kinds_that_are_not_read(built: tuple[list[Path], dict[str, bytes]]) -> None:
    """One segment's kind is another in the text, whose check sums are made anew."""
    raw = bytearray(built[0][0].read_bytes())
    area = 4096
    at, length = struct.unpack_from("<QQ", raw, area + 40)
    text = bytes(raw[area + at : area + at + length]).replace(b'"striped"', b'"raid1"  ', 1)
    raw[area + at : area + at + length] = text
    struct.pack_into("<I", raw, area + 56, lvm_crc(text))
    struct.pack_into("<I", raw, area, lvm_crc(raw[area + 4 : area + 512]))
    volumes = logical_volumes("pv0", [("pv0", BytesReader(bytes(raw)))])
    assert volumes is not None
    with pytest.raises(UnsupportedError, match="'raid1' can't be read"):
        volumes["vg--one-data"].open()
    assert volumes["vg--one-other"].open().size == 3 * EXTENT


def lvm_crc(data: bytes | bytearray) -> int:
    """Return LVM's check sum, bit by bit."""
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc


def test_the_tree(built: tuple[list[Path], dict[str, bytes]], tmp_path: Path) -> None:
    paths, contents = built
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(100 << 20)
    run("sfdisk", "--quiet", disk, stdin=b"label: gpt\nstart=2048,size=81920\nstart=86016,size=81920\n")
    with disk.open("r+b") as written:
        for sector, path in zip((2048, 86016), paths, strict=True):
            written.seek(sector * 512)
            written.write(path.read_bytes())
    done = run_imagefs("backup", disk, tmp_path / "set")
    assert done.code == 0, done.errors
    (image,) = (tmp_path / "set").glob("*.mrimgx")
    with imagefs.open(image) as source, closing(source.tree()) as tree:
        assert [entry.name for entry in tree.entries(tree.resolve("disk0"))] == ["p1.raw", "p1", "p2.raw"]
        whole = tree.open_reader(tree.resolve("disk0/p1/vg--one-data.raw"))
        assert whole.read_at(0, whole.size) == contents["data"]
        for name, content in FILES.items():
            inside = tree.open_reader(tree.resolve(f"disk0/p1/vg--one-data/{name}"))
            assert inside.read_at(0, inside.size) == content


def test_check_sums(built: tuple[list[Path], dict[str, bytes]]) -> None:
    raw = built[0][0].read_bytes()[: 2 << 20]
    (at,) = struct.unpack_from("<Q", raw, 4096 + 40)
    for place in (512 + 40, 4096 + 60, 4096 + at + 20):
        damaged = bytearray(raw)
        damaged[place] ^= 1
        with pytest.raises(DamagedError, match=r"check sum is wrong|is damaged"):
            logical_volumes("p", [("p", BytesReader(bytes(damaged)))])


def test_random_damage_is_a_typed_error(built: tuple[list[Path], dict[str, bytes]]) -> None:
    chance = random.Random(3)
    raw = built[0][0].read_bytes()[: 2 << 20]
    refused = 0
    for _ in range(200):
        damaged = bytearray(raw)
        at = chance.choice((512, 4096, 4096 + 512)) + chance.randrange(512)
        damaged[at : at + 4] = chance.randbytes(4)
        try:
            logical_volumes("p", [("p", BytesReader(bytes(damaged)))])
        except FormatError:
            refused += 1
    assert refused > 100


def test_random_texts_are_a_typed_error(built: tuple[list[Path], dict[str, bytes]]) -> None:
    text = read_physical_volume(BytesReader(built[0][0].read_bytes())).text or ""
    assert parse_text(text)["vg-one"]
    chance = random.Random(4)
    for broken in ("{" * 5000, "a {" * 5000, "a = [" * 5000, 'a = "', "a = 1 }", "a = " + "9" * 100):
        with pytest.raises(DamagedError):
            parse_text(broken)
    for _ in range(300):
        letters = list(text)
        for _ in range(chance.randrange(1, 6)):
            letters[chance.randrange(len(letters))] = chance.choice('{}[]=",#\\ x1')
        try:
            parse_text("".join(letters))
        except DamagedError:
            continue
