"""What our images say of themselves, held against what Reflect's say, and against other people's tools."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fixtures.disks import mbr_logical_disk, ntfs_disk
from fixtures.mrimgx_writer import extended_boot_records
from fixtures.partition_tables import MIB, BuiltDisk
from fixtures.tools import run
from imagefs.imaging.options import BackupOptions
from tests.conftest import run_imagefs
from tests.fixtures import plain_reader
from tests.imagefs.imaging.chains import save
from tests.imagefs.imaging.moments import cut_out

DEFINITION = "/_auxiliary_data/backup_definition"
# What only a machine with Reflect has: its mail, its schedules, the shadow copy that it read.
REFLECTS_OWN = re.compile(
    rf"{DEFINITION}/(email|rate_limit|disk_space_management/\w+_retention/(interval|period))\b"
    r"|/disks\[\]/partitions\[\]/_file_system/shadow_copy$"
)
OURS = {"/_header/merged_files": "list"}  # the vendor's reader wants it; early builds of Reflect left it out
PASSWORD = "pass word"


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory: pytest.TempPathFactory) -> BuiltDisk:
    return ntfs_disk(tmp_path_factory.mktemp("disk"), size=12 * MIB, big=MIB, many=20, fragments=0)


@pytest.fixture(scope="module")
def image(ntfs: BuiltDisk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = BackupOptions(comment='größe "quoted" \\ 🧀')
    return save(tmp_path_factory.mktemp("set"), ntfs, options)[0].path


def shape(value: object, place: str = "") -> dict[str, str]:
    """Return the type of every value in a document by its place; those in lists share one."""
    found = {place: type(value).__name__}
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= shape(inner, f"{place}/{key}")
    elif isinstance(value, list):
        for inner in value:
            found |= shape(inner, f"{place}[]")
    return found


def document(path: Path) -> dict[str, Any]:
    """Return an image's document; opening it asserts that its bytes are canonical."""
    return plain_reader.open_file(path).document


def test_the_keys_of_reflect(image: Path, full_sample: Path) -> None:
    ours, reflects = shape(document(image)), shape(document(full_sample))
    missing = {place: kind for place, kind in reflects.items() if not REFLECTS_OWN.match(place)}
    assert ours == missing | OURS


def test_what_info_tells(image: Path, full_sample: Path) -> None:
    ours, reflects = (
        shape(json.loads(run_imagefs("info", "--json", path).output)) for path in (image, full_sample)
    )
    assert ours == reflects


def test_canonical(image: Path) -> None:
    """Sorted, four spaces, one newline at the end, characters as they are."""
    root = plain_reader.read_list(image.read_bytes(), _root(image))[0]
    name, flags, _, payload = root[0]
    assert (name, flags & ~1) == ("$JSON   ", 2)
    text = zstandard.ZstdDecompressor().decompress(payload).decode()
    assert text == json.dumps(json.loads(text), indent=4, sort_keys=True, ensure_ascii=False) + "\n"
    assert r'"comment": "größe \"quoted\" \\ 🧀"' in text


def _root(image: Path) -> int:
    return int.from_bytes(image.read_bytes()[-20:-12], "little")


def test_metadata_lists(image: Path, full_sample: Path) -> None:
    """The blocks and their flags are those of Reflect's."""
    ours, reflects = (
        [[block[:2] for block in blocks] for blocks in plain_reader.open_file(path).lists]
        for path in (image, full_sample)
    )
    assert ours == reflects


def test_an_ntfs_partition(image: Path, ntfs: BuiltDisk, tmp_path: Path) -> None:
    part = ntfs.partition(1)
    volume = cut_out(ntfs.path, part, tmp_path / "volume")
    said = run("ntfsinfo", "-m", "-f", volume).decode()
    record = document(image)["disks"][0]["partitions"][0]
    file_system = record["_file_system"]
    free = run("blkls", "-f", "ntfs", "-l", volume).decode().count("|f\n")
    mft = int(re.findall(r"LCN of Data Attribute for FILE_MFT:\s*(\d+)", said)[0])
    clusters = int(re.findall(r"Volume Size in Clusters:\s*(\d+)", said)[0])
    expected = {
        "type": "NTFS", "volume_label": part.label, "sectors_per_cluster": 8, "free_clusters": free,
        "total_clusters": clusters, "mft_offset": part.offset + mft * 4096, "mft_record_size": 1024,
        "start": part.offset, "end": part.offset + part.size - 1, "lcn0_offset": part.offset,
    }  # fmt: skip
    assert {key: file_system[key] for key in expected} == expected
    assert record["_geometry"] == {
        "boot_sector_offset": 0,
        "start": part.offset,
        "length": part.size,
        "end": part.offset + part.size - 1,
    }
    assert record["_header"]["block_count"] == -(-part.size // 65536)
    assert record["_header"]["file_history"] == [{"file_name": str(image), "file_number": 0}]


def test_an_mbr_disk(tmp_path: Path) -> None:
    disk = mbr_logical_disk(tmp_path)
    options = BackupOptions(compression="none", key_iterations=1000)
    saved, _ = save(tmp_path / "set", disk, options, PASSWORD)
    opened = plain_reader.open_file(saved.path)
    header = opened.document["disks"][0]["_header"]
    records = extended_boot_records(disk)
    assert header == {
        "disk_format": "mbr",
        "disk_number": 0,
        "disk_signature": disk.signature,
        "imaged_partition_count": 4,
        "extended_partition_count": len(records),
        "extended_partition_sector_offset": records[0] // 512,
    }
    shown = json.loads(run("sfdisk", "--json", disk.path))["partitiontable"]["partitions"]
    mine = {
        entry["boot_sector"]: (entry["num_sectors"], entry["type"], entry["partition_type"])
        for entry in (p["_partition_table_entry"] for p in opened.document["disks"][0]["partitions"])
    }
    assert mine == {
        entry["start"]: (entry["size"], int(entry["type"], 16), "logical" if at >= 2 else "primary")
        for at, entry in enumerate(shown)
        if entry["type"] != "f"
    }
    name, _, _, payload = opened.lists[0][1]
    source = disk.path.read_bytes()
    assert name == "$EPT    "
    assert int.from_bytes(payload[:4], "little") == len(records)
    assert sorted(records) == records
    for at, offset in enumerate(records):
        record = payload[4 + 528 * at : 4 + 528 * (at + 1)]  # the boot record, its place, a number not used
        assert record == source[offset : offset + 512] + offset.to_bytes(8, "little") + bytes(8)


def test_an_encrypted_document(tmp_path: Path, ntfs: BuiltDisk) -> None:
    saved, _ = save(tmp_path, ntfs, BackupOptions(aes="aes-192", key_iterations=1000), PASSWORD)
    opened = plain_reader.open_file(saved.path)
    encryption = opened.document["_encryption"]
    assert encryption.keys() == {"aes_type", "enable", "hmac", "key_derivation", "key_iterations"}
    assert encryption["hmac"] == encryption["hmac"].lower()
    assert (encryption["aes_type"], encryption["enable"]) == ("aes-192", True)
    assert (encryption["key_derivation"], encryption["key_iterations"]) == ("pbkdf2", 1000)
    assert not any(flags & 4 for blocks in opened.lists for _, flags, _, _ in blocks)
    plain_reader.Crypt(opened.document, PASSWORD)


def test_parts_of_a_split(tmp_path: Path, ntfs: BuiltDisk) -> None:
    """Parts of data alone have no disks; all of them name all files of the set."""
    _, report = save(tmp_path, ntfs, BackupOptions(split=MIB, name="teil"))
    documents = [document(path) for path in report.paths]
    assert len(documents) > 2
    assert all(path.stat().st_size <= MIB for path in report.paths)
    for number, found in enumerate(documents):
        header, is_last = found["_header"], number == len(documents) - 1
        assert (header["file_number"], header["increment_number"]) == (number, 0)
        assert header["split_file"] is not is_last
        assert bool(found["disks"]) is is_last
        assert header["imageid"] == report.image_id
        assert report.paths[number].name == f"{report.image_id}-teil-00-{number:02}.mrimgx"
    history = documents[-1]["disks"][0]["partitions"][0]["_header"]["file_history"]
    assert history == [{"file_name": str(path), "file_number": n} for n, path in enumerate(report.paths)]
