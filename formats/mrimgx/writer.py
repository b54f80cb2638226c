"""The end of an image file: what follows the data blocks, and makes them an image.

Whoever writes an image appends stored blocks from offset 0 without gaps, keeps an element for each, and lets
``finish_image`` write the rest: padding, metadata lists, root list, footer. Until the footer stands, the file
is no image to any reader.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import zstandard

from formats.mrimgx import layout
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.index import Elements
from formats.mrimgx.layout import DELTA_ELEMENT, ELEMENT
from formats.mrimgx.new_document import NewDisk, NewFile, build_document, canonical

METADATA_ALIGNMENT = 4096
_ROWS = 1 << 16  # elements handled together
_PIECE = 4 * 1024 * 1024
_METADATA_LEVEL = 1  # of zstd
OwnChunks = Callable[[], Iterable[Elements]]  # arrays of DELTA_ELEMENT, their blocks ascending throughout
BaseElements = Callable[[int, int], Elements]  # (first block, end) -> rows of ELEMENT


@dataclass(frozen=True, slots=True)
class NewIndex:
    """What becomes a partition's $INDEX.

    ``own`` gives the blocks that this run stored or found free (length 0), ``base`` the elements of all
    blocks before it: None for a delta index, which holds ``own`` alone.
    """

    reserved: Elements  # of ELEMENT
    own: OwnChunks
    own_count: int
    block_count: int
    base: BaseElements | None
    tags: Callable[[], Iterable[bytes]] | None = None  # of the stored blocks, 16 bytes each, in their order
    tag_count: int = 0

    @property
    def length(self) -> int:
        """The bytes of the payload."""
        rows = self.own_count * DELTA_ELEMENT.itemsize
        if self.base is not None:
            rows = self.block_count * ELEMENT.itemsize
        return 8 + len(self.reserved) * ELEMENT.itemsize + rows

    def payload(self) -> Iterator[bytes]:
        """Yield the payload in pieces."""
        yield struct.pack("<I", len(self.reserved)) + self.reserved.tobytes()
        if self.base is None:
            yield struct.pack("<I", self.own_count)
            for chunk in self.own():
                yield chunk.tobytes()
        else:
            yield struct.pack("<I", self.block_count)
            yield from _dense(self.base, self.own(), self.block_count)


def no_blocks(first: int, end: int) -> Elements:
    """Return holes: what a full is based on."""
    return np.zeros(end - first, ELEMENT)


def _dense(base: BaseElements, own: Iterable[Elements], count: int) -> Iterator[bytes]:
    """Yield an element for every block: the own one, else the base's."""
    chunks = iter(own)
    pending = next(chunks, None)
    for first in range(0, count, _ROWS):
        end = min(first + _ROWS, count)
        rows = base(first, end).copy()
        while pending is not None:
            fitting = int(np.searchsorted(pending["block"], end))
            mine = pending[:fitting]
            for name in ELEMENT.names or ():
                rows[name][mine["block"] - first] = mine[name]
            if fitting < len(pending):
                pending = pending[fitting:]
                break
            pending = next(chunks, None)
        yield rows.tobytes()


@dataclass(frozen=True, slots=True)
class Authentication:
    """What an authenticated file says of its set; see FORMAT.md."""

    keys: AuthenticationKeys
    files: Sequence[int]  # the numbers of the files written in this run
    members: Sequence[tuple[int, bytes]]  # the other authenticated files: number, tag


def metadata_position(data_length: int) -> int:
    """Return where the metadata lists start behind so many bytes of data."""
    return -(-data_length // METADATA_ALIGNMENT) * METADATA_ALIGNMENT


def finish_image(
    stream: BinaryIO,
    data_length: int,
    file: NewFile,
    indexes: Sequence[Sequence[NewIndex]],
    *,
    own: Mapping[str, Any] | None = None,
    authentication: Authentication | None = None,
) -> bytes:
    """Write everything behind ``data_length`` bytes of data; ``indexes`` by disk and partition.

    ``own`` goes into the $IMAGEFS block. Returns the file's tag, b"" where it is not authenticated. The
    stream is seekable, readable and writable, and is left flushed, not synced; OSErrors pass.
    """
    position = metadata_position(data_length)
    stream.seek(data_length)
    stream.truncate()
    stream.write(bytes(position - data_length))
    writer = _ListWriter(stream, compress=file.compression != "none")
    for disk, disk_indexes in zip(file.disks, indexes, strict=True):
        writer.write_list(_disk_blocks(disk))
        for index in disk_indexes:
            writer.write_list(_partition_blocks(index))
    document = build_document(file, position)
    return _write_root(writer, document, data_length, file, own, authentication)


def finish_data_part(
    stream: BinaryIO,
    data_length: int,
    file: NewFile,
    *,
    authentication: Authentication | None = None,
) -> bytes:
    """Write the end of a split's data-only part, which has a document and no index; else as above."""
    position = metadata_position(data_length)
    stream.seek(data_length)
    stream.truncate()
    stream.write(bytes(position - data_length))
    writer = _ListWriter(stream, compress=file.compression != "none")
    document = build_document(file, position, split=True)
    return _write_root(writer, document, data_length, file, None, authentication)


def end_length(file: NewFile, indexes: Sequence[Sequence[NewIndex]]) -> int:
    """Return an upper bound of the bytes that ``finish_image`` appends."""
    total = METADATA_ALIGNMENT + layout.FOOTER_SIZE
    total += len(canonical(build_document(file, 2**62))) + 64 * 1024
    for disk, disk_indexes in zip(file.disks, indexes, strict=True):
        total += len(disk.track0) + 4096 + 1024 * len(disk.extended)
        total += sum(index.length + 16 * index.tag_count + 256 for index in disk_indexes)
    return total


@dataclass(frozen=True, slots=True)
class _NewBlock:
    name: str
    payload: Iterable[bytes]
    compress: bool = False


def _disk_blocks(disk: NewDisk) -> list[_NewBlock]:
    blocks = [_NewBlock(layout.TRACK_0, [disk.track0], compress=True)]
    if disk.extended:
        payload = layout.build_extended_partitions(disk.extended)
        blocks.append(_NewBlock(layout.EXTENDED_PARTITIONS, [payload], compress=True))
    return blocks


def _partition_blocks(index: NewIndex) -> list[_NewBlock]:
    blocks = [_NewBlock(layout.BITMAP, [], compress=True)]
    if index.tags is not None:
        blocks.append(_NewBlock(layout.OWN_TAGS, index.tags()))
    return [*blocks, _NewBlock(layout.INDEX, index.payload())]


def _write_root(
    writer: "_ListWriter",
    document: Mapping[str, Any],
    data_length: int,
    file: NewFile,
    own: Mapping[str, Any] | None,
    authentication: Authentication | None,
) -> bytes:
    stream = writer.stream
    root_offset = stream.tell()
    footer = layout.FOOTER.build({"root_offset": root_offset, "magic": layout.MAGIC})
    blocks = [_NewBlock(layout.JSON, [canonical(document)], compress=True)]
    content: dict[str, Any] = dict(own or {})
    if authentication is not None:
        content["authentication"] = {
            "algorithm": "hmac-sha256",
            "data_length": data_length,
            "files": sorted(authentication.files),
            "members": [
                {"file_number": number, "tag": tag.hex()} for number, tag in sorted(authentication.members)
            ],
        }
    if content:
        blocks.append(_NewBlock(layout.OWN, [canonical({"version": 1, **content})]))
    writer.write_list(blocks, is_end=authentication is None)
    tag = b""
    if authentication is not None:
        end = stream.tell()
        maker = authentication.keys.file_tag(bytes.fromhex(file.image_id), file.file_number, data_length)
        stream.seek(data_length)
        for offset in range(data_length, end, _PIECE):
            maker.update(stream.read(min(_PIECE, end - offset)))
        maker.update(footer)
        tag = maker.digest()
        stream.seek(end)
        writer.write_list([_NewBlock(layout.OWN_AUTHENTICATION, [tag])])
    stream.write(footer)
    stream.flush()
    return tag


class _ListWriter:
    """Writes metadata lists; what is large is written piece by piece, its header when its hash is known."""

    def __init__(self, stream: BinaryIO, *, compress: bool) -> None:
        self.stream = stream
        self._compress = compress

    def write_list(self, blocks: Sequence[_NewBlock], *, is_end: bool = True) -> None:
        """Write the blocks of one list; with ``is_end`` the last of them is marked as such."""
        for number, block in enumerate(blocks, 1):
            self._write(block, is_last=is_end and number == len(blocks))

    def _write(self, block: _NewBlock, *, is_last: bool) -> None:
        flags = layout.FLAG_LAST if is_last else 0
        payload = block.payload
        if block.compress and self._compress:
            flags |= layout.FLAG_COMPRESSED
            plain = b"".join(payload)
            payload = [zstandard.ZstdCompressor(_METADATA_LEVEL).compress(plain)] if plain else []
        start = self.stream.tell()
        self.stream.write(bytes(layout.METADATA_BLOCK_HEADER_SIZE))
        digest, length = hashlib.md5(usedforsecurity=False), 0
        for piece in payload:
            self.stream.write(piece)
            digest.update(piece)
            length += len(piece)
        end = self.stream.tell()
        self.stream.seek(start)
        self.stream.write(
            layout.METADATA_BLOCK_HEADER.build(
                {
                    "block_name": block.name.ljust(8).encode("ascii"),
                    "block_length": length,
                    "hash": digest.digest() if length else bytes(16),
                    "flags": flags,
                }
            )
        )
        self.stream.seek(end)
