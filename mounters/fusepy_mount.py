"""Mount a tree through the fusepy API (mfusepy): macOS, FreeBSD, and Linux as the second choice.

Windows has fusepy_windows.

libfuse's high-level interface names nodes by path and calls back in its own threads, several at once,
which a tree allows. Python makes a new thread state for every such call: thread-local data of a tree
does not survive from one to the next.
"""

import ctypes
import ctypes.util
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from mounters.errors import MountError, error_number
from mounters.mountpoints import LINUX, Mounted, find_mount, unmount
from mounters.session import MountOptions, Session, captured_stderr, mount_label
from mounters.translation import (
    FILE_SYSTEM_BLOCK,
    FOREVER,
    LONGEST_NAME,
    Handles,
    InodeNumbers,
    attribute_names,
    checked,
    clipped,
    kernel_name,
    open_checked,
    stat_blocks,
    stat_mode,
    systems_own,
    type_bits,
)
from mounters.tree import Entry, Handle, Tree

assert sys.platform != "win32"

log = logging.getLogger(__name__)

_THREADS = 32  # requests at once; libfuse's own limit is 10
_PATHS_KEPT = 4096  # directories whose inode numbers are remembered by path


def _import_mfusepy() -> ModuleType:
    """Import mfusepy with libfuse 3 where there is one: it reads 1 MiB at once, libfuse 2 128 KiB."""
    chosen = "FUSE_LIBRARY_PATH", "FUSE_LIBRARY_NAME"
    prefer = (
        sys.platform == "linux"
        and not any(name in os.environ for name in chosen)
        and ctypes.util.find_library("fuse3") is not None
    )
    if prefer:
        os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    try:
        return importlib.import_module("mfusepy")
    finally:
        if prefer:
            del os.environ["FUSE_LIBRARY_NAME"]


mfusepy = _import_mfusepy()


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    """Return the session that will mount ``tree``; nothing is mounted yet."""
    return FusepySession(tree, mountpoint, options)


class FusepySession(Session):
    """A mount through mfusepy."""

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        self._tree = tree
        self._mountpoint = mountpoint
        self._mounted: Mounted | None = None
        self._options: dict[str, Any] = {
            "ro": True,
            "fsname": mount_label(options.source),
            "use_ino": True,
            "kernel_cache": True,
            "entry_timeout": FOREVER,
            "attr_timeout": FOREVER,
        }
        if sys.platform == "darwin":
            self._options["volname"] = mount_label(options.source)
        else:
            self._options |= {"subtype": "imagefs", "negative_timeout": FOREVER}
        if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
            self._options["max_threads"] = _THREADS
        if options.allow_other:
            # Alone on the mount, a user reads what the image holds whoever owned it; others do not.
            self._options |= {"allow_other": True, "default_permissions": True}

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted``, answer until unmounted. Raises MountError.

        Not for the main thread, where mfusepy and libfuse would take over SIGINT.
        """
        directory = _working_directory()
        capture = ExitStack()
        captured = capture.enter_context(captured_stderr())
        started = threading.Event()

        def start() -> None:
            capture.close()
            if directory is not None:
                os.chdir(directory)  # libfuse has gone to "/", even in the foreground
            self._mounted = find_mount(self._mountpoint) if LINUX else None
            started.set()
            mounted()

        operations = Operations(self._tree, start)
        try:
            mfusepy.FUSE(operations, self._mountpoint, foreground=True, **self._options)
        except RuntimeError as error:
            capture.close()
            if not started.is_set():
                reason = captured.text or f"libfuse ended with {error}"
                raise MountError(f"{self._mountpoint}: cannot mount: {reason}") from None
            log.debug("%s: libfuse ended with %s", self._mountpoint, error)  # as after a forced unmount
        finally:
            _ignore_broken_pipes()
            capture.close()
            operations.close_all()

    def stop(self) -> None:
        """Make ``run`` unmount and return."""
        if LINUX and find_mount(self._mountpoint) != self._mounted:
            return  # it has been unmounted, and something else may be there
        with suppress(MountError):  # it has been unmounted meanwhile
            unmount(self._mountpoint, force=True)


def _ignore_broken_pipes() -> None:
    """Have SIGPIPE ignored again, as Python has it.

    libfuse 2 gives it its default meaning when it ends, though it was not its own to give: the next write
    to a closed socket would end the process without a word. Python's own call is for the main thread alone.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGPIPE, signal.SIG_IGN.value)


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it has been removed
        return None


class Operations(mfusepy.Operations):  # type: ignore[misc,name-defined]
    """The kernel's requests by path in terms of a tree; several run at once.

    What is not here, changes and lseek among it, libfuse answers with ENOSYS.
    """

    use_ns = True
    flag_nopath = True  # what has a handle needs no path
    flag_nullpath_ok = True

    def __init__(self, tree: Tree, started: Callable[[], None]) -> None:
        self._tree = tree
        self._started = started
        self._inodes = InodeNumbers(tree.root)
        self._handles = Handles()
        self._directories: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def init(self, path: str) -> None:
        """Take note that the kernel talks to us."""
        self._started()

    def close_all(self) -> None:
        """Close the handles that the kernel never released."""
        self._handles.close_all()

    # Paths

    def _resolve(self, path: str) -> int:
        """Return the tree's inode number of an absolute path."""
        parent, _, name = path.rpartition("/")
        return self._tree.lookup(self._directory(parent), name) if name else self._tree.root

    def _directory(self, path: str) -> int:
        """Return the inode number of a directory, "" being the root; the latest ones are remembered."""
        names = path.split("/")[1:]
        known, inode = 0, self._tree.root
        with self._lock:
            for depth in range(len(names), 0, -1):
                found = self._directories.get("/".join(names[:depth]))
                if found is not None:
                    known, inode = depth, found
                    break
        for depth in range(known, len(names)):
            inode = self._tree.lookup(inode, names[depth])
            self._remember("/".join(names[: depth + 1]), inode)
        return inode

    def _remember(self, path: str, inode: int) -> None:
        with self._lock:
            self._directories[path] = inode
            if len(self._directories) > _PATHS_KEPT:
                self._directories.popitem(last=False)

    # Attributes

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        """Return a node's stat fields, times in nanoseconds."""
        with _errors("stat", path):
            if path is None:
                assert fh is not None
                return self._stat(self._handles.get(fh)[0])
            return self._stat(self._resolve(path))

    def _stat(self, inode: int) -> dict[str, int]:
        attributes = self._tree.attributes(inode)
        return {
            "st_ino": self._inodes.kernel(attributes.inode),
            "st_mode": stat_mode(attributes),
            "st_nlink": attributes.links,
            "st_uid": attributes.uid,
            "st_gid": attributes.gid,
            "st_size": attributes.size,
            "st_blocks": stat_blocks(attributes),
            "st_blksize": FILE_SYSTEM_BLOCK,
            "st_atime": attributes.accessed,
            "st_mtime": attributes.modified,
            "st_ctime": attributes.changed,
            "st_birthtime": attributes.created,
        }

    def readlink(self, path: str) -> str:
        """Return a symbolic link's target."""
        with _errors("readlink", path):
            return self._tree.read_link(self._resolve(path))

    def listxattr(self, path: str) -> list[str]:
        """Return the names of a node's extended attributes."""
        with _errors("listxattr", path):
            return [os.fsdecode(name) for name in attribute_names(self._tree, self._resolve(path))]

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Return the value of an extended attribute."""
        with _errors(f"getxattr {name!r} of", path):
            refused = systems_own(os.fsencode(name))  # without looking for the path
            if refused is not None:
                raise OSError(refused, os.strerror(refused), name)
            return self._tree.extended_attribute(self._resolve(path), name)

    def statfs(self, path: str) -> dict[str, int]:
        """Return the size of what is shown; nothing is free."""
        with _errors("statfs", path):
            blocks = -(-self._tree.size() // FILE_SYSTEM_BLOCK)
            return {
                "f_bsize": FILE_SYSTEM_BLOCK,
                "f_frsize": FILE_SYSTEM_BLOCK,
                "f_blocks": blocks,
                "f_namemax": LONGEST_NAME,
            }

    # Files

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading and return its handle's number."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        with _errors("open", path):
            inode = self._resolve(path)
            return self._handles.add(inode, open_checked(self._tree, inode))

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        """Return ``size`` bytes from ``offset``, fewer only at the end of the file."""
        inode, handle = self._handles.get(fh)
        try:
            wanted = clipped(handle, offset, size)
            return checked(handle.read(offset, wanted), wanted) if wanted else b""
        except Exception as error:
            number = error_number(error, "read", f"inode {inode} offset {offset} length {size}")
            raise OSError(number, os.strerror(number)) from None

    def release(self, path: str | None, fh: int) -> int:
        """Close a file."""
        found = self._handles.pop(fh)
        if found is not None:
            with _errors("close", f"inode {found[0]}"):
                found[1].close()
        return 0

    # Directories

    def opendir(self, path: str) -> int:
        """Open a directory and return its handle's number."""
        with _errors("list", path):
            return self._handles.add(0, _Listing(self._tree.entries(self._resolve(path))))

    def readdir(self, path: str | None, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """Return all entries, with what a directory entry holds of their attributes."""
        listing = self._handles.get(fh)[1]
        assert isinstance(listing, _Listing)
        for entry in listing.entries:
            if kernel_name(entry.name) is not None:
                shown = {"st_mode": type_bits(entry.type), "st_ino": self._inodes.kernel(entry.inode)}
                yield entry.name, shown, 0

    def releasedir(self, path: str | None, fh: int) -> int:
        """Close a directory."""
        self._handles.pop(fh)
        return 0


class _Listing(Handle):
    """An opened directory."""

    size = 0

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries

    def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def _errors(doing: str, where: str | None) -> Iterator[None]:
    """Turn the tree's errors into those that mfusepy hands to the kernel."""
    try:
        yield
    except Exception as error:
        number = error_number(error, doing, repr(where))
        raise OSError(number, os.strerror(number)) from None
