"""The kernel's FUSE requests in terms of a tree: bytes in, bytes out."""

import sys

assert sys.platform != "win32"

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from mounters.devfuse_listing import DirectoryListing, Habit
from mounters.devfuse_protocol import (
    ATTR_OUT,
    ENTRY_OUT,
    FOPEN_CACHE_DIR,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    GETXATTR_IN,
    GETXATTR_OUT,
    IN_HEADER,
    LARGEST_READ,
    LONGEST_LINK,
    LSEEK_IN,
    LSEEK_OUT,
    OPEN_IN,
    OPEN_OUT,
    OUT_HEADER,
    READ_IN,
    RELEASE_IN,
    SEEK_DATA,
    SEEK_HOLE,
    STATFS_OUT,
    Opcode,
    attribute_fields,
    c_string,
    statx_out,
)
from mounters.errors import error_number
from mounters.translation import (
    FILE_SYSTEM_BLOCK,
    FOREVER,
    LONGEST_NAME,
    Handles,
    InodeNumbers,
    attribute_names,
    open_checked,
    read_checked,
    systems_own,
)
from mounters.tree import Attributes, NodeType, Tree

log = logging.getLogger(__name__)

_BODY = IN_HEADER.size  # offset of what follows a request's header
_READDIR_OFFSET, _READDIR_SIZE = 1, 2  # in READ_IN
_ENTRIES_KEPT = 300_000  # of directories that are being listed
_FEW = 256  # entries of a directory whose attributes are read with the first of them
_ABSENT = ENTRY_OUT.pack(0, 0, FOREVER, *(0,) * 19)  # and it stays so

Answer = bytes | None  # None: the kernel expects none


class _Failure(Exception):  # noqa: N818  (an answer, not a fault)
    """The request is answered with this errno, and nothing is logged."""

    def __init__(self, number: int) -> None:
        self.number = number


class Operations:
    """Answers to requests; safe from several threads.

    Lookup counts need no keeping: inode numbers are the tree's own and permanent.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._inodes = InodeNumbers(tree.root)
        self._handles = Handles()
        self._listings: OrderedDict[int, DirectoryListing] = OrderedDict()
        self._listings_lock = threading.Lock()
        self._habit = Habit()
        self.opens_directories = True  # else the kernel is told not to ask, which it remembers
        self._answers: dict[int, Callable[[int, bytes], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.RELEASE: self._release,
            Opcode.LSEEK: self._lseek,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._nothing,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.STATFS: self._statfs,
            Opcode.DESTROY: self._nothing,
            Opcode.IOCTL: self._ioctl,
        }

    def close_all(self) -> None:
        """Close the handles that the kernel never released."""
        self._handles.close_all()

    def answer(self, request: bytes) -> tuple[bytes, bytes] | None:
        """Return a request's answer, header and body; None where the kernel expects none.

        Every exception becomes an answer: an errno. What is not known here gets ENOSYS, which makes the
        kernel do without it.
        """
        if len(request) < _BODY:
            log.error("the kernel sends a request of %d bytes", len(request))
            return None
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            return None
        answer = self._answers.get(opcode)
        if answer is None:
            return _failed(unique, errno.ENOSYS)
        inode = self._inodes.tree(node)
        try:
            body = answer(inode, request) or b""
        except _Failure as failure:
            return _failed(unique, failure.number)
        except Exception as error:
            return _failed(unique, error_number(error, *_told(opcode, inode, request)))
        return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique), body

    # Names and attributes

    def _lookup(self, inode: int, request: bytes) -> bytes:
        try:
            found = self._tree.lookup(inode, os.fsdecode(c_string(request, _BODY)))
        except Exception as error:
            if getattr(error, "errno", None) != errno.ENOENT:
                raise
            return _ABSENT
        number = self._inodes.kernel(found)
        attributes = self._tree.attributes(found)
        if attributes.type is not NodeType.DIRECTORY:  # which may be looked for to go into it
            self._habit.asks(inode)
        fields = attribute_fields(number, attributes)
        return ENTRY_OUT.pack(number, 0, FOREVER, FOREVER, 0, 0, *fields)

    def _getattr(self, inode: int, request: bytes) -> bytes:
        fields = attribute_fields(self._inodes.kernel(inode), self._tree.attributes(inode))
        return ATTR_OUT.pack(FOREVER, 0, 0, *fields)

    def _statx(self, inode: int, request: bytes) -> bytes:
        return statx_out(self._inodes.kernel(inode), self._tree.attributes(inode), FOREVER)

    def _readlink(self, inode: int, request: bytes) -> bytes:
        target = os.fsencode(self._tree.read_link(inode))
        if len(target) > LONGEST_LINK:
            raise _Failure(errno.ENAMETOOLONG)
        return target

    def _getxattr(self, inode: int, request: bytes) -> bytes:
        size, _ = GETXATTR_IN.unpack_from(request, _BODY)
        name = c_string(request, _BODY + GETXATTR_IN.size)
        refused = systems_own(name)
        if refused is not None:
            raise _Failure(refused)
        return _sized(self._tree.extended_attribute(inode, os.fsdecode(name)), size)

    def _listxattr(self, inode: int, request: bytes) -> bytes:
        size, _ = GETXATTR_IN.unpack_from(request, _BODY)
        return _sized(b"".join(name + b"\0" for name in attribute_names(self._tree, inode)), size)

    def _statfs(self, inode: int, request: bytes) -> bytes:
        blocks = -(-self._tree.size() // FILE_SYSTEM_BLOCK)
        return STATFS_OUT.pack(blocks, 0, 0, 0, 0, FILE_SYSTEM_BLOCK, LONGEST_NAME, FILE_SYSTEM_BLOCK)

    # Files

    def _open(self, inode: int, request: bytes) -> bytes:
        flags, _ = OPEN_IN.unpack_from(request, _BODY)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _Failure(errno.EROFS)
        number = self._handles.add(inode, open_checked(self._tree, inode))
        return OPEN_OUT.pack(number, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH, 0)

    def _read(self, inode: int, request: bytes) -> bytes:
        number, offset, size, *_ = READ_IN.unpack_from(request, _BODY)
        if size > LARGEST_READ:
            raise _Failure(errno.EINVAL)
        return read_checked(self._handles.get(number)[1], offset, size)

    def _lseek(self, inode: int, request: bytes) -> bytes:
        number, offset, whence, _ = LSEEK_IN.unpack_from(request, _BODY)
        handle = self._handles.get(number)[1]
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise _Failure(errno.EINVAL)
        if offset >= handle.size:
            raise _Failure(errno.ENXIO)
        found = handle.next_data(offset) if whence == SEEK_DATA else handle.next_hole(offset)
        if found is None:
            raise _Failure(errno.ENXIO)
        return LSEEK_OUT.pack(found)

    def _release(self, inode: int, request: bytes) -> Answer:
        number, *_ = RELEASE_IN.unpack_from(request, _BODY)
        found = self._handles.pop(number)
        if found is not None:
            found[1].close()
        return None

    # Directories

    def _opendir(self, inode: int, request: bytes) -> bytes:
        if not self.opens_directories:
            raise _Failure(errno.ENOSYS)
        return OPEN_OUT.pack(0, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR, 0)

    def _readdir(self, inode: int, request: bytes) -> bytes:
        fields = READ_IN.unpack_from(request, _BODY)
        return self._listing(inode).names_from(fields[_READDIR_OFFSET], fields[_READDIR_SIZE])

    def _listing(self, inode: int) -> DirectoryListing:
        """Return a directory's listing; those used last are kept, up to a number of entries."""
        with self._listings_lock:
            listing = self._listings.get(inode)
            if listing is not None:
                self._listings.move_to_end(inode)
                return listing
        listing = DirectoryListing(self._tree.columns(inode), self._inodes)
        with self._listings_lock:
            self._listings[inode] = listing
            kept = sum(len(one.names) for one in self._listings.values())
            while kept > _ENTRIES_KEPT and len(self._listings) > 1:
                _, gone = self._listings.popitem(last=False)
                kept -= len(gone.names)
        return listing

    def _readdirplus(self, inode: int, request: bytes) -> bytes:
        fields = READ_IN.unpack_from(request, _BODY)
        position, size = fields[_READDIR_OFFSET], fields[_READDIR_SIZE]
        listing = self._listing(inode)
        # The kernel begins every listing so; it goes on only when someone wants the attributes.
        if not position and not self._habit.begins(inode):
            return listing.entries_from(position, size, lambda at: None)
        if listing.attributes is None and (position or len(listing.names) <= _FEW):
            found = self._tree.entries_with_attributes(inode)
            listing.attributes = {entry.name: attributes for entry, attributes in found}
        return listing.entries_from(position, size, partial(self._attributes_of, inode, listing))

    def _attributes_of(self, inode: int, listing: DirectoryListing, at: int) -> Attributes | None:
        """Return an entry's attributes, None where they can't be read: who asks for them is told why."""
        if listing.attributes is not None:
            return listing.attributes.get(listing.names[at])
        try:
            return self._tree.attributes(self._tree.lookup(inode, listing.names[at]))
        except Exception:  # whatever it is, it is raised and reported where the attributes are asked for
            return None

    # The rest

    def _nothing(self, inode: int, request: bytes) -> Answer:
        return None

    def _ioctl(self, inode: int, request: bytes) -> Answer:
        raise _Failure(errno.ENOTTY)


def _sized(data: bytes, size: int) -> bytes:
    """Return an extended attribute's answer: its size for who gives no room, else all of it."""
    if not size:
        return GETXATTR_OUT.pack(len(data), 0)
    if len(data) > size:
        raise _Failure(errno.ERANGE)
    return data


def _failed(unique: int, number: int) -> tuple[bytes, bytes]:
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique), b""


def _told(opcode: int, inode: int, request: bytes) -> tuple[str, str]:
    """Return what was asked for, and where, for the log."""
    where = f"inode {inode}"
    if opcode == Opcode.READ and len(request) >= _BODY + READ_IN.size:
        _, offset, size, *_ = READ_IN.unpack_from(request, _BODY)
        where += f" offset {offset} length {size}"
    elif opcode in (Opcode.LOOKUP, Opcode.GETXATTR):
        start = _BODY if opcode == Opcode.LOOKUP else _BODY + GETXATTR_IN.size
        where += f" {request[start:].rstrip(bytes(1))!r}"
    return Opcode(opcode).name.lower(), where
