"""Streams and NTFS's own attributes of files that are copied: where the target keeps them."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from formats.blockreader import BlockReader
from formats.errors import FormatError
from imagefs.tree import ImageTree

# As ntfs-3g takes them. All times, not that of creation alone: others that are set after it are lost.
_NTFS = ("system.ntfs_attrib_be", "system.ntfs_times_be")  # a link of ntfs-3g is one by the former
_UNKNOWN = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # what other file systems say to them
_LIMIT = 1 << 16  # bytes of an extended attribute; Linux takes no larger ones
_TOO_LARGE = (errno.E2BIG, errno.ENOSPC, errno.ERANGE)
_STEP = 1 << 20  # bytes read at a time

Failure = tuple[str, Exception]  # a stream's name, "" for the file itself; why it is not kept


def copy_streams(tree: ImageTree, inode: int, target: Path, *, overwrite: bool) -> Iterator[Failure]:
    """Give a copy the streams of a node, and yield those that it can't hold.

    They become ``user.`` extended attributes, on Windows streams.
    """
    try:
        streams = tree.streams(inode)
    except FormatError as error:
        yield "", error
        return
    for name, _, _ in streams:
        try:
            reader = tree.open_stream(inode, name)
            if sys.platform == "win32":
                _write_stream(reader, target.with_name(f"{target.name}:{name}"), overwrite=overwrite)
            else:
                _write_attribute(reader, target, name, overwrite=overwrite)
        except (OSError, FormatError, ValueError) as error:  # ValueError: a name that no system takes
            yield name, error


def copy_ntfs_attributes(tree: ImageTree, inode: int, target: Path) -> Iterator[Failure]:
    """Give a copy on NTFS a node's times and, but for a link, file attributes; yield what can't be read."""
    if sys.platform != "linux":
        return
    for name in _NTFS[1:] if target.is_symlink() else _NTFS:
        try:
            value = tree.extended_attribute(inode, name)
        except OSError:  # of another file system
            return
        except FormatError as error:
            yield "", error
            return
        try:
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno in _UNKNOWN:
                return
            yield "", error


def _write_stream(reader: BlockReader, target: Path, *, overwrite: bool) -> None:
    with target.open("wb" if overwrite else "xb") as file:
        for offset in range(0, reader.size, _STEP):
            file.write(reader.read_at(offset, min(_STEP, reader.size - offset)))


def _write_attribute(reader: BlockReader, target: Path, name: str, *, overwrite: bool) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "streams can't be kept in files here")
    if reader.size > _LIMIT:
        raise OSError(errno.E2BIG, f"{reader.size:,} bytes are too many for an extended attribute")
    value = reader.read_at(0, reader.size)
    try:
        os.setxattr(target, f"user.{name}", value, 0 if overwrite else os.XATTR_CREATE, follow_symlinks=False)
    except OSError as error:
        if error.errno in _TOO_LARGE:
            said = f"the target takes no extended attribute of {reader.size:,} bytes here"
            raise OSError(error.errno, said) from error
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            raise OSError(error.errno, "the target takes no extended attributes here") from error
        raise
