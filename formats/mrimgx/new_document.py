"""The JSON document of an image file that is being written, with the keys that Reflect X writes.

Source: Macrium's schema (https://github.com/macrium/mrimgx_file_layout, schema/) and real files. Offsets and
lengths are bytes unless a name says otherwise.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from formats.mrimgx.layout import ExtendedPartition

SECTORS_PER_TRACK = 63
TRACKS_PER_CYLINDER = 255
_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TableEntry:
    """What a partition's MBR record says; zeros on a GPT disk, but for ``type``."""

    type: int = 0
    status: int = 0
    start_head: int = 0
    start_cylinder: int = 0
    end_head: int = 0
    end_cylinder: int = 0
    logical: bool = False


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A partition as it is to be recorded."""

    number: int
    start: int  # on the disk
    length: int
    file_system: str  # "NTFS", "FAT32", "exFAT", "ext", "unknown", …
    label: str
    reserved_length: int  # FAT: the bytes before the first cluster, else 0
    block_size: int
    table_entry: TableEntry
    cluster_size: int = 0
    total_clusters: int = 0
    free_clusters: int = 0
    mft_offset: int = 0  # on the disk
    mft_record_size: int = 0

    @property
    def data_length(self) -> int:
        """The bytes that blocks cover."""
        return self.length - self.reserved_length

    @property
    def block_count(self) -> int:
        """The blocks that cover the partition behind its reserved sectors."""
        return -(-self.data_length // self.block_size)


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk as it is to be recorded."""

    number: int
    size: int
    sector_size: int
    scheme: str  # "gpt", "mbr" or "unknown"
    signature: str
    removable: bool
    description: str
    manufacturer: str
    product: str
    revision: str
    serial: str
    track0: bytes
    extended: tuple[ExtendedPartition, ...]
    partitions: tuple[NewPartition, ...]


@dataclass(frozen=True, slots=True)
class NewFile:
    """An image file as it is to be recorded; the parts of a split differ in ``file_number`` alone."""

    image_id: str  # 16 hex digits, upper case
    file_number: int
    increment: int
    backup_type: str  # "full", "diff", "inc"
    delta_index: bool
    created: int  # Unix seconds
    set_created: int  # of the set's first file
    compression: str
    encryption: Mapping[str, Any]  # the _encryption object
    disks: tuple[NewDisk, ...]
    path: str  # where the file will be
    history: Sequence[tuple[int, str]]  # the files of the set, this one included: number, path
    host: str
    software: Sequence[str]  # names and versions of what wrote it
    comment: str = ""
    name: str = ""
    used_blocks_only: bool = True
    split_size: int = 0
    guid: str = field(default_factory=lambda: str(uuid.uuid4()))


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return a document's bytes as Reflect writes them."""
    text = json.dumps(document, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def build_document(file: NewFile, index_position: int, *, split: bool = False) -> dict[str, Any]:
    """Return the document of a file; of a split's data-only part with ``split``."""
    return {
        "_auxiliary_data": _auxiliary_data(file),
        "_compression": {"compression_level": file.compression, "compression_method": "zstd"},
        "_encryption": dict(file.encryption),
        "_header": {
            "backup_format": "partition",
            "backup_guid": file.guid,
            "backup_time": file.created,
            "backup_type": file.backup_type,
            "backupset_time": file.set_created,
            "delta_index": file.delta_index,
            "file_number": file.file_number,
            "imageid": file.image_id,
            "imaged_disks_count": len(file.disks),
            "increment_number": file.increment,
            "index_file_position": index_position,
            "json_version": 1,
            "merged_files": [],
            "netbios_name": file.host,
            "split_file": split,
        },
        "disks": [] if split else [_disk(disk, file) for disk in file.disks],
    }


def _auxiliary_data(file: NewFile) -> dict[str, Any]:
    off = {"enable": False}
    return {
        "backup_definition": {
            "auto_verify": False,
            "backup_definition_file": "",
            "backup_format": "partition",
            "check_filesystem": False,
            "comment": file.comment,
            "compression_level": file.compression,
            "consolidation_type": "none",
            "cpu_priority": "normal",
            "disk_space_management": {
                "apply_to_all_sets_in_folder": False,
                "differential_retention": dict(off),
                "full_retention": dict(off),
                "incremental_retention": dict(off),
                "incrementals_forever": False,
                "low_space_gb_threshold": 5,
                "low_space_purge": False,
                "run_before": False,
            },
            "disks": [
                {
                    "number": disk.number,
                    "partitions": [partition.number for partition in disk.partitions],
                    "signature": disk.signature,
                }
                for disk in file.disks
            ],
            "file_type": "image",
            "filename": file.path,
            "filename_template": file.name,
            "intelligent_sector_copy": file.used_blocks_only,
            "limit_file_size": bool(file.split_size),
            **({"file_size_limit": file.split_size} if file.split_size else {}),
            "post_backup_shutdown": dict(off),
            "prefix_unique": True,
        },
        "bootable": False,
        "destination": file.path,
        "highest_file_offset": 0,
        # The version of the layout, not of a program that wrote it: that is below.
        "macrium_reflect": {"build": 0, "file_version": 10, "major": 10, "minor": 0},
        "target_drive_type": "local",
        "third_party_software_version_list": [{"name_and_version": name} for name in file.software],
        "unique_prefix_type": "imageid",
    }


def _disk(disk: NewDisk, file: NewFile) -> dict[str, Any]:
    header: dict[str, Any] = {
        "disk_format": disk.scheme,
        "disk_number": disk.number,
        "disk_signature": disk.signature,
        "imaged_partition_count": len(disk.partitions),
    }
    if disk.extended:
        header["extended_partition_count"] = len(disk.extended)
        header["extended_partition_sector_offset"] = disk.extended[0].offset // disk.sector_size & _U32
    return {
        "_descriptor": {
            "disk_description": disk.description,
            "disk_manufacturer": disk.manufacturer,
            "disk_productid": disk.product,
            "disk_revisonno": disk.revision,  # spelt so by Reflect
            "disk_serialno": disk.serial,
        },
        "_geometry": {
            "bytes_per_sector": disk.sector_size,
            "cylinders": disk.size // (TRACKS_PER_CYLINDER * SECTORS_PER_TRACK * disk.sector_size),
            "disk_size": disk.size,
            "media_type": "removable_media" if disk.removable else "fixed_media",
            "sectors_per_track": SECTORS_PER_TRACK,
            "tracks_per_cylinder": TRACKS_PER_CYLINDER,
        },
        "_header": header,
        "partitions": [
            _partition(partition, at, disk, file) for at, partition in enumerate(disk.partitions, 1)
        ],
    }


def _partition(partition: NewPartition, index: int, disk: NewDisk, file: NewFile) -> dict[str, Any]:
    end = partition.start + partition.length - 1
    entry = partition.table_entry
    file_system: dict[str, Any] = {
        "bitlocker_state": "none",
        "drive_letter": 0,
        "end": end,
        "free_clusters": min(partition.free_clusters, _U32),
        "lcn0_file_number": file.file_number,
        "lcn0_offset": partition.start + partition.reserved_length,
        "partition_index": index,
        "sectors_per_cluster": partition.cluster_size // disk.sector_size,
        "start": partition.start,
        "total_clusters": min(partition.total_clusters, _U32),
        "type": partition.file_system,
        "volume_guid": "",
        "volume_label": partition.label,
    }
    if partition.mft_record_size:
        file_system |= {"mft_offset": partition.mft_offset, "mft_record_size": partition.mft_record_size}
    if partition.reserved_length:
        file_system["reserved_sectors_byte_length"] = partition.reserved_length
    return {
        "_file_system": file_system,
        "_geometry": {
            "boot_sector_offset": 0,
            "end": end,
            "length": partition.length,
            "start": partition.start,
        },
        "_header": {
            "block_count": partition.block_count,
            "block_size": partition.block_size,
            "file_history": [{"file_name": name, "file_number": number} for number, name in file.history],
            "file_history_count": len(file.history),
            "partition_file_offset": 0,
            "partition_number": partition.number,
        },
        "_partition_table_entry": {
            "active": entry.status == 0x80,
            "boot_sector": partition.start // disk.sector_size & _U32,
            "end_cylinder": entry.end_cylinder,
            "end_head": entry.end_head,
            "num_sectors": partition.length // disk.sector_size & _U32,
            "partition_type": "logical" if entry.logical else "primary",
            "start_cylinder": entry.start_cylinder,
            "start_head": entry.start_head,
            "status": entry.status,
            "type": entry.type,
        },
    }
