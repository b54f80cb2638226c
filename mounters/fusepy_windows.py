"""Mount a tree on Windows through the fusepy API: mfusepy over the FUSE layer that WinFsp comes with.

The second choice there, for Pythons that winfspy has no wheels for: without descriptors, statuses and
attributes of Windows' own. That layer is libfuse 2.8's interface; what it takes beyond that is told by
"fusexmp -h" and in https://winfsp.dev/doc/Native-API-vs-FUSE/. Names are shown as the other mechanism shows
them: links as what they lead to, every name once whatever its case. The layer itself turns Windows' stand-ins
for characters that its names can't have (U+F000 plus the code) into these characters, on the way to us.
"""

import ctypes
import errno
import importlib
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mounters.errors import MountError, error_number
from mounters.session import MountOptions, Session, captured_stderr
from mounters.translation import FILE_SYSTEM_BLOCK, Handles, stat_blocks, type_bits
from mounters.tree import Attributes, Handle, NodeType, Tree, is_a_directory
from mounters.windows_mounts import is_mounted
from mounters.winfsp_names import LONGEST_NAME, cut, windows_name
from mounters.winfsp_nodes import Node, Nodes
from mounters.winfsp_readers import Readers

log = logging.getLogger(__name__)

mfusepy = importlib.import_module("mfusepy")

_READ_ONLY, _CASE_INSENSITIVE = 1 << 22, 1 << 29  # FSP_FUSE_CAP_*
_EPOCH = 116_444_736_000_000_000  # 1970 in FILETIME: 100 ns since 1601
_LONGEST_LABEL = 32  # UTF-16 units
_POLL = 0.02  # seconds
_WRITING = os.O_WRONLY | os.O_RDWR


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    """Return the session that will mount ``tree``; nothing is mounted yet. Raises MountError."""
    if options.original_security:
        raise MountError("--original-security needs the mechanism winfsp", 2)
    return FusepySession(tree, mountpoint, options)


def fuse_options(options: MountOptions) -> dict[str, str | int | bool]:
    """Return what is given to the layer with -o; it refuses nothing that it does not know."""
    given: dict[str, str | int | bool] = {
        "fsname": "imagefs",
        "FileSystemName": "imagefs",  # shown as FUSE-imagefs
        # Files are the mounting user's, to be read by nobody else; modes of the image mean nothing here.
        "uid": -1,
        "gid": -1,
        "umask": "222" if options.allow_other else "277",
        "volname": _option_text(options.label),
        "VolumeSerialNumber": f"{options.serial or zlib.crc32(options.source.encode()) or 1:x}",
        "SectorSize": 512,
        "SectorsPerAllocationUnit": FILE_SYSTEM_BLOCK // 512,
        "MaxComponentLength": LONGEST_NAME,
        "FileInfoTimeout": -1,  # this value alone lets Windows cache data and read ahead
    }
    if options.created:
        given["VolumeCreationTime"] = _EPOCH + options.created // 100
    if options.network:
        given["VolumePrefix"] = "/" + options.network.replace("\\", "/").strip("/")
    return given


def _option_text(text: str) -> str:
    r"""Return a text as it can be the value of an option: a comma would end it, and \ is dropped."""
    return re.sub(r"[,\\\x00-\x1f]", "_", cut(text, _LONGEST_LABEL))


def tree_path(path: str) -> str:
    r"""Return the path, with Windows' names and "\", of what the layer names: "/a:b" is "\a<U+F03A>b"."""
    return "".join(f"\\{windows_name(name)}" for name in path.split("/") if name) or "\\"


class FusepySession(Session):
    """A mount through mfusepy."""

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        self._mountpoint = mountpoint
        self._options = fuse_options(options)
        self._operations = Operations(tree, _Loop(mfusepy))
        self._ended = threading.Event()

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted``, answer until stopped. Raises MountError."""
        is_there = threading.Event()

        def wait() -> None:
            while not self._ended.is_set():
                if is_mounted(self._mountpoint):
                    is_there.set()
                    mounted()
                    return
                self._ended.wait(_POLL)

        threading.Thread(target=wait, name="mount-wait", daemon=True).start()
        failure = ""
        with captured_stderr() as captured:
            try:
                mfusepy.FUSE(self._operations, self._mountpoint, foreground=True, **self._options)
            except RuntimeError as error:
                failure = f"WinFsp ended with {error}"
            finally:
                self._ended.set()
                self._operations.close_all()
        if failure or not is_there.is_set():
            reason = captured.text or failure or "WinFsp ended at once"
            raise MountError(f"{self._mountpoint}: cannot mount: {reason}")

    def stop(self) -> None:
        """Make ``run`` unmount and return."""
        self._operations.loop.end()


class _Loop:
    """The layer's loop, which goes on until it is told to end. Safe from several threads."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._fuse: int | None = None  # its address, as long as it is there
        self._is_ending = False

    def begun(self) -> None:
        """Take note of the loop of this thread."""
        with self._lock:
            self._fuse = self._library._libfuse.fuse_get_context().contents.fuse
        if self._is_ending:
            self.end()

    def gone(self) -> None:
        """Take note that the loop is about to be gone."""
        with self._lock:
            self._fuse = None

    def end(self) -> None:
        """Have the loop end, now or when it begins."""
        with self._lock:
            self._is_ending = True
            if self._fuse is not None:
                self._library._libfuse.fuse_exit(ctypes.c_void_p(self._fuse))


class Operations(mfusepy.Operations):  # type: ignore[misc,name-defined]
    """The layer's requests in terms of a tree; several run at once. What is not here it refuses itself."""

    use_ns = True

    def __init__(self, tree: Tree, loop: _Loop) -> None:
        self.loop = loop
        self._tree = tree
        self._nodes = Nodes(tree)
        self._readers = Readers(tree)
        self._handles = Handles()

    def init_with_config(self, connection: Any, _: Any) -> None:
        """Say what kind of volume this is."""
        connection.want |= _READ_ONLY | _CASE_INSENSITIVE
        self.loop.begun()

    def destroy(self, path: str) -> None:
        """Take note of the end."""
        self.loop.gone()

    def close_all(self) -> None:
        """Close what was never released."""
        self._handles.close_all()
        self._readers.close_all()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Return a node's stat fields, times in nanoseconds."""
        with _errors("stat", path):
            return _stat(self._attributes(tree_path(path)))

    def _attributes(self, path: str) -> Attributes:
        """Return attributes; what can't be read is shown without them: the layer would leave its name out."""
        try:
            return self._nodes.resolve(path)[0].attributes
        except Exception as error:
            number = error_number(error, "stat", repr(path))
            if number in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
            above, _, name = path.rpartition("\\")
            directory = self._nodes.resolve(above or "\\")[0].directory
            at = self._nodes.view(directory).find(name) if directory is not None else None
            if directory is None or at is None:
                raise
            entry = self._nodes.view(directory).entries[at]
            kind = entry.type if entry.type is NodeType.DIRECTORY else NodeType.FILE
            return Attributes(entry.inode, kind)

    def statfs(self, path: str) -> dict[str, int]:
        """Return the size of what is shown; nothing is free."""
        with _errors("statfs", path):
            return {
                "f_bsize": FILE_SYSTEM_BLOCK,
                "f_frsize": FILE_SYSTEM_BLOCK,
                "f_blocks": -(-self._tree.size() // FILE_SYSTEM_BLOCK),
                "f_namemax": LONGEST_NAME,
            }

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading and return its handle's number."""
        if flags & _WRITING:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        with _errors("open", path):
            node = self._nodes.resolve(tree_path(path))[0]
            if node.directory is not None:
                raise is_a_directory(path)
            if node.attributes.type is NodeType.OTHER:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
            return self._handles.add(node.attributes.inode, _File(node, self._readers))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Return ``size`` bytes from ``offset``, fewer only at the end of the file."""
        inode, handle = self._handles.get(fh)
        with _errors("read", f"inode {inode} offset {offset} length {size} of {path}"):
            return handle.read(offset, size)

    def release(self, path: str, fh: int) -> int:
        """Close a file."""
        return self._close(fh)

    def opendir(self, path: str) -> int:
        """Open a directory and return its handle's number."""
        with _errors("list", path):
            node = self._nodes.resolve(tree_path(path))[0]
            return self._handles.add(node.attributes.inode, _Listing(self._nodes, node, path))

    def readdir(self, path: str, fh: int) -> list[str]:
        """Return all names; the layer asks for the attributes of each."""
        listing = self._handles.get(fh)[1]
        assert isinstance(listing, _Listing)
        return listing.names

    def releasedir(self, path: str, fh: int) -> int:
        """Close a directory."""
        return self._close(fh)

    def _close(self, number: int) -> int:
        found = self._handles.pop(number)
        if found is not None:
            with _errors("close", f"inode {found[0]}"):
                found[1].close()
        return 0


class _File(Handle):
    """An opened file. Windows keeps many open: the readers are kept elsewhere."""

    def __init__(self, node: Node, readers: Readers) -> None:
        self.size = node.attributes.size
        self._inode, self._text, self._readers = node.attributes.inode, node.text, readers
        readers.opened(self._inode)

    def read(self, offset: int, length: int) -> bytes:
        if self._text is not None:
            return self._text[offset : offset + length]
        return self._readers.read(self._inode, offset, length)

    def close(self) -> None:
        self._readers.closed(self._inode)


class _Listing(Handle):
    """An opened directory."""

    size = 0

    def __init__(self, nodes: Nodes, node: Node, path: str) -> None:
        if node.directory is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        dots = [".", ".."] if node.directory.above is not None else []
        self.names = [*dots, *nodes.view(node.directory).names]

    def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


def _stat(attributes: Attributes) -> dict[str, int]:
    is_directory = attributes.type is NodeType.DIRECTORY
    return {
        "st_ino": attributes.inode,
        "st_mode": type_bits(NodeType.DIRECTORY if is_directory else NodeType.FILE),
        "st_nlink": 1,
        "st_size": 0 if is_directory else attributes.size,
        "st_blocks": stat_blocks(attributes),
        "st_blksize": FILE_SYSTEM_BLOCK,
        "st_atime": attributes.accessed,
        "st_mtime": attributes.modified,
        "st_ctime": attributes.changed,
        "st_birthtime": attributes.created,
    }


@contextmanager
def _errors(doing: str, where: str) -> Iterator[None]:
    """Turn the tree's errors into those that mfusepy hands to the layer."""
    try:
        yield
    except Exception as error:
        number = error_number(error, doing, repr(where))
        raise OSError(number, os.strerror(number)) from None
