"""Values of a Windows registry hive, found by their key's path.

Specification: https://github.com/msuhanov/Windows-registry-file-format-specification. Little endian.
Only the cells on the way are read, each within bounds, so a hive of any content costs little. What waits
in the hive's logs is not there.
"""

import struct
from collections.abc import Iterator, Sequence

from formats.blockreader import BlockReader
from formats.errors import DamagedError

_BINS = 4096  # where offsets of cells count from
_LARGEST_CELL = 1 << 20  # bytes
_LARGEST_KEY = 1 << 10  # bytes; a key's name has 255 characters at most
_MOST = 1 << 16  # subkeys or values that are looked through
_MOST_BYTES = 1 << 24  # of a key's values and their names: cells may be told of again and again
_ASCII_KEY, _ASCII_VALUE = 0x20, 0x1  # flags: the name has a byte for each character
_INLINE = 1 << 31  # of a value's size: the data stands in place of its offset


def read_values(hive: BlockReader, path: Sequence[str]) -> dict[str, bytes]:
    """Return the values of a key by name; nothing where the key is not there.

    Raises DamagedError where the hive contradicts itself, or a value needs more than a cell.
    """
    header = _bytes(hive, 0, 512)
    if header[:4] != b"regf":
        raise DamagedError("registry hive: no header")
    key = _key(hive, struct.unpack_from("<I", header, 36)[0])
    for name in path:
        found = next((child for child in _subkeys(hive, key) if _name(child).lower() == name.lower()), None)
        if found is None:
            return {}
        key = found
    return dict(_values(hive, key))


def _subkeys(hive: BlockReader, key: bytes) -> Iterator[bytes]:
    count, _, place = struct.unpack_from("<III", key, 20)
    if not count:
        return
    offsets: list[int] = []
    for part in _lists(hive, place):
        step = 4 if part[:2] == b"li" else 8
        if part[:2] not in (b"li", b"lf", b"lh"):
            raise DamagedError(f"registry hive: {part[:2]!r} in place of a list of keys")
        entries = struct.unpack_from("<H", part, 2)[0]
        if 4 + entries * step > len(part) or len(offsets) + entries > _MOST:
            raise DamagedError(f"registry hive: a list of {entries} keys")
        offsets += [struct.unpack_from("<I", part, 4 + at * step)[0] for at in range(entries)]
    for offset in offsets:
        yield _key(hive, offset)


def _lists(hive: BlockReader, place: int) -> Iterator[bytes]:
    """Yield a key's list of subkeys, or the lists that it is made of."""
    part = _cell(hive, place)
    if part[:2] != b"ri":
        yield part
        return
    count = struct.unpack_from("<H", part, 2)[0]
    if 4 + 4 * count > len(part) or count > 1024:
        raise DamagedError(f"registry hive: a list of {count} lists")
    for at in range(count):
        yield _cell(hive, struct.unpack_from("<I", part, 4 + 4 * at)[0])


def _values(hive: BlockReader, key: bytes) -> Iterator[tuple[str, bytes]]:
    count, place = struct.unpack_from("<II", key, 36)
    if not count:
        return
    places = _cell(hive, place)
    left = _MOST_BYTES
    if 4 * count > len(places) or count > _MOST:
        raise DamagedError(f"registry hive: a list of {count} values")
    for offset in struct.unpack_from(f"<{count}I", places):
        value = _cell(hive, offset, left)
        if value[:2] != b"vk" or len(value) < 20:
            raise DamagedError("registry hive: a value that is none")
        length, size, data, _, flags = struct.unpack_from("<HIIIH", value, 2)
        left -= len(value) + (0 if size & _INLINE else size)
        if left < 0:
            raise DamagedError(f"registry hive: values of more than {_MOST_BYTES} bytes")
        name = _text(value[20 : 20 + length], is_ascii=bool(flags & _ASCII_VALUE))
        if size & _INLINE:
            yield name, struct.pack("<I", data)[: min(size ^ _INLINE, 4)]
            continue
        content = _cell(hive, data, size) if size else b""
        if size > len(content):
            raise DamagedError(f"registry hive: a value of {size} bytes in a cell of {len(content)}")
        yield name, content[:size]


def _key(hive: BlockReader, offset: int) -> bytes:
    key = _cell(hive, offset, _LARGEST_KEY)
    if key[:2] != b"nk" or len(key) < 76:
        raise DamagedError("registry hive: a key that is none")
    return key


def _name(key: bytes) -> str:
    flags, (length,) = struct.unpack_from("<H", key, 2)[0], struct.unpack_from("<H", key, 72)
    return _text(key[76 : 76 + length], is_ascii=bool(flags & _ASCII_KEY))


def _text(raw: bytes, *, is_ascii: bool) -> str:
    return raw.decode("latin-1" if is_ascii else "utf-16-le", "replace")


def _cell(hive: BlockReader, offset: int, most: int = _LARGEST_CELL) -> bytes:
    """Return what a cell holds, ``most`` bytes of it; DamagedError where it is free, or reaches outside."""
    (size,) = struct.unpack("<i", _bytes(hive, _BINS + offset, 4))
    if not -_LARGEST_CELL <= size <= -8:
        raise DamagedError(f"registry hive: a cell of {size} bytes")
    return _bytes(hive, _BINS + offset + 4, min(-size - 4, most))


def _bytes(hive: BlockReader, offset: int, length: int) -> bytes:
    if offset + length > hive.size:
        raise DamagedError(f"registry hive: {length} bytes at {offset} of {hive.size}")
    return hive.read_at(offset, length)
