"""Exports in memory, for tests of the NBD server."""

import threading
from collections.abc import Callable, Iterator

from mounters.export import Export, Handle, Run


class MemoryExport(Export):
    """Bytes that are shown as they are; blocks of zeros are holes. All clients see one content."""

    def __init__(
        self,
        name: str,
        content: bytes | bytearray,
        *,
        description: str = "",
        writable: bool = False,
        block: int = 4096,
        smallest_block: int = 1,
    ) -> None:
        self.name = name
        self.description = description
        self.content = content
        self.size = len(content)
        self.writable = writable
        self.block = block
        self.smallest_block = smallest_block
        self.before_read: Callable[[int, int], None] = lambda offset, length: None
        self.bytes_read = 0
        self.flushes = 0
        self.opened = self.closed = 0
        self.lock = threading.Lock()
        self._holes = bytearray()
        self._scan()

    def _scan(self) -> None:
        zeros = bytes(self.block)
        self._holes = bytearray(
            self.content[at : at + self.block] == zeros[: len(self.content) - at]
            for at in range(0, self.size, self.block)
        )

    def open(self) -> Handle:
        with self.lock:
            self.opened += 1
        return MemoryHandle(self)

    def states(self, offset: int, length: int) -> Iterator[Run]:
        at, end = offset, offset + length
        while at < end:
            block = at // self.block
            hole = self._holes[block]
            after = self._holes.find(b"\0" if hole else b"\1", block)
            until = end if after < 0 else min(end, after * self.block)
            yield Run(until - at, not hole)
            at = until

    def change(self, offset: int, data: bytes | memoryview) -> None:
        assert isinstance(self.content, bytearray)
        with self.lock:
            self.content[offset : offset + len(data)] = data
            zeros = bytes(self.block)
            for block in range(offset // self.block, -(-(offset + len(data)) // self.block)):
                at = block * self.block
                self._holes[block] = self.content[at : at + self.block] == zeros[: self.size - at]


class MemoryHandle(Handle):
    def __init__(self, export: MemoryExport) -> None:
        self._export = export
        self._view = memoryview(export.content) if isinstance(export.content, bytes) else None

    def read(self, offset: int, length: int) -> bytes:
        export = self._export
        export.before_read(offset, length)
        export.bytes_read += length
        return bytes((self._view or export.content)[offset : offset + length])

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        return self._export.states(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._export.change(offset, data)

    def zero(self, offset: int, length: int, *, hole: bool) -> None:
        self._export.change(offset, bytes(length))

    def flush(self) -> None:
        with self._export.lock:
            self._export.flushes += 1

    def close(self) -> None:
        with self._export.lock:
            self._export.closed += 1
