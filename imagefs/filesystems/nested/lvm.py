"""Logical volumes (LVM2): linear and striped ones, of volume groups on one or several partitions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from formats.blockreader import BlockReader, ConcatReader, SliceReader
from formats.errors import DamagedError, FormatError, UnsupportedError
from imagefs.filesystems.nested.isolated import StoredBytes
from imagefs.filesystems.nested.lvm_metadata import (
    SECTOR,
    Value,
    is_physical_volume,
    number,
    parse_text,
    read_physical_volume,
    section,
)

_LARGEST = 1 << 48  # sectors or extents
_SEGMENTS = 1 << 16  # of a logical volume
_STRIPES = 128


class LogicalVolume(NamedTuple):
    """A logical volume: its bytes, or why they can't be had."""

    name: str  # "group-volume" as the device mapper has it: hyphens inside are doubled
    reader: BlockReader | FormatError

    def open(self) -> BlockReader:
        """Return its bytes; raises why they can't be had."""
        if isinstance(self.reader, FormatError):
            raise self.reader.with_traceback(None)
        return self.reader


@dataclass(frozen=True)
class _Group:
    name: str
    values: Mapping[str, Value]

    @property
    def seqno(self) -> int:
        return number(self.values, "seqno", _LARGEST)

    def physical(self) -> dict[str, str]:
        """Return the names of the physical volumes in the text, by identifier."""
        volumes = section(self.values, "physical_volumes")
        return {str(section(volumes, name).get("id")).replace("-", ""): name for name in volumes}


def logical_volumes(
    place: str, volumes: Iterable[tuple[str, BlockReader]]
) -> Mapping[str, LogicalVolume] | None:
    """Return the logical volumes that are shown at a place, which holds a physical volume of LVM.

    ``volumes`` are all of the image, by place. A group is shown at the first of its physical volumes: None at
    the others. Raises DamagedError where no metadata of the group can be read.
    """
    readers: dict[str, BlockReader] = {}
    places: dict[str, str] = {}
    groups: dict[str, _Group] = {}  # the newest that is known of each physical volume
    for where, volume in volumes:
        if not is_physical_volume(volume):
            continue
        try:
            found = read_physical_volume(volume)
            group = None if found.text is None else _group(found.text)
        except DamagedError:
            if where == place:
                raise
            continue
        if found.identifier in places:
            raise DamagedError(f"{places[found.identifier]} and {where} are the same physical volume of LVM")
        readers[found.identifier], places[found.identifier] = StoredBytes(volume, where), where
        if group is not None:
            for identifier in group.physical():
                if identifier not in groups or groups[identifier].seqno < group.seqno:
                    groups[identifier] = group
    mine = next((identifier for identifier, where in places.items() if where == place), "")
    if mine not in groups:
        raise DamagedError(f"{place}: no metadata of its volume group is in the image")
    group = groups[mine]
    if next(where for identifier, where in places.items() if identifier in group.physical()) != place:
        return None
    named = {
        name: readers[identifier] for identifier, name in group.physical().items() if identifier in readers
    }
    return _volumes(group, named)


def _group(text: str) -> _Group:
    for name, value in parse_text(text).items():
        if isinstance(value, dict) and "physical_volumes" in value:
            return _Group(name, value)
    raise DamagedError("LVM: the metadata have no volume group")


def _volumes(group: _Group, physical: Mapping[str, BlockReader]) -> dict[str, LogicalVolume]:
    found = {}
    volumes = section(group.values, "logical_volumes")
    for name in volumes:
        values = section(volumes, name)
        status = values.get("status")
        if not isinstance(status, list) or "VISIBLE" not in status:
            continue  # a part of another
        shown = f"{group.name.replace('-', '--')}-{name.replace('-', '--')}"
        try:
            found[shown] = LogicalVolume(shown, _reader(group, shown, values, physical))
        except FormatError as error:
            found[shown] = LogicalVolume(shown, error)
    return found


def _reader(
    group: _Group, name: str, values: Mapping[str, Value], physical: Mapping[str, BlockReader]
) -> BlockReader:
    extent = number(group.values, "extent_size", _LARGEST) * SECTOR
    pieces: list[BlockReader] = []
    position = 0  # extents
    for index in range(1, number(values, "segment_count", _SEGMENTS) + 1):
        segment = section(values, f"segment{index}")
        kind = segment.get("type")
        if kind not in ("striped", "linear"):
            raise UnsupportedError(f"{name}: logical volumes of the kind {kind!r} can't be read")
        count = number(segment, "extent_count", _LARGEST)
        if not count or number(segment, "start_extent", _LARGEST) != position:
            raise DamagedError(f"{name}: where extent {position} lies is not known")
        stripes = list(_stripes(group, name, segment, physical, extent * count))
        if len(stripes) == 1:
            pieces += stripes
        else:
            pieces.append(StripedReader(stripes, number(segment, "stripe_size", _LARGEST) * SECTOR))
        position += count
    return ConcatReader(pieces)


def _stripes(
    group: _Group,
    name: str,
    segment: Mapping[str, Value],
    physical: Mapping[str, BlockReader],
    length: int,
) -> Iterator[BlockReader]:
    """Yield the parts of physical volumes that a segment of some bytes lies on."""
    extent = number(group.values, "extent_size", _LARGEST) * SECTOR
    places, count = segment.get("stripes"), number(segment, "stripe_count", _STRIPES)
    if not isinstance(places, list) or not count or len(places) != 2 * count or length % count:
        raise DamagedError(f"{name}: its stripes can't be understood")
    for device, first in zip(places[::2], places[1::2], strict=True):
        if not isinstance(device, str) or not isinstance(first, int):
            raise DamagedError(f"{name}: its stripes can't be understood")
        if device not in physical:
            raise UnsupportedError(f"{name}: the physical volume {device} is not in the image")
        start = number(section(section(group.values, "physical_volumes"), device), "pe_start", _LARGEST)
        offset = start * SECTOR + first * extent
        lower = physical[device]
        if first < 0 or offset + length // count > lower.size:
            raise DamagedError(f"{name}: a part of it lies outside {device}")
        yield SliceReader(lower, offset, length // count)


class StripedReader(BlockReader):
    """Readers of one size, ``width`` bytes of each in turn. Raises DamagedError where that does not fit."""

    def __init__(self, stripes: list[BlockReader], width: int) -> None:
        super().__init__(sum(stripe.size for stripe in stripes))
        if not width or stripes[0].size % width:
            raise DamagedError(f"LVM: stripes of {width} bytes")
        self._stripes = stripes
        self._width = width

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length:
            index, inside = divmod(offset, self._width)
            row, stripe = divmod(index, len(self._stripes))
            step = min(length, self._width - inside)
            pieces.append(self._stripes[stripe].read_at(row * self._width + inside, step))
            offset, length = offset + step, length - step
        return b"".join(pieces)
