"""Hashes of a tree's files, on all cores, in the tree's order."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from formats.blockreader import BlockReader
from formats.errors import FormatError
from imagefs.filesystems.names import bytes_of_name
from imagefs.left_out import bytes_left_out
from imagefs.parallel import in_order, workers
from imagefs.readahead import ReadAheadHandle
from imagefs.tree import ImageTree
from imagefs.walking import Failed, Found, PassedOver, nothing_said, walk
from mounters.tree import NodeType

ALGORITHMS = ("md5", "sha1", "sha256")  # in the order that hashdeep has them in
_STEP = 1 << 20  # bytes hashed at a time
_LARGE = 16 << 20  # bytes of a file that is decoded ahead, and hashed by a thread for each algorithm
_AHEAD = 4096  # files that may be done while one before them is not
_ZEROS = bytes(_STEP)
_SMALL = 256 * 1024  # bytes of a file that is read as a whole
_SECTOR = bytes(512)  # no hole is smaller, but for the last one

Progress = Callable[[int], None]  # bytes that were hashed since the last call


class Hashed(NamedTuple):
    """A file or named stream, and its hashes."""

    path: str  # in the tree; of a stream "path:stream"
    name: str  # the path as ``cp`` into a folder names the file there
    size: int  # bytes
    digests: dict[str, str]  # hexadecimal, by algorithm in the order of ALGORITHMS
    left_out: int = 0  # bytes that the image leaves out: they count as zeros


class _Task(NamedTuple):
    path: str
    name: str
    open: Callable[[], BlockReader]


def hash_files(
    tree: ImageTree,
    paths: Sequence[str],
    algorithms: Collection[str],
    failed: Failed,
    *,
    streams: bool = False,
    left_out: Collection[str] = (),
    passed_over: PassedOver = nothing_said,
    progress: Progress = lambda count: None,
) -> Generator[Hashed, None, None]:
    """Return what yields the hashes of files at and below paths, in the tree's order, streams behind theirs.

    Links are not followed, and no file, as devices are. Disks and partitions as bytes, and what was deleted,
    are hashed where a path names them; $Shadow and $Deleted are else told to ``passed_over``. ``left_out``
    are paths of files whose contents the image is known to lack. What can't be read is told to ``failed`` and
    the rest goes on. ``progress`` is called from several threads. Raises OSError when there is no such path,
    FormatError when it can't be read.
    """
    chosen = [name for name in ALGORITHMS if name in algorithms]
    stopped = threading.Event()

    def go_on(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        progress(count)

    def do(task: _Task) -> Hashed | tuple[str, Exception]:
        try:
            reader = task.open()
            digests, has_holes = _hash(reader, chosen, go_on)
            everything = task.path in left_out
            missing = bytes_left_out(reader, everything=everything) if has_holes or everything else 0
        except (OSError, FormatError) as error:
            return task.path, error
        return Hashed(task.path, task.name, reader.size, digests, missing)

    walks = [
        (walk(tree, path, failed, passed_over=passed_over), _folder_of(path.strip("/"))) for path in paths
    ]
    tasks = (
        task
        for nodes, folder in walks
        for node in nodes
        for task in _tasks(tree, node, folder, failed, streams=streams)
    )

    def results() -> Generator[Hashed, None, None]:
        for result in in_order(do, tasks, workers(), _AHEAD, stopped.set):
            if isinstance(result, Hashed):
                yield result
            else:
                failed(*result)

    return results()


def _folder_of(path: str) -> int:
    """Return how many characters of a path are not in the names of what is copied from it."""
    return len(path.rpartition("/")[0]) + 1 if "/" in path else 0


def _tasks(tree: ImageTree, node: Found, folder: int, failed: Failed, *, streams: bool) -> Iterator[_Task]:
    path, inode = node.path, node.attributes.inode
    if node.attributes.type is NodeType.FILE:
        yield _Task(path, path[folder:], lambda: tree.open_reader(inode))
    if not streams:
        return
    try:
        found = tree.streams(inode)
    except (OSError, FormatError) as error:
        failed(path, error)
        return
    for stream in found:
        name = stream.name
        yield _Task(f"{path}:{name}", f"{path}:{name}"[folder:], _opening(tree, inode, name))


def _opening(tree: ImageTree, inode: int, name: str) -> Callable[[], BlockReader]:
    return lambda: tree.open_stream(inode, name)


def hash_reader(
    reader: BlockReader, algorithms: Sequence[str], progress: Progress = lambda count: None
) -> dict[str, str]:
    """Return the hashes of what a reader holds, in hexadecimal; holes are not read."""
    return _hash(reader, algorithms, progress)[0]


def _hash(reader: BlockReader, algorithms: Sequence[str], progress: Progress) -> tuple[dict[str, str], bool]:
    """Return the hashes, and whether there may be holes."""
    if reader.size <= _SMALL:
        # Asking for holes takes longer than reading: it is left out where no zeros can be any.
        data = reader.read_at(0, reader.size)
        progress(len(data))
        may_have_holes = data[-1:] == b"\0" or _SECTOR in data
        digests = {name: hashlib.new(name, data, usedforsecurity=False).hexdigest() for name in algorithms}
        return digests, may_have_holes
    has_holes = False
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with ExitStack() as stack:
        read: Callable[[int, int], bytes] = reader.read_at
        pool: ThreadPoolExecutor | None = None
        if reader.size >= _LARGE:
            read = stack.enter_context(ReadAheadHandle(reader)).read
            if len(hashes) > 1:
                pool = stack.enter_context(ThreadPoolExecutor(len(hashes) - 1))
        first, *others = hashes.values()
        for extent in reader.extents():
            has_holes |= not extent.is_data
            for offset in range(extent.offset, extent.end, _STEP):
                size = min(_STEP, extent.end - offset)
                piece = read(offset, size) if extent.is_data else memoryview(_ZEROS)[:size]
                if pool is None:
                    for known in hashes.values():
                        known.update(piece)
                else:
                    waiting = [pool.submit(known.update, piece) for known in others]
                    first.update(piece)
                    for future in waiting:
                        future.result()
                progress(size)
    return {name: known.hexdigest() for name, known in hashes.items()}, has_holes


# how hashes are written


def coreutils_line(hashed: Hashed, algorithm: str) -> bytes:
    r"""Return a line as sha256sum and its like write and check it.

    Where a name holds a backslash or a line's end, these are escaped and the line starts with a backslash
    (GNU coreutils manual, "cksum output modes").
    """
    name = hashed.name
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != name else ""
    return mark.encode() + hashed.digests[algorithm].encode() + b"  " + bytes_of_name(escaped) + b"\n"


def hashdeep_head(algorithms: Collection[str]) -> bytes:
    """Return the first lines of a hashdeep file (hashdeep(1)); its reader wants nothing else."""
    columns = ",".join(["size", *(name for name in ALGORITHMS if name in algorithms), "filename"])
    return f"%%%% HASHDEEP-1.0\n%%%% {columns}\n".encode()


def hashdeep_line(hashed: Hashed) -> bytes:
    """Return a line of a hashdeep file; what would end it is told by its number, as "hashdeep -u" does."""
    name = hashed.name.replace("\n", "U+000A").replace("\r", "U+000D")
    fields = [str(hashed.size), *hashed.digests.values()]
    return ",".join(fields).encode() + b"," + bytes_of_name(name) + b"\n"
