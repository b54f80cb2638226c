"""The Linux FUSE kernel protocol, version 7: numbers and records.

Specification: linux/fuse.h (the kernel's include/uapi/linux/fuse.h), whose comments are all there is, and
Documentation/filesystems/fuse/ of the kernel. The machine's byte order; records without padding.
"""

import struct
from enum import IntEnum, IntFlag

from mounters.translation import FILE_SYSTEM_BLOCK, stat_blocks, stat_mode
from mounters.tree import Attributes

MAJOR, MINOR = 7, 39  # with STATX, the latest we know
OLDEST_MINOR = 23  # Linux 3.15: an answer to INIT of today's length
BUFFER = 16384  # bytes for one request; at least FUSE_MIN_READ_BUFFER (8192), more only for writing
LARGEST_READ = 1 << 20  # bytes, 256 pages
LONGEST_LINK = 4095  # bytes, PATH_MAX less its NUL


class Opcode(IntEnum):
    """What is asked for: enum fuse_opcode, as far as it is answered here."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46
    STATX = 52


class InitFlag(IntFlag):
    """What a kernel can and we want: the flags of INIT."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25


FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
SEEK_DATA, SEEK_HOLE = 3, 4

# Requests
IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; more follows
OPEN_IN = struct.Struct("=II")  # flags, open_flags
READ_IN = struct.Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
RELEASE_IN = struct.Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
GETXATTR_IN = struct.Struct("=II")  # size, padding; a name follows that of GETXATTR
LSEEK_IN = struct.Struct("=QQII")  # fh, offset, whence, padding

# Answers
OUT_HEADER = struct.Struct("=IiQ")  # len, error (negative), unique
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages
INIT_OUT = struct.Struct("=IIIIHHIIHH32x")
# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
_ATTRIBUTES = "QQQqqqIIIIIIIIII"
_ENTRY = "QQQQII"  # nodeid, generation, entry_valid, attr_valid, their nanoseconds
_DIRENT = "QQII"  # ino, off, namelen, type; the name follows, padded to 8 bytes
ENTRY_OUT = struct.Struct(f"={_ENTRY}{_ATTRIBUTES}")
ATTR_OUT = struct.Struct(f"=QII{_ATTRIBUTES}")  # attr_valid, its nanoseconds, dummy
OPEN_OUT = struct.Struct("=QII")  # fh, open_flags, padding
GETXATTR_OUT = struct.Struct("=II")  # size, padding
LSEEK_OUT = struct.Struct("=Q")  # offset
STATFS_OUT = struct.Struct("=QQQQQIII28x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
DIRENT = struct.Struct(f"={_DIRENT}")
DIRENTPLUS = struct.Struct(f"={_ENTRY}{_ATTRIBUTES}{_DIRENT}")
# attr_valid, its nanoseconds, flags, spare; then struct fuse_statx: mask, blksize, attributes, nlink, uid,
# gid, mode, spare, ino, size, blocks, attributes_mask; atime, btime, ctime, mtime, each as seconds,
# nanoseconds, reserved; devices and spare
STATX_OUT = struct.Struct("=QII16xIIQIIIHHQQQQ" + "qIi" * 4 + "16x112x")
STATX_BASIC_AND_BIRTH = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME of linux/stat.h

assert IN_HEADER.size == 40
assert INIT_OUT.size == 64
assert (ENTRY_OUT.size, ATTR_OUT.size, DIRENTPLUS.size) == (128, 104, 152)
assert STATFS_OUT.size == 80
assert STATX_OUT.size == 288

_SECOND = 1_000_000_000
PADDING = tuple(bytes(-length % 8) for length in range(8))  # by a name's length modulo 8


def attribute_fields(number: int, attributes: Attributes) -> tuple[int, ...]:
    """Return the fields of struct fuse_attr; ``number`` is the kernel's."""
    accessed, accessed_rest = divmod(attributes.accessed, _SECOND)
    modified, modified_rest = divmod(attributes.modified, _SECOND)
    changed, changed_rest = divmod(attributes.changed, _SECOND)
    return (
        number,
        attributes.size,
        stat_blocks(attributes),
        accessed,
        modified,
        changed,
        accessed_rest,
        modified_rest,
        changed_rest,
        stat_mode(attributes),
        attributes.links,
        attributes.uid,
        attributes.gid,
        0,
        FILE_SYSTEM_BLOCK,
        0,
    )


def statx_out(number: int, attributes: Attributes, valid: int) -> bytes:
    """Return struct fuse_statx_out, which tells the time of creation too."""
    times: list[int] = []
    for time in (attributes.accessed, attributes.created, attributes.changed, attributes.modified):
        times += (*divmod(time, _SECOND), 0)
    return STATX_OUT.pack(
        valid,
        0,
        0,
        STATX_BASIC_AND_BIRTH,
        FILE_SYSTEM_BLOCK,
        0,
        attributes.links,
        attributes.uid,
        attributes.gid,
        stat_mode(attributes),
        0,
        number,
        attributes.size,
        stat_blocks(attributes),
        0,
        *times,
    )


def c_string(request: bytes, start: int) -> bytes:
    """Return the NUL-terminated string at an offset; raises ValueError where there is no NUL."""
    return request[start : request.index(b"\0", start)]
