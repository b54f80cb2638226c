"""What LVM2 writes at the head of a physical volume: labels, metadata areas, and the text in them.

Sources: libvslvm, "Logical Volume Manager (LVM) format"; the text is what ``vgcfgbackup`` writes too. Numbers
are little-endian; check sums are CRC-32 with an initial value of its own. It is read here because libvslvm
refuses groups with striped volumes, or with volumes of two segments on one physical volume.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.errors import DamagedError

SECTOR = 512
_LABELS = 4  # sectors that may hold the label
_CRC_START = 0xF597A6CF
_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER = 512  # bytes
_TEXT_LIMIT = 16 << 20  # bytes
_DEPTH = 8  # sections in sections; LVM's own have 4
_IGNORED = 1  # a flag of a text's place
_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[\w.+-]+)|(?P<mark>[][{}=,])'
)

Value = int | str | list["int | str"] | dict[str, "Value"]


class PhysicalVolume(NamedTuple):
    """A physical volume's label."""

    identifier: str  # 32 characters
    text: str | None  # the metadata in its areas, None where it has none


def is_physical_volume(volume: BlockReader) -> bool:
    """Whether a volume bears the label of LVM2."""
    return _label(volume) is not None


def read_physical_volume(volume: BlockReader) -> PhysicalVolume:
    """Return what a physical volume says of itself; DamagedError where it contradicts its check sums."""
    found = _label(volume)
    if found is None:
        raise DamagedError("LVM: no label")
    label, number = found
    stored, start = struct.unpack_from("<II", label, 16)
    if number != struct.unpack_from("<Q", label, 8)[0] or stored != _crc(label[20:]):
        raise DamagedError("LVM: the label's check sum is wrong")
    if not 32 <= start <= SECTOR - 72:
        raise DamagedError(f"LVM: the label's content begins at {start}")
    identifier = label[start : start + 32].decode("ascii", "replace")
    pairs = [struct.unpack_from("<QQ", label, at) for at in range(start + 40, SECTOR - 15, 16)]
    offsets = [offset for offset, _ in pairs]
    if offsets.count(0) < 2:
        raise DamagedError("LVM: the label's lists of areas have no end")
    end_of_data = offsets.index(0)
    areas = pairs[end_of_data + 1 : offsets.index(0, end_of_data + 1)]
    texts, problem = [], None
    for offset, size in areas:
        try:
            texts.append(_area_text(volume, offset, size))
        except DamagedError as error:  # the other area has the same
            problem = error
    known = [text for text in texts if text is not None]
    if not known and problem is not None:
        raise problem
    return PhysicalVolume(identifier, known[0] if known else None)


def _label(volume: BlockReader) -> tuple[bytes, int] | None:
    if volume.size < 8 * SECTOR:
        return None
    head = volume.read_at(0, _LABELS * SECTOR)
    for number in range(_LABELS):
        sector = head[number * SECTOR : (number + 1) * SECTOR]
        if sector[:8] == b"LABELONE" and sector[24:32] == b"LVM2 001":
            return sector, number
    return None


def _area_text(volume: BlockReader, offset: int, size: int) -> str | None:
    """Return the text in a metadata area, which is a ring behind its header; None of one not in use."""
    if offset + size > volume.size or size <= _AREA_HEADER:
        raise DamagedError(f"LVM: a metadata area of {size} bytes at {offset}")
    header = volume.read_at(offset, _AREA_HEADER)
    stored, magic, version, start, length = struct.unpack_from("<I16sIQQ", header)
    if magic != _MAGIC or stored != _crc(header[4:]) or version != 1 or (start, length) != (offset, size):
        raise DamagedError(f"LVM: the header of the metadata area at {offset} is damaged")
    at, count, check, flags = struct.unpack_from("<QQII", header, 40)
    if not at or flags & _IGNORED:
        return None
    if not _AREA_HEADER <= at < size or count > min(size - _AREA_HEADER, _TEXT_LIMIT):
        raise DamagedError(f"LVM: metadata of {count} bytes at {at} of an area of {size}")
    first = min(count, size - at)
    text = volume.read_at(offset + at, first) + volume.read_at(offset + _AREA_HEADER, count - first)
    if _crc(text) != check:
        raise DamagedError("LVM: the metadata's check sum is wrong")
    return text.rstrip(b"\0").decode("utf-8", "replace")


def _crc(data: bytes) -> int:
    """Return LVM's check sum: CRC-32 that begins elsewhere, and is not inverted."""
    return zlib.crc32(data, _CRC_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def parse_text(text: str) -> Mapping[str, Value]:
    """Return the sections and values of a text; DamagedError where it is none."""
    tokens = _tokens(text)
    tokens.reverse()
    found = _section(tokens, 0)
    if tokens:
        raise DamagedError("LVM: the metadata go on behind their end")
    return found


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise DamagedError(f"LVM: the metadata can't be understood at {at}")
        if match.lastgroup is not None:
            found.append((match.lastgroup, match.group()))
        at = match.end()
    return found


def _section(tokens: list[tuple[str, str]], depth: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    while tokens and tokens[-1][1] != "}":
        kind, name = tokens.pop()
        mark = tokens.pop()[1] if tokens else ""
        if kind not in ("name", "number", "string") or mark not in ("=", "{") or depth > _DEPTH:
            raise DamagedError(f"LVM: the metadata can't be understood at {name!r}")
        if mark == "=":
            found[name] = _value(tokens)
            continue
        found[name.strip('"')] = _section(tokens, depth + 1)
        if not tokens or tokens.pop()[1] != "}":
            raise DamagedError(f"LVM: the section {name!r} has no end")
    return found


def _value(tokens: list[tuple[str, str]]) -> Value:
    if tokens and tokens[-1][1] == "[":
        tokens.pop()
        values: list[int | str] = []
        while tokens and tokens[-1][1] != "]":
            if tokens[-1][1] == ",":
                tokens.pop()
            else:
                values.append(_scalar(tokens))
        if not tokens:
            raise DamagedError("LVM: a list has no end")
        tokens.pop()
        return values
    return _scalar(tokens)


def _scalar(tokens: list[tuple[str, str]]) -> int | str:
    kind, text = tokens.pop() if tokens else ("", "")
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    if kind == "number" and "." not in text and len(text) < 20:
        return int(text)
    raise DamagedError(f"LVM: {text!r} is no value")


def number(section: Mapping[str, Value], name: str, largest: int) -> int:
    """Return a number that must be there, from 0 up to ``largest``."""
    value = section.get(name)
    if not isinstance(value, int) or not 0 <= value <= largest:
        raise DamagedError(f"LVM: {name} is {value!r}")
    return value


def section(values: Mapping[str, Value], name: str) -> Mapping[str, Value]:
    """Return a section, empty where it is not there."""
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise DamagedError(f"LVM: {name} is no section")
    return value
