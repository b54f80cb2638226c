"""Mount a tree on Linux with pyfuse3 and trio.

One event loop answers the kernel. What the tree has at hand is answered on the loop; everything else
runs in worker threads, reads apart from the rest so that slow reads never hold up a listing. All
caches of the kernel are on, since a tree never changes.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyfuse3
import trio

from mounters.errors import MountError, error_number
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
    read_checked,
    stat_blocks,
    stat_mode,
    systems_own,
)
from mounters.tree import Attributes, Entry, Tree

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_THREADS = max(16, 4 * (os.cpu_count() or 1))
OTHER_THREADS = 8
_IN_USE = threading.Lock()  # pyfuse3 keeps its session in globals: one mount in a process


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    """Return the session that will mount ``tree``; nothing is mounted yet."""
    return Pyfuse3Session(tree, mountpoint, options)


class Pyfuse3Session(Session):
    """A mount through pyfuse3."""

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        self._tree = tree
        self._mountpoint = mountpoint
        self._options = {"ro", f"fsname={mount_label(options.source)}", "subtype=imagefs"}
        if options.allow_other:
            # Alone on the mount, a user reads what the image holds whoever owned it; others do not.
            self._options |= {"allow_other", "default_permissions"}
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = False

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted``, answer until unmounted. Raises MountError."""
        if not _IN_USE.acquire(blocking=False):
            raise MountError("pyfuse3 serves one mount in a process, and this process has one already")
        operations = Operations(self._tree)
        try:
            with captured_stderr() as captured:
                try:
                    pyfuse3.init(operations, self._mountpoint, self._options)
                    failed = False
                except RuntimeError:
                    failed = True
            if failed:
                pyfuse3.close(unmount=False)
                reason = captured.text or "libfuse says no more"
                raise MountError(f"{self._mountpoint}: cannot mount: {reason}")
            if captured.text:
                log.warning("%s: %s", self._mountpoint, captured.text)
            try:
                mounted()
                trio.run(self._answer)
            finally:
                pyfuse3.close(unmount=True)
                operations.close_all()
        finally:
            _IN_USE.release()

    async def _answer(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if not self._stopping:
            await pyfuse3.main()

    def stop(self) -> None:
        """Make ``run`` unmount and return."""
        self._stopping = True
        token = self._token
        if token is not None:
            try:
                token.run_sync_soon(pyfuse3.terminate)
            except trio.RunFinishedError:
                log.debug("%s: has ended already", self._mountpoint)


class _Listing:
    """An opened directory: its entries, read on first use."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.entries: Sequence[tuple[Entry, Attributes | None]] | None = None


class Operations(pyfuse3.Operations):
    """The kernel's requests in terms of a tree.

    Lookup counts need no keeping: inode numbers are the tree's own and permanent. What is not here
    pyfuse3 answers with ENOSYS and the kernel never asks again; it offers no way to tell holes (lseek).
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._inodes = InodeNumbers(tree.root)
        self._handles = Handles()
        self._listings: dict[int, _Listing] = {}
        self._next_listing = 1
        self._readers = trio.CapacityLimiter(READ_THREADS)
        self._others = trio.CapacityLimiter(OTHER_THREADS)

    def close_all(self) -> None:
        """Close the handles that the kernel never released."""
        self._handles.close_all()

    async def _in_thread(self, doing: str, inode: int, function: Callable[..., T], *args: object) -> T:
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=self._others)
        except Exception as error:
            raise pyfuse3.FUSEError(error_number(error, doing, f"inode {inode}")) from None

    # Names and attributes

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return a name's attributes, or number 0 for an absent name, which the kernel then remembers."""
        parent = self._inodes.tree(parent_inode)
        return await self._in_thread(f"lookup {name!r} in", parent, self._find, parent, name)

    def _find(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        try:
            inode = self._tree.lookup(parent, os.fsdecode(name))
        except Exception as error:
            if getattr(error, "errno", None) != errno.ENOENT:
                raise
            absent = pyfuse3.EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = FOREVER
            return absent
        return self._stat(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Do nothing: see the class."""

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return a node's attributes."""
        number = self._inodes.tree(inode)
        return await self._in_thread("stat", number, self._stat, number)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Return a symbolic link's target."""
        number = self._inodes.tree(inode)
        return await self._in_thread("readlink", number, self._target, number)

    def _target(self, inode: int) -> bytes:
        return os.fsencode(self._tree.read_link(inode))

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of a node's extended attributes."""
        number = self._inodes.tree(inode)
        return await self._in_thread("listxattr", number, attribute_names, self._tree, number)

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return the value of an extended attribute."""
        refused = systems_own(name)
        if refused is not None:
            raise pyfuse3.FUSEError(refused)
        number = self._inodes.tree(inode)
        return await self._in_thread(
            f"getxattr {name!r} of", number, self._tree.extended_attribute, number, os.fsdecode(name)
        )

    def _stat(self, inode: int) -> pyfuse3.EntryAttributes:
        return self._translated(self._tree.attributes(inode))

    def _translated(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._inodes.kernel(attributes.inode)
        entry.st_mode = stat_mode(attributes)
        entry.st_nlink = attributes.links
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_size = attributes.size
        entry.st_blocks = stat_blocks(attributes)
        entry.st_blksize = FILE_SYSTEM_BLOCK
        entry.st_atime_ns = attributes.accessed
        entry.st_mtime_ns = attributes.modified
        entry.st_ctime_ns = attributes.changed
        entry.entry_timeout = FOREVER
        entry.attr_timeout = FOREVER
        return entry

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the size of what is shown; nothing is free."""
        size = await self._in_thread("statfs", self._tree.root, self._tree.size)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = FILE_SYSTEM_BLOCK
        answer.f_blocks = -(-size // FILE_SYSTEM_BLOCK)
        answer.f_namemax = LONGEST_NAME
        return answer

    # Files

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file; the kernel keeps what it has cached of it."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        number = self._inodes.tree(inode)
        handle = await self._in_thread("open", number, open_checked, self._tree, number)
        return pyfuse3.FileInfo(fh=self._handles.add(number, handle), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return ``size`` bytes from ``off``, fewer only at the end of the file."""
        inode, handle = self._handles.get(fh)
        try:
            wanted = clipped(handle, off, size)
            data = handle.read_at_once(off, wanted) if wanted else b""
            if data is not None:
                return checked(data, wanted)
            return await trio.to_thread.run_sync(read_checked, handle, off, wanted, limiter=self._readers)
        except Exception as error:
            number = error_number(error, "read", f"inode {inode} offset {off} length {size}")
            raise pyfuse3.FUSEError(number) from None

    async def release(self, fh: int) -> None:
        """Close a file."""
        found = self._handles.pop(fh)
        if found is not None:
            inode, handle = found
            await self._in_thread("close", inode, handle.close)

    # Directories

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a directory."""
        number = self._next_listing
        self._next_listing += 1
        self._listings[number] = _Listing(self._inodes.tree(inode))
        return number

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Give entries with attributes from position ``start_id`` until the kernel's buffer is full."""
        listing = self._listings[fh]
        if listing.entries is None:
            listing.entries = await self._in_thread(
                "list", listing.inode, self._tree.entries_with_attributes, listing.inode
            )
        try:
            self._reply(listing.entries, start_id, token)
        except Exception as error:
            where = f"inode {listing.inode} from entry {start_id}"
            raise pyfuse3.FUSEError(error_number(error, "list", where)) from None

    def _reply(
        self,
        entries: Sequence[tuple[Entry, Attributes | None]],
        start: int,
        token: pyfuse3.ReaddirToken,
    ) -> None:
        for position in range(start, len(entries)):
            entry, attributes = entries[position]
            name = kernel_name(entry.name)
            if name is None:
                continue
            if attributes is None:
                shown = self._translated(Attributes(entry.inode, entry.type))
                shown.entry_timeout = shown.attr_timeout = 0  # stat asks again, and gets the error
            else:
                shown = self._translated(attributes)
            if not pyfuse3.readdir_reply(token, name, shown, position + 1):
                return

    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        self._listings.pop(fh, None)
