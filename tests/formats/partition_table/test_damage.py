"""Bytes flipped in valid tables: a table, none, or a FormatError; nothing else, and no hang."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.blockreader import BytesReader
from formats.errors import FormatError
from formats.partition_table import backup_gpt, disk_size_from_gpt, read_table
from formats.partition_table.layout import BOOT_RECORD_SIZE
from tests.formats.partition_table.tools import MIB, gpt_by_sfdisk, mbr_by_sfdisk, sparse, table_of

GPT_SIZE = 16 * MIB
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=8)
RELAXED = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@cache
def gpt_disk() -> bytes:
    with TemporaryDirectory() as folder:
        path = sparse(Path(folder) / "disk.img", GPT_SIZE)
        gpt_by_sfdisk(path, 512)
        return path.read_bytes()


@cache
def mbr_disk() -> tuple[bytes, tuple[int, ...]]:
    """Return a disk, and the places of its MBR and its EBRs."""
    with TemporaryDirectory() as folder:
        path = sparse(Path(folder) / "disk.img", 64 * MIB)
        mbr_by_sfdisk(path, 512)
        places = tuple(entry.record_offset for entry in table_of(path, 512).partitions[3:])
        return path.read_bytes()[: 32 * MIB], places


class Patched(BytesReader):
    """Bytes with some of them changed, without a copy of all."""

    def __init__(self, data: bytes, flips: Sequence[tuple[int, int]]) -> None:
        super().__init__(data)
        self._flips = flips

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(super()._read(offset, length))
        for place, bits in self._flips:
            if offset <= place < offset + length:
                data[place - offset] ^= bits
        return bytes(data)


def read(reader: Patched, sector_size: int) -> None:
    try:
        table = read_table(reader, sector_size)
    except FormatError as error:
        assert str(error)
    else:
        assert table is None or all(entry.size > 0 for entry in table.partitions)


@RELAXED
@given(FLIPS, st.booleans())
def test_gpt(flips: list[tuple[int, int]], in_the_backup_too: bool) -> None:
    disk = gpt_disk()
    flips = [(place % (34 * 512), bits) for place, bits in flips]
    if in_the_backup_too:
        flips += [(len(disk) - 1 - place % (33 * 512), bits) for place, bits in flips]
    reader = Patched(disk, flips)
    read(reader, 512)
    read(reader, 4096)
    assert disk_size_from_gpt(reader, 512) in {None, GPT_SIZE}
    assert backup_gpt(reader, 512) in ([], backup_gpt(disk, 512))


@RELAXED
@given(FLIPS)
def test_mbr(flips: list[tuple[int, int]]) -> None:
    disk, places = mbr_disk()
    # only the last 72 bytes of a boot record are judged: most flips go there
    flips = [
        (places[place % len(places)] + BOOT_RECORD_SIZE - 1 - place % (72 if place % 5 else 512), bits)
        for place, bits in flips
    ]
    read(Patched(disk, flips), 512)


@RELAXED
@given(st.binary(max_size=66))
def test_any_bytes_as_an_mbr(entries: bytes) -> None:
    read(Patched(bytes(446) + entries.ljust(64, b"\0")[:64] + b"\x55\xaa" + b"\xcc" * 9000, []), 512)
