"""One image file: its document, and the metadata lists behind the data."""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import zstandard

from formats.blockreader import FileReader
from formats.container import BadBlock
from formats.errors import DamagedError, FormatError, NotAnImageError, ReadError, UnsupportedError
from formats.mrimgx import layout
from formats.mrimgx.document import Document, parse_document
from formats.mrimgx.index import OwnIndex, Proof, check_delta, parse_index
from formats.mrimgx.layout import ExtendedPartition, MetadataBlock
from formats.mrimgx.own_blocks import OwnRecord, parse_own

# An index up to this size is checked against its hash when it is first used: about 0.1 s. A larger one is
# checked when it first tells of a hole, or by verify; a stored block has its own hash.
HASHED_INDEX_SIZE = 64 * 1024 * 1024
_EMPTY_INDEX = 4  # bytes: one count of zero and no second
_MAX_LIST = 4096  # blocks of a metadata list; real ones have two or three
_MAX_METADATA = 64 * 1024 * 1024  # bytes of a metadata block once decoded, other than an index
_HASH_PIECE = 4 * 1024 * 1024


class MetadataCipher(Protocol):
    """What decrypts metadata blocks."""

    def decrypt_metadata(self, data: bytes) -> bytes:
        """Return the plain bytes."""


@dataclass(frozen=True, slots=True)
class DiskLists:
    """The metadata lists of a disk and of its partitions, in the document's order."""

    disk: tuple[MetadataBlock, ...]
    partitions: tuple[tuple[MetadataBlock, ...], ...]


def probe(path: Path) -> bool:
    """Whether a file ends as a Reflect X file does. Raises ReadError when it can't be read.

    Raises UnsupportedError for a file of Reflect 7 or 8.
    """
    with FileReader(path) as reader:
        tail = reader.read_at(max(0, reader.size - 4096), min(reader.size, 4096))
    if tail[-len(layout.MAGIC) :] == layout.MAGIC and len(tail) >= layout.FOOTER_SIZE:
        return True
    if layout.OLD_FORMAT_MARK in tail:
        raise UnsupportedError(
            "made by Macrium Reflect 8 or earlier, whose format is not published",
            path=path,
            hint="Reflect X can convert it",
        )
    return False


class ImageFile:
    """A ``.mrimgx`` or ``.mrbakx`` file.

    ``open`` reads the document and the headers of the metadata blocks, then closes the file; it is opened
    again when something else is asked for, and must not have changed until then. Safe from several threads.
    """

    def __init__(
        self,
        path: Path,
        document: Document,
        root: Sequence[MetadataBlock],
        lists: Sequence[DiskLists],
        own: OwnRecord | FormatError,
        reader: FileReader,
    ) -> None:
        self.path = path
        self.document = document
        self.lists = tuple(lists)  # none in a data-only file of a split
        self.identity = _identity(reader)
        self.stored_bytes = reader.size  # of the whole file
        # No data block reaches beyond this.
        self.data_end = root[0].start if document.split_file else document.index_position
        self.places = frozenset(place for place, _ in document.partitions())
        self.root = tuple(root)
        self._own = own
        self._lock = threading.RLock()
        self._reader: FileReader | None = None
        self._indexes: dict[tuple[int, int], OwnIndex] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file's document.

        Raises NotAnImageError when the file is of another kind, DamagedError and UnsupportedError when
        it can't be understood, ReadError when it can't be read.
        """
        with FileReader(path) as reader:
            if reader.size < layout.FOOTER_SIZE or reader.read_at(
                reader.size - len(layout.MAGIC), len(layout.MAGIC)
            ) != (layout.MAGIC):
                raise NotAnImageError("no Macrium Reflect X image: the footer is missing", path=path)
            end = reader.size - layout.FOOTER_SIZE
            root_offset = layout.parse_footer(reader.read_at(end, layout.FOOTER_SIZE), reader.size, path)
            root = list(_walk(reader, root_offset, end, path))
            if root[-1].end != end:
                raise DamagedError(
                    f"the root list ends at {root[-1].end}, not at the footer at {end}", path=path
                )
            json_block = next((block for block in root if block.name == layout.JSON), None)
            if json_block is None:
                raise DamagedError("the root list has no $JSON block", path=path)
            document = parse_document(_payload(reader, json_block, path), path)
            lists = _read_lists(reader, document, root_offset, path)
            return cls(path, document, root, lists, _read_own(reader, root, document, path), reader)

    @property
    def numbers(self) -> frozenset[int]:
        """The file numbers that this file stands for: its own, and those that it absorbed."""
        return self.document.merged_files | {self.document.file_number}

    @property
    def own(self) -> OwnRecord:
        """What imagefs says of the file; nothing in files of others.

        Raises DamagedError or UnsupportedError where that can't be understood: the file can be read without.
        """
        if isinstance(self._own, FormatError):
            raise self._own.with_traceback(None)
        return self._own

    def own_marks(self) -> bool:
        """Whether anything says that the file is authenticated, or might have."""
        if isinstance(self._own, FormatError) or self._own.authentication is not None:
            return True
        marks = (layout.OWN_AUTHENTICATION, layout.OWN_TAGS)
        return any(block.name in marks for block in self.metadata_blocks())

    @property
    def is_sidecar(self) -> bool:
        """Whether this is the state of an unfinished run, which carries a set's id, and no member."""
        indexes = [blocks[-1] for disk in self.lists for blocks in disk.partitions]
        return self.path.suffix.lower() == ".metadata" or (
            bool(indexes) and all(block.length <= _EMPTY_INDEX for block in indexes)
        )

    def has_blocks(self, disk: int, partition: int) -> bool:
        """Whether a partition's own index names any block, as far as its length tells."""
        reserved = self.document.disks[disk].partitions[partition].reserved_length
        elements = -(-reserved // layout.RESERVED_BLOCK_SIZE)
        return self.lists[disk].partitions[partition][-1].length > 8 + elements * layout.ELEMENT.itemsize

    def reader(self) -> FileReader:
        """Return the opened file; raises ReadError when it is not the one whose document was read."""
        with self._lock:
            if self._reader is None:
                reader = FileReader(self.path)
                if _identity(reader) != self.identity:
                    reader.close()
                    raise _changed(self.path)
                self._reader = reader
            return self._reader

    def close(self) -> None:
        """Close the file. An index that is still held opens it again when it is read."""
        with self._lock:
            self._indexes.clear()
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def track0(self, disk: int, cipher: MetadataCipher | None) -> bytes:
        """Return the first bytes of a disk, by its position in the document."""
        return self._disk_payload(disk, layout.TRACK_0, cipher)

    def extended_partitions(self, disk: int, cipher: MetadataCipher | None) -> tuple[ExtendedPartition, ...]:
        """Return the boot records of a disk's logical partitions."""
        payload = self._disk_payload(disk, layout.EXTENDED_PARTITIONS, cipher)
        return layout.parse_extended_partitions(payload, self.path)

    def _disk_payload(self, disk: int, name: str, cipher: MetadataCipher | None) -> bytes:
        for block in self.lists[disk].disk:
            if block.name == name:
                return _payload(self.reader(), block, self.path, cipher)
        return b""

    def index(self, disk: int, partition: int) -> OwnIndex:
        """Return a partition's own index, by the positions in the document.

        Raises DamagedError when it is not consistent; a delta, and one up to 64 MiB, is also checked by its
        hash.
        """
        with self._lock:
            found = self._indexes.get((disk, partition))
            if found is None:
                block = self.lists[disk].partitions[partition][-1]
                proof = Proof(partial(self._check_hash, block))
                is_delta = self.document.delta_index
                if is_delta or block.length <= HASHED_INDEX_SIZE:
                    proof.make()
                found = parse_index(
                    self.read, block.offset, block.length, proof, is_delta=is_delta, path=self.path
                )
                if is_delta:
                    end = self.document.disks[disk].partitions[partition].block_end
                    check_delta(found.blocks, end, f"$INDEX at {block.offset}", self.path)
                self._indexes[disk, partition] = found
            return found

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file that has not changed since it was opened."""
        reader = self.reader()
        data = reader.read_at(offset, length)
        if _identity(reader) != self.identity:
            raise _changed(self.path)
        return data

    def metadata_blocks(self) -> Iterator[MetadataBlock]:
        """Yield every metadata block of the file."""
        yield from self.root
        for disk in self.lists:
            yield from disk.disk
            for blocks in disk.partitions:
                yield from blocks

    def check_metadata(self) -> tuple[BadBlock, ...]:
        """Check every metadata block against its hash, and every index for consistency."""
        bad = []
        try:
            for block in self.metadata_blocks():
                try:
                    self._check_hash(block)
                except DamagedError as error:
                    bad.append(BadBlock(self.path, None, None, error.what))
            if isinstance(self._own, FormatError):
                bad.append(BadBlock(self.path, None, None, self._own.what))
            for place in sorted(self.places):
                self.index(*place)
        except FormatError as error:
            if error.what not in {entry.reason for entry in bad}:
                bad.append(BadBlock(self.path, None, None, error.what))
        return tuple(bad)

    def _check_hash(self, block: MetadataBlock) -> None:
        """Check a block's hash in pieces: an index may be larger than memory."""
        if not block.length:
            return
        digest = hashlib.md5(usedforsecurity=False)
        for offset in range(block.offset, block.end, _HASH_PIECE):
            digest.update(self.reader().read_at(offset, min(_HASH_PIECE, block.end - offset)))
        if digest.digest() != block.md5:
            raise _wrong_hash(block, self.path)


def _walk(reader: FileReader, offset: int, end: int, path: Path) -> Iterator[MetadataBlock]:
    """Yield the blocks of the metadata list at ``offset``; none reaches beyond ``end``."""
    for _ in range(_MAX_LIST):
        if offset + layout.METADATA_BLOCK_HEADER_SIZE > end:
            raise DamagedError(f"a metadata list runs beyond {end}", path=path)
        header = reader.read_at(offset, layout.METADATA_BLOCK_HEADER_SIZE)
        block = layout.parse_metadata_block_header(header, offset, end, path)
        yield block
        if block.is_last:
            return
        offset = block.end
    raise DamagedError(f"a metadata list has more than {_MAX_LIST} blocks", path=path)


def _read_lists(
    reader: FileReader, document: Document, root_offset: int, path: Path
) -> tuple[DiskLists, ...]:
    """Return the metadata lists, which fill the file from ``index_file_position`` to the root list."""
    offset = document.index_position
    if offset > root_offset:
        raise DamagedError(
            f"index_file_position {offset} is behind the root list at {root_offset}", path=path
        )
    if document.split_file:
        return ()

    def walk() -> tuple[MetadataBlock, ...]:
        nonlocal offset
        blocks = tuple(_walk(reader, offset, root_offset, path))
        offset = blocks[-1].end
        return blocks

    def walk_partition() -> tuple[MetadataBlock, ...]:
        blocks = walk()
        if blocks[-1].name != layout.INDEX:
            raise DamagedError(f"a partition's metadata ends with {blocks[-1].name}, not $INDEX", path=path)
        if blocks[-1].is_compressed or blocks[-1].is_encrypted:
            raise UnsupportedError("the $INDEX is compressed or encrypted", path=path)
        return blocks

    lists = tuple(
        DiskLists(walk(), tuple(walk_partition() for _ in disk.partitions)) for disk in document.disks
    )
    if offset != root_offset:
        raise DamagedError(
            f"the metadata lists end at {offset}, not at the root list at {root_offset}", path=path
        )
    return lists


def _read_own(
    reader: FileReader, root: Sequence[MetadataBlock], document: Document, path: Path
) -> OwnRecord | FormatError:
    """Return what an $IMAGEFS block says, or why that can't be told."""
    blocks = [block for block in root if block.name == layout.OWN]
    if not blocks:
        return OwnRecord()
    try:
        if len(blocks) > 1 or blocks[0].is_compressed or blocks[0].is_encrypted:
            raise DamagedError("$IMAGEFS is there twice, or not plain", path=path)
        own = parse_own(_payload(reader, blocks[0], path), path)
        parts = dict(document.partitions())
        for entry in own.unreadable:
            part = parts.get((entry.disk, entry.partition))
            if part is None or entry.offset + entry.length > part.length:
                raise DamagedError("$IMAGEFS: unreadable bytes outside of every partition", path=path)
    except (DamagedError, UnsupportedError) as error:
        return error
    return own


def _payload(
    reader: FileReader, block: MetadataBlock, path: Path, cipher: MetadataCipher | None = None
) -> bytes:
    """Return a metadata block's plain payload."""
    if not block.length:
        return b""
    if block.length > _MAX_METADATA:
        raise DamagedError(f"metadata block {block.name} has {block.length} bytes", path=path)
    data = reader.read_at(block.offset, block.length)
    if hashlib.md5(data, usedforsecurity=False).digest() != block.md5:
        raise _wrong_hash(block, path)
    if block.is_encrypted:
        if cipher is None or len(data) % 16:
            raise DamagedError(f"metadata block {block.name} is marked as encrypted", path=path)
        data = cipher.decrypt_metadata(data)
    if block.is_compressed:
        data = decompress(data, _MAX_METADATA, f"metadata block {block.name}", path)
    return data


def decompress(data: bytes, limit: int, what: str, path: Path) -> bytes:
    """Return the content of the one zstd frame that ``data`` starts with, at most ``limit`` bytes."""
    try:
        size = zstandard.frame_content_size(data)
        if size > limit:
            raise DamagedError(f"{what} would decompress to {size} bytes, {limit} are possible", path=path)
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{what} can't be decompressed: {error}", path=path) from error


def _wrong_hash(block: MetadataBlock, path: Path) -> DamagedError:
    return DamagedError(f"metadata block {block.name} at {block.offset} does not match its hash", path=path)


def _changed(path: Path) -> ReadError:
    return ReadError("the file was changed after it was opened", path=path)


def _identity(reader: FileReader) -> tuple[int, ...]:
    """Return what tells a file from others, first two, and from its own later states."""
    try:
        status = os.fstat(reader.fileno())
    except OSError as error:  # closed by another thread in between
        raise ReadError(error.strerror or str(error), path=reader.path) from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
