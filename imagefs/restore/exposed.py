"""A reader as a file that other programs can open: shown by a mount of ours, or copied."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from formats.blockreader import BlockReader, Extent
from formats.errors import ReportedError
from formats.files import open_file, truncate, write_at
from imagefs.errors import RefusedError, TargetWriteError
from imagefs.machine.sparse import make_sparse
from imagefs.machine.volumes import free_space
from mounters.controller import MountOptions, mechanisms, mount
from mounters.errors import MountError
from mounters.tree import (
    Attributes,
    Entry,
    Handle,
    NodeType,
    Tree,
    is_a_directory,
    not_a_directory,
    not_found,
)

_STEP = 4 << 20  # bytes copied at once
_ROOT, _FILE = 2, 3  # inode numbers
_NAME = "volume"
_USER = os.getuid() if hasattr(os, "getuid") else 0


class _ReaderHandle(Handle):
    """The file, opened. What the reader raises is also kept: a program that reads is told EIO alone."""

    def __init__(self, reader: BlockReader, errors: list[ReportedError]) -> None:
        self.size = reader.size
        self._reader = reader
        self._errors = errors

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes, fewer at the end."""
        try:
            return self._reader.read_at(offset, max(0, min(length, self.size - offset)))
        except ReportedError as error:
            self._errors.append(error)
            raise OSError(errno.EIO, str(error)) from error


class _OneFile(Tree):
    """A directory with one file in it."""

    root = _ROOT

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self.errors: list[ReportedError] = []

    def attributes(self, inode: int) -> Attributes:
        """Return the attributes of the directory or the file."""
        if inode == _ROOT:
            return Attributes(_ROOT, NodeType.DIRECTORY, mode=0o700, links=2, uid=_USER)
        return Attributes(_FILE, NodeType.FILE, self._reader.size, mode=0o400, uid=_USER)

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return the one file."""
        if inode != _ROOT:
            raise not_a_directory(str(inode))
        return [Entry(_NAME, _FILE, NodeType.FILE)]

    def lookup(self, inode: int, name: str) -> int:
        """Return the file's number."""
        if inode != _ROOT or name != _NAME:
            raise not_found(name)
        return _FILE

    def read_link(self, inode: int) -> str:
        """Raise: there are no links."""
        raise not_found(str(inode))

    def open(self, inode: int) -> Handle:
        """Open the file."""
        if inode != _FILE:
            raise is_a_directory(str(inode))
        return _ReaderHandle(self._reader, self.errors)

    def size(self) -> int:
        """Return the file's size."""
        return self._reader.size


@contextmanager
def exposed(reader: BlockReader, scratch: Path) -> Iterator[Path]:
    """Show a reader as a file that can only be read, as long as the block runs.

    By FUSE, answered by threads of this process; where that isn't there, by a sparse copy in ``scratch``.
    Programs are to open the file, not this process. Raises RefusedError where a copy has no room; and where
    the block raises one, for what a program said, but the reader had failed, what the reader raised.
    """
    if all(mechanisms().values()) or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        with copied(reader, scratch) as path:
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="imagefs-volume-") as folder:
        tree = _OneFile(reader)
        try:
            mounted = mount(tree, folder, MountOptions(source="imagefs-volume"))
        except MountError:  # FUSE is there, but not for us: in a container, say
            mounted = None
        if mounted is None:
            with copied(reader, scratch) as path:
                yield path
            return
        with mounted:
            try:
                yield Path(folder) / _NAME
            except RefusedError as error:
                if tree.errors:
                    raise tree.errors[0] from error
                raise


@contextmanager
def copied(reader: BlockReader, scratch: Path, extra: int = 0) -> Iterator[Path]:
    """Write a reader's data to a sparse file in a folder of its own in ``scratch``; it is removed at the end.

    ``extra`` are bytes that will be wanted besides. Raises RefusedError where there is no room for both
    before anything is written, TargetWriteError where writing fails, and what the reader raises.
    """
    data = [extent for extent in reader.extents() if extent.is_data]
    needed = sum(extent.length for extent in data) + extra
    with ExitStack() as owned:
        try:
            free = free_space(scratch)
            if free < needed:
                raise RefusedError(
                    f"has {free} bytes free, {needed} are needed for a copy of the volume",
                    path=scratch,
                    hint="name another folder for scratch files",
                )
            folder = owned.enter_context(tempfile.TemporaryDirectory(prefix=".imagefs-", dir=scratch))
            path = Path(folder) / _NAME
            _copy(reader, data, path)
        except OSError as error:
            what = f"a copy of the volume can't be written: {error.strerror or error}"
            raise TargetWriteError(what, path=scratch) from error
        yield path


def _copy(reader: BlockReader, data: Iterable[Extent], path: Path) -> None:
    """Write some extents of a reader to a new file, holes between them."""
    fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        make_sparse(fd)
        truncate(fd, reader.size)
        buffer = memoryview(bytearray(_STEP))
        for extent in data:
            for at in range(extent.offset, extent.end, _STEP):
                piece = buffer[: min(_STEP, extent.end - at)]
                reader.read_into(at, piece)
                _write(fd, piece, at)
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = write_at(fd, data, offset)
        data, offset = data[done:], offset + done
