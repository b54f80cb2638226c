"""New ids for a copied disk, so that it can stand beside the one it was copied from."""

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace

from formats.partition_table import PartitionTable


def with_new_ids(table: PartitionTable) -> tuple[PartitionTable, Mapping[str, str]]:
    """Return the table with new random ids, and what each old id became, both written as in the table.

    GPT: the disk's GUID and that of each partition. MBR: the signature, which is never 0; ids of its
    partitions (SSSSSSSS-PP) follow from it. Where several had one id, each gets its own, and the mapping
    names the first's. Serial numbers and UUIDs of file systems stay.
    """
    if table.scheme == "mbr":
        signature = f"{_signature(int(table.disk_id or '0', 16)):08X}"
        return replace(table, disk_id=signature), {table.disk_id: signature}
    mapping = {table.disk_id: _guid()}
    partitions = []
    for entry in table.partitions:
        new = _guid()
        mapping.setdefault(entry.id, new)
        partitions.append(replace(entry, id=new))
    return replace(table, disk_id=mapping[table.disk_id], partitions=tuple(partitions)), mapping


def _guid() -> str:
    return str(uuid.uuid4()).upper()


def _signature(old: int) -> int:
    """Return 32 random bits; 0 means to Windows that there is none."""
    while True:
        new = secrets.randbits(32)
        if new not in {0, old}:
            return new
