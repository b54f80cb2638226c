"""What every mounter needs between the Tree contract and a kernel: inode numbers, modes, names, reads."""

import errno
import logging
import stat
import threading

import numpy as np
from numpy.typing import NDArray

from mounters.tree import Attributes, Handle, NodeType, Tree

log = logging.getLogger(__name__)

KERNEL_ROOT = 1  # FUSE's number for "/"
_KERNEL_ZERO = 2**64 - 2  # FUSE has no inode 0; a tree's numbers end at 2**63
STAT_BLOCK = 512  # bytes, the unit of st_blocks
FILE_SYSTEM_BLOCK = 4096  # bytes, the unit of statfs
LONGEST_NAME = 1024  # bytes, FUSE's limit; 255 UTF-16 units of NTFS can take 765
LONGEST_ATTRIBUTE_NAME = 255  # bytes, XATTR_NAME_MAX of linux/limits.h
FOREVER = 86400 * 365  # seconds; a tree never changes while it is mounted

# What systems and ``ls -l`` ask for with every node, to enforce it: never shown, answered without the tree.
# Who is told that there is no support for labels and lists of access asks no more, as ``ls`` does.
_SYSTEMS_OWN = {
    b"security.selinux": errno.EOPNOTSUPP,
    b"system.posix_acl_access": errno.EOPNOTSUPP,
    b"system.posix_acl_default": errno.EOPNOTSUPP,
    b"security.capability": errno.ENODATA,
    b"security.evm": errno.ENODATA,
    b"security.ima": errno.ENODATA,
    b"security.SMACK64": errno.ENODATA,
    b"security.apparmor": errno.ENODATA,
}

_TYPE_BITS = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.LINK: stat.S_IFLNK,
    NodeType.OTHER: stat.S_IFSOCK,  # opening it fails at once, where a pipe would wait and a device be wrong
}


class InodeNumbers:
    """The tree's inode numbers as the kernel sees them: the root is 1 and none is 0.

    The numbers stay what they are otherwise, so that they need no table and never expire. A tree that
    uses 1 for something else has it swapped with the root.
    """

    def __init__(self, root: int) -> None:
        self._to_kernel: dict[int, int] = {}
        if root != KERNEL_ROOT:
            self._to_kernel[KERNEL_ROOT] = root
        self._to_kernel[root] = KERNEL_ROOT
        for number, shown in list(self._to_kernel.items()):
            if shown == 0:
                self._to_kernel[number] = _KERNEL_ZERO
        self._to_kernel.setdefault(0, _KERNEL_ZERO)
        self._to_tree = {shown: number for number, shown in self._to_kernel.items()}

    def kernel(self, inode: int) -> int:
        """Return the kernel's number for a tree's."""
        return self._to_kernel.get(inode, inode)

    def all_to_kernel(self, inodes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the kernel's numbers for many of a tree's."""
        shown = inodes.copy()
        for inode, number in self._to_kernel.items():
            shown[inodes == inode] = number
        return shown

    def tree(self, inode: int) -> int:
        """Return the tree's number for a kernel's."""
        return self._to_tree.get(inode, inode)


class Handles:
    """Opened things by number; numbers are never used twice. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._opened: dict[int, tuple[int, Handle]] = {}

    def add(self, inode: int, handle: Handle) -> int:
        """Keep a handle with its tree inode and return its number."""
        with self._lock:
            number = self._next
            self._next += 1
            self._opened[number] = (inode, handle)
            return number

    def get(self, number: int) -> tuple[int, Handle]:
        """Return a handle and its tree inode."""
        return self._opened[number]

    def pop(self, number: int) -> tuple[int, Handle] | None:
        """Forget a handle and return it with its inode."""
        with self._lock:
            return self._opened.pop(number, None)

    def close_all(self) -> None:
        """Close what the kernel never released, as when a mount is forced away."""
        with self._lock:
            left, self._opened = list(self._opened.values()), {}
        for inode, handle in left:
            try:
                handle.close()
            except Exception:
                log.exception("close inode %d", inode)


def open_checked(tree: Tree, inode: int) -> Handle:
    """Open a file and make sure that its handle is as long as its attributes say.

    The kernel goes by the attributes, and fills with zeros what a shorter handle does not give.
    """
    handle = tree.open(inode)
    expected = tree.attributes(inode).size
    if handle.size != expected:
        handle.close()
        raise ValueError(f"inode {inode} has {expected} bytes, its handle {handle.size}")
    return handle


def clipped(handle: Handle, offset: int, length: int) -> int:
    """Return how many of ``length`` bytes from ``offset`` lie before the end of the file."""
    return max(0, min(length, handle.size - offset))


def checked(data: bytes, wanted: int) -> bytes:
    """Return ``data`` when it is as long as wanted; the kernel would show zeros for what is missing."""
    if len(data) != wanted:
        raise ValueError(f"a read of {wanted} bytes gave {len(data)}")
    return data


def read_checked(handle: Handle, offset: int, length: int) -> bytes:
    """Return ``length`` bytes from ``offset``, fewer only at the end of the file. May block."""
    wanted = clipped(handle, offset, length)
    return checked(handle.read(offset, wanted), wanted) if wanted else b""


def stat_mode(attributes: Attributes) -> int:
    """Return st_mode: the type and the permission bits."""
    return type_bits(attributes.type) | stat.S_IMODE(attributes.mode)


def type_bits(node_type: NodeType) -> int:
    """Return the type's part of st_mode."""
    return _TYPE_BITS[node_type]


def stat_blocks(attributes: Attributes) -> int:
    """Return st_blocks, in units of 512 bytes."""
    stored = attributes.size if attributes.allocated is None else attributes.allocated
    return -(-stored // STAT_BLOCK)


def kernel_name(name: str) -> bytes | None:
    """Return a name's bytes, or None for one that no kernel accepts (it is logged).

    One bad name among a directory's entries would make the kernel refuse all of them.
    """
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"/" in encoded or b"\0" in encoded or encoded in (b".", b".."):
        log.error("the tree gives a name that cannot be shown: %r", name)
        return None
    if len(encoded) > LONGEST_NAME:
        log.error("the tree gives a name of %d bytes: %r", len(encoded), name)
        return None
    return encoded


def attribute_names(tree: Tree, inode: int) -> list[bytes]:
    """Return the names of a node's extended attributes, without those that cannot be shown (logged)."""
    shown = []
    for name in tree.extended_attributes(inode):
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            encoded = b""
        if not encoded or b"\0" in encoded or len(encoded) > LONGEST_ATTRIBUTE_NAME:
            log.error("inode %d has an extended attribute whose name cannot be shown: %r", inode, name)
        elif encoded not in _SYSTEMS_OWN:
            shown.append(encoded)
    return shown


def systems_own(name: bytes) -> int | None:
    """Return the errno for an extended attribute that systems look for by themselves; None for another."""
    return _SYSTEMS_OWN.get(name)
