"""Volume labels, which TSK does not tell."""

import struct

from formats.blockreader import BlockReader


def read_label(family: str, reader: BlockReader) -> str:
    """Return a volume's label, "" if it has none; what the reader raises passes."""
    if family == "ext":
        return _text(reader.read_at(1024 + 0x78, 16).split(b"\0")[0])
    if family == "FAT":
        return _fat_label(reader)
    if family == "ISO 9660":
        return _text(reader.read_at(0x8000 + 40, 32)).rstrip(" \0")
    return ""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _fat_label(reader: BlockReader) -> str:
    sector = reader.read_at(0, 512)
    (fat_sectors_16,) = struct.unpack_from("<H", sector, 22)
    label = sector[43:54] if fat_sectors_16 else sector[71:82]
    text = label.decode("cp437").rstrip(" \0")
    return "" if text == "NO NAME" else text
