"""New ids, as the tables of a disk show them to sfdisk."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import run
from formats.blockreader import FileReader
from formats.partition_table import PartitionTable, build_table, read_table
from imagefs.restore.ids import with_new_ids

GPT = b"""label: gpt
start=2048, size=2048, name=one, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, attrs="RequiredPartition"
5 : start=4096, size=2048, name=two
"""
MBR = b"""label: dos
label-id: 0x1d2c3b4a
1 : start=2048, size=2048, type=7, bootable
2 : start=4096, size=8192, type=f
5 : start=6144, size=2048, type=83
"""


def made(path: Path, script: bytes) -> PartitionTable:
    create_file(path, 8 * MIB)
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=script)
    with FileReader(path) as reader:
        table = read_table(reader, 512)
    assert table is not None
    return table


def shown(path: Path, table: PartitionTable) -> tuple[str, dict[int, str], list[dict[str, object]]]:
    """Write a table where the old one was; return the ids that sfdisk shows of it, and the rest."""
    with path.open("r+b") as stream:
        for offset, data in build_table(table, 8 * MIB):
            stream.seek(offset)
            stream.write(data)
    found = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    numbers = {int(part["node"].removeprefix(str(path))): part for part in found["partitions"]}
    uuids = {number: part.pop("uuid", "") for number, part in numbers.items()}
    return found["id"], uuids, found["partitions"]


def test_gpt(tmp_path: Path) -> None:
    table = made(tmp_path / "disk", GPT)
    old_id, old_parts, rest = shown(tmp_path / "disk", table)
    new, mapping = with_new_ids(table)
    new_id, new_parts, new_rest = shown(tmp_path / "disk", new)
    assert mapping == {old_id: new_id, old_parts[1]: new_parts[1], old_parts[5]: new_parts[5]}
    assert len({*mapping, *mapping.values()}) == 6
    assert new_rest == rest


def test_mbr(tmp_path: Path) -> None:
    table = made(tmp_path / "disk", MBR)
    _, _, rest = shown(tmp_path / "disk", table)
    new, mapping = with_new_ids(table)
    new_id, _, new_rest = shown(tmp_path / "disk", new)
    assert list(mapping) == ["1D2C3B4A"]
    assert int(new_id, 16) == int(mapping["1D2C3B4A"], 16) not in {0, 0x1D2C3B4A}
    assert new_rest == rest


def test_one_id_for_two_partitions(tmp_path: Path) -> None:
    """A tool that copies partitions may leave that behind; the kernel shows one of them then."""
    table = made(tmp_path / "disk", GPT)
    twin = dataclasses.replace(table.partitions[1], id=table.partitions[0].id)
    new, mapping = with_new_ids(dataclasses.replace(table, partitions=(table.partitions[0], twin)))
    assert new.partitions[0].id != new.partitions[1].id
    assert mapping == {table.disk_id: new.disk_id, twin.id: new.partitions[0].id}


def test_a_signature_is_never_0_nor_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(tmp_path / "disk", MBR)
    drawn = iter([0, 0x1D2C3B4A, 7])
    monkeypatch.setattr(secrets, "randbits", lambda _: next(drawn))
    assert with_new_ids(table)[0].disk_id == "00000007"
