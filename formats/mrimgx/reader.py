"""The bytes of a partition at a backup point."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import zstandard

from formats.blockreader import BlockCache, BlockReader, Blocks, Extent
from formats.errors import DamagedBlockError, FormatError
from formats.hashing import md5, md5_of_each
from formats.mrimgx.cipher import AES_BLOCK_SIZE, BlockCipher
from formats.mrimgx.document import Document
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import Element, ResolvedIndex, stored
from formats.mrimgx.tag_table import BlockTags

Bytes = bytes | memoryview
_OTHER = "its MD5 is not the one in the index"
_Block = TypeVar("_Block", bytes, Bytes)
_PASSING = 4  # blocks: a read of so many comes from a reader that goes on and does not come back
_TOGETHER = 32  # blocks that are read at once: 2 MiB as a rule


class _Local(threading.local):
    """What each thread has of its own: a decompressor must not be shared."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self._memory = memoryview(bytearray())

    def memory(self, length: int) -> memoryview:
        """Return so many bytes, with whatever is in them, until this thread asks again."""
        if len(self._memory) < length:
            self._memory = memoryview(bytearray(length))
        return self._memory[:length]


_local = _Local()


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Which array of blocks a block belongs to; what its decryption and its errors need."""

    partition: str  # as in the tree: "disk4/p1"
    disk_number: int
    partition_number: int
    is_reserved: bool = False  # an array of reserved sectors

    @classmethod
    def of(cls, document: Document, place: tuple[int, int]) -> "BlockPlace":
        """Return the place of a partition's blocks, by the positions in the document."""
        disk = document.disks[place[0]]
        partition = disk.partitions[place[1]]
        return cls(f"{disk.name}/{partition.name}", disk.number, partition.number)

    def reserved(self) -> "BlockPlace":
        """Return the place of the partition's reserved sectors, which count on their own."""
        return replace(self, partition=f"{self.partition} reserved sectors", is_reserved=True)


class BlockStore:
    """Reads, decrypts, decompresses and checks the stored blocks of a set.

    ``holder`` gives the file that stands for a file number, or raises FormatError.
    """

    def __init__(self, holder: Callable[[int], ImageFile], cache: BlockCache) -> None:
        self.holder = holder
        self.cache = cache
        # Of each encrypted file what decrypts it, or why it must not be read; of others at most the latter.
        self.ciphers: Mapping[ImageFile, BlockCipher | FormatError] = {}
        self.tags: Mapping[ImageFile, BlockTags] = {}  # of the authenticated files

    def block(self, element: Element, place: BlockPlace, number: int, size: int) -> bytes:
        """Return a stored block's plain bytes from the cache or the file; see ``decode``."""
        # The key has the hash in it: another index entry for the same stored bytes is another block.
        return self.cache.get_or_decode(element, lambda: self.decode(element, place, number, size))

    def decode(self, element: Element, place: BlockPlace, number: int, size: int) -> bytes:
        """Return a stored block's plain bytes: at most ``size``, and as its MD5 says.

        Raises DamagedBlockError when they are not to be had, PasswordError when the set is locked and
        ForgedError when the file that holds the block is forged.
        """
        image = self._image(element)
        self._check_place(image, element, place, number, size)
        stored_bytes = image.reader().read_at(element.position, element.length)
        data = self._vouched(image, stored_bytes, element, place, number)
        if image.document.compression != "none":
            data = _decompressed(data, size, image, place, number)
        if md5(data) != element.md5:
            raise _bad(_OTHER, image, place, number)
        return bytes(data)  # which costs nothing where they are bytes already

    def decode_run(
        self, elements: Sequence[Element], place: BlockPlace, number: int, size: int
    ) -> Sequence[Bytes]:
        """Return what ``decode`` does for blocks from ``number`` on that are stored one behind the other.

        They are read, decompressed and hashed together. What is returned holds until this thread decodes
        again.
        """
        image = self._image(elements[0])
        for count, element in enumerate(elements):
            self._check_place(image, element, place, number + count, size)
        start = elements[0].position
        stored_bytes = _local.memory(elements[-1].position + elements[-1].length - start)
        image.reader().read_into(start, stored_bytes)
        blocks: Sequence[Bytes] = [
            self._vouched(
                image, stored_bytes[one.position - start :][: one.length], one, place, number + count
            )
            for count, one in enumerate(elements)
        ]
        if image.document.compression != "none":
            # Zeros behind an encrypted frame are taken for a frame where many are decompressed at once.
            is_padded = isinstance(self.ciphers.get(image), BlockCipher)
            blocks = (None if is_padded else _decompressed_all(blocks, size)) or [
                _decompressed(block, size, image, place, number + count) for count, block in enumerate(blocks)
            ]
        for count, (found, element) in enumerate(zip(md5_of_each(blocks), elements, strict=True)):
            if found != element.md5:
                raise _bad(_OTHER, image, place, number + count)
        return blocks

    def _image(self, element: Element) -> ImageFile:
        """Return the file that holds a block; raises where it must not be read."""
        image = self.holder(element.file_number)
        cipher = self.ciphers.get(image)
        if isinstance(cipher, FormatError):
            raise cipher.with_traceback(None)
        return image

    def _check_place(
        self, image: ImageFile, element: Element, place: BlockPlace, number: int, size: int
    ) -> None:
        """Check what an index says of a block before it is read."""
        position, length = element.position, element.length
        if not length:
            raise _bad("the index gives it a hash or a position, but no length", image, place, number)
        # A frame of incompressible bytes is a little larger than they are; what is much larger is none.
        if length > size + size // 128 + 1024:
            reason = f"stored length {length} is too large for a block of {size} bytes"
            raise _bad(reason, image, place, number)
        if position < 0 or position + length > image.data_end:
            reason = f"the index points outside the file, to {position}+{length}"
            raise _bad(reason, image, place, number)

    def _vouched(
        self, image: ImageFile, data: Bytes, element: Element, place: BlockPlace, number: int
    ) -> Bytes:
        """Return stored bytes decrypted, once their tag, where there is one, has vouched for them."""
        tags = self.tags.get(image)
        if tags is not None:
            # Before anything else is done with them: nothing but the tag vouches for the bytes as stored.
            key = place.disk_number, place.partition_number, place.is_reserved
            tag = tags.tag(key, number, element)
            if isinstance(tag, str):
                raise _bad(tag, image, place, number)
            if not tags.fits(tag, data):
                reason = "its tag does not fit: the stored bytes are not those that were written"
                raise _bad(reason, image, place, number)
        cipher = self.ciphers.get(image)
        if isinstance(cipher, BlockCipher):
            if element.length % AES_BLOCK_SIZE:
                reason = f"stored length {element.length} is not a multiple of 16 in an encrypted file"
                raise _bad(reason, image, place, number)
            data = cipher.decrypt_block(data, place.disk_number, place.partition_number, number)
        return data


def _decompressed(data: Bytes, size: int, image: ImageFile, place: BlockPlace, number: int) -> bytes:
    """Return what a frame holds, at most ``size`` bytes; raises DamagedBlockError."""
    try:
        content = zstandard.frame_content_size(data)
        if not 0 <= content <= size:
            reason = f"it would decompress to {content} bytes, a block has {size}"
            raise _bad(reason, image, place, number)
        return _local.decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise _bad(f"it can't be decompressed: {error}", image, place, number) from None


def _decompressed_all(frames: Sequence[Bytes], size: int) -> Sequence[Bytes] | None:
    """Return what frames hold, decompressed in one go; None where one of them has to be looked at alone."""
    try:
        if not all(0 < zstandard.frame_content_size(frame) <= size for frame in frames):
            return None
        found = _local.decompressor.multi_decompress_to_buffer(list(frames))
        return [memoryview(found[number]) for number in range(len(found))]  # type: ignore[arg-type]
    except zstandard.ZstdError:
        return None


def _bad(reason: str, image: ImageFile, place: BlockPlace, number: int) -> DamagedBlockError:
    return DamagedBlockError(reason, path=image.path, partition=place.partition, block=number)


class BlocksReader(BlockReader):
    """An array of blocks: block i covers the bytes from ``i * block_size``.

    ``require`` raises FormatError while the index must not be believed: a locked one, a forged one.
    """

    def __init__(
        self,
        store: BlockStore,
        index: ResolvedIndex,
        place: BlockPlace,
        block_size: int,
        size: int,
        require: Callable[[], None],
    ) -> None:
        super().__init__(size)
        self._require = require
        self._allowed = False
        self._store = store
        self._index = index
        self._place = place
        self._block_size = block_size

    def _check(self, offset: int, length: int) -> None:
        """Check a range; every way of asking for one comes through here."""
        super()._check(offset, length)
        if not self._allowed:
            self._require()
            self._allowed = True

    def _read(self, offset: int, length: int) -> bytes:
        pieces = list(map(bytes, self._pieces(offset, length)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        for piece in self._pieces(offset, len(buffer)):
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def _pieces(self, offset: int, length: int) -> Iterator[Bytes]:
        """Yield the bytes of a range, which hold until the next are asked for.

        Many whole blocks are read at once, and pass the cache by.
        """
        size = self._block_size
        first, end = -(-offset // size), (offset + length) // size
        if end - first < _PASSING:
            for part in self._parts(offset, length):
                yield self._piece(*part)
            return
        for part in self._parts(offset, first * size - offset):
            yield self._piece(*part)
        yield from self._whole_blocks(first, end)
        for part in self._parts(end * size, offset + length - end * size):
            yield self._piece(*part)

    def _whole_blocks(self, first: int, end: int) -> Iterator[Bytes]:
        """Yield blocks, those that are stored one behind the other read at once."""
        size = self._block_size
        elements = self._index.listed(first, end)
        at = 0
        while at < len(elements):
            stop = min(_run_end(elements, at), at + _TOGETHER)
            if not elements[at].is_hole:
                blocks = self._store.decode_run(elements[at:stop], self._place, first + at, size)
                for number, block in enumerate(blocks, at):
                    yield self._cut(block, elements[number], first + number, 0, size)
            else:
                yield bytes((stop - at) * size)
            at = stop

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, offset in it, length) of a range."""
        number, start = divmod(offset, self._block_size)
        while length:
            step = min(length, self._block_size - start)
            yield number, start, step
            length, number, start = length - step, number + 1, 0

    def _piece(self, number: int, start: int, length: int) -> bytes:
        """Return bytes of one block."""
        element = self._index.element(number)
        if element.is_hole:
            return bytes(length)
        block = self._store.block(element, self._place, number, self._block_size)
        return self._cut(block, element, number, start, length)

    def _cut(self, block: _Block, element: Element, number: int, start: int, length: int) -> _Block:
        if start + length > len(block):
            raise DamagedBlockError(
                f"it has {len(block)} bytes, {start + length} are needed",
                path=self._store.holder(element.file_number).path,
                partition=self._place.partition,
                block=number,
            )
        return block if length == len(block) else block[start : start + length]

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        size = self._block_size
        end = offset + length
        for number, elements in self._index.runs(offset // size, -(-end // size)):
            states = stored(elements)
            if not states.all():
                self._index.prove_holes()
            edges = np.flatnonzero(states[1:] != states[:-1]) + 1
            starts = [0, *edges.tolist()]
            if offset < number * size:  # left out: holes
                yield Extent(offset, number * size - offset, False)
                offset = number * size
            for at, stop in zip(starts, [*starts[1:], len(states)], strict=True):
                high = min(end, (number + stop) * size)
                yield Extent(offset, high - offset, bool(states[at]))
                offset = high
        if offset < end:
            yield Extent(offset, end - offset, False)

    def _blocks(self, offset: int, length: int) -> Iterator[Blocks]:
        size = self._block_size
        first, end = offset // size, -(-(offset + length) // size)
        seen = 0
        for number, elements in self._index.runs(first, end):
            rows = np.flatnonzero(stored(elements))
            seen += len(rows)
            starts = (rows + number) * size
            edges = np.clip([starts, starts + size], offset, offset + length)
            lengths = edges[1] - edges[0]
            mine = elements[rows]
            md5 = np.ascontiguousarray(mine["md5"]).view("V16").reshape(-1)
            md5[lengths != size] = bytes(16)  # of a part of a block it is not known
            files = mine["file_number"].astype(np.int64)
            yield Blocks(edges[0], lengths, md5, files, mine["position"].astype(np.int64))
        if seen < end - first:
            self._index.prove_holes()

    def _prefetch(self, offset: int, length: int) -> None:
        size = self._block_size
        for number in range(offset // size, -(-(offset + length) // size)):
            element = self._index.element(number)
            if not element.is_hole:
                self._store.block(element, self._place, number, size)


def _run_end(elements: Sequence[Element], first: int) -> int:
    """Return the end of the holes, or of the blocks stored one behind the other, that start at ``first``."""
    before = elements[first]
    at = first + 1
    while at < len(elements):
        element = elements[at]
        if before.is_hole or element.is_hole:
            follows = before.is_hole and element.is_hole
        else:
            follows = (element.file_number, element.position) == (
                before.file_number,
                before.position + before.length,
            )
        if not follows:
            break
        before, at = element, at + 1
    return at
