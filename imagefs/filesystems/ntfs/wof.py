"""Files that the Windows overlay filter (WOF) compressed, as CompactOS and ``compact /exe`` do.

The unnamed data is a hole of the file's size; what is compressed is in the stream WofCompressedData: a table
of where each chunk but the first starts, counted from the end of the table, then the chunks. An entry has 4
bytes, 8 in files from 4 GiB on; a chunk as long as what it stands for is not compressed. Facts: [MS-FSCC]
2.1.2 for the reparse point, and the documentation of wimlib (https://wimlib.net), whose resources have the
same form.
"""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.blockreader import BlockCache, BlockReader
from formats.errors import DamagedError, UnsupportedError
from formats.unpacking import Method, unpack_chunks
from imagefs.filesystems.runs import ChunkedReader

_PROVIDER = struct.Struct("<8xII")  # reparse point's header; version, provider
_FILE_PROVIDER = struct.Struct("<16xII")  # version, algorithm
_WIM, _FILE = 1, 2
_STEP = 1 << 20  # bytes decoded in one go, outside the interpreter's lock
_KEPT = 1 << 18  # bytes of decoded chunks that a reader keeps


class Algorithm(NamedTuple):
    """How the chunks of a file are compressed."""

    method: Method
    chunk: int  # bytes


_ALGORITHMS = {
    0: Algorithm(Method.XPRESS_HUFFMAN, 4096),
    1: Algorithm(Method.LZX, 32768),
    2: Algorithm(Method.XPRESS_HUFFMAN, 8192),
    3: Algorithm(Method.XPRESS_HUFFMAN, 16384),
}


def parse_wof(reparse: bytes, what: str) -> Algorithm:
    """Return how a file is compressed by its reparse point; UnsupportedError where a WIM file has it."""
    try:
        version, provider = _PROVIDER.unpack_from(reparse)
        if version == 1 and provider == _WIM:
            raise UnsupportedError(f"{what} has its data in a WIM archive (WIMBoot), which is another file")
        if version != 1 or provider != _FILE:
            raise UnsupportedError(f"{what} is kept by WOF's provider {provider} in version {version}")
        version, number = _FILE_PROVIDER.unpack_from(reparse)
    except struct.error as error:
        raise DamagedError(f"{what}: a WOF reparse point of {len(reparse)} bytes") from error
    if version != 1 or number not in _ALGORITHMS:
        raise UnsupportedError(f"{what} is compressed by WOF's algorithm {number} in version {version}")
    return _ALGORITHMS[number]


class WofReader(BlockReader):
    """The bytes of a file of ``size`` bytes from its compressed stream; all of them are data.

    Chunks of which a part is wanted are kept, long reads are decoded in one go. Raises DamagedError where the
    stream has no room for the chunks, and from reading those that can't be decoded to their length.
    """

    def __init__(self, stream: BlockReader, size: int, algorithm: Algorithm, name: str) -> None:
        super().__init__(size)
        self._stream = stream
        self._method, self._chunk = algorithm
        self._name = name
        self._count = -(-size // self._chunk)
        self._entry = 4 if size < 1 << 32 else 8  # bytes
        self._base = max(0, self._count - 1) * self._entry  # where the first chunk lies
        if self._base + self._count > stream.size:
            raise DamagedError(
                f"{name}: {stream.size} compressed bytes can't hold {self._count} chunks and their table"
            )
        self._table = ChunkedReader(stream)
        self._cache = BlockCache(_KEPT)

    def _edges(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return where some chunks start, and the last of them ends, behind the table."""
        low, high = max(first, 1), min(first + count, self._count - 1)
        edges = np.zeros(count + 1, np.uint64)
        if low <= high:
            raw = self._table.read((low - 1) * self._entry, (high - low + 1) * self._entry)
            edges[low - first : high - first + 1] = np.frombuffer(raw, f"<u{self._entry}")
        if first + count == self._count:
            edges[count] = self._stream.size - self._base
        lengths = np.full(count, self._chunk, np.uint64)
        if first + count == self._count:
            lengths[-1] = self.size - (self._count - 1) * self._chunk
        starts, ends = edges[:-1], edges[1:]
        wrong = (ends <= starts) | (ends > self._stream.size - self._base) | (ends - starts > lengths)
        if wrong.any():
            number = int(wrong.argmax())
            raise DamagedError(
                f"{self._name}: chunk {first + number} lies from {starts[number]} to {ends[number]} of its "
                "compressed data, which can't be"
            )
        return edges

    def _decode_into(self, first: int, out: memoryview) -> None:
        """Decode chunks from one on; ``out`` ends with a chunk."""
        count = -(-len(out) // self._chunk)
        edges = self._edges(first, count)
        start = int(edges[0])
        data = self._stream.read_at(self._base + start, int(edges[-1]) - start)
        good = unpack_chunks(self._method, data, edges - edges[0], out, self._chunk)
        if good != count:
            raise DamagedError(f"{self._name}: chunk {first + good} can't be decoded to its length")

    def _decoded(self, number: int) -> bytes:
        chunk = bytearray(min(self._chunk, self.size - number * self._chunk))
        self._decode_into(number, memoryview(chunk))
        return bytes(chunk)

    def _read(self, offset: int, length: int) -> bytes:
        number, inside = divmod(offset, self._chunk)
        if inside + length <= self._chunk:
            chunk = self._cache.get_or_decode(number, lambda: self._decoded(number))
            return chunk if len(chunk) == length else chunk[inside : inside + length]
        out = bytearray(length)
        self._read_into(offset, memoryview(out))
        return bytes(out)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            number, inside = divmod(offset + done, self._chunk)
            left = len(buffer) - done
            step = min(left, _STEP)
            if offset + done + step < self.size:  # else it ends with the last chunk, which is shorter
                step -= step % self._chunk
            if inside or not step:
                step = min(left, self._chunk - inside)
                buffer[done : done + step] = self._read(offset + done, step)
            else:
                self._decode_into(number, buffer[done : done + step])
            done += step
